"""What do viewers notice while an engine is compiled beside the running one and takes over?

    python -m benchmarks.swap [--model mini] [--device auto] [--json FILE]

Frames run without a pause in one thread, as in the server, while another compiles from an empty cache and swaps. Told
are the frame times before, during and after, and the longest gap between two frames: at most 0.3 s is the aim.
"""

from __future__ import annotations

import argparse
import itertools
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import report
from pipeline import compiling, load
from pipeline.presets import TABLE
from pipeline.runtime.devices import prepared

SETTLE_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(TABLE), default="mini")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = str(prepared(options.device))
    preset = TABLE[options.model]
    stylizer = load(preset.spec, device, compile=False)
    frame = np.random.default_rng(0).integers(0, 256, (1, preset.spec.height, preset.spec.width, 3), np.uint8)
    done_s: list[float] = []
    stop = threading.Event()

    swaps: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def frames() -> None:
        stylizer.record_calls(lambda: stylizer(frame, preset.defaults))
        while not stop.is_set():
            if not swaps.empty():
                swaps.get()()
                stylizer.record_calls(lambda: stylizer(frame, preset.defaults))
            stylizer(frame, preset.defaults)
            done_s.append(time.perf_counter())

    runner = threading.Thread(target=frames)
    runner.start()
    time.sleep(SETTLE_S)
    marks = [("uncompiled", done_s[0])]

    def mark(detail: str, progress: float | None) -> None:
        marks.append((detail, time.perf_counter()))

    with tempfile.TemporaryDirectory() as cache:
        os.environ["LCMIRROR_CACHE"] = cache
        compiling.compile_beside(stylizer, mark, swaps.put)
        mark("compiled", None)
        time.sleep(SETTLE_S)
        stop.set()
        runner.join()

    rows = []
    for (phase, start_s), (_, end_s) in zip(marks, [*marks[1:], ("", done_s[-1])], strict=True):
        inside = [b - a for a, b in itertools.pairwise(done_s) if start_s <= b and a <= end_s]
        rows.append(
            {
                "phase": phase,
                "seconds": end_s - start_s,
                "frame p50 ms": 1000 * report.percentile(inside, 50),
                "frame p95 ms": 1000 * report.percentile(inside, 95),
                "longest gap ms": 1000 * max(inside),
            }
        )
    about = {**report.machine(device), "model": options.model, "cores": os.cpu_count()}
    report.publish(f"Compiling beside running frames, {options.model}", about, rows, options.json)


if __name__ == "__main__":
    main()
