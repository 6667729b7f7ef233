"""Turns of LoRA weights: those the model has, since when, and the time that writing others takes."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence

from . import scheduler

WANTED_S = 1.0  # for so long after a stream's last frame its weights are still wanted
UNKNOWN = object()  # weights that nobody wants
DWELL_CHANGE = 0.2  # of the dwell that was told last: it is told again from there on,
TELL_EVERY_S = 1.0  # and so often: in between it may come and go with every batch


class Turns:
    """`dwell_s`: for how long weights are kept at present, 0 while nobody is held back for them."""

    def __init__(self, budget_s: float):
        self.dwell_s = 0.0
        self._weights: Hashable = UNKNOWN
        self._since_s = -math.inf  # when the batch ended that they were written for; infinite while it is under way
        self._last_s = -math.inf  # the same of the last batch
        self._rewrites_s: deque[float] = deque()  # when there were some not long ago, nor before the last lull
        self._budget_s = budget_s
        self._times = scheduler.EngineTimes()

    def dwell(self, now_s: float, wanted: Collection[Hashable]) -> scheduler.Dwell | None:
        """What scheduler.plan is to hold to. wanted: the weights of all streams that send."""
        self.dwell_s = 0.0
        if self._weights not in wanted:  # nor are they kept for a stream whose own weights change
            return None
        rewrite_s = self._times.of("rewrite", now_s)
        if not (dwell_s := scheduler.dwell_s(rewrite_s, len(wanted), self._budget_s)):
            return None
        while self._rewrites_s and now_s - self._rewrites_s[0] > scheduler.REWRITES_WITHIN_S:
            self._rewrites_s.popleft()
        holds_s = scheduler.holds_s(rewrite_s, len(self._rewrites_s))
        if holds_s:
            self.dwell_s = dwell_s
        return scheduler.Dwell(self._weights, min(now_s, self._since_s) + dwell_s, min(now_s, self._last_s) + holds_s)

    def begin(self, now_s: float, weights: Hashable, rewrites: bool) -> None:
        """A batch is launched that needs these weights (None: any), which are written for it or stand already."""
        self._last_s = math.inf
        if weights is not None:
            self._weights = weights
        if rewrites:
            self._since_s = math.inf
            self._rewrites_s.append(now_s)

    def ended(self, now_s: float, rewrites: bool) -> None:
        """A batch is there, for which weights were written or not: they dwell from then on."""
        self._last_s = now_s
        if rewrites:
            self._since_s = now_s

    def measured(self, now_s: float, engine_s: float, peers_s: Sequence[float]) -> None:
        """Engine time of a batch for which weights were written; peers_s: of batches like it for which none were."""
        if peers := scheduler.finite(peers_s):
            self._times.add(now_s, "rewrite", max(0.0, engine_s - statistics.median(peers)))

    def idle(self) -> None:
        """There is nothing to do: the engine had time for all rewrites until now."""
        self._rewrites_s.clear()

    def forget(self) -> None:
        """Nobody knows which weights stand."""
        self._weights, self._since_s, self._last_s = UNKNOWN, -math.inf, -math.inf


class DwellTold:
    """The longest dwell of late, told to `tell` now and then."""

    def __init__(self, tell: Callable[[float], None]):
        self._tell, self._told_s = tell, 0.0
        self._longest_s, self._next_s = 0.0, 0.0

    def __call__(self, now_s: float, dwell_s: float) -> None:
        self._longest_s = max(self._longest_s, round(dwell_s, 3))
        if now_s < self._next_s:
            return
        if abs(self._longest_s - self._told_s) > DWELL_CHANGE * self._told_s:
            self._told_s = self._longest_s
            self._tell(self._told_s)
        self._longest_s, self._next_s = 0.0, now_s + TELL_EVERY_S
