"""Every LCM system of the guides once, at its real size with random weights in float16: time, memory, and precision.

    python -m benchmarks.systems [--tiny] [--work DIR] [--budget-s 500] [--json FILE]

The same picture is made in float32: `mean difference` is between the two, of 255. `held GB` and `peak GB` are what
tensors took on the device between pictures and at most, loading included, while float16 ran. The row of --low-memory
tells what that saves of it, and costs where a prompt is new. A system that fails is named, the others are measured.
"""

from __future__ import annotations

import argparse
import gc
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from pipeline import Controls, Lora, ModelSpec, load
from pipeline.errors import first_line
from pipeline.runtime.devices import prepared
from pipeline.settings import ControlNet
from pipeline.stylizer import Stylizer
from tests import tiny

WARM_UP, CALLS, CALLS_S = 2, 10, 10.0
CLIP = 16  # frames of AnimateDiff
MOST_DIFFERENCE = 2.0  # of 255, that float16 may change a picture on average


@dataclass(frozen=True)
class System:
    """name and controls: as in the guides. base: a shape. weights: by name. loras: name ->
    weight. what: `frame`, `imagine`, `animate` or `inpaint`."""

    name: str
    base: str
    controls: dict[str, Any]
    what: str = "frame"
    weights: tuple[str, ...] = ()
    loras: dict[str, float] = field(default_factory=dict)
    controlnet: bool = False
    adapter: bool = False
    motion: bool = False
    low_memory: bool = False


