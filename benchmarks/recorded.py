"""What does it save to replay what is done around the painting, beside launching its kernels one by one? On CUDA.

    python -m benchmarks.recorded [--device cuda] [--rounds 200] [--json FILE]

Conversions, and every control image, of two frames. Medians: `launched` is when Python goes on, `done` when the device
is done; the ways take turns. `canny, grown` is what joins edges where Triton is missing: it waits for the device, so it
cannot be recorded.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import report
from pipeline import Controls
from pipeline.pixels import canny
from pipeline.pixels.annotators import ANNOTATORS, annotate, as_tensors
from pipeline.pixels.conversions import Conversions
from pipeline.runtime.devices import prepared
from pipeline.runtime.graphs import Graphs, Way, record_in_one_pool

SIDE, ROUNDS, WARM_UP = 512, 200, 4
BATCH = (Controls(canny_low=60, canny_high=120), Controls(canny_low=20, canny_high=250))
SIZES = SimpleNamespace(picture=lambda scale=1.0: (round(SIDE * scale),) * 2, scales=(1.0, 0.5))

Recorded = Callable[[Way], Graphs]
Case = tuple[Callable[[Recorded], Way], Callable[[], Any]]  # the way, of what records it; what is given, new each time


def cases(device: torch.device) -> dict[str, Case]:
    def noise(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, (len(BATCH), *shape), dtype=torch.uint8, device=device)

    def blobs() -> torch.Tensor:
        coarse = torch.rand(len(BATCH), 3, SIDE // 16, SIDE // 16, device=device)
        return F.interpolate(255 * coarse, (SIDE, SIDE), mode="bicubic").clamp_(0, 255).to(torch.uint8)

    def conversion(name: str) -> Callable[[Recorded], Way]:
        return lambda recorded: getattr(Conversions(SIZES, torch.float16, recorded), name)

    def control_image(name: str) -> Callable[[Recorded], Way]:
        return lambda recorded: recorded(lambda given: annotate(name, *given, torch.float16))

    turned = as_tensors(BATCH, device)
    return {
        "I420 of 640x480, fitted": (conversion("fitted_i420"), partial(noise, 720, 640)),
        "RGB of 640x480, fitted": (conversion("fitted"), partial(noise, 480, 640, 3)),
        "pictures, in both ways": (conversion("in_both_ways"), partial(noise, SIDE, SIDE, 3)),
        "small pictures, enlarged": (conversion("enlarged"), partial(noise, SIDE // 2, SIDE // 2, 3)),
        **{name: (control_image(name), lambda: (blobs(), turned)) for name in ANNOTATORS},
    }


def grown(given: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> torch.Tensor:
    """Canny with hysteresis by a loop."""
    pixels, turned = given
    return canny.by_growing(*canny.ridges(pixels, *turned.values()))


def ready(of: Callable[[Callable[[Way], Way]], Way], make: Callable[[], Any], recorded: Recorded) -> Way:
    """A case's way, recorded: what of it can be."""
    made: list[Graphs] = []
    way = of(lambda part: made.append(recorded(part)) or made[-1])
    way(make())
    for graphs in made:
        graphs.record_next(1)
    return way


def row(name: str, ways: dict[str, Way], make: Callable[[], Any], rounds: int, wait: Callable[[], object]) -> dict:
    times_ms: dict[str, list[float]] = {f"{way}, {what} ms": [] for way in ways for what in ("launched", "done")}
    for number in range(WARM_UP + rounds):
        for way, run in ways.items():
            given = make()
            wait()
            started_s = time.perf_counter()
            run(given)
            launched_s = time.perf_counter()
            wait()
            if number >= WARM_UP:
                times_ms[f"{way}, launched ms"].append(1000 * (launched_s - started_s))
                times_ms[f"{way}, done ms"].append(1000 * (time.perf_counter() - started_s))
    return {"of two frames": name, **{column: report.percentile(taken, 50) for column, taken in times_ms.items()}}


def measure(device: torch.device, recorded: Recorded, rounds: int, wait: Callable[[], object]) -> list[dict[str, Any]]:
    made = cases(device)
    rows = [
        row(name, {"plain": of(lambda way: way), "recorded": ready(of, make, recorded)}, make, rounds, wait)
        for name, (of, make) in made.items()
    ]
    return [*rows, row("canny, grown", {"plain": grown}, made["canny"][1], rounds, wait)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = prepared(options.device)
    if device.type != "cuda":
        parser.error("only CUDA has graphs to record: run this where there is a CUDA GPU.")
    record = record_in_one_pool(device)
    rows = measure(device, lambda way: Graphs(way, record), options.rounds, torch.cuda.synchronize)
    about = {**report.machine(str(device)), "rounds": options.rounds}
    report.publish("Around the painting, launched and replayed", about, rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
