"""The pictures that will be timed are right: tiny models on the device and on the CPU, compiled and not.

    python -m benchmarks.checks [--device auto] [--no-compile] [--json FILE]

Pictures are compared by their mean difference, of 255. Exit code 1 when a check fails; all of them are made.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks import report
from benchmarks.engine import LeftOut, Setting, diffusers_img2img, launched
from pipeline import Controls, ModelSpec, compiling, load
from pipeline.batch import Batch, Pictures
from pipeline.errors import first_line
from pipeline.pixels import canny
from pipeline.runtime.devices import prepared
from pipeline.stylizer import Stylizer
from stream.engine.i420 import to_i420
from tests import tiny

CONTROLS = Controls(prompt="a cat on a roof", strength=0.5, steps=2, guidance=1.5)
EXACT, HALF = 0.5, 2.0  # mean differences allowed in float32 and in half precision

Check = Callable[[], tuple[float, float]]  # the difference found and the one allowed


def edges_as_opencvs(device: torch.device) -> tuple[float, float]:
    """Of soft blobs and noise, each at thresholds of its own; few strong edges hold long weak ones."""
    dice = np.random.default_rng(3)
    blobs = cv2.resize(dice.integers(0, 256, (24, 32, 3), np.uint8), (512, 384), interpolation=cv2.INTER_CUBIC)
    noise = cv2.GaussianBlur(dice.integers(0, 256, blobs.shape, np.uint8), (5, 5), 0)
    frames, low, high = np.stack([blobs, noise, blobs, noise]), [60, 20, 0, 250], [120, 60, 130, 40]
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    expected = np.stack([cv2.Canny(*one) for one in zip(greys, low, high, strict=True)])
    thresholds = (torch.tensor(each, device=device)[:, None, None, None] for each in (low, high))
    found = canny.canny_on_device(torch.from_numpy(frames).permute(0, 3, 1, 2).to(device), *thresholds)
    return report.difference(255 * found[:, 0].cpu().numpy().astype(np.uint8), expected), 0.0


def no_wait_for_edges(device: torch.device) -> tuple[float, float]:
    if device.type != "cuda":
        raise LeftOut("only on CUDA nobody waits")
    return float(canny._hysteresis_on(device) is not canny.by_regions), 0.0


def live_pictures(stylizer: Stylizer, planes: np.ndarray) -> Pictures:
    """Of frames in I420, as a stream hands them in."""
    return stylizer.submit(Batch(planes, (CONTROLS,) * len(planes), i420=True))()


def checks(device: torch.device, work: Path, compile: bool) -> list[tuple[str, Check]]:
    """(what is checked, how)."""
    shapes = tiny.TINY_SHAPES
    bases = {name: shape.kept(tiny.checkpoint, work / name, "cpu") for name, shape in shapes.items()}
    side = shapes["sd15"].side
    frame = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)

    def model(name: str, dtype: str, target: str = str(device)) -> Stylizer:
        spec = ModelSpec(str(bases[name]), width=side, height=side, dtype=dtype)
        stylizer = load(spec, target, compile=False)
        stylizer.capture_calls(lambda: stylizer(frame, CONTROLS))
        return stylizer

    def as_on_the_cpu(name: str, dtype: str, allowed: float) -> tuple[float, float]:
        reference = model(name, "float32", "cpu")(frame, CONTROLS)
        return report.difference(model(name, dtype)(frame, CONTROLS), reference), allowed

    def replayed_as_launched() -> tuple[float, float]:
        """With what surrounds the painting: conversions, and a ControlNet's edges; on frames that change."""
        if device.type != "cuda":
            raise LeftOut("only CUDA has graphs to capture")
        net = shapes["sd15"].kept(tiny.controlnet, work / "controlnet", "cpu")
        spec = ModelSpec(str(bases["sd15"]), controlnet=str(net), width=side, height=side, dtype="float32")
        plain, replayed = (load(spec, str(device), compile=False, graphs=graphs) for graphs in (False, True))
        frames = np.random.default_rng(4).integers(16, 236, (4, 1, 720, 640), dtype=np.uint8)
        replayed.capture_calls(lambda: live_pictures(replayed, frames[0]))
        apart = [report.difference(live_pictures(plain, one).rgb, live_pictures(replayed, one).rgb) for one in frames]
        return max(apart), EXACT

    def as_uncompiled(dtype: str, allowed: float) -> tuple[float, float]:
        stylizer = model("sd15", dtype)
        reference = stylizer(frame, CONTROLS)
        compiling.compile_beside(stylizer, lambda detail, progress: None, compiling.at_once)
        stylizer.capture_calls(lambda: stylizer(frame, CONTROLS))
        return report.difference(stylizer(frame, CONTROLS), reference), allowed

    def as_diffusers() -> tuple[float, float]:
        stylizer, setting = model("sd15", "float32"), Setting(steps=2)
        ours, theirs = (way(stylizer, CONTROLS)(setting)(frame) for way in (launched, diffusers_img2img))
        return report.difference(ours, theirs), EXACT

    def as_one_by_one() -> tuple[float, float]:
        stylizer = model("sd15", "float32")
        frames = np.random.default_rng(1).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
        single = np.concatenate([stylizer(one[None], CONTROLS) for one in frames])
        return report.difference(stylizer(frames, CONTROLS), single), EXACT

    def as_rgb() -> tuple[float, float]:
        stylizer = model("sd15", "float32")
        planes = np.random.default_rng(2).integers(16, 236, (2, side * 3 // 2, side), dtype=np.uint8)
        rgb = np.stack([cv2.cvtColor(one, cv2.COLOR_YUV2RGB_I420) for one in planes])
        pictures, expected = live_pictures(stylizer, planes), stylizer(rgb, CONTROLS)
        apart = report.difference(pictures.rgb, expected)
        if pictures.i420 is not None:
            apart = max(apart, report.difference(pictures.i420, np.stack([to_i420(one) for one in expected])))
        return apart, EXACT

    found: list[tuple[str, Check]] = [
        (f"{name} in {dtype}, as on the CPU in float32", partial(as_on_the_cpu, name, dtype, allowed))
        for name in bases
        for dtype, allowed in (("float32", EXACT), ("float16", HALF))
    ]
    found += [
        ("a batch of three, as its frames one by one", as_one_by_one),
        ("I420 in and out, as RGB", as_rgb),
        ("Canny's edges, as OpenCV's on every pixel", partial(edges_as_opencvs, device)),
        ("Canny's edges, without a wait", partial(no_wait_for_edges, device)),
        ("CUDA graphs, as launched kernel by kernel", replayed_as_launched),
        ("diffusers' pipeline, as ours", as_diffusers),
    ]
    return [*found, *[("compiled in float16, as uncompiled", partial(as_uncompiled, "float16", HALF))] * compile]


def row(name: str, check: Check) -> dict[str, object]:
    try:
        found, allowed = check()
    except LeftOut as reason:
        return {"check": name, "result": "left out", "difference": None, "why": str(reason)}
    except Exception as error:  # told; the others are made
        return {"check": name, "result": "failed", "difference": None, "why": first_line(error)}
    result = "ok" if found <= allowed else "failed"
    return {"check": name, "result": result, "difference": found, "why": "" if result == "ok" else f"above {allowed}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = prepared(options.device)
    torch.backends.cudnn.allow_tf32 = False  # float32 is the measure here
    title, about, made = "Checks before measuring", report.machine(str(device)), []
    with tempfile.TemporaryDirectory() as work:
        for name, check in checks(device, Path(work), options.compile):
            made.append(row(name, check))
            report.add(title, about, made, options.json)
    report.publish(title, about, made, options.json)
    return int(any(one["result"] == "failed" for one in made))


if __name__ == "__main__":
    sys.exit(main())
