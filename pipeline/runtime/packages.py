"""Compiled packages: AOTInductor's code for the parts of a model, written into a folder, loaded from it, and called.

A package holds code for one set of input shapes and no weights: it reads tensors of the process that loads it, so
weights written in place take effect at once, and every checkpoint of a shape shares one package. Loading is a dlopen.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import native

MANIFEST = "manifest.json"
MOST = 16  # frames in a batch that there is code for
LOADING_FAILS = (RuntimeError, OSError, ValueError, KeyError)

Run = Callable[[list[Tensor]], list[Tensor]]
Runners = dict[Hashable, Run]  # signature -> compiled code


class CallRecorder:
    """Stands in for a part and remembers one set of inputs for each signature."""

    def __init__(self, part: nn.Module):
        self.part = part
        self.calls: dict[Hashable, tuple[Tensor | None, ...]] = {}

    def __call__(self, *args: Tensor | None) -> Tensor:
        self.calls.setdefault(signature(args), args)
        return self.part(*args)


class Compiled:
    """A part with compiled code for known shapes; for others it runs the uncompiled module, which gives the same."""

    def __init__(self, module: torch.nn.Module, runners: Runners):
        self.module = module
        self.runners = runners

    def __call__(self, *args: Tensor | None) -> Tensor:
        runner = self.runners.get(signature(args))
        if runner is None:
            return self.module(*args)
        return runner([arg for arg in args if arg is not None])[0]


def signature(args: tuple[Tensor | None, ...]) -> Hashable:
    """Equal for calls that one piece of code serves: the shapes of the inputs, None where one is absent, their first
    dimension as so many times the batch, and whether that is one frame, up to MOST, or how many."""
    batch = _batch(args)
    shapes = (None if arg is None else (len(arg) / batch, *arg.shape[1:]) for arg in args)
    return (min(batch, 2) if batch <= MOST else batch, *shapes)


def _batch(args: tuple[Tensor | None, ...]) -> int:
    assert args[0] is not None, "the first input is never absent"
    return len(args[0])


def write(recorders: Mapping[str, CallRecorder], device: torch.device, folder: Path) -> None:
    """Export and compile every part for every signature that it was called with, into `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    manifest: list[dict[str, Any]] = []
    for name, recorder in recorders.items():
        for given in recorder.calls.values():
            file = f"{name}-{len(manifest)}"
            args = tuple(_plain(arg) for arg in given)
            constants = _export(recorder.part, args, scratch / f"{file}.pt2")
            if device.type == "cpu":
                native.extract(scratch / f"{file}.pt2", scratch / f"{file}.so")
            save_file(constants, scratch / f"{file}.safetensors")
            inputs = [None if a is None else [list(a.shape), list(a.stride()), str(a.dtype)[6:]] for a in args]
            manifest.append({"part": name, "file": file, "inputs": inputs})
    (scratch / MANIFEST).write_text(json.dumps(manifest))
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def _export(module: nn.Module, args: tuple[Tensor | None, ...], package: Path) -> dict[str, Tensor]:
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


def _dynamic(module: nn.Module, args: tuple[Tensor | None, ...]) -> Any:
    """For torch.export: the first dimension of every input is so many times the batch, if that is more than one."""
    batch = _batch(args)
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


def read(modules: Mapping[str, nn.Module], device: torch.device, folder: Path) -> dict[str, Runners]:
    """Of each part the packages of a folder, loaded, bound to the weights of these modules, and warm. Raises one of
    LOADING_FAILS."""
    runners: dict[str, Runners] = {name: {} for name in modules}
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
        # Not the device: it cannot be waited for while another thread captures a graph.
        torch.cuda.current_stream(device).synchronize()
    return runners


def _loaded(file: Path, weights: dict[str, Tensor], device: torch.device) -> Run:
    """A package bound to these weights."""
    if (library := file.with_suffix(".so")).is_file():
        return native.CompiledLibrary(library, weights)
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

    def __init__(self, loader: Any, weights: dict[str, Tensor]):
        self._run, self._weights = loader.boxed_run, weights

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        return self._run(inputs)


def _zeros(layout: tuple | None, device: torch.device) -> Tensor | None:
    """An input as the manifest describes it: (shape, strides, dtype)."""
    if layout is None:
        return None
    shape, strides, dtype = layout
    return torch.empty_strided(shape, strides, dtype=getattr(torch, dtype), device=device).zero_()


class _Runner:
    """Calls a package. strides: of the inputs it was compiled for. It reads others as if they had these, so those are
    laid out anew."""

    def __init__(self, run: Run, strides: list[tuple[int, ...]]):
        self.run, self._strides = run, strides

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        return self.run([_laid_out(arg, stride) for arg, stride in zip(inputs, self._strides, strict=True)])


def _laid_out(arg: Tensor, stride: tuple[int, ...]) -> Tensor:
    if arg.stride() == stride:
        return arg
    return torch.empty_strided(arg.shape, stride, dtype=arg.dtype, device=arg.device).copy_(arg)
