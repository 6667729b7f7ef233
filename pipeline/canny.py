"""OpenCV's Canny edges, also where the frames are: on the device."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_TAN_22_5 = 13573  # tan(22.5 degrees) in 15-bit fixed point, as OpenCV rounds it
_PASSES_PER_CHECK = 16  # hysteresis passes between two looks at whether anything still changes


def canny_on_host(pixels: Tensor, low: int, high: int) -> Tensor:
    """OpenCV's own Canny. pixels uint8 [3, h, w] on the CPU; returns bool [h, w]."""
    grey = cv2.cvtColor(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2GRAY)
    return torch.from_numpy(cv2.Canny(grey, low, high) > 0)


def canny_on_device(pixels: Tensor, low: int, high: int) -> Tensor:
    """The same edges without leaving the device: uint8 [3, h, w] -> bool [h, w], equal on every pixel.

    Integer arithmetic throughout, as cv2.Canny on 8-bit grey: Sobel 3x3 with a replicated border, L1 norm, the same
    fixed-point sectors and tie-breaks in the non-maximum suppression, and hysteresis run until nothing changes.
    """
    low, high = min(low, high), max(low, high)
    r, g, b = pixels.int()
    grey = (9798 * r + 19235 * g + 3735 * b + (1 << 14)) >> 15
    p = F.pad(grey[None, None].float(), (1, 1, 1, 1), mode="replicate")[0, 0].int()
    left, right = p[:, :-2], p[:, 2:]
    dx = (right - left)[:-2] + 2 * (right - left)[1:-1] + (right - left)[2:]
    down = p[2:] - p[:-2]
    dy = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]

    magnitude = dx.abs() + dy.abs()
    m = F.pad(magnitude, (1, 1, 1, 1))  # outside the picture nothing competes
    h, w = magnitude.shape

    def neighbour(y: int, x: int) -> Tensor:
        return m[1 + y : 1 + y + h, 1 + x : 1 + x + w]

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

    candidate = peak & (magnitude > low)
    strong = candidate & (magnitude > high)
    return _hysteresis(strong, candidate)


def _hysteresis(strong: Tensor, candidate: Tensor) -> Tensor:
    """Grow the strong edges through 8-connected candidates until they stop growing."""
    allowed = candidate[None, None].half()
    edges = strong[None, None].half()
    while True:
        before = edges
        for _ in range(_PASSES_PER_CHECK):
            edges = F.max_pool2d(edges, 3, stride=1, padding=1) * allowed
        if torch.equal(before, edges):
            return edges[0, 0].bool()


def find_edges(pixels: Tensor, low: int, high: int) -> Tensor:
    """uint8 [3, h, w] -> bool [h, w]."""
    return (canny_on_host if pixels.device.type == "cpu" else canny_on_device)(pixels, low, high)
