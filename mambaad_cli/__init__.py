"""mambaad: learn what good product images look like, then score, map and explain new ones."""

__version__ = "0.1.0"


class MambaADError(Exception):
    """What a user can mend. The command prints it as one line, `mambaad: …`, and ends with exit status 1."""
