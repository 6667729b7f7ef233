"""When is a frame shown, a packet heard? Times that rise, whatever a damaged or joined file says."""

from __future__ import annotations

from fractions import Fraction

JUMP_S = 1  # a track that goes back further begins anew: files that were joined as they are


class Timeline:
    """Places what comes after one another on a line, in units of time_base. offset: how far joined parts were moved."""

    def __init__(self, time_base: Fraction, *, strictly: bool = True):
        self.offset = 0
        self._jump = round(JUMP_S / time_base)
        self._least = 1 if strictly else 0
        self._last: int | None = None
        self._end = 0

    def placed(self, time: int, duration: int) -> int:
        """Where it comes: at its own time, unless that lies before what came last."""
        here = time + self.offset
        if self._last is not None and here < self._last + self._least:
            if self._last - here > self._jump:
                self.offset += self._end - here
                here = self._end
            else:
                here = self._last + self._least
        self._last, self._end = here, here + max(1, duration)
        return here
