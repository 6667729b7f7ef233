"""The models that somebody has already: the folders of ComfyUI and A1111, read as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import LoadError

from . import checkpoints

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
        fits = [entry for entry in self.entries(part) if _answers(entry, name)]
        if len(fits) > 1:
            raise LoadError(f"{name} could be {fits[0]} or {fits[1]}: give the path.")
        if not fits:
            raise LoadError(
                f"There is no {checkpoints.called(part)} {name} in {self.folder}: "
                f"`python main.py models --models-dir {self.folder}` lists what there is."
            )
        return str(fits[0])

    def listed(self) -> list[tuple[str, str | None, Path]]:
        """(name that finds it, part that it is, path) of everything there is; None for a file of no known part."""
        there = {part: self.entries(part) for part in FOLDERS}
        found = {entry: part for part, entries in there.items() for entry in entries}
        return [(_name(entry, there[part]), _part(entry), entry) for entry, part in found.items()]


def _entries(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.suffix == ".safetensors" and entry.is_file():
            yield entry
        elif entry.is_dir() and not entry.with_name(f"{entry.name}.safetensors").is_file():  # else it has its configs
            is_model = (entry / "model_index.json").is_file() or (entry / "config.json").is_file()
            yield from [entry] if is_model else _entries(entry)


def _bare(entry: Path) -> str:
    return entry.as_posix().removesuffix(".safetensors")


def _answers(entry: Path, name: str) -> bool:
    return f"/{_bare(entry)}".lower().endswith(f"/{name.removesuffix('.safetensors')}".lower())


def _name(entry: Path, among: list[Path]) -> str:
    """As many of its folders before it as it takes to be told from the others."""
    words = _bare(entry).split("/")
    tails = ("/".join(words[-count:]) for count in range(1, len(words)))
    return next((tail for tail in tails if sum(_answers(other, tail) for other in among) == 1), str(entry))


def _part(entry: Path) -> str | None:
    """By what it holds, not by where it lies."""
    if (entry / "model_index.json").is_file():
        return "base"
    files = [*entry.glob("*.safetensors")] if entry.is_dir() else [entry]
    try:
        return checkpoints.of(files[0]) if files else None
    except LoadError:
        return None
