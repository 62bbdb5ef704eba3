"""This machine and the processes on it."""
