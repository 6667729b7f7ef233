"""The log on stderr: a line that repeats is counted instead of written, and no token stands in it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

FORMAT = "%(levelname)s %(name)s: %(message)s"
EVERY_S = 60.0
MAX_KINDS = 256
# ?token= of an address, quoted or not, and what an Authorization header carries.
_SECRET = re.compile(r"""(token(?:=|%3D)|\bbearer\s+)[^\s&"'\\<>#]+""", re.IGNORECASE)

Kind = tuple


class Repeats:
    """Which lines are written: of each kind one a minute, and how many there were besides. Times are the caller's."""

    def __init__(self, every_s: float = EVERY_S, max_kinds: int = MAX_KINDS):
        self._every_s, self._max_kinds = every_s, max_kinds
        self._kinds: dict[Kind, list] = {}  # kind -> [when it was written, its repeats since], the oldest first

    def is_new(self, kind: Kind, now_s: float) -> bool:
        """Whether to write this line; a repeat is counted. Ask for what is `over` first."""
        if kind in self._kinds:
            self._kinds[kind][1] += 1
            return False
        self._kinds[kind] = [now_s, 0]
        return True

    def over(self, now_s: float) -> list[tuple[Kind, int]]:
        """Forget the kinds whose minute is over, and the oldest where they are too many; those that were repeated, with
        how often."""
        gone = [kind for kind, (written_s, _) in self._kinds.items() if now_s - written_s >= self._every_s]
        if not gone and len(self._kinds) >= self._max_kinds:
            gone = [next(iter(self._kinds))]
        counted = [(kind, self._kinds.pop(kind)[1]) for kind in gone]
        return [(kind, count) for kind, count in counted if count]


class StderrHandler(logging.StreamHandler):
    """Writes to stderr. `clock` is for tests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self.setFormatter(RedactingFormatter(FORMAT))
        self._clock, self._repeats = clock, Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        now_s = self._clock()
        try:
            kind = kind_of(record)
        except Exception:  # its arguments do not fit its text; logging never fails its caller
            return self.handleError(record)
        self._tell(now_s)
        if self._repeats.is_new(kind, now_s):
            super().emit(record)

    def close(self) -> None:
        assert self.lock is not None  # every logging.Handler makes one
        with self.lock:
            self._tell(float("inf"))
        super().close()

    def _tell(self, now_s: float) -> None:
        for (name, level, line, *_), count in self._repeats.over(now_s):
            told = f"{line} (said {count} {'time' if count == 1 else 'times'} more)"
            super().emit(logging.LogRecord(name, level, "", 0, told, None, None))


class RedactingFormatter(logging.Formatter):
    """Leaves tokens out, wherever they got into a line or a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return _SECRET.sub(r"\1...", super().format(record))


def kind_of(record: logging.LogRecord) -> Kind:
    """What makes two lines the same: who says it, its first line, and where the exception came from."""
    error, place = (record.exc_info[1], record.exc_info[2]) if record.exc_info else (None, None)
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = None if place is None else (place.tb_frame.f_code.co_filename, place.tb_lineno)
    line = record.getMessage().partition("\n")[0]
    return (record.name, record.levelno, line, None if error is None else type(error), where)
