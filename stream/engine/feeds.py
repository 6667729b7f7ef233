"""The streams that an engine serves: what it asks of each, and remembers of it."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from masks import Mask
from pipeline.settings import Controls

from . import scheduler, similarity
from .frames import Frame, Picture
from .mailbox import Mailbox

Weights = tuple[tuple[str, float], ...] | None  # LoRA and weight, by name; None where they do not matter


class Feed(Protocol):
    """What the engine asks of a stream (streams.Stream)."""

    name: str
    mailbox: Mailbox[Frame]
    waiting_since_s: float
    controls: Controls
    quality: int
    scale: float
    fault: str | None
    mask: Mask | None
    last_picture: Picture | None

    def show(
        self,
        frame: Frame,
        rgb: np.ndarray,
        engine_s: float | None,
        controls: Controls | None = None,
        planes: np.ndarray | None = None,
    ) -> None: ...

    def drop(self, frame: Frame) -> None: ...


class Asked(NamedTuple):
    """What a stream asked for when it last had a frame waiting."""

    when_s: float
    controls: Controls
    weights: Weights


@dataclass
class FeedState:
    """What the engine thread remembers of one stream. kind: of its last pictures (pipeline.batch.Pictures)."""

    quality: scheduler.Quality = field(default_factory=scheduler.Quality)
    times: scheduler.EngineTimes = field(default_factory=scheduler.EngineTimes)  # by way of working, and rung
    asked: Asked | None = None
    painted: similarity.Painted | None = None
    kind: Hashable = None
    _seen: tuple[Frame, np.ndarray] | None = None

    def times_of(self, way: Hashable, now_s: float) -> dict[scheduler.Rung, list[float]]:
        """By rung, of what was painted in the same way."""
        return {rung: times for (other, rung), times in self.times.recent(now_s).items() if other == way}

    def thumbnail(self, frame: Frame) -> np.ndarray:
        """As similarity.thumbnail, once for each frame: it is judged anew whenever another stream has been served."""
        assert frame.pixels is not None, "what is imagined is like nothing"
        if self._seen is None or self._seen[0] is not frame:
            self._seen = frame, similarity.thumbnail(frame.pixels)
        return self._seen[1]


class Feeds:
    """Streams come and go from any thread; whoever has read `served` keeps what was true then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.served: dict[Feed, FeedState] = {}

    def attach(self, feed: Feed) -> None:
        with self._lock:
            self.served = {**self.served, feed: FeedState()}

    def detach(self, feed: Feed) -> None:
        with self._lock:
            self.served = {other: served for other, served in self.served.items() if other is not feed}

    def start_over(self) -> None:
        """The engine is another: what its forerunner painted may not stand, nor count for what it took to."""
        with self._lock:
            self.served = {feed: FeedState(asked=state.asked) for feed, state in self.served.items()}

    def asked(self, now_s: float, within_s: float) -> Iterator[Asked]:
        """What streams asked for that had a frame waiting not long ago."""
        for state in self.served.values():
            if state.asked is not None and now_s - state.asked.when_s <= within_s:
                yield state.asked
