"""One slot, newest wins: how frames change hands without ever queueing, and how many were overwritten on the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """A slot that any thread may fill and any thread may empty.

    `dropped` counts the items that were overwritten or cleared before anyone took them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: Item | None = None
        self.dropped = 0

    def put(self, item: Item) -> Item | None:
        """Leave an item; the one it replaces, if any, is counted as dropped and returned."""
        with self._changed:
            replaced, self._item = self._item, item
            self.dropped += replaced is not None
            self._changed.notify()
        return replaced

    def take(self, timeout_s: float = 0.0) -> Item | None:
        """The newest item, waiting for one up to `timeout_s`; None when none came."""
        with self._changed:
            if self._item is None and timeout_s > 0:
                self._changed.wait_for(lambda: self._item is not None, timeout_s)
            item, self._item = self._item, None
        return item

    def peek(self) -> Item | None:
        """The item that lies in the slot, left there."""
        return self._item

    def take_if(self, matches: Callable[[Item], bool]) -> Item | None:
        """The waiting item if it matches; another is left there."""
        with self._changed:
            if self._item is None or not matches(self._item):
                return None
            item, self._item = self._item, None
        return item

    def clear(self, matches: Callable[[Item], bool] = lambda item: True) -> Item | None:
        """Throw away the waiting item if it matches; it is counted as dropped and returned."""
        with self._changed:
            cleared = self.take_if(matches)
            self.dropped += cleared is not None
        return cleared


class Outbox(Mailbox[Item]):
    """A mailbox that is emptied on an asyncio loop: the inference thread puts, one coroutine awaits `get`."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        super().__init__()
        self._loop = loop
        self._filled = asyncio.Event()
        self._woken = False

    def put(self, item: Item) -> Item | None:
        replaced = super().put(item)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._filled.set)
        return replaced

    def wake(self) -> None:
        """Have `get`, the next one if none waits, return at once, with nothing if there is nothing; on the loop."""
        self._woken = True
        self._filled.set()

    async def get(self, timeout_s: float | None = None) -> Item | None:
        """The newest item; None when none came within `timeout_s` (None waits for ever), or until `wake`."""
        try:
            async with asyncio.timeout(timeout_s):
                while (item := self.take()) is None and not self._woken:
                    self._filled.clear()
                    if self.peek() is None:
                        await self._filled.wait()
        except TimeoutError:
            item = None
        self._woken = False
        return item
