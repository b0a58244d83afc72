"""Shared streams: one pull from a box, any number of viewers."""
