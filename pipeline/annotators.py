"""Frames -> control images on the device: a registry that others can extend.

@annotator("depth")
def depth(pixels, controls): ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .canny import find_edges
from .settings import Controls

Annotator = Callable[[Tensor, Controls], Tensor]

ANNOTATORS: dict[str, Annotator] = {}


def annotator(name: str) -> Callable[[Annotator], Annotator]:
    """Registers a function: uint8 [3, h, w] RGB and the controls -> float32 [3, h, w] in [0, 1], on the same device."""

    def register(function: Annotator) -> Annotator:
        ANNOTATORS[name] = function
        return function

    return register


def annotate(name: str, frames: Tensor, controls: Sequence[Controls], dtype: torch.dtype) -> Tensor:
    """uint8 [B, 3, h, w] and the controls of each frame -> [B, 3, h, w] in [0, 1], channels-last."""
    images = [ANNOTATORS[name](frame, own) for frame, own in zip(frames, controls, strict=True)]
    return torch.stack(images).to(dtype, memory_format=torch.channels_last)


@annotator("canny")
def canny(pixels: Tensor, controls: Controls) -> Tensor:
    """OpenCV's Canny edges of the frame as it is."""
    return find_edges(pixels, controls.canny_low, controls.canny_high).float().expand(3, -1, -1)


@annotator("canny-384")
def canny_384(pixels: Tensor, controls: Controls) -> Tensor:
    """Edges found with the shorter side at 384 pixels: fewer and thicker, what SDXL's canny adapter was trained on."""
    size = pixels.shape[1:]
    scale = 384 / min(size)
    small = _resized(pixels.float(), tuple(round(side * scale) for side in size)).round().to(torch.uint8)
    return _resized(canny(small, controls), size)


@annotator("soft-edges")
def soft_edges(pixels: Tensor, controls: Controls) -> Tensor:
    """How steep the slightly blurred grey picture is: soft lines, for ControlNets of soft edges (HED, PIDI)."""
    grey = F.pad(_grey(pixels)[None, None], (2, 2, 2, 2), mode="replicate")
    grey = F.avg_pool2d(grey, 3, stride=1)[0, 0]
    across = grey[1:-1, 2:] - grey[1:-1, :-2]
    down = grey[2:, 1:-1] - grey[:-2, 1:-1]
    return (across.square() + down.square()).sqrt().mul(4).clamp(0, 1).expand(3, -1, -1)


@annotator("grey")
def grey(pixels: Tensor, controls: Controls) -> Tensor:
    """Brightness without colour."""
    return _grey(pixels).expand(3, -1, -1)


@annotator("tile")
def tile(pixels: Tensor, controls: Controls) -> Tensor:
    """The picture without its detail, for ControlNet tile: an eighth of its size and back."""
    size = pixels.shape[1:]
    small = _resized(pixels.float() / 255, tuple(max(1, side // 8) for side in size))
    return _resized(small, size).clamp(0, 1)


@annotator("as-is")
def as_is(pixels: Tensor, controls: Controls) -> Tensor:
    """The frames are control images already."""
    return pixels.float() / 255


def _grey(pixels: Tensor) -> Tensor:
    """[h, w] in [0, 1], ITU-R BT.601 weights; as numbers, since a tensor of them would be an upload in every frame."""
    red, green, blue = pixels.float() / 255
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """float [3, h, w] -> float [3, *size]."""
    return F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]
