"""torch.compile's backend beside a running engine: a child process compiles, this one swaps the result in.

Tracing holds the interpreter lock for seconds, so compiling in a thread would stall every stream. Instead a child
process loads the same model, exports its three parts and builds one package (pipeline.runtime.packages) for each set of
input shapes: first for single frames, then, where streams may share a batch, for any batch of several. Only while the
child builds do the weights lie in memory twice, and it is not begun where there is no room for that.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path

import diffusers
import torch

from pipeline.runtime import packages
from pipeline.runtime.devices import free_bytes
from pipeline.runtime.packages import CallRecorder, Compiled, Runners
from pipeline.runtime.toolchain import cuda_toolkit

from .batch import Report
from .errors import LoadError, first_line
from .settings import Controls, ModelSpec
from .stylizer import Stylizer

STAGES = ("encode", "denoise", "decode")
EXAMPLE = 4  # frames in the batch that is traced, and that kernels are chosen for
# Free memory that the child wants beside the weights: on a CPU libraries and the compiler, 0.6 GB at most for the
# bundled model (measured); on CUDA its context and a frame's activations (reckoned: nobody measured it).
MARGIN_BYTES = {"cpu": 1 << 30, "cuda": 2 << 30}
# What the generated code is made from, besides diffusers' own modules.
EXPORTED_SOURCES = (
    "sampling/adapters.py",
    "sampling/denoiser.py",
    "sampling/sampler.py",
    "runtime/folding.py",
    "runtime/native.py",
    "runtime/packages.py",
    "compiling.py",
)
LOOK_EVERY_S = 1.0  # whether anybody still wants what a child builds

PutIn = Callable[[Callable[[], None]], None]  # given what swaps, calls it where no frame is on its way

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Compiled packages are kept between starts; LCMIRROR_CACHE moves them."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lcmirror"
    return Path(os.environ.get("LCMIRROR_CACHE") or default).resolve() / "compiled"


def at_once(swap: Callable[[], None]) -> None:
    """A PutIn for who runs no frames meanwhile."""
    swap()


def compile_beside(stylizer: Stylizer, report: Report, put_in: PutIn, batches: bool | None = None) -> None:
    """Compile (or find) the packages for a stylizer and put them to work in it while it keeps serving frames.

    put_in: is given what swaps the code in, for single frames and then for batches, and has it called by the thread
    that runs frames, between two batches; CUDA graphs are to be captured anew behind it (Stylizer.capture). report: may
    raise to have all of it given up; it is called every second while a child builds. batches: for them too; None where
    streams may share them. Call from any thread but that one. Raises LoadError when it fails for single frames; the
    stylizer then goes on uncompiled. Should only batches fail, only these do, with a warning in the log.
    """
    folder = cache_folder() / cache_key(stylizer)
    modules = {name: _uncompiled(getattr(stylizer.sampler, name)) for name in STAGES}
    runners = _found_or_built(stylizer, modules, 1, folder / "single", report, "Compiling")
    put_in(partial(_swap_in, stylizer, modules, runners))
    if not (stylizer.max_batch > 1 if batches is None else batches):
        return
    try:
        batched = _found_or_built(stylizer, modules, EXAMPLE, folder / "batch", report, "Compiling for batches")
    except LoadError as error:
        log.warning("%s Single frames run compiled, batches do not.", error)
    else:
        both = {name: runners[name] | batched[name] for name in STAGES}
        put_in(partial(_swap_in, stylizer, modules, both))


def _found_or_built(
    stylizer: Stylizer, modules: dict[str, torch.nn.Module], batch: int, folder: Path, report: Report, doing: str
) -> dict[str, Runners]:
    """The packages in `folder`, loaded; built first where there are none that load. Raises LoadError."""
    if (folder / packages.MANIFEST).is_file():
        report("Loading compiled code", None)
        try:
            return packages.read(modules, stylizer.device, folder)
        except packages.LOADING_FAILS as error:
            log.warning("The compiled code in %s does not load (%s): compiling it again.", folder, first_line(error))
    _build_in_child(stylizer, batch, folder, partial(report, doing, None))
    try:
        return packages.read(modules, stylizer.device, folder)
    except packages.LOADING_FAILS as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise LoadError(f"Compiled code does not load, frames go on uncompiled: {first_line(error)}.") from error


def cache_key(stylizer: Stylizer) -> str:
    """Everything the generated code depends on: shapes, configs and versions, not weights."""
    parts = stylizer.components
    nets = [module for extra in parts.extras for module in extra.children()]
    device = stylizer.device
    # A CPU's name alone would not do: virtual machines name several generations alike.
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.cpu.get_capabilities()
    identity = [
        torch.__version__,
        diffusers.__version__,
        chip,
        str(device),
        [str(stylizer.dtype), str(parts.vae.dtype)],
        (stylizer.spec.width, stylizer.spec.height),
        stylizer.spec.low_memory,  # the VAE then takes a batch apart
        [tokenizer.model_max_length for tokenizer in parts.tokenizers],
        [
            {name: value for name, value in module.config.items() if name != "_name_or_path"}
            for module in (parts.unet, parts.vae, *nets)
        ],
        [(Path(__file__).parent / name).read_text() for name in EXPORTED_SOURCES],
    ]
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _check_memory(stylizer: Stylizer) -> None:
    """Raises LoadError where the child would not fit beside this process."""
    parts, device = stylizer.components, stylizer.device
    modules = (parts.unet, parts.vae, *parts.extras, *parts.text_encoders)
    tensors = chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules)
    weights = sum(tensor.nbytes for tensor in tensors if tensor.device.type == device.type)
    wanted, free = weights + MARGIN_BYTES.get(device.type, 0), free_bytes(device)
    if free is not None and free < wanted:
        raise LoadError(
            f"Compiling loads the model a second time for a while and wants {wanted / 1e9:.1f} GB of free memory on "
            f"{device}, where {free / 1e9:.1f} GB are free: frames go on uncompiled."
        )


def _build_in_child(stylizer: Stylizer, batch: int, folder: Path, report: Callable[[], None]) -> None:
    """report: called now and then; what it raises ends the child."""
    report()
    _check_memory(stylizer)
    spec = replace(stylizer.spec, loras=())  # fused LoRAs change no shape
    order = {"spec": asdict(spec), "device": str(stylizer.device), "batch": batch, "folder": str(folder)}
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    toolkit = cuda_toolkit(stylizer.device, cache_folder() / "driver")
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline.compiling"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, **toolkit},
        text=True,
    )
    atexit.register(child.kill)  # a server that ends takes it along
    try:
        given: str | None = json.dumps(order)
        errors: str | None = None
        while errors is None:
            try:
                _, errors = child.communicate(given, timeout=LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                given = None  # it is written on
                report()
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        atexit.unregister(child.kill)
    if child.returncode != 0:
        last = (errors.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise LoadError(f"Compiling failed, frames go on uncompiled: {last}")


def _uncompiled(part: Compiled | torch.nn.Module) -> torch.nn.Module:
    return part.module if isinstance(part, Compiled) else part


def _swap_in(stylizer: Stylizer, modules: dict[str, torch.nn.Module], runners: dict[str, Runners]) -> None:
    stylizer.use(**{name: Compiled(modules[name], runners[name]) for name in STAGES})


def build(stylizer: Stylizer, batch: int, folder: Path) -> None:
    """Compile every part of a stylizer for every signature it can be called with, into `folder`: for single frames, or
    with a batch of several for every such batch."""
    recorders = {name: CallRecorder(_uncompiled(getattr(stylizer.sampler, name))) for name in STAGES}
    stylizer.use(**recorders)
    frames = torch.zeros((batch, stylizer.spec.height, stylizer.spec.width, 3), dtype=torch.uint8)
    for guidance in (1.0, 2.0):  # without and with CFG; a full LCM takes both in one signature
        stylizer(frames, Controls(steps=1, guidance=guidance))
    packages.write(recorders, stylizer.device, folder)


def _end_with(parent: int) -> None:
    """A server that was killed cannot take its child along."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _main() -> None:
    from pipeline.loading import components

    if hasattr(os, "nice"):  # not on Windows
        os.nice(10)  # the running engine comes first
    order = json.load(sys.stdin)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    device = torch.device(order["device"])
    spec = ModelSpec(**order["spec"])
    parts = components.load_components(spec, device, download=False, report=lambda detail, progress: None)
    build(Stylizer(spec, parts, graphs=False), order["batch"], Path(order["folder"]))


if __name__ == "__main__":
    _main()
