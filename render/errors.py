"""What can go wrong with a clip or a film."""


class FilmError(Exception):
    """A clip cannot be read or a film cannot be written; one sentence for the user."""
