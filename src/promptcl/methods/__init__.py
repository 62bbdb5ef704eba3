"""The methods of continual learning, one file each: `method.name=l2p` means methods/l2p.py."""
