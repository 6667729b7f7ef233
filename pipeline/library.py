"""Which models does somebody have already? The folders of ComfyUI and A1111, read as they are."""

from __future__ import annotations

from pathlib import Path

from .errors import LoadError

# What lies where, in either program.
FOLDERS = {
    "checkpoint": ("checkpoints", "Stable-diffusion"),
    "lora": ("loras", "Lora"),
    "controlnet": ("controlnet", "ControlNet"),
    "vae": ("vae", "VAE"),
}


class Library:
    """A program's models folder, or the program's own that holds one."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise LoadError(f"--models-dir: there is no folder {folder}.")
        self._roots = [root for root in (folder, folder / "models") if root.is_dir()]
        if not any((root / name).is_dir() for root in self._roots for names in FOLDERS.values() for name in names):
            known = ", ".join(name for names in FOLDERS.values() for name in names)
            raise LoadError(f"--models-dir: {folder} has none of the folders {known}.")

    def files(self, kind: str) -> list[Path]:
        """All .safetensors files of a kind (a key of FOLDERS), those in its subfolders too."""
        found = {
            file.resolve(): file
            for root in self._roots
            for name in FOLDERS[kind]
            for file in (root / name).rglob("*.safetensors")
            if file.is_file()
        }
        return sorted(found.values(), key=lambda file: file.name.lower())

    def find(self, kind: str, name: str) -> str | None:
        """The path of the file of that name, with or without suffix and subfolder. Raises LoadError where two fit."""
        wanted = name.removesuffix(".safetensors").lower()
        fits = [file for file in self.files(kind) if wanted in _names(file)]
        if len(fits) > 1:
            raise LoadError(f"{name} could be {fits[0]} or {fits[1]}: give the path.")
        return str(fits[0]) if fits else None


def _names(file: Path) -> set[str]:
    bare = file.with_suffix("")
    return {bare.name.lower(), f"{bare.parent.name}/{bare.name}".lower()}
