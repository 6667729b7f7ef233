"""Decisions only, no clock and no I/O: who is served next, in which batch, and when quality gives way to speed."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pipeline.batch import BATCHES

Name = TypeVar("Name")  # whatever the caller knows a stream by

RAISE_FRACTION = 0.8  # a better rung must be predicted to fit this share of the budget ...
RAISE_AFTER_S = 3.0  # ... for so long without a break, before it is tried
# Where nothing fits the budget: a rung below is taken for so much of the time of the present one, and left again if it
WORTH_GOING, WORTH_STAYING = 0.8, 0.95  # turns out to take more than so much of a better one's.
MIN_SAMPLES = 3  # a median of fewer would follow one slow frame (a new prompt being encoded, a warm-up)
MAX_SAMPLES = 5  # of each rung, and batch size, are remembered,
SAMPLE_LIFE_S = 60.0  # and for so long: what slowed the device down may be gone
# A failure, as an infinite time, counts for longer: to try that again takes memory away, and with it a moment of time.
FAILURE_LIFE_S = 600.0


@dataclass(frozen=True, slots=True)
class Waiting(Generic[Name]):
    """One stream with a frame in its slot."""

    stream: Name
    arrived_s: float  # when the frame in the slot arrived
    since_s: float  # when the slot became full: newer frames replace the frame, not the stream's place in the line
    shape_key: Hashable  # frames with equal keys may share a batch
    stands: bool = False  # the stream's last picture may be shown for this frame too (stream.engine.similarity)
    weights: Hashable = None  # that the model's LoRAs must have for it; None where that does not matter


@dataclass(frozen=True, slots=True)
class Dwell:
    """Until when LoRAs keep the weights that they have, while somebody waits for these. holds_until_s: even if nobody
    does, as long as that is not over before."""

    weights: Hashable
    until_s: float
    holds_until_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Plan(Generic[Name]):
    """What to do now: frames of `expired` streams are dropped and counted, for those of `standing` the last picture is
    shown once more, those of `batch` go to the engine. again_s: when to plan anew, where somebody is held back."""

    expired: tuple[Name, ...] = ()
    standing: tuple[Name, ...] = ()
    batch: tuple[Name, ...] = ()
    again_s: float | None = None


def is_expired(now_s: float, arrived_s: float, budget_s: float) -> bool:
    """The budget is for a frame's age when it is picked: engine time is not held against it, or a slow engine
    would show nothing at all."""
    return now_s - arrived_s > budget_s


def plan(
    now_s: float, waiting: Sequence[Waiting[Name]], budget_s: float, max_batch: int = 1, dwell: Dwell | None = None
) -> Plan[Name]:
    """Longest-waiting stream first, joined by those of equal shape in the order of their waiting.

    A stream that was just served waits from its next frame on, behind all who waited already; so with n streams
    each of them is served within n picks. One whose picture stands takes nobody's time, so it does not wait in line.
    While LoRA weights dwell, those who need others come after those who need these, or are held back for them; then
    they are the first, as they waited longest.
    """
    expired = tuple(w.stream for w in waiting if is_expired(now_s, w.arrived_s, budget_s))
    fresh = [w for w in waiting if not is_expired(now_s, w.arrived_s, budget_s)]
    standing = tuple(w.stream for w in fresh if w.stands)
    line = sorted((w for w in fresh if not w.stands), key=lambda w: (w.since_s, w.arrived_s))
    served, again_s = line, None
    if dwell is not None and now_s < dwell.until_s:
        served = [w for w in line if w.weights in (None, dwell.weights)]
        if not served and now_s >= dwell.holds_until_s:
            served = line
        elif len(served) < len(line):
            again_s = min(dwell.until_s, dwell.holds_until_s)
    batch = [w.stream for w in served if w.shape_key == served[0].shape_key]
    return Plan(expired, standing, tuple(batch[: max(1, max_batch)]), again_s)


REWRITES_SHARE = 0.25  # of the time may go into writing LoRA weights, as long as
DWELLS_SHARE = 0.5  # of the budget is enough for all dwells that a stream waits for
REWRITES_WITHIN_S = 1.0  # is the time that was


def dwell_s(rewrite_s: Sequence[float], groups: int, budget_s: float) -> float:
    """For how long LoRAs keep their weights for those who want them, while others want other weights.

    rewrite_s: what it was seen to take to write others; while that is not known, as long as may be, to find out.
    groups: how many weights are wanted. Each waits for the dwells of all others, which have to fit the budget together.
    """
    if groups < 2:
        return 0.0
    most_s = DWELLS_SHARE * budget_s / (groups - 1)
    if not (known := finite(rewrite_s)):
        return most_s
    return min(most_s, max(0.0, statistics.median(known)) * (1 / REWRITES_SHARE - 1))


def holds_s(rewrite_s: Sequence[float], rewrites: int) -> float:
    """For how long an engine with nothing else to do waits for a frame that needs the weights that stand.

    rewrites: how many there were within REWRITES_WITHIN_S, without a lull behind them. Where there is time for another,
    not at all; else as long as that takes, since a frame that comes sooner saves it. While it is not known, for the
    whole dwell.
    """
    if not (known := finite(rewrite_s)):
        return math.inf
    one_s = max(0.0, statistics.median(known))
    return one_s if (rewrites + 1) * one_s > REWRITES_SHARE * REWRITES_WITHIN_S else 0.0


RESTARTS, RESTARTS_WITHIN_S = 2, 60.0


def may_restart(now_s: float, restarts_s: Sequence[float]) -> bool:
    """Whether an engine that broke down is started again. restarts_s: when it was before."""
    return sum(now_s - at_s < RESTARTS_WITHIN_S for at_s in restarts_s) < RESTARTS


def finite(times_s: Sequence[float]) -> list[float]:
    """Those that tell how long something took: an infinite one tells that it failed."""
    return [seconds for seconds in times_s if seconds < math.inf]


TRIALS = 4  # its first calls choose kernels and are captured as CUDA graphs: they do not tell how fast it is


def batch_size(count: int, largest: int, measured_s: Mapping[int, Sequence[float]], budget_s: float) -> int:
    """How many of `count` waiting frames of one shape are painted at once, at most `largest`.

    The size that was seen to take least time per frame and fits the budget; one that is not known yet is tried if it
    fits should it be no faster per frame. measured_s: recent engine times of batches by size. The least of them
    counts: what slows a batch down now and then (a new prompt, a warm-up) is no trait of its size. An infinite one
    tells that this size failed, so that one as large is not tried meanwhile.
    """
    failed = min((size for size, times in measured_s.items() if math.inf in times), default=math.inf)
    known_s = {size: finite(times) for size, times in measured_s.items()}
    best_s = {size: min(times) for size, times in known_s.items() if times}
    if not best_s:
        return 1
    fitting = [size for size in BATCHES if size == 1 or (size <= min(count, largest) and size < failed)]
    unknown = {size for size in fitting if len(known_s.get(size, ())) < (TRIALS if size > 1 else 1)}

    def expected_s(size: int) -> float:
        known = max((n for n in best_s if n <= size and n not in unknown), default=min(best_s))
        return best_s[known] * max(1.0, size / known)

    fitting = [size for size in fitting if size == 1 or expected_s(size) <= budget_s]
    if tried := unknown.intersection(fitting):
        return max(tried)
    return min(fitting, key=lambda size: (best_s[size] / size, -size))


MARGIN_S = 0.001  # for a launch that takes longer than the last did


def follow_at_s(since_s: float, engine_s: Sequence[float], launch_s: float) -> float | None:
    """When to give the engine the next batch, if it has been at one since `since_s`: just before that ends. Then it
    never waits for work, and no frame was taken up longer before its turn than it must. None, when that has ended, as
    long as nobody knows how long it takes.

    engine_s: recent engine times of batches like the one it is at; launch_s: how long the last took to be launched.
    """
    known = finite(engine_s)
    return since_s + min(known) - launch_s - MARGIN_S if known else None


BEHIND_BELOW = 0.9  # of the time of a batch alone: so much less must one take for the engine to begin to be at several,
BEHIND_UNTIL = 0.97  # and so much to go on with that


def gains_behind(
    is_behind: bool, depth: int, alone_s: Sequence[float], together_s: Sequence[float], budget_s: float
) -> bool:
    """Whether an engine that can be at `depth` batches of one stream at once gains by that.

    It then gives more pictures, each of them `depth` - 1 batches later, which all have to fit the budget. is_behind:
    whether it is at several now. alone_s: recent engine times of batches by themselves; together_s: of one among
    `depth`, infinite where it failed. The least of them counts; what is not known yet is tried, alone first. Only while
    frames come faster than the engine paints them alone is it ever at more than one.
    """
    alone_s = finite(alone_s)
    if depth < 2 or len(alone_s) < TRIALS or math.inf in together_s:
        return False
    one_s = min(alone_s)
    is_known = len(together_s) >= TRIALS
    next_s = min(together_s) if is_known else one_s  # as if nothing were gained
    if depth * next_s > budget_s:
        return False
    return not is_known or next_s < (BEHIND_UNTIL if is_behind else BEHIND_BELOW) * one_s


@dataclass(frozen=True, slots=True)
class Rung:
    """How well a frame is painted. scale: the share of the width and height at which it is."""

    steps: int
    scale: float = 1.0

    @property
    def work(self) -> float:
        """What it takes, in steps at full size."""
        return self.steps * self.scale**2


def ladder(steps: int, scales: Sequence[float] = (1.0,)) -> tuple[Rung, ...]:
    """From what was asked for downwards: steps are taken off to the last, then size.

    scales: those the model paints at, from 1 downwards.
    """
    return (*(Rung(n) for n in range(steps, 0, -1)), *(Rung(1, scale) for scale in scales[1:]))


@dataclass(frozen=True, slots=True)
class Quality:
    """`rung`: where on the ladder, None = as asked; `roomy_since_s`: since when a better rung would have fit."""

    rung: Rung | None = None
    roomy_since_s: float | None = None


class EngineTimes:
    """The last engine times by what they were spent on: of a stream's frames by rung, of batches by their size."""

    def __init__(self) -> None:
        self._samples: dict[Any, deque[tuple[float, float]]] = {}

    def add(self, now_s: float, kind: Any, engine_s: float) -> None:
        self._samples.setdefault(kind, deque(maxlen=MAX_SAMPLES)).append((now_s, engine_s))

    def recent(self, now_s: float) -> dict[Any, list[float]]:
        return {kind: self.of(kind, now_s) for kind in self._samples}

    def of(self, kind: Any, now_s: float) -> list[float]:
        return [seconds for when_s, seconds in self._samples.get(kind, ()) if now_s - when_s <= _life_s(seconds)]


