"""Proxied requests on their way: handed to a daemon, moved by a thread, then by the loop of the process."""
