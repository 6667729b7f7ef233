"""Which weights have the model's LoRAs, since when, and what does it take to write others? For the engine thread."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Hashable, Sequence

from . import scheduler

WANTED_S = 1.0  # for so long after a stream's last frame its weights are still wanted


class Turns:
    """weights: those that the model was loaded with. `dwell_s`: for how long weights are kept at present, 0 while
    nobody wants others."""

    def __init__(self, weights: Hashable, budget_s: float):
        self.dwell_s = 0.0
        self._weights, self._since_s = weights, 0.0
        self._budget_s = budget_s
        self._times = scheduler.EngineTimes()

    def dwell(self, now_s: float, wanted: Collection[Hashable]) -> scheduler.Dwell | None:
        """What scheduler.plan is to hold to. wanted: the weights of all streams that send."""
        if self._weights not in wanted:  # nor are they kept for a stream whose own weights change
            self.dwell_s = 0.0
            return None
        rewrite_s = self._times.of("rewrite", now_s)
        self.dwell_s = scheduler.dwell_s(rewrite_s, len(wanted), self._budget_s)
        written_s = self._since_s + (statistics.median(rewrite_s) if rewrite_s else 0.0)
        return scheduler.Dwell(self._weights, written_s + self.dwell_s) if self.dwell_s else None

    def begin(self, now_s: float, weights: Hashable) -> bool:
        """A batch that needs these weights (None: any) is launched; whether others stood until now."""
        if weights is None or weights == self._weights:
            return False
        self._weights, self._since_s = weights, now_s
        return True

    def measured(self, now_s: float, engine_s: float, peers_s: Sequence[float]) -> None:
        """Engine time of a batch for which weights were written; peers_s: of batches like it for which none were."""
        if peers := scheduler.finite(peers_s):
            self._times.add(now_s, "rewrite", max(0.0, engine_s - statistics.median(peers)))
