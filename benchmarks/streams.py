"""Several streams on one device: what comes out of each, how old, and how evenly the device is shared.

    python -m benchmarks.streams [--model mini | --shape sd15 [--tiny]] [--streams 1 2 4 8 16] [--json FILE]

The real engine thread, mailboxes and scheduler; each stream is left 30 frames a second, evenly out of step with the
others. Age is from a frame's arrival to its picture's hand-over; fairness the least stream's fps over the greatest's.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.engine import add_model_options, chosen
from pipeline import Controls, compiling, load
from pipeline.runtime.devices import compiling_pays, prepared
from pipeline.stylizer import Stylizer
from stream.engine.runner import EngineRunner
from stream.streams import Streams

FPS_IN = 30.0
COUNTS = (1, 2, 4, 8, 16)
WARM_UP_S = 2.0


def measure(stylizer: Stylizer, controls: Controls, count: int, seconds: float) -> list[list[float]]:
    """Ages in seconds of the pictures of each of `count` streams that were shown within `seconds`, warm."""
    engine = EngineRunner(lambda report: stylizer)
    streams = Streams(engine, controls)
    ages_s: list[list[float]] = [[] for _ in range(count)]
    begin_s = time.monotonic() + WARM_UP_S

    def show_into(ages: list[float]) -> Callable[[Any], None]:
        def show(picture: Any) -> None:
            now_s = time.monotonic()
            if begin_s <= now_s < begin_s + seconds:
                ages.append(now_s - picture.arrived_s)

        return show

    publications = []
    for number, ages in enumerate(ages_s):
        stream = streams.get(f"stream-{number}")
        stream.watch(show_into(ages))
        publications.append(stream.publish(SimpleNamespace(kind="benchmark"))[0])
    engine.start()
    engine.wait_settled(10)
    size = (stylizer.capabilities.height, stylizer.capabilities.width, 3)
    frame = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    started_s, pause, number = time.monotonic(), threading.Event(), 0
    while time.monotonic() < begin_s + seconds:
        publications[number % count].put(frame)
        number += 1
        pause.wait(max(0.0, started_s + number / (count * FPS_IN) - time.monotonic()))
    engine.close()
    return ages_s


def row(ages_s: Sequence[Sequence[float]], seconds: float) -> dict[str, Any]:
    """A row of the table, of the ages of each stream's pictures."""
    fps = [len(ages) / seconds for ages in ages_s]
    p95 = [1000 * report.percentile(ages, 95) for ages in ages_s if ages]
    return {
        "streams": len(ages_s),
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
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--streams", type=int, nargs="+", default=COUNTS, metavar="N")
    options = parser.parse_args()
    device = prepared(options.device)
    is_compiled = compiling_pays(device) if options.compile is None else options.compile
    with tempfile.TemporaryDirectory() as scratch:
        name, spec, controls = chosen(options, Path(scratch))
        controls = controls.model_copy(update={"steps": options.steps})
        stylizer = load(spec, str(device), compile=False)
        if is_compiled:
            compiling.compile_beside(stylizer, lambda detail, progress: print(detail), compiling.at_once)
        stylizer.capture(controls, lambda detail, progress: None)
        about = {
            **report.machine(str(device)),
            "model": name,
            "compiled": is_compiled,
            "max batch": stylizer.max_batch,
            "steps": options.steps,
            "fps in": FPS_IN,
            "seconds": options.seconds,
        }
        title, made = f"Several streams on one device, {FPS_IN:g} fps in each, {name}", []
        for count in options.streams:
            made.append(row(measure(stylizer, controls, count, options.seconds), options.seconds))
            report.add(title, about, made, options.json)
    report.publish(title, about, made, options.json)


if __name__ == "__main__":
    main()
