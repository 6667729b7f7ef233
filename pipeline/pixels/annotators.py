"""Frames -> control images on the device: a registry that others can extend.

@annotator("depth")
def depth(pixels, controls): ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.settings import Controls

from .canny import find_edges, never_waits

Annotate = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Annotator:
    """Calls its function: uint8 [B, 3, h, w] RGB and CONTROLS by name, int64 [B, 1, 1, 1] -> float32 [B, 3, h, w] in
    [0, 1], all on the same device.

    capturable: whether it neither waits for that device nor looks at a value, so that a CUDA graph can hold it. The
    driver breaks off a capture in which something waits, and the engine with it.
    """

    function: Annotate
    capturable: Callable[[torch.device], bool] = lambda device: False

    def __call__(self, pixels: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
        return self.function(pixels, controls)


ANNOTATORS: dict[str, Annotator] = {}
CONTROLS = ("canny_low", "canny_high")  # that control images are made by


def annotator(name: str, capturable: bool | Callable[[torch.device], bool] = False) -> Callable[[Annotate], Annotate]:
    """Registers an Annotator's function."""

    def register(function: Annotate) -> Annotate:
        ANNOTATORS[name] = Annotator(function, capturable if callable(capturable) else lambda device: capturable)
        return function

    return register


def annotate(name: str, pixels: Tensor, controls: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """uint8 [B, 3, h, w] and what `as_tensors` makes of the controls -> [B, 3, h, w] in [0, 1], channels-last."""
    return ANNOTATORS[name](pixels, controls).to(dtype, memory_format=torch.channels_last)


def as_tensors(controls: Sequence[Controls], device: torch.device) -> Mapping[str, Tensor]:
    """CONTROLS of each frame, by name; the same tensors until one changes."""
    return _as_tensors(device, *(tuple(getattr(one, name) for one in controls) for name in CONTROLS))


@lru_cache(64)
def _as_tensors(device: torch.device, *columns: tuple[int, ...]) -> Mapping[str, Tensor]:
    def column(values: tuple[int, ...]) -> Tensor:  # filled there: an upload would wait
        return torch.cat([torch.full((1, 1, 1, 1), value, device=device) for value in values])

    return {name: column(values) for name, values in zip(CONTROLS, columns, strict=True)}


@annotator("canny", capturable=never_waits)
def canny(pixels: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
    """OpenCV's Canny edges of the frame as it is."""
    return find_edges(pixels, controls["canny_low"], controls["canny_high"]).float().expand(-1, 3, -1, -1)


@annotator("canny-384", capturable=never_waits)
def canny_384(pixels: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
    """Edges found with the shorter side at 384 pixels: fewer and thicker, what SDXL's canny adapter was trained on."""
    height, width = pixels.shape[2:]
    scale = 384 / min(height, width)
    small = _resized(pixels.float(), (round(height * scale), round(width * scale))).round().to(torch.uint8)
    return _resized(canny(small, controls), (height, width))


@annotator("soft-edges", capturable=True)
def soft_edges(pixels: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
    """How steep the slightly blurred grey picture is: soft lines, for ControlNets of soft edges (HED, PIDI)."""
    grey = F.pad(_grey(pixels), (2, 2, 2, 2), mode="replicate")
    grey = F.avg_pool2d(grey, 3, stride=1)
    across = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    return (across.square() + down.square()).sqrt().mul(4).clamp(0, 1).expand(-1, 3, -1, -1)


@annotator("grey", capturable=True)
def grey(pixels: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
    """Brightness without colour."""
    return _grey(pixels).expand(-1, 3, -1, -1)


@annotator("tile", capturable=True)
def tile(pixels: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
    """The picture without its detail, for ControlNet tile: an eighth of its size and back."""
    height, width = pixels.shape[2:]
    small = _resized(pixels.float() / 255, (max(1, height // 8), max(1, width // 8)))
    return _resized(small, (height, width)).clamp(0, 1)


@annotator("as-is", capturable=True)
def as_is(pixels: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
    """The frames are control images already."""
    return pixels.float() / 255


def _grey(pixels: Tensor) -> Tensor:
    """[B, 1, h, w] in [0, 1], ITU-R BT.601 weights; as numbers: a tensor of them would be an upload in every frame."""
    red, green, blue = (pixels.float() / 255).split(1, 1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """float [B, 3, h, w] -> float [B, 3, *size]."""
    return F.interpolate(pictures, size, mode="bilinear", antialias=True)
