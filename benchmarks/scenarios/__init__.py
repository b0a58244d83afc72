"""The scenarios, one a module; each answers an Outcome. Their order is that of a run."""
