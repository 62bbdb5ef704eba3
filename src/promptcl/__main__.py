"""`python -m promptcl`."""

from promptcl.cli import main

main()
