"""What deep features that serve for several frames save, and what they cost the picture.

    python -m benchmarks.reuse [--model mini] [--json FILE] [CLIP ...]    on real clips; a talking man by default
    python -m benchmarks.reuse --shape sd15 [--tiny]                      time alone: random weights paint no picture

A clip is painted whole and with `reuse` 1, 2 and 3, frame by frame. `reused` is the share of frames that were painted
on features of an earlier one. Of these: `saved` is the time they take less, all included; `differs` and `differs p95`
are how far their pictures are from whole ones, of 255. A picture that pulsed would change less than the whole run's
where features are reused and more where they are new: `change reused` and `change new` are the picture's change
from the frame before, over the whole run's there; 1 is as it should be. Frames are timed in turns, whole and reused;
clips' rows tell the least times. On a CPU it is the processor's time, which other programs there hardly lengthen.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from benchmarks import report
from benchmarks.engine import add_model_options, chosen
from pipeline import Controls, load
from pipeline.batch import Batch, Pictures
from pipeline.runtime.devices import prepared
from pipeline.stylizer import Stylizer
from tests.paths import CARPHONE

REUSES, STEPS = (1, 2, 3), (1, 2)
CALLS, WARM_UP = 40, 5


def paint(stylizer: Stylizer, frame: np.ndarray, controls: Controls, stream: str = "clip") -> Pictures:
    """The live engine's call. frame: uint8 [1, H, W, 3]."""
    return stylizer.submit(Batch(frame, (controls,), streams=(stream,)))()


def filmed(stylizer: Stylizer, controls: Controls, clip: Path, count: int) -> list[dict[str, Any]]:
    """A row for each number of steps and each `reuse`."""
    frames, rows = frames_of(clip, count), []
    for steps in STEPS:
        asked = controls.merged({"steps": steps})
        before, after = map(min, times_ms(stylizer, asked))
        whole = np.stack([stylizer(frame, asked)[0] for frame in frames])
        for reuse in REUSES:
            stylizer.forget()
            made = [paint(stylizer, frame, asked.merged({"reuse": reuse})) for frame in frames]
            pictures, is_reused = (
                np.concatenate([one.rgb for one in made]),
                np.array([one.kind == "again" for one in made]),
            )
            row = {"clip": clip.stem, "steps": steps, "reuse": reuse, "whole ms": before, "reused ms": after}
            rows.append(row | {"saved": 1 - after / before} | against(whole, pictures, is_reused))
    return rows


def timed(stylizer: Stylizer, controls: Controls) -> list[dict[str, Any]]:
    """A row for each number of steps."""
    rows = []
    for steps in STEPS:
        whole, reused = times_ms(stylizer, controls.merged({"steps": steps}))
        p50, then = report.percentile(whole, 50), report.percentile(reused, 50)
        row = {"steps": steps, "whole ms": p50, "reused ms": then, "saved": 1 - then / p50}
        rows.append(row | {"whole least ms": min(whole), "reused least ms": min(reused)})
    return rows


def times_ms(stylizer: Stylizer, controls: Controls) -> tuple[list[float], list[float]]:
    """Of frames painted whole, and of those painted on features of an earlier one; in turns."""
    shape = (1, stylizer.capabilities.height, stylizer.capabilities.width, 3)
    frame = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    clock = time.process_time if stylizer.device.type == "cpu" else time.perf_counter
    reusing = controls.merged({"reuse": 1})
    stylizer.capture_calls(
        lambda: stylizer(frame, controls), *[lambda: paint(stylizer, frame, reusing) for _ in range(2)]
    )
    whole: list[float] = []
    reused: list[float] = []
    for _ in range(WARM_UP + CALLS):
        started_s = clock()
        stylizer(frame, controls)
        whole.append(1000 * (clock() - started_s))
        stylizer.forget()
        paint(stylizer, frame, reusing)
        started_s = clock()
        paint(stylizer, frame, reusing)
        reused.append(1000 * (clock() - started_s))
    return whole[WARM_UP:], reused[WARM_UP:]


def against(whole: np.ndarray, pictures: np.ndarray, is_reused: np.ndarray) -> dict[str, float | None]:
    """Both uint8 [N, H, W, 3]. None where no frame is of the kind that a figure is of."""
    apart = differences(whole, pictures)[is_reused]
    changes = differences(pictures[1:], pictures[:-1]) / differences(whole[1:], whole[:-1]).clip(min=1e-6)
    reused, new = changes[is_reused[1:]], changes[~is_reused[1:]]
    return {
        "reused": float(is_reused.mean()),
        "differs": float(apart.mean()) if len(apart) else None,
        "differs p95": report.percentile(apart.tolist(), 95) if len(apart) else None,
        "change reused": float(np.median(reused)) if len(reused) else None,
        "change new": float(np.median(new)) if len(new) else None,
    }


def differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The mean absolute one of each picture, float [N]."""
    return np.abs(one.astype(np.int16) - other).mean(axis=(1, 2, 3))


def frames_of(clip: Path, count: int) -> list[np.ndarray]:
    """The first, each uint8 [1, H, W, 3] RGB."""
    with av.open(str(clip)) as source:
        frames = itertools.islice(source.decode(video=0), count)
        return [frame.to_ndarray(format="rgb24")[None] for frame in frames]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path, default=[CARPHONE], metavar="CLIP")
    add_model_options(parser)
    parser.add_argument("--frames", type=report.count, default=40, metavar="N", help="of each clip")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = str(prepared(options.device))
    with tempfile.TemporaryDirectory() as scratch:
        name, spec, controls = chosen(options, Path(scratch))
        stylizer = load(spec, device, compile=False)
        about = {
            **report.machine(device),
            "model": name,
            "size": f"{spec.width}x{spec.height}",
            "prompt": controls.prompt,
            "strength": controls.strength,
            "threads": torch.get_num_threads(),
        }
        title, rows = f"Reuse of deep features, {name}", []
        for clip in [None] if options.shape else options.clips:
            rows += timed(stylizer, controls) if clip is None else filmed(stylizer, controls, clip, options.frames)
            report.add(title, about, rows, options.json)
    report.publish(title, about, rows, options.json)


if __name__ == "__main__":
    main()
