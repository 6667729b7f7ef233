"""Engine time of a frame: ours, launched, replayed and compiled, and diffusers' pipeline, in one run, same weights.

    python main.py bench                              the model that `serve` would use
    python -m benchmarks.engine --shape sd15          the published shape with random weights (speed is in the shape)

uint8 frames in host memory in, uint8 pictures in host memory out, equal size and UNet steps, warm, each call waited
for. `differs` is how far a picture is on average, of 255, from ours, launched kernel by kernel; diffusers gives each
frame of a batch noise of its own, and its guides find edges in colour. What is left out is named, and why.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import (
    LCMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image

from benchmarks import report
from pipeline import Controls, LoadError, ModelSpec, compiling, load
from pipeline.errors import CaptureFailed, first_line
from pipeline.presets import TABLE
from pipeline.runtime.devices import compiling_pays, pick_device, prepared
from pipeline.stylizer import Stylizer
from tests import tiny

WARM_UP = 5
LEAST_CALLS = 20
CFG_GUIDANCE = 1.5  # where the model's own setting has none
OURS, DIFFUSERS = "ours", "diffusers img2img"
THEIR_STRENGTH = 0.5  # the last half of the timesteps: as many are asked for that as many steps run as ours


@dataclass(frozen=True)
class Setting:
    """What a row is of."""

    steps: int = 1
    batch: int = 1
    cfg: bool = False

    def applied(self, controls: Controls) -> Controls:
        guidance = max(controls.guidance, CFG_GUIDANCE) if self.cfg else min(controls.guidance, 1.0)
        return controls.model_copy(update={"steps": self.steps, "guidance": guidance})

    def frames(self, spec: ModelSpec, count: int = 8) -> list[np.ndarray]:
        dice = np.random.default_rng(0)
        return [dice.integers(0, 256, (self.batch, spec.height, spec.width, 3), np.uint8) for _ in range(count)]


# (steps, batch, cfg); what matters most comes first: a budget may cut the rest
SETTINGS = tuple(Setting(*each) for each in ((1,), (4,), (1, 8), (2,), (1, 1, True), (1, 4), (1, 2)))
WITH_CONTROL = SETTINGS[:2]  # of a ControlNet beside the model without
GRID = tuple(Setting(*each) for each in itertools.product((1, 2, 4), (1, 2, 4, 8), (False, True)))


@dataclass(frozen=True)
class Limits:
    """As the options of report.add_limits. json: written after every row."""

    frames: int = 200
    row_s: float = 20.0
    budget_s: float = math.inf
    everything: bool = False
    compile: bool | None = None
    json: Path | None = None
    started_s: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, options: argparse.Namespace) -> Limits:
        names = ("frames", "row_s", "budget_s", "everything", "compile", "json")
        return cls(**{name: getattr(options, name) for name in names})

    def settings(self, *, beside: bool) -> Sequence[Setting]:
        """beside: of a model that was measured without its ControlNet before."""
        if self.everything:
            return GRID
        return WITH_CONTROL if beside else SETTINGS

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self.started_s > self.budget_s


@dataclass
class Results:
    title: str
    about: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def leave_out(self, sentence: str) -> None:
        if sentence not in self.about["left out"]:
            self.about["left out"].append(sentence)
            print(sentence, flush=True)


class LeftOut(Exception):
    """Why something is not measured or checked here."""


Call = Callable[[np.ndarray], np.ndarray]  # uint8 [batch, H, W, 3] in host memory -> the same
Way = Callable[[Setting], Call]  # raises LeftOut


# -- who is measured -----------------------------------------------------------------------------------------------


def launched(stylizer: Stylizer, controls: Controls) -> Way:
    """Every kernel from Python, if it is a stylizer without graphs."""
    return lambda setting: partial(stylizer, controls=setting.applied(controls))


def replayed(stylizer: Stylizer, controls: Controls) -> Way:
    """As CUDA graphs, where there are any."""

    def way(setting: Setting) -> Call:
        call, (blank,) = launched(stylizer, controls)(setting), setting.frames(stylizer.spec, 1)
        stylizer.capture_calls(lambda: call(blank))
        return call

    return way


def compiled(stylizer: Stylizer, controls: Controls) -> Way:
    """It compiles when it is first asked for a frame, and again when it is first asked for a batch. Raises LoadError
    where that fails."""

    @cache
    def compile(batches: bool) -> None:
        compiling.compile_beside(stylizer, lambda detail, progress: print(detail), compiling.at_once, batches)

    def way(setting: Setting) -> Call:
        compile(setting.batch > 1)
        seen: list[Any] = []
        hook = stylizer.components.unet.register_forward_pre_hook(lambda module, args: seen.append(module))
        launched(stylizer, controls)(setting)(setting.frames(stylizer.spec, 1)[0])
        hook.remove()
        if seen:
            raise LeftOut(f"it has no compiled code for batches of {setting.batch}, which run as uncompiled ones")
        return replayed(stylizer, controls)(setting)

    return way


def diffusers_img2img(stylizer: Stylizer, controls: Controls) -> Way:
    """diffusers' pipeline as the LCM guides call it, on copies of the same weights in the guides' layout."""
    generator, pipe = torch.Generator("cpu"), cache(lambda: _pipeline(stylizer))

    def way(setting: Setting) -> Call:
        asked, paint = setting.applied(controls), pipe()

        def call(frames: np.ndarray) -> np.ndarray:
            joined: dict[str, Any] = {}
            if stylizer.components.extras:
                edges = [cv2.Canny(frame, asked.canny_low, asked.canny_high) for frame in frames]
                joined = {"control_image": [Image.fromarray(np.stack([edge] * 3, axis=2)) for edge in edges]}
                joined["controlnet_conditioning_scale"] = asked.control_scale
            painted = paint(
                [asked.prompt] * len(frames),
                image=[Image.fromarray(frame) for frame in frames],
                strength=THEIR_STRENGTH,
                num_inference_steps=int(asked.steps / THEIR_STRENGTH),
                guidance_scale=asked.guidance,
                negative_prompt=[asked.negative_prompt] * len(frames),
                generator=generator.manual_seed(asked.seed),
                **joined,
            )
            return np.stack([np.asarray(picture) for picture in painted.images])

        return call

    return way


def _pipeline(stylizer: Stylizer) -> Callable[..., Any]:
    parts = stylizer.components
    if parts.text_encoders[0].device != parts.device:
        raise LeftOut("its pipeline wants all modules on one device, and --low-memory keeps some off it")
    if stylizer.capabilities.annotators not in ((), ("canny",)) or (parts.extras and parts.family.pooled):
        raise LeftOut("its guides' img2img has no pipeline for this model's extras")

    def plain(module: torch.nn.Module) -> torch.nn.Module:
        return deepcopy(module).to(memory_format=torch.contiguous_format)

    modules: dict[str, Any] = {
        "vae": plain(parts.vae),
        "unet": plain(parts.unet),
        "text_encoder": parts.text_encoders[0],
        "tokenizer": parts.tokenizers[0],
        "scheduler": LCMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            steps_offset=1,
            set_alpha_to_one=False,
            prediction_type=parts.schedule.prediction,
        ),
        **parts.family.without,
    }
    kind = StableDiffusionImg2ImgPipeline
    if parts.family.pooled:
        kind = StableDiffusionXLImg2ImgPipeline
        modules |= {"text_encoder_2": parts.text_encoders[1], "tokenizer_2": parts.tokenizers[1]}
    elif parts.extras:
        kind = StableDiffusionControlNetImg2ImgPipeline
        (modules["controlnet"],) = (plain(net) for extra in parts.extras for net in extra.children())
    pipe = kind(**modules)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ways(stylizer: Stylizer, controls: Controls, compile: bool | None) -> dict[str, Way]:
    """By the name of their rows."""
    spec, parts = stylizer.spec, stylizer.components
    found = {OURS: launched(Stylizer(spec, parts, graphs=False), controls)}
    if stylizer.graphs:
        found[f"{OURS}, graphs"] = replayed(Stylizer(spec, parts), controls)
    found[DIFFUSERS] = diffusers_img2img(stylizer, controls)
    if compiling_pays(stylizer.device) if compile is None else compile:
        found[f"{OURS}, compiled"] = compiled(Stylizer(spec, parts), controls)
    return found


# -- measuring -----------------------------------------------------------------------------------------------------


def run(name: str, models: Iterable[tuple[ModelSpec, Controls]], device: str, limits: Limits) -> int:
    """Measure, print the table, write JSON; returns the exit code. models: of one size and device, as without and with
    a ControlNet."""
    target = prepared(device)
    results = None
    for spec, controls in models:
        if controls.bypass or controls.strength == 0:
            raise LoadError("With bypass, or a strength of 0, nothing is painted that could be measured.")
        stylizer = load(spec, str(target), compile=False)
        beside = results is not None
        results = results or _about(name, stylizer, controls)
        try:
            measure(stylizer, controls, limits.settings(beside=beside), limits, results)
        except CaptureFailed as error:
            results.leave_out(f"The rest: left out. {error}")
            break
        del stylizer
        gc.collect()
    if results is not None:
        report.publish(results.title, results.about, results.rows, limits.json)
    return 0


def _about(name: str, stylizer: Stylizer, controls: Controls) -> Results:
    size, dtype = f"{stylizer.spec.width}x{stylizer.spec.height}", str(stylizer.dtype)
    about = {
        **report.machine(str(stylizer.device)),
        "model": name,
        "size": size,
        "dtype": dtype,
        "strength": controls.strength,
        "guidance": controls.guidance,
        "left out": [],
    }
    return Results(f"Engine time of a frame, {name} at {size} in {dtype[6:]}", about)


def measure(
    stylizer: Stylizer, controls: Controls, settings: Sequence[Setting], limits: Limits, results: Results
) -> None:
    measured = ways(stylizer, controls, limits.compile)
    for setting, (name, way) in itertools.product(settings, measured.items()):
        if limits.is_over:
            results.leave_out(f"{name}: some rows left out, the time was up.")
            continue
        if setting.cfg and stylizer.capabilities.guidance_embedding:
            results.leave_out("Rows with CFG: left out, a full LCM takes its guidance as an input.")
            continue
        frames, plain = setting.frames(stylizer.spec), measured[OURS](setting)
        try:
            call = way(setting)
            differs = None if name == OURS else report.difference(call(frames[0]), plain(frames[0]))
            times_ms = time_calls(call, frames, limits.frames, limits.row_s)
        except LeftOut as reason:
            results.leave_out(f"{name}: left out, {reason}.")
            continue
        except CaptureFailed:  # memory may be corrupt: nothing is measured with that
            raise
        except Exception as error:  # whoever fails is named, the others are measured
            results.leave_out(f"{name}: left out, it failed ({type(error).__name__}: {first_line(error)}).")
            continue
        results.rows.append(row(name, bool(stylizer.capabilities.annotators), setting, times_ms, differs))
        compare(results.rows)
        report.add(results.title, results.about, results.rows, limits.json)


def time_calls(call: Call, frames: Sequence[np.ndarray], count: int, row_s: float) -> list[float]:
    """Milliseconds of each of `count` calls after the warm-up; of fewer where they would take longer than `row_s`."""
    times_ms: list[float] = []
    pictures = itertools.cycle(frames)
    for _ in range(WARM_UP):
        call(next(pictures))
    end_s = time.perf_counter() + row_s
    while len(times_ms) < count and (len(times_ms) < LEAST_CALLS or time.perf_counter() < end_s):
        started_s = time.perf_counter()
        call(next(pictures))
        times_ms.append(1000 * (time.perf_counter() - started_s))
    return times_ms


def row(
    engine: str, control: bool, setting: Setting, times_ms: Sequence[float], differs: float | None = None
) -> dict[str, Any]:
    """A row of the table, of calls of `setting.batch` frames each."""
    p50 = report.percentile(times_ms, 50)
    return {
        "engine": engine,
        "control": "yes" if control else "no",
        "cfg": "on" if setting.cfg else "off",
        "steps": setting.steps,
        "batch": setting.batch,
        "p50 ms": p50,
        "p95 ms": report.percentile(times_ms, 95),
        "fps": 1000 * setting.batch / p50,
        "x diffusers": None,
        "differs": differs,
        "calls": len(times_ms),
    }


def compare(rows: Sequence[dict[str, Any]]) -> None:
    """Fill in how many times as fast as diffusers' pipeline a row is, where that has the same."""

    def key(one: dict[str, Any]) -> tuple:
        return one["control"], one["cfg"], one["steps"], one["batch"]

    baseline = {key(one): one["p50 ms"] for one in rows if one["engine"] == DIFFUSERS}
    for one in rows:
        one["x diffusers"] = baseline[key(one)] / one["p50 ms"] if key(one) in baseline else None


