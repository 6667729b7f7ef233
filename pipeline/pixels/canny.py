"""OpenCV's Canny edges of a batch, also where the frames are: on the device.

Pixels are uint8 [B, 3, h, w] RGB, thresholds int [B, 1, 1, 1], in either order, edges bool [B, 1, h, w].
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import first_line

log = logging.getLogger(__name__)

_TAN_22_5 = 13573  # tan(22.5 degrees) in 15-bit fixed point, as OpenCV rounds it
_PASSES_PER_CHECK = 16  # hysteresis passes between two looks at whether anything still changes


def find_edges(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (canny_on_host if pixels.device.type == "cpu" else canny_on_device)(pixels, low, high)


def never_waits(device: torch.device) -> bool:
    """Whether edges are found there without a wait for the device: where there is Triton."""
    return _hysteresis_on(device) is by_regions


def canny_on_host(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """OpenCV's own, for pixels on the CPU."""
    frames = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    edges = [cv2.Canny(*one) for one in zip(greys, low.flatten().tolist(), high.flatten().tolist(), strict=True)]
    return torch.from_numpy(np.stack(edges) > 0)[:, None]


def canny_on_device(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The same edges without leaving the device, equal on every pixel."""
    strong, candidates = ridges(pixels, low, high)
    return _hysteresis_on(candidates.device)(strong, candidates)


def ridges(pixels: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """What is an edge, and what is one if it joins an edge.

    Integer arithmetic throughout, as cv2.Canny on 8-bit grey: Sobel 3x3 with a replicated border, L1 norm, the same
    fixed-point sectors and tie-breaks in the non-maximum suppression.
    """
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    r, g, b = pixels.int().split(1, 1)
    grey = (9798 * r + 19235 * g + 3735 * b + (1 << 14)) >> 15
    p = F.pad(grey.float(), (1, 1, 1, 1), mode="replicate").int()
    across = p[..., 2:] - p[..., :-2]
    dx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    down = p[..., 2:, :] - p[..., :-2, :]
    dy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]

    magnitude = dx.abs() + dy.abs()
    m = F.pad(magnitude, (1, 1, 1, 1))  # outside the picture nothing competes
    h, w = magnitude.shape[2:]

    def neighbour(y: int, x: int) -> Tensor:
        return m[..., 1 + y : 1 + y + h, 1 + x : 1 + x + w]

    along_x, along_y = dx.abs(), dy.abs() << 15
    tan22 = along_x * _TAN_22_5
    tan67 = tan22 + (along_x << 16)
    horizontal = along_y < tan22
    vertical = along_y > tan67
    falling = (dx ^ dy) < 0
    peak_h = (magnitude > neighbour(0, -1)) & (magnitude >= neighbour(0, 1))
    peak_v = (magnitude > neighbour(-1, 0)) & (magnitude >= neighbour(1, 0))
    peak_falling = (magnitude > neighbour(-1, 1)) & (magnitude > neighbour(1, -1))
    peak_rising = (magnitude > neighbour(-1, -1)) & (magnitude > neighbour(1, 1))
    peak_diagonal = torch.where(falling, peak_falling, peak_rising)
    peak = torch.where(horizontal, peak_h, torch.where(vertical, peak_v, peak_diagonal))

    candidates = peak & (magnitude > low)
    return candidates & (magnitude > high), candidates


@cache
def _hysteresis_on(device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """What keeps the candidates that strong edges reach through others, 8-connected: without a wait where there is
    Triton, as with PyTorch for CUDA on Linux."""
    if device.type != "cuda":
        return by_growing
    nothing = torch.zeros((2, 1, 1, 16, 16), dtype=torch.bool, device=device)
    try:
        by_regions(*nothing)
    except Exception as error:  # told; a driver, a C compiler, a card that Triton knows: any of them may be missing
        log.warning("Canny waits for the device in every frame, since Triton does not work: %s.", first_line(error))
        return by_growing
    return by_regions


def by_regions(strong: Tensor, candidates: Tensor) -> Tensor:
    """All regions of candidates that hold a strong edge."""
    from .connected_components import roots  # Triton is not everywhere

    root = roots(candidates).flatten()
    strong_in = torch.zeros_like(root, dtype=torch.int32).scatter_add_(0, root, strong.flatten().int())
    return (strong_in[root] > 0).view_as(candidates)


def by_growing(strong: Tensor, candidates: Tensor) -> Tensor:
    """The same: grow the strong edges until they stop growing. It waits for the device, so no graph can hold it."""
    allowed, edges = candidates.half(), strong.half()
    while True:
        before = edges
        for _ in range(_PASSES_PER_CHECK):
            edges = F.max_pool2d(edges, 3, stride=1, padding=1) * allowed
        if torch.equal(before, edges):
            return edges.bool()
