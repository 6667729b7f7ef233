"""Frames in, stylized frames out. Knows tensors and models; nothing of networks, sessions or clocks."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from .errors import LoadError
from .presets import PRESETS
from .settings import Controls, Lora, ModelSpec

if TYPE_CHECKING:
    from .batch import Report
    from .stylizer import Stylizer

__all__ = ["PRESETS", "Controls", "LoadError", "Lora", "ModelSpec", "load"]


def load(
    spec: ModelSpec,
    device: str = "auto",
    compile: bool | None = None,
    *,
    graphs: bool | None = None,
    download: bool = True,
    report: Report = lambda detail, progress: None,
) -> Stylizer:
    """Load a model and return its Stylizer, ready to be called.

    device: auto, cpu, cuda, cuda:N or mps. compile: True and False decide; None leaves it to what was measured to pay
    (runtime.devices.compiling_pays). It compiles before it returns, where the server compiles beside the running
    engine; where only None asked for it, a failure is a warning. graphs: replay CUDA graphs of what `capture` and its
    like of the Stylizer have captured; None does where there is CUDA. download: whether hub ids that are not on disk
    may be fetched. report(detail, progress in 0..1 or None) is told what happens. Raises LoadError, one sentence, when
    the model cannot be had.
    """
    from pipeline.loading import components  # torch and diffusers take seconds to import: only when a model is wanted
    from pipeline.runtime import devices

    from . import compiling
    from .stylizer import Stylizer

    target = devices.pick_device(device)
    if graphs and target.type != "cuda":
        raise LoadError(f"CUDA graphs are for CUDA devices, not for {target}.")
    if target.type != "cpu":
        devices.free_memory(target)  # of a model that was let go before
    parts = components.load_components(spec, target, download=download, report=report)
    stylizer = Stylizer(spec, parts, graphs)
    if devices.compiling_pays(target) if compile is None else compile:
        try:
            compiling.compile_beside(stylizer, report, compiling.at_once)
        except LoadError as error:
            if compile:
                raise
            warnings.warn(str(error), RuntimeWarning, stacklevel=2)
    return stylizer
