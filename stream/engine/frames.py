"""A Frame on its way to the engine, the Picture made of it, Sound beside them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from av import VideoFrame
from av.video.reformatter import ColorRange

from pipeline.settings import Controls

from .i420 import to_i420
from .statistics import Statistics

BT601 = (2, 5, 6)  # libav's AVColorSpace: unspecified, which is taken for it, and its European and American names


@dataclass(frozen=True, slots=True)
class Frame:
    """A captured frame. Both times are on time.monotonic's clock.

    `captured_s` follows the sender's own timestamps where it sends any (even spacing, whatever the network does);
    `arrived_s` is when it reached us, and what latency is measured from.
    """

    pixels: VideoFrame | np.ndarray | None  # VideoFrame in any format, or uint8 [H, W, 3] RGB; None: see is_imagined
    arrived_s: float
    captured_s: float
    statistics: Statistics  # of the publication it belongs to: a successor's counters stay clean

    @property
    def is_imagined(self) -> bool:
        """Nothing was captured: the model is to paint from the controls alone."""
        return self.pixels is None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels; zeros where nothing was captured."""
        if self.pixels is None:
            return 0, 0
        if isinstance(self.pixels, VideoFrame):
            return self.pixels.height, self.pixels.width
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def is_i420(self) -> bool:
        """Did it come as I420 (stream.engine.i420)?"""
        return (
            isinstance(self.pixels, VideoFrame)
            and self.pixels.format.name == "yuv420p"
            and self.pixels.width % 2 == self.pixels.height % 2 == 0
            and self.pixels.colorspace in BT601
            and self.pixels.color_range in (ColorRange.UNSPECIFIED, ColorRange.MPEG)
        )

    def as_it_came(self) -> np.ndarray:
        """uint8 [H * 3 / 2, W] where it `is_i420`, otherwise what `rgb` gives; off the event loop too."""
        return self.pixels.to_ndarray() if isinstance(self.pixels, VideoFrame) and self.is_i420 else self.rgb()

    def rgb(self) -> np.ndarray:
        """uint8 [H, W, 3] RGB of what was captured; a conversion, so call it off the event loop."""
        if isinstance(self.pixels, VideoFrame):
            # One thread: left to itself swscale starts as many as there are processors, anew for every frame.
            return self.pixels.to_ndarray(format="rgb24", threads=1)
        assert self.pixels is not None, "nothing was captured"
        return self.pixels


@dataclass(frozen=True)
class Picture:
    """A stylized frame, shared by all who show it: nobody writes into `rgb` or `i420`."""

    rgb: np.ndarray  # uint8 [height, width, 3]
    arrived_s: float
    captured_s: float
    shown_s: float  # when it was handed to the viewers
    controls: Controls  # that made it
    planes: np.ndarray | None = None  # its I420, where the engine made it

    _converting: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def i420(self) -> np.ndarray:
        """uint8 [height * 3 / 2, width], see engine.i420: made once, for all viewers, when the first of them asks.

        Where there are no `planes` that is a conversion, so call it off the event loop.
        """
        with self._converting:
            return self._i420

    @cached_property
    def _i420(self) -> np.ndarray:
        return to_i420(self.rgb) if self.planes is None else self.planes


SAMPLE_RATE = 48_000  # of all sound here: what Opus decodes to


@dataclass(frozen=True, slots=True)
class Sound:
    """A piece of a publisher's sound, shared by all who hear it: nobody writes into `samples`."""

    samples: np.ndarray  # int16 [n, 2]: stereo at SAMPLE_RATE
    captured_s: float  # of the first sample, on the same clock as Frame.captured_s
