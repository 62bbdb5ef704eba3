"""The command `promptcl`: parse, call, print."""
