"""Pixels on either side of the sampling: fitted to the model's size, scaled down and up, turned to I420.

All of it is functions of tensors alone, each of which can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.trees import Recorded

from . import color

Sources = tuple[Tensor, Tensor, Tensor | None]  # pixels, control: uint8 [B, 3, H, W]; mask: [B, 1, H, W] or None


class Conversions:
    """To and from the sizes at which a model paints.

    sizes: (height, width) by scale. dtype: of masks.
    """

    def __init__(self, sizes: Mapping[float, tuple[int, int]], dtype: torch.dtype, captured: Recorded):
        height, width = self._size = sizes[1.0]

        def fitted_i420(planes: Tensor) -> Tensor:
            return color.fit(color.to_rgb(planes), width, height)

        def fitted_mask(mask: Tensor) -> Tensor:
            rgb = mask[..., None].expand(-1, -1, -1, 3)
            return (color.fit(rgb, width, height)[:, :1] > 127).to(dtype)

        def enlarged(pictures: Tensor) -> Tensor:
            large = color.scaled(pictures.permute(0, 3, 1, 2), width, height, mode="bicubic")
            return large.permute(0, 2, 3, 1).contiguous()

        self._scaled = captured(lambda pixels: color.scaled(pixels, width, height))
        self._enlarged = captured(enlarged)
        self.fitted_i420 = captured(fitted_i420)  # I420 as in pipeline.pixels.color -> what `fitted` makes of it in RGB
        self.fitted_mask = captured(fitted_mask)  # uint8 [N, H, W] -> 0 or 1 [N, 1, height, width], cropped as frames
        self.in_both_ways = captured(in_both_ways)
        self.at_scale = {  # by scale, Sources -> Sources
            scale: captured(partial(scaled_sources, size=size)) for scale, size in sizes.items() if scale != 1
        }

    def fitted(self, frames: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] -> uint8 [N, 3, height, width], a view where there is nothing to scale."""
        pixels = color.cropped(frames, *reversed(self._size))
        return pixels if pixels.shape[2:] == self._size else self._scaled(pixels)

    def enlarged(self, pictures: Tensor) -> Tensor:
        """Pictures of any scale, uint8 [B, H, W, 3], at the full size."""
        return pictures if pictures.shape[1:3] == self._size else self._enlarged(pictures)


def in_both_ways(pictures: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> uint8 [N, H * W * 4.5], of each its RGB and then its I420."""
    return torch.cat([pictures.flatten(1), color.to_i420(pictures).flatten(1)], 1)


def scaled_sources(sources: Sources, size: tuple[int, int]) -> Sources:
    """What is painted from, at a smaller size, (height, width)."""
    pixels, control, mask = sources
    height, width = size
    small, small_control = (color.scaled(one, width, height) for one in (pixels, control))
    return small, small_control, None if mask is None else F.interpolate(mask, size, mode="nearest-exact")
