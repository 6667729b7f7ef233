"""The one exception a user may see from loading: a sentence that names the thing and the remedy."""


class LoadError(Exception):
    """A model cannot be had as asked. `str(error)` is one sentence fit for a terminal or an API answer."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text without its full stop, to be quoted inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
