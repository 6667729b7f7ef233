"""Which models does somebody have already? The folders of ComfyUI and A1111, read as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from . import kinds
from .errors import LoadError

# What lies where, in either program and what their users add to it. ControlNets and T2I-Adapters share a folder.
_CONTROL = ("controlnet", "ControlNet", "t2i_adapter", "extensions/sd-webui-controlnet/models")
FOLDERS = {
    "base": ("checkpoints", "Stable-diffusion", "diffusers"),
    "lora": ("loras", "Lora"),
    "controlnet": _CONTROL,
    "adapter": _CONTROL,
    "vae": ("vae", "VAE"),
    "unet": ("unet", "diffusion_models"),
    "motion": (
        "animatediff_models",
        "custom_nodes/ComfyUI-AnimateDiff-Evolved/models",
        "extensions/sd-webui-animatediff/model",
    ),
}


class Library:
    """A program's models folder, or the program's own that holds one."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise LoadError(f"--models-dir: there is no folder {folder}.")
        self.folder = folder
        self._roots = [root for root in (folder, folder / "models") if root.is_dir()]
        if not any((root / name).is_dir() for root in self._roots for names in FOLDERS.values() for name in names):
            known = ", ".join(name for part in ("base", "lora", "controlnet", "vae") for name in FOLDERS[part][:2])
            raise LoadError(f"--models-dir: {folder} has none of the folders {known}.")

    def entries(self, part: str) -> list[Path]:
        """All .safetensors files and diffusers folders where a part (a key of FOLDERS) lies, in subfolders too."""
        folders = (root / name for root in self._roots for name in FOLDERS[part])
        found = {entry.resolve(): entry for folder in folders if folder.is_dir() for entry in _entries(folder)}
        return sorted(found.values(), key=lambda entry: entry.name.lower())

    def find(self, part: str, name: str) -> str:
        """The path of the entry of that name, with or without suffix and subfolders. Raises LoadError."""
        wanted = "/" + name.removesuffix(".safetensors").lower()
        fits = [entry for entry in self.entries(part) if f"/{_bare(entry)}".lower().endswith(wanted)]
        if len(fits) > 1:
            raise LoadError(f"{name} could be {fits[0]} or {fits[1]}: give the path.")
        if not fits:
            raise LoadError(
                f"There is no {kinds.called(part)} {name} in {self.folder}: "
                f"`python main.py models --models-dir {self.folder}` lists what there is."
            )
        return str(fits[0])

    def listed(self) -> list[tuple[str, str, Path]]:
        """(name, what it is, path) of everything there is."""
        entries = {entry: part for part in FOLDERS for entry in self.entries(part)}
        return [(_bare(entry).rsplit("/", 1)[-1], _kind(part, entry), entry) for entry, part in entries.items()]


def _entries(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.suffix == ".safetensors" and entry.is_file():
            yield entry
        elif entry.is_dir() and not entry.with_name(f"{entry.name}.safetensors").is_file():  # else it has its configs
            is_model = (entry / "model_index.json").is_file() or (entry / "config.json").is_file()
            yield from [entry] if is_model else _entries(entry)


def _bare(entry: Path) -> str:
    return entry.as_posix().removesuffix(".safetensors")


def _kind(part: str, entry: Path) -> str:
    """Of a file it is told by what it holds, of a folder by where it lies."""
    if entry.is_dir():
        return kinds.called(part)
    try:
        found = kinds.of(entry)
    except LoadError:
        return "broken"
    return "unknown" if found is None else kinds.called(found)
