"""Shot boundaries, decided from one frame to the next in constant memory."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

THUMB = (32, 32)
JUMP = 24.0  # mean difference of two thumbnails, of 255, from which on a cut is possible ...
TIMES_BEFORE = 2.0  # ... if it is also so many times the largest of the few differences before: no pan, no fade
MEMORY = 3


class CutDetector:
    """Tell it every frame in order; it tells the number of the shot that the frame belongs to, from 0."""

    def __init__(self) -> None:
        self.shot = 0
        self._last: np.ndarray | None = None
        self._differences: deque[float] = deque(maxlen=MEMORY)

    def shot_of(self, rgb: np.ndarray) -> int:
        """rgb: uint8 [H, W, 3]."""
        thumb = cv2.resize(rgb, THUMB, interpolation=cv2.INTER_AREA).astype(np.float32)
        if self._last is not None:
            difference = float(np.abs(thumb - self._last).mean())
            if difference > JUMP and difference > TIMES_BEFORE * max(self._differences, default=0.0):
                self.shot += 1
                self._differences.clear()
            else:
                self._differences.append(difference)
        self._last = thumb
        return self.shot
