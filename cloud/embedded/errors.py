"""The one error of the embedded servers: a line for a person, never a trace."""


class EmbeddedError(Exception):
    """An embedded server cannot be had. ``str(error)`` is one line that says what is wrong and what to do."""
