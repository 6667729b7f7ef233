"""One publisher's time on a stream: where its frames and its sound go in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from av import VideoFrame

from stream.engine.frames import Frame, Sound
from stream.engine.statistics import Statistics

from .clocks import MediaClock
from .network import Reception

log = logging.getLogger(__name__)


class Publisher(Protocol):
    """Whoever feeds a stream; `kind` is told to users ("whip", "camera", "imagine")."""

    kind: str


class PublishedStream(Protocol):
    """The stream, as far as its publication knows it. A publication that was replaced changes nothing."""

    name: str
    publication: Publication | None
    fault: str | None

    def put(self, frame: Frame, publication: Publication) -> bool: ...

    def put_sound(self, sound: Sound, publication: Publication) -> bool: ...

    def skip(self, publication: Publication) -> None: ...

    def end(self, publication: Publication) -> None: ...


class Publication:
    """From `Stream.publish` until `end`, or until another publisher takes over.

    close_publisher: what who takes over calls, for the publisher to let go of what it holds. on_change: called after
    every change of the stream's controls. gives_way: see Stream.publish.
    """

    def __init__(self, stream: PublishedStream, publisher: Publisher, gives_way: bool = False):
        self.stream, self.publisher, self.gives_way = stream, publisher, gives_way
        self.began_s = time.monotonic()
        self.statistics = Statistics()
        self.clock = MediaClock()  # of the frames' media_s
        self.close_publisher: Callable[[], None] = lambda: None
        self.on_change: Callable[[], None] = lambda: None
        self.network: Callable[[], Reception] | None = None  # what its receiver counts, where there is a network
        self._has_skipped = False
        self._refused: str | None = None

    def put(
        self, pixels: VideoFrame | np.ndarray | None, media_s: float | None = None, arrived_s: float | None = None
    ) -> bool:
        """Leave the newest frame for the engine; False, and nothing happens, once another publisher has taken over.

        pixels: a VideoFrame or uint8 [H, W, 3] RGB, not to be written into any more; None asks for a picture from the
        controls alone. media_s: the frame's time on the sender's own clock, where it has one. arrived_s:
        time.monotonic() by default.
        """
        arrived_s = time.monotonic() if arrived_s is None else arrived_s
        captured_s = arrived_s if media_s is None else self.clock.captured_s(media_s, arrived_s)
        return self.stream.put(Frame(pixels, arrived_s, captured_s, self.statistics), self)

    def put_sound(self, samples: np.ndarray, captured_s: float) -> bool:
        """Hand sound to whoever hears the stream; False, and nothing happens, once another publisher has taken over.

        samples: int16 [n, 2], 48 kHz stereo. captured_s: of the first sample, on the clock of the frames' captured_s.
        """
        return self.stream.put_sound(Sound(samples, captured_s), self)

    def skip(self) -> None:
        """Count a frame that came in and was thrown away undecoded: it is dropped like any other."""
        if not self._has_skipped:
            self._has_skipped = True
            log.warning(
                "Frames of stream %s come in faster than they can be decoded; the surplus is dropped.", self.stream.name
            )
        self.stream.skip(self)

    def refuse(self, reason: str) -> None:
        """Count a frame that is not taken, as `skip` does, and tell whoever asks about the stream why: one sentence."""
        if self.stream.publication is self:
            self.stream.fault = reason
        if self._refused != reason:
            self._refused = reason
            log.warning("Stream %s: %s", self.stream.name, reason)
        self.stream.skip(self)

    def end(self) -> None:
        """The publisher is gone; viewers keep the last picture."""
        self.stream.end(self)
