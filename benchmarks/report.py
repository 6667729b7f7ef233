"""What benchmarks share: options of their commands, and the report: who measured, a table, and JSON. Light to import:
`main.py bench` has the options, too."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

FEATURES = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")  # as torch names them
PACKAGES = ("torch", "diffusers", "transformers", "aiortc", "av", "opencv-python-headless")


def machine(device: str) -> dict[str, Any]:
    """The device and the versions that a figure belongs to."""
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name()
    cores = "" if device.startswith("cuda") else f", {os.cpu_count()} cores"
    return {
        "date": date.today().isoformat(),
        "device": name + cores,
        "cpu features": [name for name in FEATURES if torch.cpu.get_capabilities().get(name)],
        "python": platform.python_version(),
        **{package: found for package in PACKAGES if (found := installed(package))},
    }


def installed(package: str) -> str | None:
    """Its version; None where it is not installed, as what is not needed for a figure need not be."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def resident_mb(pid: int | str = "self") -> float:
    """Resident memory of a process; Linux only."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"process {pid} tells no resident memory")


def _cpu_name() -> str:
    import torch

    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine())


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed."""
    ranked = sorted(values)
    return ranked[max(0, -(-len(ranked) * percent // 100).__int__() - 1)]


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference of uint8 pictures, of 255."""
    return float(np.abs(one.astype(np.int16) - other).mean())


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of equal keys as a markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_cell(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """Three digits, or what it takes; nothing for None."""
    if value is None:
        return ""
    return f"{value:.{2 if abs(value) < 10 else 1}f}" if isinstance(value, float) else str(value)


def publish(title: str, about: dict[str, Any], rows: Sequence[dict[str, Any]], file: Path | None) -> None:
    """Print the table; write machine, settings and rows to `file` where one is named."""
    print(f"\n{title} ({about['device']}, {about['date']})\n\n{table(rows)}\n" if rows else f"\n{title}: no rows\n")
    if file is not None:
        write(title, about, rows, file)
        print(f"written to {file}")


def add(title: str, about: dict[str, Any], rows: Sequence[dict[str, Any]], file: Path | None) -> None:
    """Print the newest row and keep all so far in `file`, where one is named: a run that is cut off leaves them."""
    print(table(rows[-1:]).splitlines()[-1], flush=True)
    if file is not None:
        write(title, about, rows, file)


def write(title: str, about: dict[str, Any], rows: Sequence[dict[str, Any]], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"title": title, **about, "rows": list(rows)}, indent=2) + "\n")
