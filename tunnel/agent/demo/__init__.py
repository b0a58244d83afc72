"""A simulated box: what a local server on a real one answers, by `docs/box-api.md`, with nothing but Trio."""
