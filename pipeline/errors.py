"""The one exception a user may see from loading: a sentence that names the thing and the remedy."""


class LoadError(Exception):
    """A model cannot be had as asked. `str(error)` is one sentence fit for a terminal or an API answer."""