# What a checkpoint is asked for, of the config of its shape's UNet.
WEIGHTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "full": lambda unet: {"guidance_embedding": True},
    "inpaints": lambda unet: {"unet": {**unet, "in_channels": 9}},
    "kl": lambda unet: {"kl": True},
}
FULL = ("full",)
LCM_LORA, BOTH = {"lcm": 1.0}, {"lcm": 1.0, "style": 0.8}
SYSTEMS = (
    System("LCM-LoRA img2img", "sd15", {"steps": 4, "strength": 0.6}, loras=LCM_LORA),
    System("LCM-LoRA text-to-image", "sdxl", {"steps": 4}, "imagine", loras=LCM_LORA),
    System("LCM img2img", "sd15", {"steps": 4, "guidance": 7.5, "strength": 0.5}, weights=("full", "kl")),
    System(
        "inpainting",
        "sd15",
        {"steps": 4, "guidance": 4.0, "strength": 1.0},
        "inpaint",
        weights=("inpaints", "kl"),
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
    System("LCM text-to-image", "sdxl", {"steps": 4, "guidance": 8.0}, "imagine", weights=FULL),
    System("SSD-1B text-to-image", "ssd-1b", {"steps": 4}, "imagine", loras=LCM_LORA),
    System(
        "T2I-Adapter canny",
        "sdxl",
        {"steps": 4, "guidance": 1.5, "strength": 0.5, "control_scale": 0.8},
        adapter=True,
        loras=LCM_LORA,
    ),
    System("LCM-LoRA img2img", "sdxl", {"steps": 4, "strength": 0.6}, loras=LCM_LORA),
    System("LCM-LoRA img2img, --low-memory", "sdxl", {"steps": 4, "strength": 0.6}, loras=LCM_LORA, low_memory=True),
    System(
        "LCM with a style LoRA", "sdxl", {"steps": 4, "guidance": 8.0}, "imagine", weights=FULL, loras={"style": 1.0}
    ),
    System("LCM-LoRA and a style LoRA", "sdxl", {"steps": 4}, "imagine", loras=BOTH),
    System("LCM-LoRA text-to-image", "sd15", {"steps": 4}, "imagine", loras=LCM_LORA),
)


def spec_of(system: System, work: Path, device: str, is_tiny: bool) -> ModelSpec:
    """Writes what is not in `work` yet."""
    shape = (tiny.TINY_SHAPES if is_tiny else tiny.SHAPES)[system.base]
    folder = work / ("tiny" if is_tiny else "full")
    options: dict[str, Any] = {}
    for name in system.weights:
        options |= WEIGHTS[name](shape.unet)
    base = shape.kept(tiny.checkpoint, folder / "-".join([system.base, *system.weights]), device, **options)
    changes: dict[str, Any] = {}
    if system.controlnet:
        net = shape.kept(tiny.controlnet, folder / f"{system.base}-controlnet", device)
        changes["controlnet"] = ControlNet(str(net))
    if system.adapter:
        net = shape.kept(tiny.adapter, folder / f"{system.base}-adapter", device, sdxl=shape.is_xl)
        changes |= {"adapter": str(net), "control": "canny-384"}
    if system.motion:
        changes["motion"] = str(shape.kept(tiny.motion, folder / f"{system.base}-motion", device))

    def lora(name: str) -> Path:
        written = tiny.kept(folder / f"{base.name}-lora-{name}", lambda at: tiny.lora(at, base, size=shape.size))
        return written / tiny.LORA_FILE

    loras = tuple(Lora(str(lora(name)), weight, name) for name, weight in system.loras.items())
    side = shape.side
    return ModelSpec(str(base), width=side, height=side, loras=loras, low_memory=system.low_memory, **changes)


def paint(stylizer: Stylizer, system: System, prompt: str = "a cat on a roof") -> np.ndarray:
    """uint8 [N, H, W, 3]: one picture, or a clip."""
    controls = Controls(prompt=prompt, **system.controls)
    size = (stylizer.capabilities.height, stylizer.capabilities.width)
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


def paint_ms(stylizer: Stylizer, system: System, prompts: Sequence[str]) -> list[float]:
    """Milliseconds of each picture, for up to CALLS_S seconds."""
    times_ms: list[float] = []
    end_s = time.perf_counter() + CALLS_S
    for prompt in prompts:
        started_s = time.perf_counter()
        paint(stylizer, system, prompt)
        times_ms.append(1000 * (time.perf_counter() - started_s))
        if time.perf_counter() > end_s:
            break
    return times_ms


def measure(system: System, work: Path, device: torch.device, is_tiny: bool) -> dict[str, Any]:
    """The row of one system."""
    spec = spec_of(system, work, str(device), is_tiny)
    tidy(device)
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    started_s = time.perf_counter()
    stylizer = load(replace(spec, dtype="float16"), str(device), compile=False)
    load_s = time.perf_counter() - started_s
    half = paint(stylizer, system)
    stylizer.capture_calls()
    paint_ms(stylizer, system, ["a cat"] * WARM_UP)
    held = torch.cuda.memory_allocated(device) / 1e9 if on_cuda else None
    same = paint_ms(stylizer, system, ["a cat"] * CALLS)
    new = paint_ms(stylizer, system, [f"cat {i}" for i in range(CALLS)])
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if on_cuda else None
    del stylizer
    tidy(device)
    single = paint(load(replace(spec, dtype="float32"), str(device), compile=False), system)
    tidy(device)
    memory = {"held GB": held, "peak GB": peak}
    return row(system, spec, same, new, memory, report.difference(half, single)) | {"load s": load_s}


def row(
    system: System,
    spec: ModelSpec,
    same_ms: Sequence[float],
    new_ms: Sequence[float],
    memory_gb: dict[str, float | None],
    difference: float,
) -> dict[str, Any]:
    """same_ms, new_ms: of pictures with the same prompt, with a new one each."""
    return {
        "system": system.name,
        "base": system.base.upper(),
        "size": f"{spec.width}x{spec.height}",
        "steps": system.controls["steps"],
        "guidance": system.controls.get("guidance", 1.0),
        "p50 ms": report.percentile(same_ms, 50),
        "new prompt p50 ms": report.percentile(new_ms, 50),
        **memory_gb,
        "mean difference": difference,
        "within 2": "yes" if difference <= MOST_DIFFERENCE else "no",
        "calls": len(same_ms),
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
    parser.add_argument("--budget-s", type=report.count, default=math.inf, metavar="S", help="no new system after that")
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
