"""The CUDA headers and driver that compiling needs, found where a machine may have them."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import torch

from pipeline.errors import LoadError

CUDA_TOOLKIT = Path("/usr/local/cuda")  # its usual place
CUDA_HEADERS = ("cuda.h", "cuda_fp16.h", "crt/host_defines.h", "nv/target")  # of those that the code includes


def cuda_toolkit(device: torch.device, links: Path) -> dict[str, str]:
    """What the compiler's environment has to say of CUDA: where the headers are, an installed toolkit's or those of the
    wheels that torch came with, if none is missing; and where the driver is, by a link in `links`. Raises LoadError."""
    if device.type != "cuda":
        return {}
    if shutil.which("g++") is None:
        raise LoadError("Compiling needs a C++ compiler (g++), frames go on uncompiled.")
    from torch.utils.cpp_extension import CUDA_HOME

    wheels = sorted((Path(torch.__file__).resolve().parent.parent / "nvidia").glob("*/include"), reverse=True)
    for home in (*([Path(CUDA_HOME)] if CUDA_HOME else []), CUDA_TOOLKIT, *(wheel.parent for wheel in wheels)):
        if all((home / "include" / header).is_file() for header in CUDA_HEADERS):
            return {"CUDA_HOME": str(home), **cuda_driver(links)}
    raise LoadError(
        "Compiling on CUDA needs the CUDA toolkit (set CUDA_HOME) or its headers from the wheels nvidia-cuda-crt and "
        "nvidia-cuda-cccl, frames go on uncompiled."
    )


def cuda_driver(folder: Path, maps: Path = Path("/proc/self/maps")) -> dict[str, str]:
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
