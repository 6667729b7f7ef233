"""Pixels on the device: uint8 frames in any size -> the model's input, and its output -> uint8 frames.

I420 is YUV 4:2:0 in BT.601 of limited range, uint8 [B, H * 3 / 2, W] with even H and W: the rows of luma, then those of
U and V at half the size. Both ways are 20-bit fixed-point arithmetic, so they are the same on every device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cover_box(width: int, height: int, to_width: int, to_height: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the largest centred box of a picture that has the target's aspect.

    >>> cover_box(640, 480, 256, 256)
    (80, 0, 480, 480)
    """
    if width * to_height > height * to_width:
        box_width, box_height = max(1, round(height * to_width / to_height)), height
    else:
        box_width, box_height = width, max(1, round(width * to_height / to_width))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def cropped(frames: Tensor, width: int, height: int) -> Tensor:
    """The centre that has the target's aspect: uint8 [B, H, W, 3] RGB -> a view of it, uint8 [B, 3, h, w]."""
    pixels = frames.permute(0, 3, 1, 2)
    left, top, box_width, box_height = cover_box(pixels.shape[3], pixels.shape[2], width, height)
    return pixels[:, :, top : top + box_height, left : left + box_width]


def fit(frames: Tensor, width: int, height: int) -> Tensor:
    """Scale to cover the target and crop the centre; nothing is stretched.

    frames: uint8 [B, H, W, 3] RGB. Returns uint8 [B, 3, height, width] (channels-last in memory).
    """
    pixels = cropped(frames, width, height)
    return pixels if pixels.shape[2:] == (height, width) else scaled(pixels, width, height)


def scaled(pixels: Tensor, width: int, height: int, mode: str = "bilinear") -> Tensor:
    """uint8 [B, 3, H, W] -> uint8 [B, 3, height, width]. mode: bilinear or bicubic."""
    if pixels.device.type == "cpu":  # only the CPU has a uint8 kernel for this, and it is the fastest one there
        return F.interpolate(pixels, (height, width), mode=mode, antialias=True)
    resized = F.interpolate(pixels.float(), (height, width), mode=mode, antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


_SHIFT = 20
_HALF = 1 << _SHIFT - 1


def _fixed(*coefficients: float) -> list[int]:
    return [int(one * (1 << _SHIFT)) for one in coefficients]


# OpenCV's, BT.601 to three digits. RGB of luma above black, then of V and U above their middle; luma of RGB.
_OF_LUMA, _RED_OF_V, _GREEN_OF_V, _GREEN_OF_U, _BLUE_OF_U = _fixed(1.164, 1.596, -0.813, -0.391, 2.018)
_TO_LUMA = _fixed(0.257, 0.504, 0.098)
_TO_CHROMA = _fixed(-0.148223, -0.290993, 0.439216), _fixed(0.439216, -0.367788, -0.071427)


def to_rgb(i420: Tensor) -> Tensor:
    """I420 -> uint8 [B, H, W, 3] RGB, OpenCV's on every pixel: four pixels share one colour."""
    height, width = i420.shape[1] * 2 // 3, i420.shape[2]
    luma = i420[:, :height].reshape(-1, height // 2, 2, width // 2, 2).int()
    luma = (luma - 16).clamp_(min=0).mul_(_OF_LUMA).add_(_HALF)
    u, v = (i420[:, height:].reshape(-1, 2, height // 2, 1, width // 2, 1).int() - 128).unbind(1)
    red = luma.add(v, alpha=_RED_OF_V)
    green = luma.add(v, alpha=_GREEN_OF_V).add_(u, alpha=_GREEN_OF_U)
    blue = luma.add(u, alpha=_BLUE_OF_U)
    rgb = torch.stack((red, green, blue), 1).bitwise_right_shift_(_SHIFT).clamp_(0, 255).to(torch.uint8)
    return rgb.reshape(-1, 3, height, width).permute(0, 2, 3, 1)


def to_i420(frames: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] RGB -> I420: the luma, and U and V of each 2x2 pixels' mean."""
    batch, height, width, _ = frames.shape
    rgb = frames.int()
    means = rgb.reshape(batch, height // 2, 2, width // 2, 2, 3).sum((2, 4), dtype=torch.int32).add_(2) >> 2
    luma, (u, v) = _weighted(rgb, _TO_LUMA, 16), (_weighted(means, row, 128) for row in _TO_CHROMA)
    return torch.cat([plane.flatten(1) for plane in (luma, u, v)], 1).to(torch.uint8).reshape(batch, -1, width)


def _weighted(rgb: Tensor, weights: list[int], offset: int) -> Tensor:
    """int32 [..., 3] -> int32 [...]."""
    red, green, blue = rgb.unbind(-1)
    total = red.mul(weights[0]).add_(green, alpha=weights[1]).add_(blue, alpha=weights[2])
    return total.add_((offset << _SHIFT) + _HALF).bitwise_right_shift_(_SHIFT)


def to_model(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [B, 3, h, w] -> dtype [B, 3, h, w] in [-1, 1], channels-last."""
    return (pixels.float() / 127.5 - 1.0).to(dtype, memory_format=torch.channels_last)


def to_frames(picture: Tensor) -> Tensor:
    """[B, 3, h, w] in [-1, 1] -> uint8 [B, h, w, 3] RGB, contiguous."""
    pixels = (picture.float() * 0.5 + 0.5).clamp(0, 1).mul(255).round_().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()
