"""Frames at different steps in one call of the UNet: what that gives, and what it costs in latency.

    python -m benchmarks.stream_batch [--model mini | --shape sd15 [--tiny]] [--json FILE]

The same frames, one after the other and through a stream batch, in turns: call by call, so that whatever else the
machine does meets both alike. A picture of the stream batch comes out of the last of as many calls as there are steps;
its latency is theirs together. `differs` is between the two ways' pictures: the mean, and the most, of 255.
Beside StreamDiffusion: benchmarks/engine.py.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.breakdown import add_model_options, chosen_model
from pipeline import Controls, compiling, load
from pipeline.runtime.devices import compiling_pays, prepared
from pipeline.stylizer import Stylizer

STEPS = (2, 4)
WARM_UP = 10
WAYS = ("one by one", "stream batch")


def measure(stylizer: Stylizer, controls: Controls, calls: int) -> list[dict[str, Any]]:
    """Two rows, of `calls` timed calls each."""
    dice, steps, batch = np.random.default_rng(0), controls.steps, stylizer.stream_batch()
    size = (1, stylizer.spec.height, stylizer.spec.width, 3)
    frames = [dice.integers(0, 256, size, dtype=np.uint8) for _ in range(8)]
    filling = stylizer.stream_batch()
    stylizer.record_calls(
        lambda: stylizer(frames[0], controls), *[lambda: filling(frames[0], controls) for _ in range(steps)]
    )
    times_s: tuple[list[float], list[float]] = ([], [])
    pictures: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for number, frame in enumerate(itertools.islice(itertools.cycle(frames), WARM_UP + calls)):
        ways: tuple[Callable[..., Any], ...] = (stylizer, batch)
        for way, times, made in zip(ways, times_s, pictures, strict=True):
            started_s = time.perf_counter()
            made.append(way(frame, controls))
            if number >= WARM_UP:
                times.append(time.perf_counter() - started_s)
    apart = [np.abs(one.astype(int) - other) for one, other in zip(pictures[0], pictures[1][steps - 1 :], strict=False)]
    return [
        row(way, steps, times, delay, apart) for way, times, delay in zip(WAYS, times_s, (0, steps - 1), strict=True)
    ]


def row(way: str, steps: int, times_s: Sequence[float], delay: int, apart: Sequence[np.ndarray]) -> dict[str, Any]:
    """delay: how many calls later a picture comes out."""
    latencies_s = [sum(times_s[i : i + delay + 1]) for i in range(len(times_s) - delay)]
    p50_s = report.percentile(times_s, 50)
    return {
        "way": way,
        "steps": steps,
        "call p50 ms": 1000 * p50_s,
        "call p95 ms": 1000 * report.percentile(times_s, 95),
        "least ms": 1000 * min(times_s),
        "fps": 1 / p50_s,
        "latency p50 ms": 1000 * report.percentile(latencies_s, 50),
        "latency p95 ms": 1000 * report.percentile(latencies_s, 95),
        "differs, mean": float(np.mean(apart)) if delay else None,
        "differs, most": int(np.max(apart)) if delay else None,
    }


def beside() -> str:
    """Said where a CPU has other work: then the two ways compare with each other and with nothing else."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count()
    return f", beside other work (load {load:.0f} on {cores} cores)" if load > cores else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--calls", type=int, default=100)
    options = parser.parse_args()
    device = prepared(options.device)
    compiled = compiling_pays(device) if options.compile is None else options.compile
    with tempfile.TemporaryDirectory() as scratch:
        name, spec, controls = chosen_model(options, Path(scratch))
        stylizer, rows = load(spec, str(device), compile=False), []
        dtype = str(stylizer.dtype)[6:]
        title = f"Frames at different steps in one call, {name} at {spec.width}x{spec.height} in {dtype}{beside()}"
        about = {**report.machine(str(device)), "model": name, "calls": options.calls}
        if compiled:
            compiling.compile_beside(stylizer, lambda detail, progress: print(detail, flush=True), compiling.at_once)
        about |= {"compiled": compiled, "threads": torch.get_num_threads()}
        for steps in STEPS:
            made = measure(stylizer, controls.model_copy(update={"steps": steps}), options.calls)
            for one in made:
                rows.append(one)
                report.add(title, about, rows, options.json)
    report.publish(title, about, rows, options.json)


if __name__ == "__main__":
    main()
