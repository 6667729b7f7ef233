"""The queue in front of a recording: pictures and sound in the order they came, bounded, newcomers refused."""

from __future__ import annotations

import threading
from collections import Counter, deque

from stream.engine.frames import Picture, Sound

MAX_WAITING = {Picture: 32, Sound: 1024}  # 25 MB of pictures at 512x512; 20 s of Opus packets


class Backlog:
    """Any thread puts, one takes. `put` never waits: it is called with a stream locked."""

    def __init__(self):
        self._changed = threading.Condition()
        self._items: deque[Picture | Sound] = deque()
        self._waiting: Counter[type] = Counter()
        self._closed = False

    def put(self, item: Picture | Sound) -> bool:
        """False when there is no room for it, or nobody takes any more."""
        kind = type(item)
        with self._changed:
            if self._closed or self._waiting[kind] >= MAX_WAITING[kind]:
                return False
            self._items.append(item)
            self._waiting[kind] += 1
            self._changed.notify()
        return True

    def take(self, timeout_s: float) -> Picture | Sound | None:
        """The longest waiting; None when none came within timeout_s, at once when it is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed, timeout_s)
            if not self._items:
                return None
            item = self._items.popleft()
            self._waiting[type(item)] -= 1
        return item

    def holds(self, kind: type) -> bool:
        return self._waiting[kind] > 0

    def close(self) -> None:
        """Refuse whatever comes; what waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    @property
    def is_closed(self) -> bool:
        return self._closed
