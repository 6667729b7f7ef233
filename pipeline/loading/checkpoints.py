"""The kind of checkpoint that a .safetensors file is, told from its header alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pipeline.errors import LoadError

# Each part of a ModelSpec: what it is called, the option that names it, and what the names of its tensors look like,
# in the key styles that there are. The first that fits a file is what the file is.
PARTS = {
    "lora": ("LoRA", "--lora", r"lora|\bhada_w|\blokr_w"),
    "motion": ("motion adapter", "--motion", r"motion_modules\."),
    "controlnet": ("ControlNet", "--controlnet", r"^control_model\.|^controlnet_"),
    "base": ("model", "--model", r"^(cond_stage_model|conditioner)\."),
    "vae": ("VAE", "--vae", r"^(first_stage_model|encoder)\."),
    "adapter": ("T2I-Adapter", "--adapter", r"^(adapter|body)\."),
    "unet": ("UNet", "--unet", r"^(model\.diffusion_model\.)?(input_blocks|down_blocks)\."),
}
_MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own bound


def called(part: str) -> str:
    """What a part is called in a sentence; part: a key of PARTS, or one with more behind a space ("lora ink")."""
    return PARTS[part.partition(" ")[0]][0]


def header(path: Path) -> dict[str, dict]:
    """Tensor name -> {dtype, shape, data_offsets}. Raises LoadError for a file that is no whole .safetensors file."""
    if path.suffix != ".safetensors":
        raise LoadError(f"{path} is not a .safetensors file.")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        try:
            if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError
            tensors = json.loads(file.read(length))
            tensors.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in tensors.values()]
            if not ends or 8 + length + max(ends) != size:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise LoadError(f"{path} is broken or cut off: download it again.") from error
    return tensors


def of(path: Path) -> str | None:
    """Which part (a key of PARTS) a file holds. Raises LoadError as `header` does."""
    names = list(header(path))
    fits = (part for part, (_, _, pattern) in PARTS.items() if any(re.search(pattern, name) for name in names))
    return next(fits, None)


def check(part: str, path: Path) -> None:
    """Is a file what it was named as? Raises LoadError that says what it is."""
    wanted, found = called(part), of(path)
    if found is None:
        raise LoadError(f"{path} is no {wanted}: tensors like {min(header(path))} are of no part that LCMirror knows.")
    if found != part.partition(" ")[0]:
        known, option, _ = PARTS[found]
        raise LoadError(f"{path} is a {known}, not a {wanted}: name it with {option}.")
