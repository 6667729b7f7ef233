"""Which of the speed-ups that are not in the engine would gain enough to be? One row for each, beside the plain engine.

    python -m benchmarks.candidates --shape sd15 [--tiny] [--compile | --no-compile] [--budget-s S] [--json FILE]
    python -m benchmarks.candidates --model sd15     real weights: only their pictures tell what float8 does to pictures

A frame of one step, uint8 in host memory in and out, warm, on CUDA replayed as a graph. Each candidate takes turns with
the plain engine, call by call, so that drift meets both alike; both run compiled code, or neither. `gain %` is what the
median frame takes less, `differs` how far pictures are from the plain engine's on average, of 255, and `prepare s` the
time until the first picture, compiling included (its caches start empty, and what rows have in common is compiled
once). `nothing` is the plain engine against itself: what it gains is noise. The transfers' `gain %` is of a frame.

A candidate stays if it gains 3 %, and no less than the noise, and its pictures differ by less than 2; float8 has to
gain 15 %. What the device or the model cannot have is left out by name. Without compiled code float8 pays for its
quantizing in kernels of their own, and `max-autotune` has nothing to tune: the engine on CUDA runs compiled code, so
--compile is what decides there.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch._inductor.compile_fx import compile_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import report
from benchmarks.breakdown import add_model_options, chosen_model
from benchmarks.checks import difference
from benchmarks.engine import LEAST_CALLS, WARM_UP
from benchmarks.float8 import to_float8
from benchmarks.plan import count
from pipeline import Controls, load
from pipeline.compiling import PARTS
from pipeline.errors import CaptureFailed, first_line
from pipeline.runtime import devices
from pipeline.runtime.devices import compiling_pays
from pipeline.stylizer import Stylizer

LEAST_GAIN, MOST_DIFFERENCE = 3.0, 2.0  # percent of a frame; of 255
Need = Callable[[Stylizer], str | None]  # why an engine cannot have something, None where it can


# -- what candidates need ----------------------------------------------------------------------------------------------


def cuda(stylizer: Stylizer) -> str | None:
    return None if stylizer.device.type == "cuda" else "it needs CUDA"


def runs_in(dtype: torch.dtype) -> Need:
    def need(stylizer: Stylizer) -> str | None:
        return None if stylizer.dtype == dtype else f"it is for {str(dtype)[6:]}, the model runs in {_dtype(stylizer)}"

    return need


def float8_cores(stylizer: Stylizer) -> str | None:
    if cuda(stylizer) is not None:
        return None  # a CPU computes it somehow, which shows what it does to the picture
    major, minor = torch.cuda.get_device_capability(stylizer.device)
    if (major, minor) < (8, 9):
        return f"it needs compute capability 8.9, the device has {major}.{minor}"
    return None


def available(is_available: Callable[[], bool]) -> Need:
    return lambda stylizer: None if is_available() else "this build of PyTorch lacks it"


# -- what they are -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def switched(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def attention_first(backend: SDPBackend) -> AbstractContextManager[None]:
    """This backend where it can, else one of the others: few serve every head size."""
    others = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    return sdpa_kernel(list(dict.fromkeys([backend, *others])), set_priority=True)


@dataclass(frozen=True)
class Candidate:
    """change: of a UNet that is this candidate's own, though its weights are everyone's. around: what holds while it is
    compiled, recorded and called. inductor: options, for what is a way to compile. least_gain: percent of a frame; None
    for a row that is there for comparison."""

    name: str
    needs: tuple[Need, ...] = ()
    change: Callable[[UNet2DConditionModel], None] = lambda unet: None
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    inductor: Mapping[str, Any] = field(default_factory=dict)
    least_gain: float | None = LEAST_GAIN

    def left_out(self, stylizer: Stylizer, compiled: bool) -> str | None:
        """Why it has no figures; None where it has."""
        if self.inductor and not compiled:
            return "it is a way to compile, and this run is --no-compile"
        return next((reason for need in self.needs if (reason := need(stylizer)) is not None), None)


def attention(name: str, backend: SDPBackend, *needs: Need) -> Candidate:
    return Candidate(f"SDPA by {name}", (cuda, *needs), around=partial(attention_first, backend))


NOTHING = Candidate("nothing", least_gain=None)
CANDIDATES = (  # what takes long to prepare comes last: a budget may cut it
    Candidate(
        "fp16 accumulation",
        (cuda, runs_in(torch.float16)),
        around=partial(switched, torch.backends.cuda.matmul, "allow_fp16_accumulation", True),
    ),
    Candidate(
        "TF32 products",
        (cuda, runs_in(torch.float32)),
        around=partial(switched, torch.backends.cuda.matmul, "allow_tf32", True),
    ),
    Candidate("cudnn.benchmark", (cuda,), around=partial(switched, torch.backends.cudnn, "benchmark", True)),
    Candidate("fused QKV", change=UNet2DConditionModel.fuse_qkv_projections),
    Candidate("float8 linear layers", (float8_cores,), change=to_float8, least_gain=15.0),
    attention("cuDNN", SDPBackend.CUDNN_ATTENTION, available(torch.backends.cudnn.is_available)),
    attention("flash", SDPBackend.FLASH_ATTENTION, available(torch.backends.cuda.is_flash_attention_available)),
    attention("memory-efficient", SDPBackend.EFFICIENT_ATTENTION),
    attention("plain products", SDPBackend.MATH),
    Candidate("max-autotune", inductor=torch._inductor.list_mode_options("max-autotune-no-cudagraphs")),
)


def inductor(options: Mapping[str, Any]) -> Callable[..., Any]:
    return partial(compile_fx, config_patches=dict(options))


def prepared(candidate: Candidate, stylizer: Stylizer, compiled: bool) -> Stylizer:
    """A stylizer on the same weights with the candidate applied; `stylizer` stays as it is. To be called, as all its
    calls are, within `candidate.around()`. What it compiles is made of the same source as the engine's packages."""
    parts = stylizer.components
    shared = {id(tensor): tensor for tensor in (*parts.unet.parameters(), *parts.unet.buffers())}
    unet = deepcopy(parts.unet, shared)
    candidate.change(unet)
    own = Stylizer(stylizer.spec, replace(parts, unet=unet), stylizer.graphs)
    if compiled:
        # A backend of its own, as an object: else one could run another's code, as nobody watches for SDPA's.
        way = {"fullgraph": True, "dynamic": False, "backend": inductor(candidate.inductor)}
        own.use(*(torch.compile(getattr(own.painter, part), **way) for part in PARTS))
    return own


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One of several to do the same. around: holds during a call, and is not timed."""

    call: Callable[[np.ndarray], object]
    around: Callable[[], AbstractContextManager[None]] = nullcontext


def times_ms(ways: Sequence[Way], frames: Sequence[np.ndarray], calls: int, row_s: float) -> list[list[float]]:
    """Milliseconds of each way's calls after the warm-up, in turns; fewer calls where they would take longer than
    `row_s`."""
    taken: list[list[float]] = [[] for _ in ways]
    end_s = math.inf
    for number, frame in zip(range(WARM_UP + calls), itertools.cycle(frames), strict=False):
        if number == WARM_UP:
            end_s = time.perf_counter() + row_s
        if number >= WARM_UP + LEAST_CALLS and time.perf_counter() > end_s:
            break
        for way, times in zip(ways, taken, strict=True):
            with way.around():
                started_s = time.perf_counter()
                way.call(frame)
                times.append(1000 * (time.perf_counter() - started_s))
    return [times[WARM_UP:] for times in taken]


def verdict(gain: float, differs: float, least_gain: float | None) -> str:
    """gain: percent; differs: of 255."""
    if least_gain is None:
        return "for comparison"
    if differs >= MOST_DIFFERENCE:
        return f"goes: its pictures differ by {MOST_DIFFERENCE:g} or more"
    return "stays" if gain >= least_gain else f"goes: it gains less than {least_gain:.3g} %"


def row(
    name: str,
    own_ms: Sequence[float],
    plain_ms: Sequence[float],
    frame_ms: float,
    differs: float | None = None,
    prepare_s: float | None = None,
    least_gain: float | None = LEAST_GAIN,
) -> dict[str, Any]:
    """frame_ms: what the gain is a share of."""
    p50, plain_p50 = report.percentile(own_ms, 50), report.percentile(plain_ms, 50)
    gain = 100 * (plain_p50 - p50) / frame_ms
    return {
        "candidate": name,
        "p50 ms": p50,
        "p95 ms": report.percentile(own_ms, 95),
        "plain p50 ms": plain_p50,
        "gain %": gain,
        "differs": differs,
        "prepare s": prepare_s,
        "verdict": verdict(gain, differs or 0.0, least_gain),
    }


def left_out(name: str, reason: str) -> dict[str, Any]:
    figures = ("p50 ms", "p95 ms", "plain p50 ms", "gain %", "differs", "prepare s")
    return {"candidate": name, **dict.fromkeys(figures), "verdict": f"left out: {reason}"}


def measure(
    candidate: Candidate, plain: Stylizer, controls: Controls, compiled: bool, calls: int, row_s: float
) -> dict[str, Any]:
    """A row, of `calls` timed calls at most."""
    frames = pictures(plain.spec.width, plain.spec.height)
    started_s = time.perf_counter()
    with candidate.around():
        own = prepared(candidate, plain, compiled)
        own(frames[0], controls)
        own.record_calls()
    prepare_s = time.perf_counter() - started_s
    plain.record_calls(lambda: plain(frames[0], controls))
    ways = [Way(lambda frame: plain(frame, controls)), Way(lambda frame: own(frame, controls), candidate.around)]
    plain_ms, own_ms = times_ms(ways, frames, calls, row_s)
    if own.graphs and not own._paint.recorded:
        raise RuntimeError("it cannot be recorded as a CUDA graph")
    with candidate.around():
        painted = own(frames[0], controls)
    differs = difference(painted, plain(frames[0], controls))
    frame_ms = report.percentile(plain_ms, 50)
    return row(candidate.name, own_ms, plain_ms, frame_ms, differs, prepare_s, candidate.least_gain)


def pictures(width: int, height: int) -> list[np.ndarray]:
    """Squares of random colours, each uint8 [1, height, width, 3]."""
    dice = np.random.default_rng(0)
    coarse = dice.integers(0, 256, (8, 1, -(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return list(coarse.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width])


@dataclass(frozen=True)
class Transfer:
    """Two ways to bring the same to the same place: through pageable memory, and another. Both wait until it is there,
    and return it. The engine's own are "copied to pinned memory first" and "download to pinned memory"."""

    name: str
    pageable: Callable[[], torch.Tensor]
    other: Callable[[], torch.Tensor]


