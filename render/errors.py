"""The error of clips and films."""


class FilmError(Exception):
    """A clip cannot be read or a film cannot be written; one sentence for the user."""
