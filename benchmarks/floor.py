"""How fast could a call be? Its floating-point operations over the rate at which the device multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

SIDES = {"cuda": (4096, 8192), "mps": (2048, 4096), "cpu": (1024, 2048)}
ROUNDS, ROUND_S = 5, 0.2


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of square matrix products: the best round of the best size."""
    return max(_rate(side, device, dtype) for side in SIDES[device.type])


def _rate(side: int, device: torch.device, dtype: torch.dtype) -> float:
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def seconds(count: int) -> float:
        synchronize(device)
        started_s = time.perf_counter()
        for _ in range(count):
            torch.mm(a, b, out=out)
        synchronize(device)
        return time.perf_counter() - started_s

    seconds(2)
    count = max(1, int(ROUND_S / seconds(1)))
    return max(2 * side**3 * count / seconds(count) for _ in range(ROUNDS))


def synchronize(device: torch.device) -> None:
    """Wait for what was launched there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def flops(call: Callable[[], object]) -> int:
    """Of matrix products, convolutions and attention in one call, which must not run compiled code.

    Attention is counted as the two matrix products that it is, whichever kernel would have run it.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
