"""Which kinds of models are there? A table: what distinguishes one from another, as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from .errors import LoadError


@dataclass(frozen=True)
class Family:
    """encoders: (tokenizer's folder, text encoder's folder, its class), in the order in which their states are joined.

    layer: which of their hidden states is read; None is the last, normalized one. pooled: whether the UNet also takes
    the last encoder's pooled text and the picture's sizes (SDXL's micro-conditioning, arXiv 2307.01952, sec. 2.2).
    empty_is_zero: whether an empty negative prompt means zeros, not the encoding of "".
    """

    name: str
    pipeline: type[DiffusionPipeline]
    encoders: tuple[tuple[str, str, type], ...]
    layer: int | None = None
    pooled: bool = False
    empty_is_zero: bool = False
    upcasts: bool = False  # whether its own VAE overflows in half precision and runs in float32
    size: int = 512  # pixels a side that it was trained at
    without: Mapping[str, Any] = field(default_factory=dict)  # parts of the pipeline that nobody here uses


FIRST = ("tokenizer", "text_encoder", CLIPTextModel)
SECOND = ("tokenizer_2", "text_encoder_2", CLIPTextModelWithProjection)

SD = Family(
    "SD1.5",
    StableDiffusionPipeline,
    (FIRST,),
    without={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)
SDXL = Family(
    "SDXL",
    StableDiffusionXLPipeline,
    (FIRST, SECOND),
    layer=-2,
    pooled=True,
    empty_is_zero=True,
    upcasts=True,
    size=1024,
    without={"add_watermarker": False},
)


def family_of_folder(folder: Path) -> Family:
    """Of a diffusers folder, by what its model_index.json lists (SSD-1B is an SDXL with a smaller UNet)."""
    index = json.loads((folder / "model_index.json").read_text())
    parts = {name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None}
    for family in (SDXL, SD):
        if all(encoder in parts for _, encoder, _ in family.encoders) and "unet" in parts:
            told = index.get("force_zeros_for_empty_prompt", family.empty_is_zero)
            return replace(family, empty_is_zero=family.empty_is_zero and told)
    raise LoadError(f"{folder} is a {index.get('_class_name')}: only SD1.5- and SDXL-shaped models are served.")


def family_of_keys(names: set[str]) -> Family:
    """Of a checkpoint in one file, by its tensors' names."""
    return SDXL if any(name.startswith("conditioner.embedders.1.") for name in names) else SD
