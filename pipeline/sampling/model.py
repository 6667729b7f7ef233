"""A loaded model's components, and the traits of its family. pipeline.loading makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from .adapters import Extra, InpaintingExtra
from .lcm import NoiseSchedule


@dataclass(frozen=True)
class Family:
    """encoders: (tokenizer's folder, text encoder's folder, its class), in the order in which their states are joined.

    layer: which of their hidden states is read; None is the last, normalized one. pooled: whether the UNet also takes
    the last encoder's pooled text and the picture's sizes (SDXL's micro-conditioning, arXiv 2307.01952, sec. 2.2).
    empty_is_zero: whether an empty negative prompt means zeros, not the encoding of "". in_one_file: how the names of
    its last text encoder's tensors begin in the original code's checkpoints. published: the hub id whose configs stand
    in for those that come without. outer: how many of the UNet's outermost blocks run for every frame where the deeper
    ones' features are used again (pipeline.sampling.deep_features): up to the first that attends to the prompt.
    """

    name: str
    pipeline: type[DiffusionPipeline]
    encoders: tuple[tuple[str, str, type], ...]
    in_one_file: str
    published: str
    layer: int | None = None
    pooled: bool = False
    empty_is_zero: bool = False
    upcasts: bool = False  # whether its own VAE overflows in half precision and runs in float32
    size: int = 512  # pixels a side that it was trained at
    outer: int = 1
    without: Mapping[str, Any] = field(default_factory=dict)  # parts of the pipeline that nobody here uses


class Loras(Protocol):
    """All LoRAs of a model. touch_prompts: whether any of them changes a text encoder."""

    touch_prompts: bool

    def stand_at(self, weights: dict[str, float]) -> bool:
        """Whether they act with these weights (name -> weight) already."""

    def apply(self, weights: dict[str, float]) -> None:
        """Have them act with these weights."""


@dataclass(frozen=True)
class Components:
    """A loaded model: modules in eval mode on one device (text encoders may wait on the CPU), weights in one dtype."""

    family: Family
    tokenizers: tuple[CLIPTokenizer, ...]
    text_encoders: tuple[CLIPTextModel, ...]
    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    extras: tuple[Extra, ...]
    schedule: NoiseSchedule
    loras: Loras | None
    device: torch.device
    dtype: torch.dtype

    @property
    def inpaints(self) -> bool:
        """Whether the UNet takes the mask as an input."""
        return any(isinstance(extra, InpaintingExtra) for extra in self.extras)
