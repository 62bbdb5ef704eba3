"""Make pages and figures from results.json, never from a model."""
