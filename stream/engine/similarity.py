"""A frame that still shows what the last painted one did: that one's picture may stand for it, for a moment."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import cv2
import numpy as np
from av import VideoFrame

STANDS_S = 1.0  # the longest that a picture stands: what the measure does not see is painted after that
WIDTH, HEIGHT = 160, 120  # what frames are compared at: averaging takes most of a camera's noise away,
BLOCK = 4  # and of the blocks of so many pixels a side the one that changed most counts, or a blink would be missed


@dataclass(frozen=True, slots=True)
class Painted:
    """What is remembered of the last frame of a stream that was painted.

    circumstances: equal for frames that would be painted alike (controls, quality, mask, publisher, size).
    """

    when_s: float
    circumstances: Hashable
    thumbnail: np.ndarray


def stands(now_s: float, last: Painted | None, circumstances: Hashable, frame: np.ndarray, limit: float) -> bool:
    """Whether the picture of `last` may be shown for a frame too.

    frame: `thumbnail`. limit: the `difference` from which on it is painted; 0 paints every frame. It is compared with
    what was *painted* last, not seen last: so a slow fade adds up until it is painted.
    """
    return (
        last is not None
        and last.circumstances == circumstances
        and now_s - last.when_s < STANDS_S
        and difference(last.thumbnail, frame) < limit
    )


def thumbnail(pixels: VideoFrame | np.ndarray) -> np.ndarray:
    """A frame, of any format or uint8 [H, W, 3] RGB, in little: uint8 [3 * HEIGHT, WIDTH], its planes Y, U and V below
    each other, each pixel the mean of its area."""
    planes: np.ndarray
    if isinstance(pixels, VideoFrame):
        planes = pixels.reformat(WIDTH, HEIGHT, "yuv444p", interpolation="AREA", threads=1).to_ndarray()
    else:
        small = cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        planes = cv2.cvtColor(small, cv2.COLOR_RGB2YUV).transpose(2, 0, 1)
    return planes.reshape(3 * HEIGHT, WIDTH)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """How far two thumbnail frames are apart, in levels of 255: the mean absolute difference of the block that changed
    most, in brightness or colour."""
    change = cv2.absdiff(one, other).astype(np.float32)
    blocks = cv2.resize(change, (WIDTH // BLOCK, 3 * HEIGHT // BLOCK), interpolation=cv2.INTER_AREA)
    return float(blocks.max())
