"""What the daemon asks and tells Django."""
