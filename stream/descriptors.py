"""File descriptors: how many the process may hold, and how many of them connections may take."""

from __future__ import annotations

import errno

MAX_CONNECTIONS = 1000
# For the rest: a session takes a UDP socket for each address of the machine, and there are films, weights, pipes.
ROOM = 256
NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})  # as accept(2) and socket(2) have it


class OutOfDescriptors(RuntimeError):
    """No file or socket can be opened; it passes as soon as others are closed."""

    def __init__(self) -> None:
        super().__init__("The server can open no more files and sockets; try again in a few seconds.")


def none_left(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in NONE_LEFT


def connection_limit(descriptors: int | None = None) -> int:
    """How many connections leave ROOM below the limit of descriptors, this process' if None; half where that is low."""
    if descriptors is None:
        descriptors = _own_limit()
    if descriptors < 0:  # there is no limit
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, descriptors - min(ROOM, descriptors // 2)))


def _own_limit() -> int:
    """How many descriptors this process may hold; -1 for any number."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return -1
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
