"""One LoRA in the key styles that its files have: by PEFT, by diffusers (two of them), by kohya's scripts (two)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import single_file

PARTS = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
TARGETS = r"\.(to_[qkv]|to_out\.0|conv1|conv2|proj_in|ff\.net\.2|[qkv]_proj|out_proj|fc[12])\.weight$"
RANK = 2

Factors = dict[
    tuple[str, str], tuple[Tensor, Tensor]
]  # (part, module's name) -> (A: [rank, in, ...], B: [out, rank, ...])


def factors(base: Path, *, pattern: str = "", seed: int = 2) -> Factors:
    """A random LoRA for all parts of a diffusers folder, where modules' names match; strong enough to show."""
    dice = torch.Generator().manual_seed(seed)
    made = {}
    for part, name, weight in _weights(base):
        if re.search(TARGETS, name) and re.search(pattern, f"{part}.{name}"):
            down = torch.randn(RANK, *weight.shape[1:], generator=dice) / 4
            up = torch.randn(weight.shape[0], RANK, *(1 for _ in weight.shape[2:]), generator=dice) / 4
            made[part, name.removesuffix(".weight")] = down, up
    return made


def _weights(base: Path):
    for part in PARTS:
        for file in sorted((base / part).glob("*.safetensors")):
            yield from ((part, name, weight) for name, weight in sorted(load_file(file).items()))


def merge(base: Path, lora: Factors) -> None:
    """W + BA into the folder's own files."""
    for part in {part for part, _ in lora}:
        for file in (base / part).glob("*.safetensors"):
            tensors = load_file(file)
            for (of, module), (down, up) in lora.items():
                if of == part:
                    weight = tensors[f"{module}.weight"]
                    tensors[f"{module}.weight"] = weight + (up.flatten(1) @ down.flatten(1)).view(weight.shape)
            save_file(tensors, file, metadata={"format": "pt"})


def write(file: Path, lora: Factors, style: str) -> Path:
    modules = [name for _, name in lora]
    is_xl = any(part == "text_encoder_2" for part, _ in lora)
    tensors: dict[str, Tensor] = {}
    for (part, module), (down, up) in lora.items():
        tensors |= STYLES[style](part, _text(module) if "text" in part else module, down, up, modules, is_xl)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def _text(module: str) -> str:
    return module if module.startswith("text_model.") else f"text_model.{module}"


def _peft(part, module, down, up, *_) -> dict[str, Tensor]:
    return {f"{part}.{module}.lora_A.weight": down, f"{part}.{module}.lora_B.weight": up}


def _diffusers(part, module, down, up, *_) -> dict[str, Tensor]:
    word = "lora" if part == "unet" else "lora_linear_layer"
    return {f"{part}.{module}.{word}.down.weight": down, f"{part}.{module}.{word}.up.weight": up}


def _processors(part, module, down, up, *_) -> dict[str, Tensor]:
    """Of attention layers only."""
    attention, layer = re.fullmatch(r"(.*\.attn\d)\.(to_\w+)(?:\.0)?", module).groups()
    name = f"{part}.{attention}.processor.{layer}_lora"
    return {f"{name}.down.weight": down, f"{name}.up.weight": up}


def _kohya(part, module, down, up, modules: Collection[str], is_xl: bool) -> dict[str, Tensor]:
    """Its alpha is half the rank, which B makes up for."""
    prefix = PARTS[part] + ("1" if is_xl and part == "text_encoder" else "")
    name = f"{prefix}_{module.replace('.', '_')}"
    return {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": 2 * up,
        f"{name}.alpha": torch.tensor(RANK / 2),
    }


def _kohya_original(part, module, down, up, modules: Collection[str], is_xl: bool) -> dict[str, Tensor]:
    """The UNet's blocks named as in SDXL's own code."""
    if part == "unet":
        module = single_file.unet_key(f"{module}.", modules).removesuffix(".")
    return _kohya(part, module, down, up, modules, is_xl)


STYLES: dict[str, Callable[..., dict[str, Tensor]]] = {
    "peft": _peft,
    "diffusers": _diffusers,
    "processors": _processors,
    "kohya": _kohya,
    "kohya, original names": _kohya_original,
}
