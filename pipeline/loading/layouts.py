"""The files of a folder or repository that loading reads: those a part needs, those missing or broken."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import LoadError, first_line

from . import checkpoints

PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
PIPELINE_FOLDERS = {"unet", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler"}
LORA_FILE = "pytorch_lora_weights.safetensors"
MODULE_FILES = ("model.", "model-", "diffusion_pytorch_model")  # how the weights beside a config.json begin


def needed_files(names: Iterable[str], part: str, reference: str, inside: str = "") -> list[str]:
    """Of a repository's files those that loading a part reads: configs, tokenizer, one set of safetensors weights.

    A pipeline repository (with a model_index.json) is read by folders, any other at its root, or at `inside` of it;
    where weights come both plain and as an fp16 variant, the variant is half the download and enough for the GPU.
    Raises LoadError for a LoRA whose file cannot be told.
    """
    if inside.endswith(".safetensors"):
        config = f"{inside.removesuffix('.safetensors')}/config.json"
        return [inside, *(name for name in names if name == config)]
    below = {name.removeprefix(f"{inside}/") for name in names if not inside or name.startswith(f"{inside}/")}
    if part.startswith("lora"):
        return [_within(inside, lora_file(below, reference))]
    part = part.partition(" ")[0]
    in_own_folder = any(name.startswith(f"{part}/") for name in below)
    folders = PIPELINE_FOLDERS if part == "base" else {part} if in_own_folder else {"."}
    halved = {_set_of_weights(name) for name in below if ".fp16" in name and name.endswith(".safetensors")}
    wanted = [_within(inside, "model_index.json")] if part == "base" else []
    for name in sorted(below):
        path = PurePosixPath(name)
        if path.suffix not in {".json", ".txt", ".safetensors"} or "non_ema" in path.name:
            continue
        if str(path.parent) not in folders or name == "model_index.json":
            continue
        if ".safetensors" in path.name:
            if not path.name.startswith(MODULE_FILES):
                continue
            if ".fp16" not in path.name and _set_of_weights(name) in halved:
                continue
        wanted.append(_within(inside, name))
    return wanted


def _within(inside: str, name: str) -> str:
    return f"{inside}/{name}" if inside else name


def _set_of_weights(name: str) -> str:
    """What a file of weights, a shard of one and its index have in common: `unet/diffusion_pytorch_model`, say."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0].partition("-")[0]))


def lora_file(names: Collection[str], reference: str) -> str:
    """The one .safetensors file of a LoRA's folder. Raises LoadError where none or several could be meant."""
    files = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if LORA_FILE in files:
        return LORA_FILE
    if len(files) != 1:
        raise LoadError(f"LoRA {reference} holds {len(files) or 'no'} .safetensors files{offer(names, reference)}.")
    return files[0]


def offer(names: Iterable[str], reference: str) -> str:
    """What could be named inside a folder or repository instead of all of it."""
    names = set(names)
    files = {name for name in names if name.endswith(".safetensors") and "/" not in name}
    files = {name for name in files if not name.startswith(MODULE_FILES)}
    folders = {name.removesuffix("/config.json") for name in names if name.endswith("/config.json")}
    parts = sorted(files | folders)
    return f" (name one part, as {reference}/{parts[0]}; there are {', '.join(parts)})" if parts else ""


def read_json(file: Path) -> dict[str, Any]:
    """Raises LoadError."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise LoadError(f"{file} cannot be read: {first_line(error)}.") from error


def folder_of(part: str, path: Path) -> Path:
    """Where a folder keeps a part: in a subfolder of the part's name, as a whole model does, or at its root."""
    own = path / part.partition(" ")[0]
    return own if own.is_dir() else path


def check(part: str, path: Path, replaced: Collection[str] = ()) -> None:
    """Is a file or folder whole, and what it was named as? Raises LoadError.

    replaced: the parts of a base that come from elsewhere.
    """
    if path.is_file():
        checkpoints.check(part, path)
        return
    names = [file.relative_to(path).as_posix() for file in (*path.glob("*"), *path.glob("*/*"))]
    if part.startswith("lora"):
        checkpoints.check(part, path / lora_file(names, str(path)))
        return
    if part == "base" and "model_index.json" not in names:
        raise LoadError(f"{path} is not a diffusers model folder: it has no model_index.json{offer(names, str(path))}.")
    weights = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if PurePosixPath(name).suffix in PICKLES]
    if pickles and not weights:
        raise LoadError(
            f"{path} holds pickle weights only ({pickles[0]}), which can run code when opened: "
            "convert them to .safetensors."
        )
    if missing := lacking(part, path, replaced):
        for file in path.glob("*.safetensors"):
            checkpoints.check(part, file)  # a LoRA's folder, for one, has no config.json
        instead = "" if "/" in missing else offer(names, str(path))
        raise LoadError(f"The {checkpoints.called(part)} {path} lacks {missing}{instead}.")
    for name in weights:
        checkpoints.header(path / name)


def lacking(part: str, path: Path, replaced: Collection[str] = ()) -> str | None:
    """The first file that loading would look for in vain, None where all are there."""
    if path.is_file() or part.startswith("lora"):
        return None
    folders = [folder_of(part, path)]
    if part == "base":
        index = read_json(path / "model_index.json")
        listed = (name for name, value in index.items() if name in PIPELINE_FOLDERS and value[0] is not None)
        folders = [path / name for name in listed if name not in replaced]
    for folder in folders:
        inside = "" if folder == path else f"{folder.name}/"
        if not any(folder.glob("*.json")):
            return f"{inside}config.json"
        if folder.name.startswith(("tokenizer", "scheduler")):
            continue
        if not any(folder.glob("*.safetensors")):
            return f"{inside}*.safetensors"
        for listing in folder.glob("*.safetensors.index*.json"):
            shards = set(read_json(listing)["weight_map"].values())
            if missing := sorted(name for name in shards if not (folder / name).is_file()):
                return inside + missing[0]
    return None
