"""`python -m promptcl`."""

from promptcl.cli.main import main

main()
