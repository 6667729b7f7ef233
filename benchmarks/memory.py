"""Device memory of an engine and what --low-memory saves and costs, in one run on the same weights.

    python -m benchmarks.memory                       random weights of SDXL's true shape, 1024x1024, with an LCM-LoRA
    python -m benchmarks.memory --shape sd15          the same of SD1.5, 512x512

Needs a CUDA GPU. Memory is what tensors take (torch.cuda.max_memory_allocated), loading included, and not what the
allocator keeps in reserve.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import report, shapes
from pipeline import Controls, Lora, ModelSpec, load
from pipeline.runtime.devices import pick_device
from pipeline.stylizer import Stylizer

CHANGES = 10  # how often the prompt and the LoRA's weight are changed


def run(name: str, spec: ModelSpec, frames: int, json_file: Path | None) -> None:
    """A row as usual and one with low_memory."""
    rows = []
    for label, one in (("as usual", spec), ("--low-memory", replace(spec, low_memory=True))):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        rows.append({"engine": label, **_measure(load(one, "cuda", compile=False), frames)})
        print(report.table(rows[-1:]).splitlines()[-1], flush=True)
    size = f"{spec.width}x{spec.height}"
    about = {**report.machine("cuda"), "model": name, "size": size}
    report.publish(f"Device memory, {name} at {size} in float16", about, rows, json_file)


def _measure(stylizer: Stylizer, frames: int) -> dict[str, float]:
    """Memory between frames and at most; milliseconds of a frame, of one with a new prompt, with a new LoRA weight."""
    frame = np.random.default_rng(0).integers(0, 256, (1, stylizer.spec.height, stylizer.spec.width, 3), np.uint8)
    controls = Controls(prompt="an oil painting", steps=4)

    def median_ms(settings: list[Controls]) -> float:
        times_ms = []
        for each in settings:
            started_s = time.perf_counter()
            stylizer(frame, each)
            times_ms.append(1000 * (time.perf_counter() - started_s))
        return report.percentile(times_ms, 50)

    stylizer.record_calls(lambda: stylizer(frame, controls))
    median_ms([controls] * 3)
    held_mb = torch.cuda.memory_allocated() / 1e6
    row = {
        "frame ms": median_ms([controls] * frames),
        "with a new prompt ms": median_ms([controls.merged({"prompt": f"painting {i}"}) for i in range(CHANGES)]),
        "with a new LoRA weight ms": median_ms(
            [controls.merged({"lora_weights": {name: i / CHANGES}}) for i in range(CHANGES) for name in stylizer.loras]
        ),
    }
    return {"held MB": held_mb, "peak MB": report.peak_memory("cuda")["peak device MB"], **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(shapes.SHAPES), default="sdxl")
    parser.add_argument("--work", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pick_device("cuda")  # says so where there is none, before gigabytes are written
    shape = shapes.SHAPES[options.shape]
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        base = shapes.checkpoint(work / options.shape, shape, "cuda")
        lora = shapes.lora(work / f"{options.shape}-lora-lcm", shape, "cuda")
        spec = ModelSpec(str(base), loras=(Lora(str(lora)),), width=shape.size, height=shape.size)
        run(f"{options.shape} shape, random weights", spec, options.frames, options.json)


if __name__ == "__main__":
    main()
