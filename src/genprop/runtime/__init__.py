"""Running a model: backends, windows, propagation and compositing."""
