"""The device that runs a model, its dtype, and whether compiling pays there. Imports torch and nothing heavier."""

from __future__ import annotations

import gc
import re
import shutil
import sys
from pathlib import Path

import torch

from pipeline.errors import LoadError
from pipeline.presets import MINI
from pipeline.settings import ModelSpec

from . import environment

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA, else Apple's MPS, else the CPU; cuda:N one of several. Raises LoadError for a device this machine
    lacks."""
    counts = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if name == "auto":
        return torch.device(next(kind for kind, count in counts.items() if count))
    kind, colon, number = name.partition(":")
    if counts.get(kind) == 0:
        raise LoadError(f"PyTorch {torch.__version__} finds no {kind} device here: use --device cpu.")
    numbered = [f"{kind}:{index}" for kind, count in counts.items() for index in range(count) if count > 1]
    here = ["auto", *(kind for kind, count in counts.items() if count), *numbered]
    if kind not in counts or (colon and number not in map(str, range(counts[kind]))):
        raise LoadError(f"There is no device {name!r} here: choose {', '.join(here[:-1])} or {here[-1]}.")
    return torch.device("cpu" if kind == "cpu" else name)  # to torch cpu:0 would be another


def prepared(name: str) -> torch.device:
    """pick_device for a program of its own, before it makes threads: on a CPU what frames free is kept."""
    device = pick_device(name)
    if device.type == "cpu":
        environment.keep_freed_memory()
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is float16 on a GPU, bfloat16 on a CPU whose instructions multiply it, else float32."""
    if name != "auto":
        return _DTYPES[name]
    if device.type != "cpu":
        return torch.float16
    capable = torch.cpu.get_capabilities()
    return torch.bfloat16 if capable.get("avx512_bf16") or capable.get("amx_bf16") else torch.float32


def free_memory(device: torch.device) -> None:
    """Give the device back what nobody holds any more: PyTorch keeps freed memory, Python what is held in circles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


# A container's limit, what of it is taken, and which line of its statistics tells of the cache in that, which gives
# way: control groups, version 2 and 1, as they are seen from inside.
CGROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat", "inactive_file"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
        "sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)


def free_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """What another process could still have of the device's memory, a container's limit included; None where nobody
    tells. root: of the file system, for tests."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    free = [
        limit - taken + (_number(root / statistics, rf"{cache} (\d+)") or 0)
        for maximum, current, statistics, cache in CGROUPS
        if (limit := _number(root / maximum)) is not None and (taken := _number(root / current)) is not None
    ]
    if (available := _number(root / "proc/meminfo", r"MemAvailable: *(\d+) kB")) is not None:
        free.append(1024 * available)
    return max(0, min(free)) if free else None


def _number(file: Path, line: str = r"(\d+)") -> int | None:
    """What a file of the kernel says in that line; None where there is no such file, or line."""
    try:
        found = re.search(f"^{line}$", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def compiling_pays(device: torch.device) -> bool:
    """Whether `load` compiles unasked: on CUDA only. On a CPU it takes minutes of a core, and `load` waits for it."""
    return device.type == "cuda"


def compiling_pays_beside(spec: ModelSpec, device: torch.device) -> bool:
    """Whether a server compiles unasked, while frames flow already: on CUDA, and the bundled model on a CPU.

    There it is a fifth faster, live a third (engine-mini-cpu.json and live-mini-cpu-compiled.json in
    benchmarks/results), after two minutes of a core at low priority. It wants g++, and was tried on Linux only; other
    models would take far longer.
    """
    can = sys.platform == "linux" and shutil.which("g++") is not None
    return compiling_pays(device) or (device.type == "cpu" and spec.base == str(MINI) and can)
