"""The command `promptcl`: read the arguments, call the library, print what it returns."""
