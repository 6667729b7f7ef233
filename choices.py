"""The choices there are, as rows: presets and the models of --models-dir, each with the command that starts it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from pipeline.presets import TABLE
from pipeline.settings import ModelSpec


def preset_rows() -> list[dict[str, object]]:
    from pipeline.loading import hub

    return [
        {
            "name": name,
            "kind": "preset",
            "about": row.about,
            "needs": row.needs,
            "size": f"{row.spec.width}x{row.spec.height}",
            "controls": row.controls,
            "imagines": row.imagines and not row.spec.annotators,
            "on_disk": hub.on_disk(row.spec),
            "command": _command("--model", name),
        }
        for name, row in TABLE.items()
    ]


def library_rows(folder: Path | None, model: str, spec: ModelSpec) -> list[dict[str, object]]:
    """What is in --models-dir, each with the command that serves it; `model` is what is served now, LoRAs join it."""
    if folder is None:
        return []
    from pipeline.loading.library import Library

    beside = ("--models-dir", str(folder))
    present = [part for lora in spec.loras for part in ("--lora", f"{lora.path}:{lora.weight:g}")]
    asks = {  # a motion adapter is for films, so none of these
        "base": ("--model",),
        "lora": ("--model", model, *present, "--lora"),
        **{part: ("--model", model, f"--{part}") for part in ("controlnet", "adapter", "vae", "unet")},
    }
    return [
        {
            "name": name,
            "kind": part,
            "about": str(path.relative_to(folder)),
            "command": _command(*beside, *asks[part], name),
        }
        for name, part, path in Library(folder).listed()
        if part in asks
    ]


def _command(*options: str) -> str:
    """A command line for the shell of this system."""
    words = ["python", "main.py", *options]
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
