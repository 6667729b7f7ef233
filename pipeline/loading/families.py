"""The kinds of models that there are: a table of what distinguishes one from another."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from pipeline.batch import Report
from pipeline.errors import LoadError, first_line
from pipeline.presets import LCM_LORA_SD15, LCM_LORA_SDXL, LCM_LORA_SSD_1B, SDXL_BASE
from pipeline.sampling.model import Family
from pipeline.settings import Lora

from . import checkpoints, hub

FIRST = ("tokenizer", "text_encoder", CLIPTextModel)
SECOND = ("tokenizer_2", "text_encoder_2", CLIPTextModelWithProjection)

SD = Family(
    "SD1.5",
    StableDiffusionPipeline,
    (FIRST,),
    "cond_stage_model.",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    without={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)
SDXL = Family(
    "SDXL",
    StableDiffusionXLPipeline,
    (FIRST, SECOND),
    "conditioner.embedders.1.",
    SDXL_BASE,
    layer=-2,
    pooled=True,
    empty_is_zero=True,
    upcasts=True,
    size=1024,
    outer=2,
    without={"add_watermarker": False},
)
REFINER = "{} is an SDXL refiner, which only ends what an SDXL base began: name a base."
# The published LCM-LoRAs, by the UNet that each was made for: (width of the prompts it reads, its transformer blocks).
LCM_LORAS: dict[tuple[int | None, int], Lora] = {
    (768, 16): LCM_LORA_SD15,
    (2048, 70): LCM_LORA_SDXL,
    (2048, 34): LCM_LORA_SSD_1B,
}


@dataclass(frozen=True)
class Traits:
    """What is known of a base before it is loaded.

    few_step: whether it runs in a few steps as it is: it was saved with an LCM scheduler, or takes guidance as an
    input. lcm_lora: the one that was made for its UNet, if one is known.
    """

    family: Family
    few_step: bool
    lcm_lora: Lora | None


def traits(reference: str, *, download: bool, report: Report) -> Traits:
    """Of a file its header tells, of a folder or hub id two small configs, fetched if `download`. Raises LoadError."""
    path = Path(reference)
    if path.suffix == ".safetensors":
        file = hub.locate(reference, "base", download=download, report=report)
        tensors = checkpoints.header(file)
        reads = [tensor["shape"][1] for name, tensor in tensors.items() if name.endswith("attn2.to_k.weight")]
        few_step = any("cond_proj" in name for name in tensors)
        return Traits(family_of_keys(file, tensors), few_step, LCM_LORAS.get((max(reads, default=0), len(reads))))
    index, unet = hub.configs(reference, download=download, report=report)
    family = family_of_index(reference, index)
    few_step = index.get("scheduler", ["", ""])[1] == "LCMScheduler" or unet.get("time_cond_proj_dim") is not None
    try:
        shape = (unet.get("cross_attention_dim"), _transformer_blocks(unet))
    except (ValueError, TypeError, KeyError) as error:
        raise LoadError(f"The UNet of {reference} has a config of no known kind: {first_line(error)}.") from error
    return Traits(family, few_step, LCM_LORAS.get(shape))


def _transformer_blocks(unet: dict[str, Any]) -> int:
    """How many a UNet's config asks for, counted in a UNet without weights."""
    with torch.device("meta"):
        modules = UNet2DConditionModel.from_config(unet).modules()
    return sum(isinstance(module, BasicTransformerBlock) for module in modules)


def family_of_index(name: str | Path, index: dict[str, Any]) -> Family:
    """Of a diffusers folder, by what its model_index.json lists (SSD-1B is an SDXL with a smaller UNet)."""
    parts = {part for part, value in index.items() if isinstance(value, list) and value and value[0] is not None}
    for family in (SDXL, SD):
        if all(encoder in parts for _, encoder, _ in family.encoders) and "unet" in parts:
            told = index.get("force_zeros_for_empty_prompt", family.empty_is_zero)
            return replace(family, empty_is_zero=family.empty_is_zero and told)
    if SECOND[1] in parts:
        raise LoadError(REFINER.format(name))
    raise LoadError(f"{name} is a {index.get('_class_name')}: only SD1.5- and SDXL-shaped models are served.")


def family_of_keys(file: Path, names: Collection[str]) -> Family:
    """Of a checkpoint in one file, by its tensors' names."""
    for family in (SDXL, SD):
        if any(name.startswith(family.in_one_file) for name in names):
            return family
    raise LoadError(REFINER.format(file))
