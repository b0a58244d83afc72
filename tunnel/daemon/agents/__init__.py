"""Agents' tunnel sessions: how they come in, which one of a device counts, how they end."""
