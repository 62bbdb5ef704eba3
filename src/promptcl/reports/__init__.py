"""Pages and figures from results.json, never from a model."""
