"""Several streams on one device: what comes out of each, how old, and how evenly is the device shared?

    python -m benchmarks.streams [--model mini | --shape sd15 [--tiny] | --sleep-ms 20 [--card]] [--json FILE]

The real engine thread, mailboxes and scheduler; each stream is left 30 frames a second, evenly out of step with the
others. Age is from a frame's arrival to its picture's hand-over; fairness the least stream's fps over the greatest's.
On a device that works beside its caller many streams are measured twice: batches launched ahead of the last one's end,
and one after the other.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.breakdown import add_model_options, chosen_model
from benchmarks.frame_age import Publisher, SleepingCard, SleepingStylizer
from pipeline import Controls, compiling, load
from pipeline.runtime.devices import compiling_pays, prepared
from stream.engine.engine import Engine as Stylizer
from stream.engine.room import EngineRoom
from stream.streams import Streams

FPS_IN = 30.0
COUNTS = (1, 2, 4, 8, 16)
FULL = 8  # from so many on, the device has more to do than it can
WARM_UP_S = 2.0


class Altered:
    """A stylizer with other attributes."""

    def __init__(self, stylizer: Stylizer, **others: Any):
        vars(self).update(others, _stylizer=stylizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stylizer, name)

    def __call__(self, *args, **options) -> Any:
        return self._stylizer(*args, **options)


def measure(stylizer: Stylizer, controls: Controls, count: int, seconds: float) -> list[list[float]]:
    """Ages in seconds of the pictures of each of `count` streams that were shown within `seconds`, warm."""
    room = EngineRoom(lambda report: stylizer)
    streams = Streams(room, controls)
    ages_s: list[list[float]] = [[] for _ in range(count)]
    begin_s = time.monotonic() + WARM_UP_S

    def show_into(ages: list[float]):
        def show(picture) -> None:
            now_s = time.monotonic()
            if begin_s <= now_s < begin_s + seconds:
                ages.append(now_s - picture.arrived_s)

        return show

    publications = []
    for number, ages in enumerate(ages_s):
        stream = streams.get(f"stream-{number}")
        stream.watch(show_into(ages))
        publications.append(stream.publish(Publisher())[0])
    room.start()
    room.wait_settled(10)
    frame = np.random.default_rng(0).integers(0, 256, (stylizer.spec.height, stylizer.spec.width, 3), dtype=np.uint8)
    started_s, pause, number = time.monotonic(), threading.Event(), 0
    while time.monotonic() < begin_s + seconds:
        publications[number % count].put(frame)
        number += 1
        pause.wait(max(0.0, started_s + number / (count * FPS_IN) - time.monotonic()))
    room.close()
    return ages_s


def row(ages_s: Sequence[Sequence[float]], seconds: float, runs_ahead: bool = False) -> dict[str, Any]:
    """A row of the table, of the ages of each stream's pictures."""
    fps = [len(ages) / seconds for ages in ages_s]
    p95 = [1000 * report.percentile(ages, 95) for ages in ages_s if ages]
    return {
        "streams": len(ages_s),
        "ahead": "yes" if runs_ahead else "no",
        "sum of fps out": sum(fps),
        "fps, least": min(fps),
        "fps, most": max(fps),
        "fairness": min(fps) / max(fps) if max(fps) else None,
        "age p95 ms, best stream": min(p95, default=None),
        "age p95 ms, worst stream": max(p95, default=None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--sleep-ms", type=float, help="no model: an engine that takes so long a batch")
    parser.add_argument("--card", action="store_true", help="which does so beside its caller, as a GPU")
    parser.add_argument("--max-batch", type=int, help="how many frames may share one, instead of what the engine says")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--streams", type=int, nargs="+", default=COUNTS, metavar="N")
    options = parser.parse_args()
    device = prepared("cpu" if options.sleep_ms else options.device)
    compiled = compiling_pays(device) if options.compile is None else options.compile
    with tempfile.TemporaryDirectory() as scratch:
        if options.sleep_ms:
            name, controls, compiled = f"an engine that sleeps {options.sleep_ms:g} ms", Controls(steps=1), False
            stylizer: Any = (SleepingCard if options.card else SleepingStylizer)(options.sleep_ms / 1000)
        else:
            name, spec, controls = chosen_model(options, Path(scratch))
            controls = controls.model_copy(update={"steps": options.steps})
            stylizer = load(spec, str(device), compile=False)
            if compiled:
                compiling.compile_beside(
                    stylizer, lambda detail, progress: print(detail, flush=True), compiling.at_once
                )
            stylizer.record(controls, lambda detail, progress: None)
        if options.max_batch:
            stylizer = Altered(stylizer, max_batch=options.max_batch)
        about = {
            **report.machine(str(device)),
            "model": name,
            "compiled": compiled,
            "max batch": stylizer.max_batch,
            "steps": options.steps,
            "fps in": FPS_IN,
            "seconds": options.seconds,
        }
        title, made = f"Several streams on one device, {FPS_IN:g} fps in each, {name}", []
        for count in options.streams:
            ways = [stylizer]
            if stylizer.runs_ahead and count >= FULL:
                ways.append(Altered(stylizer, runs_ahead=False))
            for way in ways:
                made.append(row(measure(way, controls, count, options.seconds), options.seconds, way.runs_ahead))
                report.add(title, about, made, options.json)
    report.publish(title, about, made, options.json)


if __name__ == "__main__":
    main()