# -- which model -----------------------------------------------------------------------------------------------------


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=list(TABLE), default="mini")
    parser.add_argument("--shape", choices=list(tiny.SHAPES), help="a published shape with random weights instead")
    parser.add_argument("--tiny", action="store_true", help="its topology in a few kilobytes, to try the benchmark")
    parser.add_argument("--work", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)


def chosen(options: argparse.Namespace, scratch: Path) -> tuple[str, ModelSpec, Controls]:
    """(its name, what is loaded, what is asked of it), by the options above."""
    if not options.shape:
        return options.model, TABLE[options.model].spec, TABLE[options.model].defaults
    shape, folder = shape_and_folder(options, scratch)
    base = shape.kept(tiny.checkpoint, folder / options.shape, str(pick_device(options.device)))
    spec = ModelSpec(str(base), width=shape.side, height=shape.side)
    return f"{options.shape} shape, random weights", spec, Controls(prompt="an oil painting", strength=0.5)


def shape_and_folder(options: argparse.Namespace, scratch: Path) -> tuple[tiny.ModelShape, Path]:
    shapes = tiny.TINY_SHAPES if options.tiny else tiny.SHAPES
    return shapes[options.shape], (options.work or scratch) / ("tiny" if options.tiny else "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    report.add_limits(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        name, spec, controls = chosen(options, Path(scratch))
        models = [(spec, controls)]
        if options.shape == "sd15":
            shape, folder = shape_and_folder(options, Path(scratch))
            net = shape.kept(tiny.controlnet, folder / "sd15-controlnet", str(pick_device(options.device)))
            models.append((replace(spec, controlnet=str(net)), controls))
        run(name, models, options.device, Limits.of(options))


if __name__ == "__main__":
    main()
