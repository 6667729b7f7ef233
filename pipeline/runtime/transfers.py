"""Pixels from host memory to the device and back; on CUDA beside its work, on streams of their own.

A card's copy engines move page-locked memory while its processors work: what comes next is uploaded and what was
before is downloaded meanwhile. From other memory the driver would copy through a buffer of its own, and the caller
wait for it. PyTorch keeps page-locked memory that is given back, so nothing is allocated after the first frames, and
does not hand it out again before the card has read it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.batch import Pending, there


class Transfers:
    """Those of one device. Work is launched on its current stream, by one thread."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def to_device(self, pixels: np.ndarray | Tensor) -> Tensor:
        """An array, or a tensor of whatever device, for the work that is launched from now on; nobody waits for it."""
        tensor = torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels
        if self.device.type != "cuda" or tensor.device.type != "cpu":
            return tensor.to(self.device)
        with torch.cuda.stream(self._up):
            uploaded = tensor.pin_memory().to(self.device, non_blocking=True)
        work = torch.cuda.current_stream(self.device)
        work.wait_stream(self._up)
        uploaded.record_stream(work)  # its memory stays its own until the work is done with it
        return uploaded

    def to_host(self, tensor: Tensor) -> Pending[np.ndarray]:
        """A tensor of the device as an array, there once all that was launched for it is done."""
        if self.device.type != "cuda":
            return there(tensor.cpu().numpy())
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        with torch.cuda.stream(self._down):
            host.copy_(tensor, non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # who waits for it leaves its core to the codecs
            done.record()
        tensor.record_stream(self._down)

        def array() -> np.ndarray:
            done.synchronize()
            return host.numpy()

        return Pending(done.query, array)
