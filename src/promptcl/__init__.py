"""promptcl: prompt-based continual learning with a frozen vision transformer."""
