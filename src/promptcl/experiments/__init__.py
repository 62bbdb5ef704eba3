"""A learner over a stream of tasks, measured."""
