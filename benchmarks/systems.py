"""Every LCM system of the guides once, at its real size with random weights in float16: time, memory, and precision.

    python -m benchmarks.systems [--tiny] [--work DIR] [--budget-s 500] [--json FILE]

The same picture is made in float32: `mean difference` is between the two, of 255. `peak GB` is the device memory that
PyTorch held at most, weights included, while float16 ran. A system that fails is named, and the others are measured.
"""

from __future__ import annotations

import argparse
import gc
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report, shapes
from benchmarks.plan import count
from pipeline import ControlNet, Controls, Lora, ModelSpec, load
from pipeline.errors import first_line
from pipeline.runtime.devices import prepared
from pipeline.stylizer import Stylizer

WARM_UP, CALLS, CALLS_S = 2, 10, 10.0
CLIP = 16  # frames of AnimateDiff
MOST_DIFFERENCE = 2.0  # of 255, that float16 may change a picture on average


@dataclass(frozen=True)
class System:
    """name and controls: as in the guides. base: a shape. unet: another shape's, or changes to the base's config. kl:
    with the base's own autoencoder, not TAESD. loras: name -> weight. what: `frame`, `imagine`, `animate` or `inpaint`.
    """

    name: str
    base: str
    controls: dict[str, Any]
    what: str = "frame"
    unet: str | dict[str, int] | None = None
    kl: bool = False
    loras: dict[str, float] = field(default_factory=dict)
    controlnet: bool = False
    adapter: bool = False
    motion: bool = False


FULL = {"time_cond_proj_dim": 256}
LCM_LORA, BOTH = {"lcm": 1.0}, {"lcm": 1.0, "style": 0.8}
SYSTEMS = (
    System("LCM-LoRA img2img", "sd15", {"steps": 4, "strength": 0.6}, loras=LCM_LORA),
    System("LCM-LoRA text-to-image", "sdxl", {"steps": 4}, "imagine", loras=LCM_LORA),
    System("LCM img2img", "sd15", {"steps": 4, "guidance": 7.5, "strength": 0.5}, unet=FULL, kl=True),
    System(
        "inpainting",
        "sd15",
        {"steps": 4, "guidance": 4.0, "strength": 1.0},
        "inpaint",
        unet={"in_channels": 9},
        kl=True,
        loras=LCM_LORA,
    ),
    System(
        "ControlNet canny",
        "sd15",
        {"steps": 4, "guidance": 1.5, "strength": 0.5, "control_scale": 0.8},
        loras=LCM_LORA,
        controlnet=True,
    ),
    System(
        "AnimateDiff, 16 frames", "sd15", {"steps": 5, "guidance": 1.25}, "animate", loras={"lcm": 0.55}, motion=True
    ),
    System("LCM text-to-image", "sdxl", {"steps": 4, "guidance": 8.0}, "imagine", unet=FULL),
    System("SSD-1B text-to-image", "sdxl", {"steps": 4}, "imagine", unet="ssd-1b", loras=LCM_LORA),
    System(
        "T2I-Adapter canny",
        "sdxl",
        {"steps": 4, "guidance": 1.5, "strength": 0.5, "control_scale": 0.8},
        adapter=True,
        loras=LCM_LORA,
    ),
    System("LCM-LoRA img2img", "sdxl", {"steps": 4, "strength": 0.6}, loras=LCM_LORA),
    System("LCM with a style LoRA", "sdxl", {"steps": 4, "guidance": 8.0}, "imagine", unet=FULL, loras={"style": 1.0}),
    System("LCM-LoRA and a style LoRA", "sdxl", {"steps": 4}, "imagine", loras=BOTH),
    System("LCM-LoRA text-to-image", "sd15", {"steps": 4}, "imagine", loras=LCM_LORA),
)


