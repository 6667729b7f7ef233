"""A clip of nothing: what pictures are painted on that come from words alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from .pictures import Still


@dataclass(frozen=True, slots=True)
class _Moment:
    pts: int

    def still(self, size: tuple[int, int]) -> Still:
        return Still(np.zeros((size[1], size[0], 3), np.uint8), self.pts, 1)


class BlankClip:
    """`count` pictures of a size, 1/fps each."""

    has_sound = False
    damaged = 0
    path = Path("text")
    files: tuple[Path, ...] = ()

    def __init__(self, count: int, fps: Fraction, size: tuple[int, int]):
        self.count, self.rate, self.time_base = count, fps, 1 / fps
        self.width, self.height = size

    def expected(self, start_s: Fraction, end_s: Fraction | None) -> int:
        return self.count

    def moments(self, start_s: Fraction = Fraction(0), end_s: Fraction | None = None) -> Iterator[_Moment]:
        return (_Moment(number) for number in range(self.count))
