"""Is right what will be measured? Tiny models on the device and the CPU, compiled and not, ours and the peers.

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

from benchmarks import recorded, report, shapes
from benchmarks.contenders import Diffusers, Ours
from benchmarks.plan import Setting
from benchmarks.streamdiffusion_peer import StreamDiffusionPeer
from pipeline import Controls, ModelSpec, compiling, load
from pipeline.errors import first_line
from pipeline.pixels import canny
from pipeline.runtime.devices import prepared
from pipeline.runtime.graphs import Graphs, Record, record_in_one_pool, unless_it_waits
from stream.engine.i420 import to_i420

CONTROLS = Controls(prompt="a cat on a roof", strength=0.5, steps=2, guidance=1.5)
EXACT, HALF = 0.5, 2.0  # mean differences allowed in float32 and in half precision


class LeftOut(Exception):
    """A check that cannot be made here: an optional peer is not installed."""


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two uint8 pictures, of 255."""
    return float(np.abs(a.astype(np.int16) - b).mean())


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
    return difference(255 * found[:, 0].cpu().numpy().astype(np.uint8), expected), 0.0


def no_wait_for_edges(device: torch.device) -> tuple[float, float]:
    if device.type != "cuda":
        raise LeftOut("only on CUDA nobody waits")
    return float(canny._hysteresis_on(device) is not canny.by_regions), 0.0


def replayed_as_launched(device: torch.device, record: Record | None) -> tuple[float, float]:
    """The largest difference, on frames that change. Fails where something was not recorded."""
    if record is None:
        raise LeftOut("only CUDA has graphs to record")
    taken, apart = [], [0.0]

    def counted(work):
        replay = record(work)
        taken.append(replay)
        return replay

    made = recorded.cases(device)
    for of, make in made.values():
        plain = of(lambda way: way)
        replayed = recorded.ready(of, make, lambda way: Graphs(way, unless_it_waits(counted)))
        for given in [make() for _ in range(3)]:
            apart.append(float((replayed(given).float() - plain(given).float()).abs().max()))
    if len(taken) != len(made):
        raise RuntimeError(f"{len(taken)} of {len(made)} were recorded")
    return max(apart), 0.0


def checks(device: torch.device, work: Path, compile: bool) -> list[tuple[str, Callable[[], tuple[float, float]]]]:
    """(what is checked, how: the difference found and the one allowed)."""
    bases = {name: shapes.checkpoint(work / name, shapes.tiny(shape)) for name, shape in shapes.SHAPES.items()}
    side = shapes.tiny(shapes.SD15).size
    frame = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)

    def model(name: str, dtype: str, target: str = str(device)):
        spec = ModelSpec(str(bases[name]), width=side, height=side, dtype=dtype)
        stylizer = load(spec, target, compile=False)
        stylizer.record_calls(lambda: stylizer(frame, CONTROLS))
        return stylizer

    def as_on_the_cpu(name: str, dtype: str, allowed: float) -> tuple[float, float]:
        reference = model(name, "float32", "cpu")(frame, CONTROLS)
        return difference(model(name, dtype)(frame, CONTROLS), reference), allowed

    def as_uncompiled(dtype: str, allowed: float) -> tuple[float, float]:
        stylizer = model("sd15", dtype)
        reference = stylizer(frame, CONTROLS)
        compiling.compile_beside(stylizer, lambda detail, progress: None, compiling.at_once)
        stylizer.record_calls(lambda: stylizer(frame, CONTROLS))
        return difference(stylizer(frame, CONTROLS), reference), allowed

    def as_ours(kind: type) -> tuple[float, float]:
        stylizer, setting, controls = model("sd15", "float32"), Setting(steps=2), CONTROLS
        peer, ours = kind(stylizer, controls), Ours(stylizer, controls)
        if (reason := peer.left_out(setting)) is not None:
            raise LeftOut(reason)
        call = peer.call(setting)
        for _ in range(peer.delay(setting) + 1):
            painted = call(frame)
        return difference(painted, ours.call(setting)(frame)), EXACT

    def as_one_by_one() -> tuple[float, float]:
        stylizer = model("sd15", "float32")
        frames = np.random.default_rng(1).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
        single = np.concatenate([stylizer(one[None], CONTROLS) for one in frames])
        return difference(stylizer(frames, CONTROLS), single), EXACT

    def as_rgb() -> tuple[float, float]:
        stylizer = model("sd15", "float32")
        planes = np.random.default_rng(2).integers(16, 236, (2, side * 3 // 2, side), dtype=np.uint8)
        rgb = np.stack([cv2.cvtColor(one, cv2.COLOR_YUV2RGB_I420) for one in planes])
        pictures, out = stylizer.live(planes, CONTROLS)
        expected = stylizer(rgb, CONTROLS)
        apart = difference(out, np.stack([to_i420(one) for one in expected]))
        return max(apart, difference(pictures, expected)), EXACT

    found: list[tuple[str, Callable[[], tuple[float, float]]]] = [
        (f"{name} in {dtype}, as on the CPU in float32", partial(as_on_the_cpu, name, dtype, allowed))
        for name in bases
        for dtype, allowed in (("float32", EXACT), ("float16", HALF))
    ]
    found.append(("a batch of three, as its frames one by one", as_one_by_one))
    found.append(("I420 in and out, as RGB", as_rgb))
    found.append(("Canny's edges, as OpenCV's on every pixel", partial(edges_as_opencvs, device)))
    found.append(("Canny's edges, without a wait", partial(no_wait_for_edges, device)))
    record = record_in_one_pool(device) if device.type == "cuda" else None
    around = partial(replayed_as_launched, device, record)
    found.append(("conversions and control images, replayed as launched", around))
    found.append(("diffusers' pipeline, as ours", partial(as_ours, Diffusers)))
    found.append(("StreamDiffusion, as ours", partial(as_ours, StreamDiffusionPeer)))
    if compile:
        found.append(("compiled in float16, as uncompiled", partial(as_uncompiled, "float16", HALF)))
    return found


def row(name: str, check: Callable[[], tuple[float, float]]) -> dict[str, object]:
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
