"""Run a learner over a stream of tasks and measure it."""
