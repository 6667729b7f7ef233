"""Who is served next, in which batch, and when quality gives way to speed: decisions only, no clock and no I/O."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

RAISE_FRACTION = 0.8  # a better rung must be predicted to fit this share of the budget ...
RAISE_AFTER_S = 3.0  # ... for so long without a break, before it is tried
MIN_SAMPLES = 3  # a median of fewer would follow one slow frame (a new prompt being encoded, a warm-up)
MAX_SAMPLES = 5  # of each step count, and batch size, are remembered,
SAMPLE_LIFE_S = 60.0  # and for so long: what slowed the device down may be gone


@dataclass(frozen=True, slots=True)
class Waiting:
    """One stream with a frame in its slot."""

    stream: Hashable
    arrived_s: float  # when the frame in the slot arrived
    since_s: float  # when the slot became full: newer frames replace the frame, not the stream's place in the line
    shape_key: Hashable  # frames with equal keys may share a batch


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now: frames of `expired` streams are dropped and counted, those of `batch` go to the engine."""

    expired: tuple[Hashable, ...] = ()
    batch: tuple[Hashable, ...] = ()


def is_expired(now_s: float, arrived_s: float, budget_s: float) -> bool:
    """The budget is for a frame's age when it is picked: engine time is not held against it, or a slow engine
    would show nothing at all."""
    return now_s - arrived_s > budget_s


def plan(now_s: float, waiting: Sequence[Waiting], budget_s: float, max_batch: int = 1) -> Plan:
    """Longest-waiting stream first, joined by those of equal shape in the order of their waiting.

    A stream that was just served waits from its next frame on, behind all who waited already; so with n streams
    each of them is served within n picks.
    """
    expired = tuple(w.stream for w in waiting if is_expired(now_s, w.arrived_s, budget_s))
    line = sorted(
        (w for w in waiting if not is_expired(now_s, w.arrived_s, budget_s)), key=lambda w: (w.since_s, w.arrived_s)
    )
    if not line:
        return Plan(expired=expired)
    batch = [w.stream for w in line if w.shape_key == line[0].shape_key]
    return Plan(expired=expired, batch=tuple(batch[: max(1, max_batch)]))


BATCHES = (1, 2, 4, 8)  # few, since each is a shape that the engine has to warm up for
TRIALS = 4  # its first calls choose kernels and are recorded as CUDA graphs: they do not tell how fast it is


def batch_size(count: int, largest: int, measured_s: Mapping[int, Sequence[float]], budget_s: float) -> int:
    """How many of `count` waiting frames of one shape are painted at once, at most `largest`.

    The size that was seen to take least time per frame and fits the budget; one that is not known yet is tried if it
    fits should it be no faster per frame. measured_s: recent engine times of batches by size. The least of them
    counts: what slows a batch down now and then (a new prompt, a warm-up) is no trait of its size.
    """
    best_s = {size: min(times) for size, times in measured_s.items() if times}
    if not best_s:
        return 1
    fitting = [size for size in BATCHES if size <= min(count, largest)]
    unknown = {size for size in fitting if len(measured_s.get(size, ())) < (TRIALS if size > 1 else 1)}

    def expected_s(size: int) -> float:
        known = max((n for n in best_s if n <= size and n not in unknown), default=min(best_s))
        return best_s[known] * max(1.0, size / known)

    fitting = [size for size in fitting if size == 1 or expected_s(size) <= budget_s]
    if tried := unknown.intersection(fitting):
        return max(tried)
    return min(fitting, key=lambda size: (best_s[size] / size, -size))


SHARE_BELOW = 0.9  # of the time of a frame alone: so much less must a call take for frames to begin to share it,
SHARE_UNTIL = 0.97  # and so much for them to go on


def shares_steps(
    is_sharing: bool, steps: int, alone_s: Sequence[float], together_s: Sequence[float], budget_s: float
) -> bool:
    """Whether a stream's frames, each a step behind the one before it, share the calls of the UNet.

    That gives more pictures, each of them later: a frame is in the engine for `steps` calls, which have to fit the
    budget. alone_s: recent engine times of frames by themselves; together_s: of calls with `steps` frames in them, of
    which each finishes one, infinite where it failed. The least of them counts; what is not known yet is tried, alone
    first. Only while frames come faster than the engine paints them alone is there ever more than one in flight.
    """
    if steps < 2 or len(alone_s) < TRIALS or math.inf in together_s:
        return False
    one_s = min(alone_s)
    is_known = len(together_s) >= TRIALS
    call_s = min(together_s) if is_known else one_s  # as if nothing were gained
    if steps * call_s > budget_s:
        return False
    return not is_known or call_s < (SHARE_UNTIL if is_sharing else SHARE_BELOW) * one_s


@dataclass(frozen=True, slots=True)
class Quality:
    """`rung` steps fewer than asked (0 = as asked); `roomy_since_s`: since when a better rung would have fit."""

    rung: int = 0
    roomy_since_s: float | None = None


class EngineTimes:
    """The last engine times by a number: of a stream's frames by steps, of batches by their size."""

    def __init__(self):
        self._samples: dict[int, deque[tuple[float, float]]] = {}

    def add(self, now_s: float, number: int, engine_s: float) -> None:
        self._samples.setdefault(number, deque(maxlen=MAX_SAMPLES)).append((now_s, engine_s))

    def recent(self, now_s: float) -> dict[int, list[float]]:
        return {
            number: [engine_s for when_s, engine_s in samples if now_s - when_s <= SAMPLE_LIFE_S]
            for number, samples in self._samples.items()
        }


def predict_s(steps: int, measured_s: Mapping[int, Sequence[float]]) -> float | None:
    """Engine time of one frame at `steps`, from recent times by step count; None when too little is known.

    A count that was not measured is taken as proportional to the nearest that was: too high above it, too low below
    it, so that going up is careful and going down is corrected by the next measurement.
    """
    medians_s = {n: statistics.median(times) for n, times in measured_s.items() if len(times) >= MIN_SAMPLES}
    if not medians_s:
        return None
    nearest = min(medians_s, key=lambda n: (abs(n - steps), n))
    return medians_s[nearest] * steps / nearest


def next_quality(
    now_s: float, quality: Quality, steps: int, measured_s: Mapping[int, Sequence[float]], budget_s: float
) -> Quality:
    """The rung for the next frame, given the steps asked for and the engine times seen.

    Down at once to the best rung that is predicted to fit the budget, never below one step; up one rung at a time,
    after RAISE_AFTER_S of predicted headroom, so that it does not swing.
    """
    rung = min(quality.rung, steps - 1)
    predicted_s = predict_s(steps - rung, measured_s)
    if predicted_s is None:
        return Quality(rung)
    if predicted_s > budget_s:
        fitting = (r for r in range(rung + 1, steps) if (predict_s(steps - r, measured_s) or 0.0) <= budget_s)
        return Quality(next(fitting, steps - 1))
    if rung == 0:
        return Quality(0)
    better_s = predict_s(steps - rung + 1, measured_s)
    if better_s is None or better_s > RAISE_FRACTION * budget_s:
        return Quality(rung)
    if quality.roomy_since_s is None:
        return Quality(rung, roomy_since_s=now_s)
    if now_s - quality.roomy_since_s < RAISE_AFTER_S:
        return replace(quality, rung=rung)
    return Quality(rung - 1)
