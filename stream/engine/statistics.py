"""A stream's statistics: counters since its publisher started, rates and percentiles of the last 5 s."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

WINDOW_S = 5.0


def percentiles_ms(values_s: Iterable[float]) -> dict[str, float | None]:
    """{"p50", "p95"} in milliseconds by nearest rank; None where there is nothing to rank."""
    ranked = sorted(values_s)
    return {
        f"p{percent}": round(1000 * ranked[math.ceil(percent / 100 * len(ranked)) - 1], 1) if ranked else None
        for percent in (50, 95)
    }


def rate_hz(times_s: Sequence[float], now_s: float) -> float:
    """Events per second from the first of them until now: right after two events, and falling when they stop."""
    if len(times_s) < 2 or now_s <= times_s[0]:
        return 0.0
    return round((len(times_s) - 1) / (now_s - times_s[0]), 2)


class Statistics:
    """One publication's counters. Any thread may count, any thread may read; in = out + dropped + those in flight.

    Skipped are those of the frames out that were not painted: the last picture was shown for them once more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.frames_in = 0
        self.frames_out = 0
        self.frames_dropped = 0
        self.frames_skipped = 0
        self._arrivals_s: deque[float] = deque()
        self._shown: deque[tuple[float, float, float | None]] = deque()  # (when, latency, engine time), seconds

    def count_in(self, now_s: float) -> None:
        with self._lock:
            self.frames_in += 1
            self._arrivals_s.append(now_s)
            self._forget_before(now_s - WINDOW_S)

    def count_out(self, now_s: float, latency_s: float, engine_s: float | None) -> None:
        """engine_s: None for a frame that was skipped."""
        with self._lock:
            self.frames_out += 1
            self.frames_skipped += engine_s is None
            self._shown.append((now_s, latency_s, engine_s))
            self._forget_before(now_s - WINDOW_S)

    def count_dropped(self) -> None:
        with self._lock:
            self.frames_dropped += 1

    def snapshot(self, now_s: float) -> dict[str, Any]:
        """What the API calls statistics, as far as a publication knows it by itself."""
        with self._lock:
            self._forget_before(now_s - WINDOW_S)
            counters = {
                "frames_in": self.frames_in,
                "frames_out": self.frames_out,
                "frames_dropped": self.frames_dropped,
                "in_flight": self.frames_in - self.frames_out - self.frames_dropped,
                "frames_skipped": self.frames_skipped,
            }
            arrivals_s, shown = list(self._arrivals_s), list(self._shown)
        return {
            **counters,
            "fps_in": rate_hz(arrivals_s, now_s),
            "fps_out": rate_hz([when for when, _, _ in shown], now_s),
            "latency_ms": percentiles_ms(latency for _, latency, _ in shown),
            "engine_ms": percentiles_ms(engine for _, _, engine in shown if engine is not None),
        }

    def _forget_before(self, horizon_s: float) -> None:
        while self._arrivals_s and self._arrivals_s[0] < horizon_s:
            self._arrivals_s.popleft()
        while self._shown and self._shown[0][0] < horizon_s:
            self._shown.popleft()
