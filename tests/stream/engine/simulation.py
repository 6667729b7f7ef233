"""What viewers would see: the scheduler's decisions and the mailbox, against a made-up engine and clock."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from stream.engine import scheduler
from stream.engine.mailbox import Mailbox
from stream.engine.turns import WANTED_S, Turns


@dataclass(frozen=True, slots=True)
class Shown:
    """One frame that reached the viewers of stream number `stream`; all times in seconds of the simulated clock."""

    stream: int
    arrived_s: float
    picked_s: float
    shown_s: float

    @property
    def age_s(self) -> float:
        """The frame's age when it is shown."""
        return self.shown_s - self.arrived_s


@dataclass(frozen=True)
class Simulation:
    """`frames_in = len(shown) + dropped + in_flight` holds for each stream."""

    shown: tuple[Shown, ...]
    frames_in: tuple[int, ...]
    dropped: tuple[int, ...]
    in_flight: tuple[int, ...]
    rewriting_s: float = 0.0  # what LoRA weights took to be written, of `duration_s`


def simulate(
    engine_s: float | Callable[[random.Random], float],
    *,
    fps_in: float | Sequence[float] = 30.0,
    duration_s: float = 10.0,
    budget_s: float = 1.0,
    max_batch: int = 1,
    jitter_s: float = 0.0,
    seed: int = 0,
    weights: Sequence[Hashable] | None = None,
    rewrite_s: float = 0.0,
    dwells: bool = True,
) -> Simulation:
    """Play `duration_s` seconds of one stream per entry of `fps_in` through the scheduler.

    engine_s: time of one batch, or a function that draws it. jitter_s: each frame arrives up to this much late.
    weights: of the LoRAs, for each stream; they take rewrite_s to be written for a batch that needs others.
    dwells: whether they are kept for a while; without, streams are served by their place in the line alone.
    """
    dice = random.Random(seed)
    draw_engine_s = engine_s if callable(engine_s) else lambda dice: engine_s
    rates_hz = [fps_in] if isinstance(fps_in, (int, float)) else list(fps_in)
    slots: list[Mailbox[float]] = [Mailbox() for _ in rates_hz]
    since_s = [0.0] * len(rates_hz)
    frames_in, expired = [0] * len(rates_hz), [0] * len(rates_hz)
    arrivals = [
        (number / rate_hz + dice.uniform(0, jitter_s), stream)
        for stream, rate_hz in enumerate(rates_hz)
        for number in range(int(duration_s * rate_hz))
    ]
    heapq.heapify(arrivals)
    shown: list[Shown] = []
    turns, asked_s, plain, rewriting_s = Turns(budget_s), {}, scheduler.EngineTimes(), 0.0
    stand: Hashable = None
    needs = [None] * len(rates_hz) if weights is None else list(weights)
    engine_free_s, now_s = 0.0, 0.0
    while arrivals or any(slot.peek() is not None for slot in slots):
        idle_until_s = arrivals[0][0] if arrivals else now_s
        waiting = any(slot.peek() is not None for slot in slots)
        if not waiting and idle_until_s > engine_free_s:
            turns.idle()
        now_s = max(now_s, engine_free_s if waiting else max(engine_free_s, idle_until_s))
        if now_s >= duration_s:
            break
        while arrivals and arrivals[0][0] <= now_s:
            arrived_s, stream = heapq.heappop(arrivals)
            frames_in[stream] += 1
            if slots[stream].put(arrived_s) is None:
                since_s[stream] = arrived_s
        line = [
            scheduler.Waiting(stream, arrived_s, since_s[stream], shape_key=needs[stream], weights=needs[stream])
            for stream, slot in enumerate(slots)
            if (arrived_s := slot.peek()) is not None
        ]
        asked_s |= {waiting.stream: now_s for waiting in line}
        wanted = {needs[stream] for stream, when_s in asked_s.items() if now_s - when_s <= WANTED_S} - {None}
        plan = scheduler.plan(now_s, line, budget_s, max_batch, turns.dwell(now_s, wanted) if dwells else None)
        for stream in plan.expired:
            slots[stream].take()
            expired[stream] += 1
        if plan.batch:
            took_s, needed = draw_engine_s(dice), needs[plan.batch[0]]
            rewrites, stand = needed not in (None, stand), needed or stand
            turns.begin(now_s, needed, rewrites)
            engine_free_s = now_s + took_s + rewrite_s * rewrites
            rewriting_s += rewrite_s * rewrites
            turns.ended(engine_free_s, rewrites)
            if rewrites:
                turns.measured(engine_free_s, took_s + rewrite_s, plain.of(len(plan.batch), now_s))
            else:
                plain.add(engine_free_s, len(plan.batch), took_s)
            shown += [Shown(stream, slots[stream].take(), now_s, engine_free_s) for stream in plan.batch]
        elif plan.again_s is not None:
            now_s = min([plan.again_s, *(at_s for at_s, _ in arrivals[:1])])
    return Simulation(
        shown=tuple(shown),
        frames_in=tuple(frames_in),
        dropped=tuple(slot.dropped + late for slot, late in zip(slots, expired, strict=True)),
        in_flight=tuple(int(slot.peek() is not None) for slot in slots),
        rewriting_s=rewriting_s,
    )
