"""torch.compile's backend beside a running engine: a child process compiles, this one swaps the result in.

Tracing holds the interpreter lock for seconds, so compiling in a thread would stall every stream. Instead a child
process loads the same model, exports its three parts and builds one AOTInductor package for each set of input shapes:
first for single frames, then, where streams may share a batch, for any batch of several. Loading a package is a dlopen.
The packages hold code and no weights: they read this process's own tensors, so a LoRA's weights written in place take
effect at once, and every checkpoint of a shape shares one package. Only while the child builds do the weights lie in
memory twice, and it is not begun where there is no room for that.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.loading.hub import Report
from pipeline.runtime import native
from pipeline.runtime.devices import free_bytes

from .errors import LoadError, first_line
from .settings import Controls, ModelSpec
from .stylizer import Stylizer

PARTS = ("encode", "denoise", "decode")
MANIFEST = "manifest.json"
MOST = 16  # frames in a batch that there is code for
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
    "compiling.py",
)
CUDA_TOOLKIT = Path("/usr/local/cuda")  # its usual place
CUDA_HEADERS = ("cuda.h", "cuda_fp16.h", "crt/host_defines.h", "nv/target")  # of those that the code includes
LOOK_EVERY_S = 1.0  # whether anybody still wants what a child builds
LOADING_FAILS = (RuntimeError, OSError, ValueError, KeyError)

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
    that runs frames, between two batches; CUDA graphs are to be recorded anew behind it (Stylizer.record). report: may
    raise to have all of it given up; it is called every second while a child builds. batches: for them too; None where
    streams may share them. Call from any thread but that one. Raises LoadError when it fails for single frames; the
    stylizer then goes on uncompiled. Should only batches fail, only these do, with a warning in the log.
    """
    folder = cache_folder() / cache_key(stylizer)
    modules = {name: _uncompiled(getattr(stylizer.painter, name)) for name in PARTS}
    runners = _found_or_built(stylizer, modules, 1, folder / "single", report, "Compiling")
    put_in(partial(_swap_in, stylizer, modules, runners))
    if not (stylizer.max_batch > 1 if batches is None else batches):
        return
    try:
        batched = _found_or_built(stylizer, modules, EXAMPLE, folder / "batch", report, "Compiling for batches")
    except LoadError as error:
        log.warning("%s Single frames run compiled, batches do not.", error)
    else:
        both = {name: runners[name] | batched[name] for name in PARTS}
        put_in(partial(_swap_in, stylizer, modules, both))


def _found_or_built(
    stylizer: Stylizer, modules: dict[str, torch.nn.Module], batch: int, folder: Path, report: Report, doing: str
) -> Runners:
    """The packages in `folder`, loaded; built first where there are none that load. Raises LoadError."""
    if (folder / MANIFEST).is_file():
        report("Loading compiled code", None)
        try:
            return _runners(modules, stylizer.device, folder)
        except LOADING_FAILS as error:
            log.warning("The compiled code in %s does not load (%s): compiling it again.", folder, first_line(error))
    _build_in_child(stylizer, batch, folder, partial(report, doing, None))
    try:
        return _runners(modules, stylizer.device, folder)
    except LOADING_FAILS as error:
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
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline.compiling"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, **_cuda_toolkit(stylizer.device)},
        text=True,
    )
    atexit.register(child.kill)  # a server that ends takes it along
    try:
        given, errors = json.dumps(order), None
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


def _cuda_toolkit(device: torch.device) -> dict[str, str]:
    """What the compiler's environment has to say of CUDA: where the headers are, an installed toolkit's or those of the
    wheels that torch came with, if none is missing; and where the driver is."""
    if device.type != "cuda":
        return {}
    if shutil.which("g++") is None:
        raise LoadError("Compiling needs a C++ compiler (g++), frames go on uncompiled.")
    from torch.utils.cpp_extension import CUDA_HOME

    wheels = sorted((Path(torch.__file__).resolve().parent.parent / "nvidia").glob("*/include"), reverse=True)
    for home in (*([Path(CUDA_HOME)] if CUDA_HOME else []), CUDA_TOOLKIT, *(wheel.parent for wheel in wheels)):
        if all((home / "include" / header).is_file() for header in CUDA_HEADERS):
            return {"CUDA_HOME": str(home), **_cuda_driver(cache_folder() / "driver")}
    raise LoadError(
        "Compiling on CUDA needs the CUDA toolkit (set CUDA_HOME) or its headers from the wheels nvidia-cuda-crt and "
        "nvidia-cuda-cccl, frames go on uncompiled."
    )


