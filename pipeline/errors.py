"""Errors for users, each a sentence that names the thing and the remedy, and the kinds of failure that are known."""

from __future__ import annotations

import re


class LoadError(Exception):
    """A model cannot be had as asked. `str(error)` is one sentence fit for a terminal or an API answer."""


class CaptureFailed(RuntimeError):
    """Capturing a CUDA graph broke off: the engine's memory may be corrupt."""


def is_out_of_memory(error: BaseException) -> bool:
    """Of the host, or of a device: known by its name, so that nobody imports torch for it."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def first_line(error: BaseException) -> str:
    """What an error's text begins with, to be quoted inside a sentence: a line, a sentence at most, no full stop."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.split(r"\.\s", line)[0].rstrip(".")
