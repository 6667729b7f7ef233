"""The engine's seam: a Batch goes in by `submit`, Pictures come out of a Pending.

All of it but Pending is plain data, without torch: whoever calls `submit` need not know whether this process paints.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from .settings import Controls

T = TypeVar("T")
U = TypeVar("U")

BATCHES = (1, 2, 4, 8)  # sizes of live batches: few, since each is a shape that an engine has to warm up for

Report = Callable[[str, float | None], None]  # is told what happens, and its progress in 0..1 where that is known


@dataclass(frozen=True)
class Batch:
    """What is painted in one call: N frames, or N pictures from words alone.

    frames: uint8 [N, H, W, 3] RGB of any size, or [N, H * 3 / 2, W] I420 (BT.601, limited range); None paints from the
    controls alone. controls: one for each picture, all of equal shape keys (pipeline.capabilities). mask: uint8
    [N, H, W], or [N, height, width] of the model, 255 where to repaint. control_frames: uint8 [N, H, W, 3] that the
    control images are made of, in place of the frames. scale: of the width and height at which it is painted; one of
    those that the engine names. streams: of which stream each frame is, () where they are of none: what an engine
    remembers from one frame to the next it remembers by these. behind: for how many later batches of the same streams
    and shape its pictures may wait, where the engine gains by being at several at once. i420: the pictures are wanted
    in I420 too, if the engine makes that faster than who asks for it (`Pictures.i420`).
    """

    frames: np.ndarray | None
    controls: tuple[Controls, ...]
    mask: np.ndarray | None = None
    control_frames: np.ndarray | None = None
    scale: float = 1.0
    streams: tuple[Hashable, ...] = ()
    behind: int = 0
    i420: bool = False


@dataclass(frozen=True)
class Pictures:
    """rgb: uint8 [N, height, width, 3]. i420: the same, uint8 [N, height * 3 / 2, width], where the engine has made it
    along with them. kind: how they were painted, as far as the time that took depends on what only the engine knows."""

    rgb: np.ndarray
    i420: np.ndarray | None = None
    kind: Hashable = None


@dataclass(frozen=True)
class Pending(Generic[T]):
    """What an engine may still be at: called, it waits for the result and returns it, or raises what went wrong.
    is_there: does not wait. kind: of the pictures, where it is known before they are there."""

    is_there: Callable[[], bool]
    result: Callable[[], T]
    kind: Hashable = None

    def __call__(self) -> T:
        return self.result()

    def then(self, made: Callable[[T], U]) -> Pending[U]:
        """What is made of the result when somebody waits for it."""
        return Pending(self.is_there, lambda: made(self.result()), self.kind)


def there(result: T) -> Pending[T]:
    return Pending(lambda: True, lambda: result)
