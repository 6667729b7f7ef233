"""What do deep features that serve for several frames save, and what do they cost the picture?

    python -m benchmarks.reuse [--model mini] [--json FILE] [CLIP ...]    on real clips; a talking man by default
    python -m benchmarks.reuse --shape sd15 [--tiny]                      time alone: random weights paint no picture
    python -m benchmarks.reuse --operations                               what is left to compute, by shape and cut

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel

from benchmarks import floor, report, shapes
from pipeline import Controls, ModelSpec, load
from pipeline.loading.families import SD, SDXL
from pipeline.presets import MINI, TABLE
from pipeline.runtime.devices import prepared
from pipeline.sampling.deep_features import input_of, shallow
from pipeline.stylizer import Stylizer
from tests.paths import CARPHONE

CLIP = CARPHONE
REUSES, STEPS = (1, 2, 3), (1, 2)
CALLS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path, default=[CLIP], metavar="CLIP")
    parser.add_argument("--model", choices=list(TABLE), default="mini")
    parser.add_argument("--shape", choices=list(shapes.SHAPES))
    parser.add_argument("--operations", action="store_true")
    parser.add_argument("--frames", type=int, default=40, metavar="N", help="of each clip")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="the shape's topology in a few kilobytes")
    parser.add_argument("--work", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = str(prepared(options.device))
    if options.operations:
        rows = [row for name in ("mini", *shapes.SHAPES) for row in operations(name)]
        report.publish("What reuse leaves to compute", report.machine("cpu"), rows, options.json)
    elif options.shape:
        with tempfile.TemporaryDirectory() as scratch:
            shape = shapes.SHAPES[options.shape]
            shape = shapes.tiny(shape) if options.tiny else shape
            work = (options.work or Path(scratch)) / ("tiny" if options.tiny else "full")
            base = shapes.checkpoint(work / options.shape, shape, device)
            stylizer = load(ModelSpec(str(base), width=shape.size, height=shape.size), device, compile=False)
            timed(f"{options.shape} shape", stylizer, Controls(prompt="an oil painting"), options.json)
    else:
        preset = TABLE[options.model]
        stylizer = load(preset.spec, device, compile=False)
        filmed(options.model, stylizer, preset.defaults, options.clips, options.frames, options.json)


def filmed(
    name: str, stylizer: Stylizer, controls: Controls, clips: Sequence[Path], count: int, file: Path | None
) -> None:
    title, about, rows = f"Reuse of deep features, {name}", report.machine(str(stylizer.device)), []
    least = {}
    for steps in STEPS:
        whole, reused = times_ms(stylizer, controls.merged({"steps": steps}))
        least[steps] = min(whole), min(reused)
    about |= {
        "model": name,
        "prompt": controls.prompt,
        "strength": controls.strength,
        "threads": torch.get_num_threads(),
        "frames": count,
    }
    for clip, steps in itertools.product(clips, STEPS):
        asked = controls.merged({"steps": steps})
        frames = frames_of(clip, count)
        whole = np.stack([stylizer(frame, asked)[0] for frame in frames])
        for reuse in REUSES:
            pictures, is_reused = painted(stylizer, frames, asked.merged({"reuse": reuse}))
            before, after = least[steps]
            row = {"clip": clip.stem, "steps": steps, "reuse": reuse, "whole ms": before, "reused ms": after}
            rows.append(row | {"saved": 1 - after / before} | against(whole, pictures, is_reused))
            report.add(title, about, rows, file)
    report.publish(title, about, rows, file)


def timed(name: str, stylizer: Stylizer, controls: Controls, file: Path | None) -> None:
    rows = []
    for steps in STEPS:
        whole, reused = times_ms(stylizer, controls.merged({"steps": steps}))
        p50, then = report.percentile(whole, 50), report.percentile(reused, 50)
        row = {"steps": steps, "whole ms": p50, "reused ms": then, "saved": 1 - then / p50}
        rows.append(row | {"whole least ms": min(whole), "reused least ms": min(reused)})
    title = f"Time that reuse of deep features saves, {name}, random weights"
    about = {**report.machine(str(stylizer.device)), "size": f"{stylizer.spec.width}x{stylizer.spec.height}"}
    report.publish(title, about, rows, file)


def times_ms(stylizer: Stylizer, controls: Controls) -> tuple[list[float], list[float]]:
    """Of frames painted whole, and of those painted on features of an earlier one; in turns."""
    shape = (1, stylizer.spec.height, stylizer.spec.width, 3)
    frame = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    clock = time.process_time if stylizer.device.type == "cpu" else time.perf_counter
    reusing, memories = [controls.merged({"reuse": 1})], [None]
    whole: list[float] = []
    reused: list[float] = []

    def on_features() -> None:
        _, kept = stylizer.remembering(frame, reusing, [None])
        stylizer.remembering(frame, reusing, kept)

    stylizer.record_calls(lambda: stylizer(frame, controls), on_features)
    for _ in range(CALLS + 5):
        started_s = clock()
        stylizer(frame, controls)
        whole.append(1000 * (clock() - started_s))
        _, memories = stylizer.remembering(frame, reusing, [None])
        started_s = clock()
        _, memories = stylizer.remembering(frame, reusing, memories)
        reused.append(1000 * (clock() - started_s))
    return whole[5:], reused[5:]


def painted(stylizer: Stylizer, frames: Sequence[np.ndarray], controls: Controls) -> tuple[np.ndarray, np.ndarray]:
    """Pictures, uint8 [N, H, W, 3], and for which of them features were reused, bool [N]."""
    memory, pictures, is_reused = None, [], []
    for frame in frames:
        (picture,), (memory,) = stylizer.remembering(frame, [controls], [memory])
        pictures.append(picture)
        is_reused.append(memory.used > 0)
    return np.stack(pictures), np.array(is_reused)


def against(whole: np.ndarray, pictures: np.ndarray, is_reused: np.ndarray) -> dict[str, float | None]:
    """Both uint8 [N, H, W, 3]. None where no frame is of the kind that a figure is of."""
    apart = difference(whole, pictures)[is_reused]
    changes = difference(pictures[1:], pictures[:-1]) / difference(whole[1:], whole[:-1]).clip(min=1e-6)
    reused, new = changes[is_reused[1:]], changes[~is_reused[1:]]
    return {
        "reused": float(is_reused.mean()),
        "differs": float(apart.mean()) if len(apart) else None,
        "differs p95": report.percentile(apart.tolist(), 95) if len(apart) else None,
        "change reused": float(np.median(reused)) if len(reused) else None,
        "change new": float(np.median(new)) if len(new) else None,
    }


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each picture, float [N]."""
    return np.abs(one.astype(np.int16) - other).mean(axis=(1, 2, 3))


