"""The ways to a box: a tunnel of this process, or another daemon that holds it."""
