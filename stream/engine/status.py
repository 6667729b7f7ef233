"""The engine's status: one dictionary, the answer of GET /api/status, that any thread may change and follow."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class Status:
    """Changes are whole: whoever reads sees all of one or nothing of it."""

    def __init__(self, model: str, device: str):
        self._lock = threading.Lock()
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._values: dict[str, Any] = {
            "state": "loading",
            "model": model,
            "device": device,
            "detail": "Starting.",
            "progress": None,
            "compiled": "no",
        }

    def read(self) -> dict[str, Any]:
        return dict(self._values)

    def change(self, **changes: Any) -> None:
        with self._lock:
            values = {**self._values, **changes}
            if values == self._values:
                return
            self._values = values
            listeners = self._listeners
        for listener in listeners:
            try:
                listener()
            except Exception:  # who reports progress is not to blame, and must not stop, for who listens
                log.exception("A listener to the status failed.")

    def report(self, detail: str, progress: float | None = None) -> None:
        """What load and compile tell while they work; progress from 0 to 1, None where it is not known."""
        self.change(detail=detail, progress=progress)

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after every change, from whatever thread made it; returns the unsubscriber."""
        with self._lock:
            self._listeners = (*self._listeners, listener)
        return lambda: self._unsubscribe(listener)

    def dismiss(self) -> None:
        """From now on nobody is told."""
        with self._lock:
            self._listeners = ()

    def _unsubscribe(self, listener: Callable[[], None]) -> None:
        with self._lock:
            self._listeners = tuple(other for other in self._listeners if other is not listener)


def sentence(error: BaseException) -> str:
    """An error as one line fit for a status display."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # an error in an error: the type alone is told
        text = ""
    return text[:300] if text else f"{type(error).__name__} without a message."
