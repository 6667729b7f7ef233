"""Engine time of a frame: ours, ours compiled, diffusers' own pipeline and StreamDiffusion, in one run, same weights.

    python main.py bench                              the model that `serve` would use
    python -m benchmarks.engine --shape sd15          the published shape with random weights (speed is in the shape)

uint8 frames in host memory in, uint8 pictures in host memory out, equal size and UNet steps, warm, each call waited
for. Beside each row the arithmetic floor: the operations of that very call over the rate of matrix products that the
device shows in the same run. `delay` is how many calls later a picture comes out, so that it takes `delay` + 1 calls to
be painted; `differs`, how far a picture is on average, of 255, from what the same weights give uncompiled and one frame
after the other. What is left out is named, and why.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bars, floor, report, shapes
from benchmarks.contenders import Call, Contender, Diffusers, Ours, OursCompiled, OursReplayed, OursStreamBatch
from benchmarks.plan import Plan, Setting, add_options, plan_from
from benchmarks.streamdiffusion_peer import peers
from pipeline import Controls, LoadError, ModelSpec, load
from pipeline.errors import CaptureFailed, first_line
from pipeline.runtime.devices import compiling_pays, pick_device, prepared
from pipeline.stylizer import Stylizer

WARM_UP = 5
LEAST_CALLS = 20


@dataclass
class Results:
    title: str
    about: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def leave_out(self, sentence: str) -> None:
        if sentence not in self.about["left out"]:
            self.about["left out"].append(sentence)
            print(sentence, flush=True)


def run(name: str, models: Iterable[tuple[ModelSpec, Controls]], device: str, plan: Plan) -> int:
    """Measure; print the table, write JSON and picture; returns the exit code. models: of one size and device, as
    without and with a ControlNet."""
    target = prepared(device)
    results = None
    for spec, controls in models:
        if controls.bypass or controls.strength == 0:
            raise LoadError("With bypass, or a strength of 0, nothing is painted that could be measured.")
        stylizer = load(spec, str(target), compile=False)
        beside = results is not None
        results = results or _about(name, stylizer, controls)
        try:
            _measure_model(stylizer, controls, plan.settings(beside=beside), plan, results)
        except CaptureFailed as error:
            results.leave_out(f"The rest: left out. {error}")
            break
        del stylizer
        gc.collect()
    report.publish(results.title, results.about, results.rows, plan.json)
    return 0


def _about(name: str, stylizer: Stylizer, controls: Controls) -> Results:
    rate = floor.matmul_rate(stylizer.device, stylizer.dtype)
    size, dtype = f"{stylizer.spec.width}x{stylizer.spec.height}", str(stylizer.dtype)
    about = {
        **report.machine(str(stylizer.device)),
        "model": name,
        "size": size,
        "dtype": dtype,
        "strength": controls.strength,
        "guidance": controls.guidance,
        "matmul TFLOP/s": round(rate / 1e12, 3),
        "left out": [],
    }
    return Results(f"Engine time of a frame, {name} at {size} in {dtype[6:]}", about)


def _measure_model(
    stylizer: Stylizer, controls: Controls, settings: Sequence[Setting], plan: Plan, results: Results
) -> None:
    contenders = contenders_for(stylizer, controls, plan)
    control = bool(stylizer.spec.annotators)
    counted: dict[tuple[Contender, Setting], float] = {}
    for setting, contender in itertools.product(settings, contenders):
        if plan.is_over:
            results.leave_out(f"{contender.name}: some rows left out, the time was up.")
            continue
        if setting.cfg and stylizer.recipes.guidance_embedding_dim is not None:
            results.leave_out("Rows with CFG: left out, a full LCM takes its guidance as an input.")
            continue
        try:
            if (reason := contender.left_out(setting)) is not None:
                results.leave_out(f"{contender.name}: left out, {reason}.")
                continue
            key = (contender.twin, setting)
            if key not in counted:
                counted[key] = floor_ms(contender.twin.call(setting), stylizer, setting, results)
            frames = _frames(stylizer.spec, setting)
            differs = picture_difference(contender, setting, frames[0])
            times_ms = time_calls(contender.call(setting), frames, plan.frames, plan.row_s)
        except CaptureFailed:  # memory may be corrupt: nothing is measured with that
            raise
        except Exception as error:  # whoever fails is named, the others are measured
            results.leave_out(f"{contender.name}: left out, it failed ({type(error).__name__}: {first_line(error)}).")
            continue
        delay = contender.delay(setting)
        results.rows.append(row(contender.name, control, setting, times_ms, counted[key], delay, differs))
        compare(results.rows)
        report.add(results.title, results.about, results.rows, plan.json)
        if plan.picture is not None:
            plan.picture.write_text(bars.svg({"title": results.title, **results.about, "rows": results.rows}))


def contenders_for(stylizer: Stylizer, controls: Controls, plan: Plan) -> list[Contender]:
    ours = Ours(Stylizer(stylizer.spec, stylizer.components, graphs=False), controls)
    replayed = [*([OursReplayed(ours)] if stylizer.graphs else []), OursStreamBatch(ours)]
    compiled = compiling_pays(stylizer.device) if plan.compile is None else plan.compile
    others = peers(stylizer, controls, compiled=compiled, everything=plan.everything)
    found = [ours, *replayed, Diffusers(stylizer, controls), *([OursCompiled(ours)] if compiled else []), *others]
    return sorted(found, key=lambda contender: contender.twin is not contender)  # compiling takes minutes: last


def floor_ms(call: Call, stylizer: Stylizer, setting: Setting, results: Results) -> float:
    flops = floor.flops(lambda: call(_frames(stylizer.spec, setting)[0]))
    return flops / (results.about["matmul TFLOP/s"] * 1e12) * 1000


def picture_difference(contender: Contender, setting: Setting, frames: np.ndarray) -> float | None:
    """Mean difference between a compiled contender's pictures and its twin's, of 255; None for an uncompiled one."""
    if contender.twin is contender:
        return None

    def painted(by: Contender) -> np.ndarray:
        call = by.call(setting)
        return [call(frames) for _ in range(by.delay(setting) + 1)][-1]

    return float(np.abs(painted(contender).astype(np.int16) - painted(contender.twin)).mean())


def _frames(spec: ModelSpec, setting: Setting) -> list[np.ndarray]:
    dice = np.random.default_rng(0)
    return [dice.integers(0, 256, (setting.batch, spec.height, spec.width, 3), dtype=np.uint8) for _ in range(8)]


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
    engine: str,
    control: bool,
    setting: Setting,
    times_ms: Sequence[float],
    floor_ms: float,
    delay: int = 0,
    differs: float | None = None,
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
        "floor ms": floor_ms,
        "x floor": p50 / floor_ms,
        "x diffusers": None,
        "delay": delay,
        "differs": differs,
        "calls": len(times_ms),
    }


def compare(rows: Sequence[dict[str, Any]]) -> None:
    """Fill in how many times as fast as diffusers' pipeline a row is, where that has the same."""

    def key(one: dict[str, Any]) -> tuple:
        return one["control"], one["cfg"], one["steps"], one["batch"]

    baseline = {key(one): one["p50 ms"] for one in rows if one["engine"] == Diffusers.name}
    for one in rows:
        one["x diffusers"] = baseline[key(one)] / one["p50 ms"] if key(one) in baseline else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(shapes.SHAPES), required=True)
    parser.add_argument("--tiny", action="store_true", help="its topology in a few kilobytes, to try the benchmark")
    parser.add_argument("--work", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)
    add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        models = shaped(options.shape, options.tiny, options.work or Path(scratch), options.device)
        run(f"{options.shape} shape, random weights", models, options.device, plan_from(options))


def shaped(name: str, tiny: bool, work: Path, device: str) -> Iterable[tuple[ModelSpec, Controls]]:
    """The published shape with random weights, without and (SD1.5) with a ControlNet."""
    shape = shapes.tiny(shapes.SHAPES[name]) if tiny else shapes.SHAPES[name]
    work, drawn_on = work / ("tiny" if tiny else "full"), str(pick_device(device))
    base = shapes.checkpoint(work / name, shape, drawn_on)
    spec = ModelSpec(str(base), width=shape.size, height=shape.size)
    controls = Controls(prompt="an oil painting", strength=0.5)
    yield spec, controls
    if not shape.sdxl:
        yield replace(spec, controlnet=str(shapes.controlnet(work / f"{name}-controlnet", shape, drawn_on))), controls


if __name__ == "__main__":
    main()