def _life_s(engine_s: float) -> float:
    return SAMPLE_LIFE_S if engine_s < math.inf else FAILURE_LIFE_S


def medians(measured_s: Mapping[Rung, Sequence[float]]) -> dict[Rung, float]:
    """Engine time of one frame by rung, of those that were measured often enough."""
    known = {rung: finite(times) for rung, times in measured_s.items()}
    return {rung: statistics.median(times) for rung, times in known.items() if len(times) >= MIN_SAMPLES}


def predict_s(rung: Rung, known_s: Mapping[Rung, float]) -> float:
    """Engine time of one frame on a rung, from the `medians` of others, of which there is one at least.

    A rung that was not measured is taken as proportional to the nearest that was: too high above it, too low below
    it, so that going up is careful and going down is corrected by the next measurement. Of the same size rather than
    another, as there may be faster code for one of them.
    """
    nearest = min(known_s, key=lambda other: (other.scale != rung.scale, abs(other.work - rung.work), other.work))
    return known_s[nearest] * rung.work / nearest.work


def next_quality(
    now_s: float, quality: Quality, rungs: Sequence[Rung], measured_s: Mapping[Rung, Sequence[float]], budget_s: float
) -> Quality:
    """The quality of the next frame, given the ladder of what is asked for and the engine times seen.

    Down at once to the best rung that is predicted to fit the budget; up one rung at a time, after RAISE_AFTER_S of
    predicted headroom, so that it does not swing.
    """
    at = rungs.index(quality.rung) if quality.rung in rungs else 0
    known_s = medians(measured_s)
    if not known_s:
        return _quality(rungs, at)
    times_s = [predict_s(rung, known_s) for rung in rungs]
    if times_s[at] > budget_s:
        return _quality(rungs, _bearable(at, rungs, times_s, known_s, budget_s))
    if at == 0 or times_s[at - 1] > RAISE_FRACTION * budget_s:
        return _quality(rungs, at)
    if quality.roomy_since_s is None:
        return Quality(rungs[at], roomy_since_s=now_s)
    if now_s - quality.roomy_since_s < RAISE_AFTER_S:
        return quality
    return _quality(rungs, at - 1)


def _quality(rungs: Sequence[Rung], at: int) -> Quality:
    return Quality(rungs[at] if at else None)


def _bearable(
    at: int, rungs: Sequence[Rung], times_s: Sequence[float], known_s: Mapping[Rung, float], budget_s: float
) -> int:
    """Where to go from the rung number `at`, which exceeds the budget.

    To the best below that fits; size goes once a single step was seen not to. Where none fits: to the fastest below, if
    that gains much; else back to the best that was seen to be about as fast: quality is not given away for nothing. (A
    smaller picture may well take longer, as there is compiled code for the full size only.)
    """
    may_shrink = rungs[at].steps == 1 and rungs[at] in known_s
    below = [r for r in range(at + 1, len(rungs)) if may_shrink or rungs[r].scale == rungs[at].scale]
    if fitting := [rung for rung in below if times_s[rung] <= budget_s]:
        return fitting[0]
    fastest = min(below, key=times_s.__getitem__, default=at)
    if times_s[fastest] <= WORTH_GOING * times_s[at]:
        return fastest
    as_fast = (r for r in range(at) if rungs[r] in known_s and WORTH_STAYING * times_s[r] <= times_s[at])
    return next(as_fast, at)
