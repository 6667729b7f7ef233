"""A video file (or a picture) that plays in a camera's place, at its own times."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from pathlib import Path

from sources import CameraError, Captured

from .clip import open_clip
from .errors import FilmError

LATE_S = 1.0  # a file that is further behind goes on from where it is: the machine slept, or decodes too slowly


class LoopedFile:
    """A sources.Source, of variable rates too, that begins anew after its end. Raises CameraError.

    Frames come cropped to `size`, (width, height).
    """

    def __init__(self, path: Path, size: tuple[int, int]):
        try:
            self._clip = open_clip(path)
        except FilmError as error:
            raise CameraError(str(error)) from error
        self.name = self.address = str(path)
        self.rate_hz = float(self._clip.rate)
        self._frames = self._passes(size)
        self._origin_s: float | None = None

    def read(self, closing: threading.Event) -> Captured | None:
        try:
            frame = next(self._frames, None)
        except FilmError:  # it was there when we opened it
            return None
        if frame is not None and frame.media_s is not None:
            now_s = time.monotonic()
            self._origin_s = origin_s(self._origin_s, frame.media_s, now_s)
            closing.wait(max(0.0, self._origin_s + frame.media_s - now_s))
        return frame

    def close(self) -> None:
        self._frames.close()

    def _passes(self, size: tuple[int, int]) -> Generator[Captured]:
        """All frames, again and again; the time goes on. Ends when the file holds none any more."""
        begin_s = end_s = 0.0
        while True:
            for still in self._clip.stills(size):
                media_s = begin_s + float(still.pts * self._clip.time_base)
                end_s = media_s + float(still.duration * self._clip.time_base)
                yield Captured(still.rgb, media_s)
            if end_s <= begin_s:
                return
            begin_s = end_s


def origin_s(origin_s: float | None, media_s: float, now_s: float) -> float:
    """When the file's time was zero: kept, so that nothing drifts, unless this frame is late beyond catching up."""
    if origin_s is None or now_s - (origin_s + media_s) > LATE_S:
        return now_s - media_s
    return origin_s