def _cuda_driver(folder: Path, maps: Path = Path("/proc/self/maps")) -> dict[str, str]:
    """Where the linker finds the driver that this process runs on, of whose files `maps` tells: in `folder`, under the
    name that it looks for, which drivers are often installed without."""
    loaded = re.search(r"/\S*/libcuda\.so\S*", maps.read_text()) if maps.is_file() else None
    if loaded is None:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "libcuda.so"
    link.unlink(missing_ok=True)
    link.symlink_to(loaded.group())
    return {"LIBRARY_PATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("LIBRARY_PATH")])])}


class _Recorder:
    """Stands in for a part and remembers one set of inputs for each signature."""

    def __init__(self, part: Callable[..., Tensor]):
        self.part = part
        self.calls: dict[tuple, tuple] = {}

    def __call__(self, *args):
        self.calls.setdefault(signature(args), args)
        return self.part(*args)


PutIn = Callable[[Callable[[], None]], None]  # given what swaps, calls it where no frame is on its way
Runners = dict[str, dict[tuple, Callable[[list[Tensor]], list[Tensor]]]]  # part -> signature -> compiled code


class Compiled:
    """A part with compiled code for known shapes; for others it runs the uncompiled module, which gives the same."""

    def __init__(self, module: torch.nn.Module, runners: dict[tuple, Callable[[list[Tensor]], list[Tensor]]]):
        self.module = module
        self.runners = runners

    def __call__(self, *args):
        runner = self.runners.get(signature(args))
        if runner is None:
            return self.module(*args)
        return runner([arg for arg in args if arg is not None])[0]


def _uncompiled(part: Compiled | torch.nn.Module) -> torch.nn.Module:
    return part.module if isinstance(part, Compiled) else part


def signature(args: tuple[Tensor | None, ...]) -> tuple:
    """Equal for calls that one piece of code serves: the shapes of the inputs, None where one is absent, their first
    dimension as so many times the batch, and whether that is one frame, up to MOST, or how many."""
    batch = len(args[0])
    shapes = (None if arg is None else (len(arg) / batch, *arg.shape[1:]) for arg in args)
    return (min(batch, 2) if batch <= MOST else batch, *shapes)


def build(stylizer: Stylizer, batch: int, folder: Path) -> None:
    """Export and compile every part of a stylizer for every signature it can be called with, into `folder`: for single
    frames, or with a batch of several for every such batch."""
    recorders = {name: _Recorder(getattr(stylizer.painter, name)) for name in PARTS}
    stylizer.use(**recorders)
    frames = torch.zeros((batch, stylizer.spec.height, stylizer.spec.width, 3), dtype=torch.uint8)
    for guidance in (1.0, 2.0):  # without and with CFG; a full LCM takes both in one signature
        stylizer(frames, Controls(steps=1, guidance=guidance))

    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    manifest = []
    for name, recorder in recorders.items():
        for args in recorder.calls.values():
            file = f"{name}-{len(manifest)}"
            args = tuple(_plain(arg) for arg in args)
            constants = _export(recorder.part, args, scratch / f"{file}.pt2")
            if stylizer.device.type == "cpu":
                native.extract(scratch / f"{file}.pt2", scratch / f"{file}.so")
            save_file(constants, scratch / f"{file}.safetensors")
            inputs = [None if a is None else [list(a.shape), list(a.stride()), str(a.dtype)[6:]] for a in args]
            manifest.append({"part": name, "file": file, "inputs": inputs})
    (scratch / MANIFEST).write_text(json.dumps(manifest))
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def _export(module: torch.nn.Module, args: tuple, package: Path) -> dict[str, Tensor]:
    """Write the package; return the constants that tracing lifted out of the code and the module does not own."""
    with torch.no_grad():
        program = torch.export.export(module, args, dynamic_shapes=_dynamic(module, args), strict=False)
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(package), inductor_configs={"aot_inductor.package_constants_in_so": False}
        )
    owned = module.state_dict()
    return {
        name: value.detach().contiguous()
        for name, value in program.constants.items()
        if isinstance(value, Tensor) and name not in owned
    }


