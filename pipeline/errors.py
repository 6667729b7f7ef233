"""The one exception a user may see from loading: a sentence that names the thing and the remedy."""

from __future__ import annotations

import re


class LoadError(Exception):
    """A model cannot be had as asked. `str(error)` is one sentence fit for a terminal or an API answer."""


def first_line(error: BaseException) -> str:
    """What an error's text begins with, to be quoted inside a sentence: a line, a sentence at most, no full stop."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.split(r"\.\s", line)[0].rstrip(".")
