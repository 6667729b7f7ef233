"""Adapters of the denoising call: ControlNets, T2I-Adapters, a mask, all through one seam that knows none of them.

An extra prepares, once for each frame, the tensors that it needs (its conditions); in every call it may widen the
UNet's input and add keyword arguments. What several of them add is summed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, T2IAdapter
from torch import Tensor, nn


@dataclass(frozen=True)
class Scene:
    """What an extra may look at, for B frames.

    picture: [B, 3, H, W] in [-1, 1], the source; grey where there is none (text-to-image). mask: [B, 1, H, W], 1 where
    to repaint, None for all of it. images: annotator -> [B, 3, H, W] in [0, 1]. scale: [B, 1, 1, 1], the control's
    weight. encode: picture -> latents [B, C, h, w].
    """

    picture: Tensor
    mask: Tensor | None
    images: Mapping[str, Tensor]
    scale: Tensor | None
    encode: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Call:
    """What a UNet and its ControlNets share. x: [B, C, h, w]; t: int64 [B]; embeds: [B, tokens, width]; added: SDXL's
    text_embeds and time_ids."""

    x: Tensor
    t: Tensor
    embeds: Tensor
    added: dict[str, Tensor] | None


class Extra(nn.Module, ABC):
    """count: how many conditions it brings. multiple: of so many pixels the sides of a picture must be."""

    count: int
    multiple: int = 8

    @abstractmethod
    def prepare(self, scene: Scene) -> tuple[Tensor, ...]:
        """Its conditions for a batch, each [B, ...]."""

    def widen(self, x: Tensor, *conditions: Tensor) -> Tensor:
        """The UNet's own input."""
        return x

    def forward(self, call: Call, *conditions: Tensor) -> dict[str, Any]:
        """Keyword arguments of the UNet: tensors or lists of tensors."""
        return {}


class ControlNetExtra(Extra):
    """A ControlNet (arXiv 2302.05543). weight: times the live control scale."""

    count = 2

    def __init__(self, controlnet: ControlNetModel, annotator: str, weight: float = 1.0):
        super().__init__()
        self.controlnet, self.annotator, self.weight = controlnet, annotator, weight

    def prepare(self, scene: Scene) -> tuple[Tensor, ...]:
        assert scene.scale is not None, "there is one where anything looks at a control image"
        return scene.images[self.annotator], scene.scale * self.weight

    def forward(self, call: Call, *conditions: Tensor) -> dict[str, Any]:
        image, scale = conditions
        down, middle = self.controlnet(
            call.x,
            call.t,
            encoder_hidden_states=call.embeds,
            controlnet_cond=image,
            conditioning_scale=scale,
            added_cond_kwargs=call.added,
            return_dict=False,
        )
        return {"down_block_additional_residuals": list(down), "mid_block_additional_residual": middle}


class AdapterExtra(Extra):
    """A T2I-Adapter (arXiv 2302.08453): it sees the control image alone, so it runs once a frame."""

    def __init__(self, adapter: T2IAdapter, annotator: str):
        super().__init__()
        self.adapter, self.annotator = adapter, annotator
        self.count, self.multiple = len(adapter.adapter.body), adapter.config.downscale_factor

    def prepare(self, scene: Scene) -> tuple[Tensor, ...]:
        image = scene.images[self.annotator]
        if self.adapter.config.in_channels == 1:
            image = image[:, :1]
        return tuple(feature * scene.scale for feature in self.adapter(image))

    def forward(self, call: Call, *conditions: Tensor) -> dict[str, Any]:
        return {"down_intrablock_additional_residuals": list(conditions)}


class InpaintingExtra(Extra):
    """The further input of an inpainting UNet: the mask and the latents of what lies outside it."""

    count = 2

    def __init__(self):
        super().__init__()
        self._everything: dict[torch.Size, tuple[Tensor, ...]] = {}

    def prepare(self, scene: Scene) -> tuple[Tensor, ...]:
        if scene.mask is not None:
            return self._conditions(scene, scene.mask)
        # The same for every frame: encoded once, and kept, since CUDA graphs remember where it lies.
        shape = scene.picture.shape
        if shape not in self._everything:
            self._everything[shape] = self._conditions(scene, torch.ones_like(scene.picture[:, :1]))
        return self._everything[shape]

    def _conditions(self, scene: Scene, mask: Tensor) -> tuple[Tensor, ...]:
        outside = scene.encode(scene.picture * (mask < 0.5))
        return F.interpolate(mask, outside.shape[2:]), outside

    def widen(self, x: Tensor, *conditions: Tensor) -> Tensor:
        mask, outside = conditions
        return torch.cat([x, mask.to(x.dtype), outside.to(x.dtype)], dim=1)


def summed(joins: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several extras' keyword arguments as one."""
    total: dict[str, Any] = {}
    for join in joins:
        for name, value in join.items():
            if name not in total:
                total[name] = value
            elif isinstance(value, list):
                total[name] = [mine + theirs for mine, theirs in zip(total[name], value, strict=True)]
            else:
                total[name] = total[name] + value
    return total
