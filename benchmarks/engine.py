"""Engine time of one frame: ours, ours compiled, and diffusers' own pipeline, in one run on the same weights.

    python main.py bench                              the model that `serve` would use
    python -m benchmarks.engine --sd15-shape          SD1.5-sized with random weights, 512x512 (speed is in the shape)

uint8 frames in host memory in, uint8 frames in host memory out, equal size and UNet steps, warm.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import LCMScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image

from benchmarks import report, sd15_shape
from pipeline import Controls, LoadError, ModelSpec, compiling, load
from pipeline.devices import pick_device
from pipeline.stylizer import Stylizer

WARM_UP = 5


def run(
    name: str,
    spec: ModelSpec,
    controls: Controls,
    device: str,
    compile: bool | None,
    frames: int,
    json_file: Path | None,
) -> int:
    """Measure 1, 2 and 4 steps; print the table, write the JSON; returns the exit code."""
    if spec.controlnet:
        raise LoadError("The comparison with diffusers is of plain img2img: name a model without a ControlNet.")
    target = str(pick_device(device))
    stylizer = load(spec, target, compile=False)
    with_compiled = target.startswith("cuda") if compile is None else compile
    engines: dict[str, Callable[[Controls], Callable[[np.ndarray], np.ndarray]]] = {
        "diffusers img2img": lambda settings: diffusers_engine(stylizer, settings),
        "ours": lambda settings: lambda frame: stylizer(frame[None], settings)[0],
    }
    if spec.low_memory:
        del engines["diffusers img2img"]  # its pipeline wants all modules on one device
    rows = [row for label, make in engines.items() for row in _measure(label, make, controls, frames, stylizer)]
    if with_compiled:
        started_s = time.perf_counter()
        try:
            compiling.compile_beside(stylizer, lambda detail, progress: print(detail, flush=True))
        except LoadError as error:
            print(error, flush=True)  # the rows measured so far stand
        else:
            print(f"compiled in {time.perf_counter() - started_s:.0f} s", flush=True)
            rows += _measure("ours, compiled", engines["ours"], controls, frames, stylizer)
    baseline = {row["steps"]: row["p50 ms"] for row in rows if row["engine"] == "diffusers img2img"}
    for row in rows if baseline else ():
        row["times diffusers"] = f"{baseline[row['steps']] / row['p50 ms']:.2f}"
    about = {
        **report.machine(target),
        "model": name,
        "size": f"{spec.width}x{spec.height}",
        "dtype": str(stylizer.dtype),
        "strength": controls.strength,
        "guidance": controls.guidance,
        "low memory": spec.low_memory,
        **report.peak_memory(target),
    }
    report.publish(
        f"Engine time of one frame, {name} at {about['size']} in {about['dtype'][6:]}", about, rows, json_file
    )
    return 0


def _measure(label, make, controls: Controls, frames: int, stylizer: Stylizer) -> list[dict]:
    rows = []
    for steps in (1, 2, 4):
        engine = make(controls.model_copy(update={"steps": steps}))
        times_ms = time_frames(engine, stylizer, frames)
        p50, p95 = report.percentile(times_ms, 50), report.percentile(times_ms, 95)
        rows.append({"engine": label, "steps": steps, "p50 ms": p50, "p95 ms": p95, "fps": 1000 / p50})
        print(report.table(rows[-1:]).splitlines()[-1], flush=True)
    return rows


def time_frames(engine: Callable[[np.ndarray], np.ndarray], stylizer: Stylizer, count: int) -> list[float]:
    """Milliseconds of each of `count` frames after the warm-up, each waited for: the answer is in host memory."""
    dice = np.random.default_rng(0)
    shape = (stylizer.spec.height, stylizer.spec.width, 3)
    pictures = [dice.integers(0, 256, shape, dtype=np.uint8) for _ in range(8)]
    times_ms = []
    for i in range(WARM_UP + count):
        started_s = time.perf_counter()
        engine(pictures[i % len(pictures)])
        times_ms.append(1000 * (time.perf_counter() - started_s))
    return times_ms[WARM_UP:]


def diffusers_engine(stylizer: Stylizer, controls: Controls) -> Callable[[np.ndarray], np.ndarray]:
    """diffusers' pipeline as the LCM guides call it, on this stylizer's own (fused) modules.

    It keeps the last int(n * strength) of n timesteps: n is chosen so that as many UNet steps run as ours.
    """
    parts = stylizer.components
    config = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "steps_offset": 1,
    }
    scheduler = LCMScheduler(**config, set_alpha_to_one=False, prediction_type=parts.schedule.prediction)
    pipe = StableDiffusionImg2ImgPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoders[0],
        tokenizer=parts.tokenizers[0],
        unet=parts.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    strength = 0.5
    generator = torch.Generator("cpu")

    def engine(frame: np.ndarray) -> np.ndarray:
        picture = pipe(
            controls.prompt,
            image=Image.fromarray(frame),
            strength=strength,
            num_inference_steps=int(controls.steps / strength),
            guidance_scale=controls.guidance,
            negative_prompt=controls.negative_prompt,
            generator=generator.manual_seed(controls.seed),
        ).images[0]
        return np.asarray(picture)

    return engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sd15-shape", action="store_true", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", type=int, default=512, help="side of the square picture")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = ModelSpec(str(sd15_shape.write(Path(folder))), width=options.size, height=options.size)
        controls = Controls(prompt="an oil painting", strength=0.5)
        run("sd15 shape, random weights", spec, controls, options.device, options.compile, options.frames, options.json)


if __name__ == "__main__":
    main()