def spec_of(system: System, work: Path, device: str, tiny: bool) -> ModelSpec:
    """Writes what is not in `work` yet."""

    def shape(name: str) -> shapes.Shape:
        return shapes.tiny(shapes.SHAPES[name]) if tiny else shapes.SHAPES[name]

    work, own = work / ("tiny" if tiny else "full"), shape(system.base)
    changes: dict[str, Any] = {}
    if isinstance(system.unet, str):
        changes["unet"] = str(shapes.unet(work / system.unet, shape(system.unet), device))
    elif system.unet is not None:
        folder = work / "-".join([system.base, *system.unet])
        changes["unet"] = str(shapes.unet(folder, own, device, **system.unet))
    if system.kl:
        changes["vae"] = str(shapes.autoencoder(work / f"{system.base}-kl", own, device))
    if system.controlnet:
        changes["controlnet"] = ControlNet(str(shapes.controlnet(work / f"{system.base}-controlnet", own, device)))
    if system.adapter:
        path = shapes.adapter(work / f"{system.base}-adapter", own, device)
        changes |= {"adapter": str(path), "control": "canny-384"}
    if system.motion:
        changes["motion"] = str(shapes.motion(work / f"{system.base}-motion", own, device))
    fits = system.unet if isinstance(system.unet, str) else system.base
    changes["loras"] = tuple(
        Lora(str(shapes.lora(work / f"{fits}-lora-{name}", shape(fits), device)), weight, name)
        for name, weight in system.loras.items()
    )
    base = shapes.checkpoint(work / system.base, own, device)
    return replace(ModelSpec(str(base), width=own.size, height=own.size), **changes)


def paint(stylizer: Stylizer, system: System) -> np.ndarray:
    """uint8 [N, H, W, 3]: one picture, or a clip."""
    controls = Controls(prompt="a cat on a roof", **system.controls)
    size = (stylizer.spec.height, stylizer.spec.width)
    if system.what == "imagine":
        return stylizer.imagine(controls)
    if system.what == "animate":
        return stylizer.animate(controls, count=CLIP)
    frame = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    if system.what == "inpaint":
        mask = np.zeros((1, *size), np.uint8)
        mask[:, : size[0] // 2] = 255
        return stylizer(frame, controls, mask=mask)
    return stylizer(frame, controls)


def measure(system: System, work: Path, device: torch.device, tiny: bool) -> dict[str, Any]:
    """The row of one system."""
    spec = spec_of(system, work, str(device), tiny)
    tidy(device)
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    started_s = time.perf_counter()
    stylizer = load(replace(spec, dtype="float16"), str(device), compile=False)
    load_s = time.perf_counter() - started_s
    half, times_ms = paint(stylizer, system), []
    stylizer.record_calls()
    end_s = time.perf_counter() + CALLS_S
    for number in range(WARM_UP + CALLS):
        started_s = time.perf_counter()
        paint(stylizer, system)
        if number >= WARM_UP:
            times_ms.append(1000 * (time.perf_counter() - started_s))
        if times_ms and time.perf_counter() > end_s:
            break
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if on_cuda else None
    del stylizer
    tidy(device)
    single = paint(load(replace(spec, dtype="float32"), str(device), compile=False), system)
    tidy(device)
    return row(system, spec, times_ms, peak, load_s, half, single)


def row(
    system: System,
    spec: ModelSpec,
    times_ms: Sequence[float],
    peak_gb: float | None,
    load_s: float,
    half: np.ndarray,
    single: np.ndarray,
) -> dict[str, Any]:
    difference = float(np.abs(half.astype(np.int16) - single).mean())
    return {
        "system": system.name,
        "base": system.unet.upper() if isinstance(system.unet, str) else system.base.upper(),
        "size": f"{spec.width}x{spec.height}",
        "steps": system.controls["steps"],
        "guidance": system.controls.get("guidance", 1.0),
        "p50 ms": report.percentile(times_ms, 50),
        "peak GB": peak_gb,
        "mean difference": difference,
        "within 2": "yes" if difference <= MOST_DIFFERENCE else "no",
        "load s": load_s,
        "calls": len(times_ms),
    }


def tidy(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny models of the same topologies, to try the benchmark")
    parser.add_argument("--work", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--budget-s", type=count, default=math.inf, metavar="S", help="no new system after that")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device, started_s = prepared(options.device), time.monotonic()
    torch.backends.cudnn.allow_tf32 = False  # float32 is the measure here
    about = {**report.machine(str(device)), "left out": []}
    title, made = "Every LCM system, random weights" + (", tiny shapes" if options.tiny else ""), []
    with tempfile.TemporaryDirectory() as scratch:
        for system in SYSTEMS:
            label = f"{system.name}, {system.base}"
            try:
                if time.monotonic() - started_s > options.budget_s:
                    raise TimeoutError("the time was up")
                made.append(measure(system, options.work or Path(scratch), device, options.tiny))
                report.add(title, about, made, options.json)
            except Exception as error:  # named; the others are measured
                about["left out"].append(f"{label}: {type(error).__name__}: {first_line(error)}.")
                print(about["left out"][-1], flush=True)
                tidy(device)
    report.publish(title, about, made, options.json)


if __name__ == "__main__":
    main()