def transfers(device: torch.device, width: int, height: int) -> list[Transfer]:
    """Of one frame's I420 to the device, and of a picture's RGB and I420 from there."""
    pin = device.type == "cuda"
    wait = partial(torch.cuda.synchronize, device) if pin else lambda: None
    dice = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (height * 3 // 2, width), dtype=torch.uint8, generator=dice)
    painted = torch.randint(0, 256, (height * 9 // 2, width), dtype=torch.uint8, generator=dice).to(device)
    pinned_frame = torch.empty_like(frame, pin_memory=pin).copy_(frame)
    pinned_picture = torch.empty(painted.shape, dtype=torch.uint8, pin_memory=pin)

    def upload(source: torch.Tensor) -> torch.Tensor:
        there = source.to(device, non_blocking=True)
        wait()
        return there

    def download() -> torch.Tensor:
        pinned_picture.copy_(painted, non_blocking=True)
        wait()
        return pinned_picture

    pageable_in, pageable_out = partial(upload, frame), painted.cpu
    return [
        Transfer("upload, frame in pinned memory", pageable_in, lambda: upload(pinned_frame)),
        Transfer("upload, copied to pinned memory first", pageable_in, lambda: upload(pinned_frame.copy_(frame))),
        Transfer("download to pinned memory", pageable_out, download),
        Transfer("download to pinned memory, copied out", pageable_out, lambda: download().clone()),
    ]


def measure_transfers(plain: Stylizer, frame_ms: float, calls: int, row_s: float) -> list[dict[str, Any]]:
    if (reason := cuda(plain)) is not None:
        return [left_out("transfers through pinned memory", reason)]
    rows = []
    for each in transfers(plain.device, plain.spec.width, plain.spec.height):
        ways = [Way(lambda _, way=way: way()) for way in (each.pageable, each.other)]
        pageable_ms, other_ms = times_ms(ways, [np.empty(0)], calls, row_s)
        rows.append(row(each.name, other_ms, pageable_ms, frame_ms))
    return rows


def rows(
    stylizer: Stylizer, controls: Controls, compiled: bool, calls: int, row_s: float, budget_s: float = math.inf
) -> Iterator[dict[str, Any]]:
    """One after the other. After `budget_s` none is begun."""
    end_s = time.monotonic() + budget_s
    plain = prepared(NOTHING, stylizer, compiled)
    plain(pictures(stylizer.spec.width, stylizer.spec.height)[0], controls)  # LoRAs take their weights before any copy
    noise = measure(NOTHING, plain, controls, compiled, calls, row_s)
    yield noise
    yield from measure_transfers(plain, noise["plain p50 ms"], calls, row_s)
    broken = None
    for candidate in CANDIDATES:
        reason = broken or candidate.left_out(plain, compiled)
        if reason is None and time.monotonic() > end_s:
            reason = "the time was up"
        if reason is not None:
            yield left_out(candidate.name, reason)
            continue
        candidate = replace(candidate, least_gain=max(candidate.least_gain, abs(noise["gain %"])))
        try:
            yield measure(candidate, plain, controls, compiled, calls, row_s)
        except CaptureFailed as error:  # memory may be corrupt: nothing is measured with that
            broken = f"{candidate.name} came before ({first_line(error)})"
            yield left_out(candidate.name, f"it failed ({first_line(error)})")
        except Exception as error:  # whoever fails is named, the others are measured
            yield left_out(candidate.name, f"it failed ({type(error).__name__}: {first_line(error)})")
        gc.collect()  # its graphs and weights


def _dtype(stylizer: Stylizer) -> str:
    return str(stylizer.dtype)[6:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--frames", type=count, default=200, metavar="N", help="timed calls of each in a row")
    parser.add_argument("--row-s", type=count, default=20, metavar="S", help="a row that would take longer has fewer")
    parser.add_argument("--budget-s", type=count, default=math.inf, metavar="S", help="no new row is begun after that")
    options = parser.parse_args()
    device = devices.prepared(options.device)
    compiled = compiling_pays(device) if options.compile is None else options.compile
    with (
        tempfile.TemporaryDirectory() as scratch,
        patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=f"{scratch}/code"),
        torch._dynamo.config.patch(recompile_limit=4 * len(CANDIDATES)),  # all of them run the same source
    ):
        name, spec, controls = chosen_model(options, Path(scratch))
        stylizer, made = load(spec, str(device), compile=False), []
        size = f"{spec.width}x{spec.height}"
        title = f"Speed-ups that the engine does not have, {name} at {size} in {_dtype(stylizer)}"
        about = {
            **report.machine(str(device)),
            "model": name,
            "compiled": compiled,
            "graphs": stylizer.graphs,
            "threads": torch.get_num_threads(),
        }
        controls = controls.model_copy(update={"steps": 1})
        for one in rows(stylizer, controls, compiled, options.frames, options.row_s, options.budget_s):
            made.append(one)
            report.add(title, about, made, options.json)
    report.publish(title, about, made, options.json)


if __name__ == "__main__":
    main()
