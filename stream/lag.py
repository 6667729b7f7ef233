"""The lag of the pictures that leave behind what is captured; sound is held back by as much."""

from __future__ import annotations

SHARE = 0.1  # of a new picture in the average


class Lag:
    """From capture to hand-over, smoothed over the pictures; 0 before the first."""

    def __init__(self):
        self.seconds = 0.0
        self._knows = False

    def shown(self, captured_s: float, shown_s: float) -> None:
        """Take a picture into account that is handed to the viewers at shown_s."""
        self.seconds += (shown_s - captured_s - self.seconds) * (SHARE if self._knows else 1.0)
        self._knows = True
