"""Pixels from host memory to the device and back: page-locked on the host side where the device is CUDA.

A card reads and writes page-locked memory by itself. From other memory the driver copies through a buffer of its own,
and the caller waits for it. PyTorch keeps page-locked memory that is given back, so nothing is allocated after the
first frames, and does not hand it out again before the card has read it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(pixels: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """An array, or a tensor of whatever device, as a tensor on `device`; the caller does not wait for it."""
    tensor = torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_host(tensor: Tensor) -> np.ndarray:
    """A device's tensor as an array of its own, once all that was launched for it is done."""
    if tensor.device.type != "cuda":
        return tensor.cpu().numpy()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return host.numpy()
