"""A learner behind HTTP: a page to learn on and to ask, and the interface of programs. Needs the extra `serve`."""
