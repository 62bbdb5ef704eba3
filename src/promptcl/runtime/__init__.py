"""The machine that computes: device, precision, random seeds, versions, and processes that train together."""
