"""One file a method: `method.name=l2p` means methods/l2p.py."""
