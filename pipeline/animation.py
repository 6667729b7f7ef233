"""How do pictures become a moving one? AnimateDiff (arXiv 2307.04725): one UNet call sees several frames at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import lcm

WINDOW, OVERLAP = 16, 4  # frames; motion modules were trained on 16


def draw_noise(seed: int, steps: int, shape: tuple[int, int, int], count: int, *, from_noise: bool) -> list[Tensor]:
    """`steps` draws of float32 [1, C, count, h, w], as diffusers' AnimateDiff pipelines make them on the CPU.

    shape: (C, h, w). To enter from a video its pipeline draws frame by frame, else all channels come first.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    channels, height, width = shape
    whole = (1, channels, count, height, width)
    by_frame = (1, count, channels, height, width)
    first = torch.randn(whole if from_noise else by_frame, generator=generator)
    later = [torch.randn(whole, generator=generator) for _ in range(steps - 1)]
    return [first if from_noise else first.transpose(1, 2), *later]


def windows(count: int) -> Iterator[tuple[int, int]]:
    """(first, behind the last) of overlapping windows over `count` frames; the last one is moved back to be whole.

    >>> list(windows(30))
    [(0, 16), (12, 28), (14, 30)]
    """
    for first in range(0, max(1, count - OVERLAP), WINDOW - OVERLAP):
        behind = min(first + WINDOW, count)
        yield max(0, behind - WINDOW), behind


def predict(x: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
    """What the model says of all frames. x: [1, C, N, h, w]; call: the same for one window.

    Where windows overlap their outputs are blended, each the less the nearer its own end is.
    """
    total, weights = torch.zeros_like(x), torch.zeros(x.shape[2], device=x.device)
    for first, behind in windows(x.shape[2]):
        places = torch.arange(behind - first, device=x.device)
        share = torch.minimum(places + 1, (behind - first) - places).float().clamp_max(OVERLAP)
        total[:, :, first:behind] += call(x[:, :, first:behind]) * share[:, None, None]
        weights[first:behind] += share
    return total / weights[:, None, None]


def denoise(
    source: Tensor, noise: list[Tensor], rows: tuple[Tensor, ...], call: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """The whole trajectory. source: latents [1, C, N, h, w]; call(step, x of one window) -> the model's output."""
    x = source
    for step, (row, draw) in enumerate(zip(rows, noise, strict=True)):
        x = lcm.noised(x, draw, row)
        x = lcm.denoised(x, predict(x, lambda part, step=step: call(step, part)), row)
    return x