def _dynamic(module: torch.nn.Module, args: tuple) -> Any:
    """For torch.export: the first dimension of every input is so many times the batch, if that is more than one."""
    batch = len(args[0])
    if batch == 1:
        return None
    dim, shapes = torch.export.Dim("batch", min=2, max=MOST), torch.export.ShapesCollection()
    for arg in args:
        if arg is not None:
            times = len(arg) // batch
            shapes[arg] = {0: dim if times == 1 else times * dim}
    return shapes.dynamic_shapes(module, args)


def _plain(arg: Tensor | None) -> Tensor | None:
    """A copy outside inference mode, which export does not trace, with the same strides; what is one tensor expanded to
    a batch lies in it as many times."""
    if arg is None:
        return None
    copy = (
        torch.empty_like(arg)
        if 0 in arg.stride()
        else torch.empty_strided(arg.shape, arg.stride(), dtype=arg.dtype, device=arg.device)
    )
    return copy.copy_(arg)


def _runners(modules: dict[str, torch.nn.Module], device: torch.device, folder: Path) -> Runners:
    """The packages of a folder, loaded, bound to the weights of these modules, and warm."""
    runners: Runners = {name: {} for name in PARTS}
    for entry in json.loads((folder / MANIFEST).read_text()):
        module, file = modules[entry["part"]], folder / entry["file"]
        lifted = load_file(file.with_suffix(".safetensors"), device=str(device))
        run = _loaded(file, {**module.state_dict(), **dict(module.named_buffers()), **lifted}, device)
        example = tuple(_zeros(layout, device) for layout in entry["inputs"])
        present = [arg for arg in example if arg is not None]
        runner = _Runner(run, [arg.stride() for arg in present])
        runner(present)
        runners[entry["part"]][signature(example)] = runner
    if device.type == "cuda":
        # Not the device: it cannot be waited for while another thread records a graph.
        torch.cuda.current_stream(device).synchronize()
    return runners


def _loaded(file: Path, weights: dict[str, Tensor], device: torch.device) -> Callable[[list[Tensor]], list[Tensor]]:
    """A package bound to these weights."""
    if (library := file.with_suffix(".so")).is_file():
        return native.Library(library, weights)
    package = torch._inductor.aoti_load_package(
        str(file.with_suffix(".pt2")),
        run_single_threaded=True,  # one thread runs frames, and waiting for the run before would be a host sync
        device_index=-1 if device.index is None else device.index,
    )
    constants = {name: weights[name] for name in package.get_constant_fqns()}
    package.load_constants(constants, check_full_update=True, user_managed=True)
    return _Package(package.loader, constants)


class _Package:
    """Calls a package by PyTorch's loader without reading its call specification each time, and keeps its weights."""

    def __init__(self, loader, weights: dict[str, Tensor]):
        self._run, self._weights = loader.boxed_run, weights

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        return self._run(inputs)


def _swap_in(stylizer: Stylizer, modules: dict[str, torch.nn.Module], runners: Runners) -> None:
    stylizer.use(**{name: Compiled(modules[name], runners[name]) for name in PARTS})


def _zeros(layout: tuple | None, device: torch.device) -> Tensor | None:
    """An input as the manifest describes it: (shape, strides, dtype)."""
    if layout is None:
        return None
    shape, strides, dtype = layout
    return torch.empty_strided(shape, strides, dtype=getattr(torch, dtype), device=device).zero_()


class _Runner:
    """Calls a package. strides: of the inputs it was compiled for. It reads others as if they had these, so those are
    laid out anew."""

    def __init__(self, run: Callable[[list[Tensor]], list[Tensor]], strides: list[tuple[int, ...]]):
        self.run, self._strides = run, strides

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        return self.run([_laid_out(arg, stride) for arg, stride in zip(inputs, self._strides, strict=True)])


def _laid_out(arg: Tensor, stride: tuple[int, ...]) -> Tensor:
    if arg.stride() == stride:
        return arg
    return torch.empty_strided(arg.shape, stride, dtype=arg.dtype, device=arg.device).copy_(arg)


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
