"""Pixels on the device: uint8 frames in any size -> the model's input, and its output -> uint8 frames."""

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


def fit(frames: Tensor, width: int, height: int) -> Tensor:
    """Scale to cover the target and crop the centre; nothing is stretched.

    frames: uint8 [B, H, W, 3] RGB. Returns uint8 [B, 3, height, width] (channels-last in memory).
    """
    pixels = frames.permute(0, 3, 1, 2)
    if pixels.shape[2:] == (height, width):
        return pixels
    left, top, box_width, box_height = cover_box(pixels.shape[3], pixels.shape[2], width, height)
    pixels = pixels[:, :, top : top + box_height, left : left + box_width]
    if pixels.shape[2:] == (height, width):
        return pixels
    if pixels.device.type == "cpu":  # only the CPU has a uint8 kernel for this, and it is the fastest one there
        return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    scaled = F.interpolate(pixels.float(), (height, width), mode="bilinear", antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def to_model(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [B, 3, h, w] -> dtype [B, 3, h, w] in [-1, 1], channels-last."""
    return (pixels.float() / 127.5 - 1.0).to(dtype, memory_format=torch.channels_last)


def to_frames(picture: Tensor) -> Tensor:
    """[B, 3, h, w] in [-1, 1] -> uint8 [B, h, w, 3] RGB, contiguous."""
    pixels = (picture.float() * 0.5 + 0.5).clamp(0, 1).mul(255).round_().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()