def frames_of(clip: Path, count: int) -> list[np.ndarray]:
    """The first, each uint8 [1, H, W, 3] RGB."""
    with av.open(str(clip)) as source:
        frames = itertools.islice(source.decode(video=0), count)
        return [frame.to_ndarray(format="rgb24")[None] for frame in frames]


def operations(name: str) -> list[dict[str, Any]]:
    """What a UNet call of a shape takes, whole and from each number of outer blocks on; and the same of a frame of one
    step with a TAESD before and behind it. Counted without weights."""
    with torch.device("meta"):
        if name == "mini":
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(MINI / "unet"))
            vae = AutoencoderTiny.from_config(AutoencoderTiny.load_config(MINI / "vae"))
            chosen = SD.outer
        else:
            shape = shapes.SHAPES[name]
            unet = UNet2DConditionModel(**shape.unet)
            vae = AutoencoderTiny(**shape.vae)
            chosen = (SDXL if shape.sdxl else SD).outer
        side = unet.config.sample_size
        x = torch.zeros(1, unet.config.in_channels, side, side)
        call = {
            "sample": x,
            "timestep": torch.zeros(1, dtype=torch.long),
            "encoder_hidden_states": torch.zeros(1, 77, unet.config.cross_attention_dim),
        }
        if unet.config.addition_embed_type == "text_time":
            call["added_cond_kwargs"] = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        around = floor.flops(lambda: vae.decode(vae.encode(torch.zeros(1, 3, 8 * side, 8 * side)).latents))
        whole = floor.flops(lambda: unet(**call))
        rows = []
        for outer in range(1, len(unet.up_blocks)):
            with input_of(unet.up_blocks[-outer]) as given:
                unet(**call)
            (below,) = given
            part = floor.flops(lambda below=below, outer=outer: shallow(unet, below, outer, **call))
            rows.append(
                {
                    "shape": name,
                    "outer blocks": outer,
                    "chosen": "yes" if outer == chosen else "",
                    "kept": "x".join(map(str, below.shape[1:])),
                    "UNet GFLOP": whole / 1e9,
                    "of the UNet": part / whole,
                    "of a frame": (part + around) / (whole + around),
                }
            )
    return rows


if __name__ == "__main__":
    main()
