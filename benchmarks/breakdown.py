"""Where a frame's milliseconds go: upload, colour, encode, noise, UNet, decode, download, and the gaps between.

    python -m benchmarks.breakdown [--model mini | --shape sd15 [--tiny]] [--compile] [--steps 1] [--json FILE]

It is the live engine's call: I420 in, pictures and their I420 out on CUDA; RGB in and out on a CPU. The stylizer's
parts are wrapped from outside in named ranges, then torch.profiler watches some frames. On CUDA a stage's time is that
of the kernels and copies that were launched in its range; `gaps` is when the device was idle between the first and the
last of a frame, and `host` what is left of the frame before and after. What is replayed as CUDA graphs shows as
`graph`; the row `ours` is without graphs, and its gaps are what graphs save. On a CPU a stage's time is that of its
range, and `gaps` is the rest.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import report
from benchmarks.engine import add_model_options, chosen
from pipeline import Controls, compiling, load
from pipeline.batch import Batch, Pictures
from pipeline.pixels import annotators, color
from pipeline.runtime.devices import compiling_pays, prepared
from pipeline.sampling import lcm
from pipeline.stylizer import Stylizer

WARM_UP, FRAMES = 10, 50
FRAME = "frame"
UPLOAD, DOWNLOAD, GRAPH, OTHER, GAPS, HOST = "upload", "download", "graph", "other", "gaps", "host"
STAGES = (UPLOAD, "colour", "control", "encode", "noise", "UNet", "decode", DOWNLOAD, GRAPH, OTHER)
COPIES = {"HtoD": UPLOAD, "DtoH": DOWNLOAD}


def ranges(stylizer: Stylizer) -> list[tuple[Any, str, str]]:
    """(owner, attribute, stage) of every function that is wrapped."""
    return [
        (color, "to_rgb", "colour"),
        (color, "fit", "colour"),
        (color, "to_model", "colour"),
        (color, "to_frames", "colour"),
        (color, "to_i420", "colour"),
        (annotators, "annotate", "control"),
        (lcm, "noised", "noise"),
        (lcm, "denoised", "noise"),
        (stylizer.sampler, "encode", "encode"),
        (stylizer.sampler, "denoise", "UNet"),
        (stylizer.sampler, "decode", "decode"),
        *((extra, "prepare", "control") for extra in stylizer.components.extras),
    ]


@contextlib.contextmanager
def named(wrapped: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
    """Within, each of these functions runs in a range of its stage's name."""

    def in_range(function: Callable, stage: str) -> Callable:
        def call(*args, **kwargs):
            with record_function(stage):
                return function(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for owner, name, stage in wrapped:
            # In its __dict__: for a torch module an attribute is more than that.
            stack.enter_context(patch.dict(vars(owner), {name: in_range(getattr(owner, name), stage)}))
        yield


@dataclass(frozen=True)
class Span:
    """Of a trace, in microseconds."""

    name: str
    start: float
    end: float
    thread: Any = None


def stage_times(events: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Milliseconds by stage of each frame. events: the `traceEvents` of a Chrome trace with ranges as `named` and one
    of the name FRAME around each call, which returns when its picture is in host memory."""
    notes = [_span(event) for event in events if event.get("cat") == "user_annotation"]
    frames = sorted((note for note in notes if note.name == FRAME), key=lambda frame: frame.start)
    stages = [note for note in notes if note.name in STAGES]
    kernels = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if not kernels:
        return [_on_the_host(frame, stages) for frame in frames]
    launches = {
        event["args"]["correlation"]: _span(event)
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    of_frame: dict[int, list[tuple[str, Span]]] = defaultdict(list)
    starts = [frame.start for frame in frames]
    for event in kernels:
        launch = launches.get(event.get("args", {}).get("correlation"))
        if launch is None:
            continue
        number = bisect.bisect_right(starts, launch.start) - 1
        if number >= 0 and launch.start <= frames[number].end:
            of_frame[number].append((_stage_of(event, launch, stages), _span(event)))
    return [_on_the_device(frame, of_frame[number]) for number, frame in enumerate(frames)]


def _span(event: dict[str, Any]) -> Span:
    return Span(event["name"], event["ts"], event["ts"] + event.get("dur", 0), event.get("tid"))


def _stage_of(event: dict[str, Any], launch: Span, stages: Sequence[Span]) -> str:
    if event["cat"] == "gpu_memcpy":
        for kind, stage in COPIES.items():
            if kind in event["name"]:
                return stage
    around = [s for s in stages if s.thread == launch.thread and s.start <= launch.start <= s.end]
    if around:
        return max(around, key=lambda span: span.start).name
    return GRAPH if "GraphLaunch" in launch.name else OTHER


def _on_the_device(frame: Span, work: Sequence[tuple[str, Span]]) -> dict[str, float]:
    times = dict.fromkeys(STAGES, 0.0)
    busy, until = 0.0, -math.inf
    for stage, span in sorted(work, key=lambda one: one[1].start):
        times[stage] += span.end - span.start
        busy += max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
    whole = frame.end - frame.start
    spread = until - min(span.start for _, span in work) if work else 0.0
    return _in_ms({**times, GAPS: spread - busy, HOST: whole - spread, FRAME: whole})


def _on_the_host(frame: Span, stages: Sequence[Span]) -> dict[str, float]:
    times = dict.fromkeys(STAGES, 0.0)
    for stage in stages:
        if frame.start <= stage.start and stage.end <= frame.end:
            times[stage.name] += stage.end - stage.start
    whole = frame.end - frame.start
    return _in_ms({**times, GAPS: whole - sum(times.values()), HOST: 0.0, FRAME: whole})


def _in_ms(times_us: dict[str, float]) -> dict[str, float]:
    return {stage: time_us / 1000 for stage, time_us in times_us.items()}


def rows(label: str, frames: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """One row for each stage that took any time: its median over the frames and its share of the frame."""
    whole = report.percentile([frame[FRAME] for frame in frames], 50)
    made = []
    for stage in (*STAGES, GAPS, HOST, FRAME):
        times_ms = [frame[stage] for frame in frames]
        if any(times_ms):
            p50 = report.percentile(times_ms, 50)
            share = f"{100 * p50 / whole:.0f} %"
            p95 = report.percentile(times_ms, 95)
            made.append({"engine": label, "stage": stage, "p50 ms": p50, "p95 ms": p95, "share": share})
    return made


def live_shape(stylizer: Stylizer) -> tuple[int, ...]:
    """That of a frame of the model's size from a webcam, as the live engine takes it."""
    height, width = stylizer.capabilities.height, stylizer.capabilities.width
    return (1, height * 3 // 2, width) if stylizer.takes_i420 else (1, height, width, 3)


def paint(stylizer: Stylizer, frames: np.ndarray, controls: Controls) -> Pictures:
    """The live engine's call."""
    return stylizer.submit(Batch(frames, (controls,), i420=True))()


def watch(stylizer: Stylizer, controls: Controls, count: int = FRAMES) -> list[dict[str, float]]:
    """Milliseconds by stage of each of `count` frames."""
    dice = np.random.default_rng(0)
    frames = [dice.integers(16, 236, live_shape(stylizer), dtype=np.uint8) for _ in range(8)]
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (stylizer.device.type == "cuda")
    with named(ranges(stylizer)):
        stylizer.capture_calls(lambda: paint(stylizer, frames[0], controls))
        for i in range(WARM_UP):
            paint(stylizer, frames[i % 8], controls)
        with profile(activities=activities) as profiler:
            for i in range(count):
                with record_function(FRAME):
                    paint(stylizer, frames[i % 8], controls)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        return stage_times(json.loads(trace.read_text())["traceEvents"])


def unwatched_ms(stylizer: Stylizer, controls: Controls, count: int = FRAMES) -> float:
    """The median of a frame without the profiler, which slows the host down."""
    frame, times_ms = np.zeros(live_shape(stylizer), np.uint8), []
    stylizer.capture_calls(lambda: paint(stylizer, frame, controls))
    for _ in range(WARM_UP + count):
        started_s = time.perf_counter()
        paint(stylizer, frame, controls)
        times_ms.append(1000 * (time.perf_counter() - started_s))
    return report.percentile(times_ms[WARM_UP:], 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--frames", type=int, default=FRAMES)
    options = parser.parse_args()
    device = prepared(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        name, spec, controls = chosen(options, Path(scratch))
        controls = controls.model_copy(update={"steps": options.steps})
        stylizer = load(spec, str(device), compile=False, graphs=False)
        title = f"One frame by stage, {name} at {spec.width}x{spec.height} in {str(stylizer.dtype)[6:]}"
        about, made = {**report.machine(str(device)), "model": name, "steps": options.steps}, []
        is_compiled = compiling_pays(device) if options.compile is None else options.compile
        labels = ["ours", *["ours, graphs"] * (device.type == "cuda"), *["ours, compiled"] * is_compiled]
        for label in labels:
            if label == "ours, graphs":
                stylizer = Stylizer(spec, stylizer.components)
            if label == "ours, compiled":
                compiling.compile_beside(stylizer, lambda detail, progress: print(detail), compiling.at_once)
            about[f"{label}, without the profiler ms"] = round(unwatched_ms(stylizer, controls, options.frames), 3)
            made += rows(label, watch(stylizer, controls, options.frames))
            report.add(title, about, made, options.json)
    report.publish(title, about, made, options.json)


if __name__ == "__main__":
    main()
