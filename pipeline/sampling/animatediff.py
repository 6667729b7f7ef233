"""Clips by AnimateDiff (arXiv 2307.04725): one UNet call sees several frames at once.

A clip may be of any length: every step is a stream of frames that goes through overlapping windows, and the steps are
chained, so that each holds no more than two windows of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice, repeat, tee
from itertools import count as counted
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.pixels import color
from pipeline.settings import Controls

from . import lcm
from .conditioning import ConditioningCache
from .model import Components
from .sampler import Sampler
from .sizes import Sizes

CLIP_CHUNK = 16  # frames of a clip that are encoded or decoded at once
WINDOW, OVERLAP = 16, 4  # frames; motion modules were trained on 16
STRIDE = WINDOW - OVERLAP

T = TypeVar("T")


def clip_noise(
    seed: int, steps: int, shape: tuple[int, int, int], count: int, *, from_noise: bool
) -> list[Iterator[Tensor]]:
    """Per step the noise of `count` frames, float32 [1, C, h, w] each, as diffusers' AnimateDiff pipelines draw it.

    shape: (C, h, w). To enter from a video its pipeline draws frame by frame, else all channels come first.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    channels, height, width = shape
    whole = (1, channels, count, height, width)
    by_frame = (1, count, channels, height, width)
    first = torch.randn(whole if from_noise else by_frame, generator=generator)
    later = [torch.randn(whole, generator=generator) for _ in range(steps - 1)]
    return [iter(draw.unbind(2)) for draw in (first if from_noise else first.transpose(1, 2), *later)]


def endless_noise(seed: int, steps: int, shape: tuple[int, int, int], first: int = 0) -> list[Iterator[Tensor]]:
    """The same without end, of the frames from number `first` on: it depends on seed, step and number alone."""

    def draw(step: int, number: int) -> Tensor:
        state = np.random.SeedSequence((seed, step, number)).generate_state(1, np.uint64)
        generator = torch.Generator("cpu").manual_seed(int(state[0]))
        return torch.randn((1, *shape), generator=generator)

    return [(draw(step, number) for number in counted(first)) for step in range(steps)]


def windows(frames: Iterable[T], size: int = WINDOW) -> Iterator[tuple[int, list[T]]]:
    """(place of its first frame, the frames) of overlapping windows; the last one is moved back to be whole.

    >>> [(first, first + len(window)) for first, window in windows(range(30))]
    [(0, 16), (12, 28), (14, 30)]
    """
    frames = iter(frames)
    held, window, first = list(islice(frames, size)), [], 0
    if 0 < len(held) < size:
        yield first, held
        return
    while len(held) == size:
        window = held
        yield first, window
        held, first = held[size - OVERLAP :], first + size - OVERLAP
        held += islice(frames, size - OVERLAP)
    if len(held) > OVERLAP:
        window = (window + held[OVERLAP:])[-size:]
        yield first + len(held) - size, window


def predict(frames: Iterable[Tensor], call: Callable[[Tensor], Tensor], size: int = WINDOW) -> Iterator[Tensor]:
    """What the model says of each frame, [1, C, h, w]; call: the same for a window, [1, C, F, h, w].

    Where windows overlap their outputs are blended, each the less the nearer its own end is. A frame comes out as soon
    as no later window can reach it.
    """
    sums: deque[Tensor] = deque()  # of the frames that are not out yet: weighted outputs,
    weights: deque[int] = deque()  # and their weights
    out = 0
    for first, window in windows(frames, size):
        while out < first:
            yield sums.popleft() / weights.popleft()
            out += 1
        for place, said in enumerate(call(torch.stack(window, dim=2)).unbind(2)):
            share = min(place + 1, len(window) - place, OVERLAP)
            at = first + place - out
            if at < len(sums):
                sums[at] = sums[at] + share * said
                weights[at] += share
            else:
                sums.append(share * said)
                weights.append(share)
    yield from (total / weight for total, weight in zip(sums, weights, strict=True))


def denoise(
    source: Iterable[Tensor],
    noise: Sequence[Iterator[Tensor]],
    rows: Sequence[Tensor],
    call: Callable[[int, Tensor], Tensor],
    size: int = WINDOW,
) -> Iterator[Tensor]:
    """The whole trajectory, frame by frame. source: latents [1, C, h, w]; noise: of each step, as many or more;
    call(step, x of one window) -> the model's output."""
    for step, (row, draws) in enumerate(zip(rows, noise, strict=True)):
        source = _stepped(source, draws, row, partial(call, step), size)
    return iter(source)


def _stepped(
    source: Iterable[Tensor], draws: Iterator[Tensor], row: Tensor, call: Callable[[Tensor], Tensor], size: int
) -> Iterator[Tensor]:
    noised = (lcm.noised(frame, draw.to(frame.device), row) for frame, draw in zip(source, draws, strict=False))
    seen, shown = tee(noised)
    for x, said in zip(shown, predict(seen, call, size), strict=True):
        yield lcm.denoised(x, said, row)


def needed_from(done: int, steps: int, longest: int) -> int:
    """The number of a frame to begin with so that all frames from number `done` on come out as in the whole clip.

    longest: a clip of no more frames goes in at once. What a beginning in the middle spoils are the first OVERLAP
    frames that come out of the first step, and STRIDE more with each further one. None of them may go into the last
    window of the last step, which reaches back as far as a window is long.
    """
    spoiled = OVERLAP + STRIDE * (steps - 2) if steps > 1 else 0
    begin = done - (WINDOW - 1) - spoiled
    return 0 if done <= longest or begin < 0 else begin - begin % STRIDE


class Animation:
    """The clips of a model with a motion adapter."""

    def __init__(self, parts: Components, sizes: Sizes, conditionings: ConditioningCache):
        self._parts, self._sizes, self._conditionings = parts, sizes, conditionings

    @property
    def longest(self) -> int:
        """How many frames the motion module can see at once."""
        return self._parts.unet.config.motion_max_seq_length

    @torch.inference_mode()
    def __call__(
        self, sampler: Sampler, controls: Controls, clips: Iterable[Tensor] | None, count: int, first: int
    ) -> Iterator[Tensor]:
        """Pictures, uint8 [up to CLIP_CHUNK, H, W, 3] at once, of a clip of any length.

        clips: what to repaint, uint8 [N, 3, H, W] after one another; None paints `count` pictures. first: the number of
        the first one. The LoRAs must have the weights asked for.
        """
        parts, shape = self._parts, self._sizes.latents()
        source: Iterator[Tensor]
        if clips is None:
            source = repeat(torch.zeros((1, *shape), device=parts.device), count - first)
        else:
            source = (
                latents for clip in clips for latents in sampler.encode(color.to_model(clip, parts.dtype)).split(1)
            )
        begun = list(islice(source, self.longest + 1))
        if first == 0 and len(begun) <= self.longest:
            window = self.longest
            noise = clip_noise(controls.seed, controls.steps, shape, len(begun), from_noise=clips is None)
        else:
            window, noise = WINDOW, endless_noise(controls.seed, controls.steps, shape, first)
        conditioning = self._conditionings([controls], [clips is None])
        embeds = torch.cat(conditioning.embeds)

        def call(step: int, x: Tensor) -> Tensor:
            each = embeds.repeat_interleave(x.shape[2], dim=0)
            x, t = x.to(parts.dtype), conditioning.timesteps[step]
            return sampler.denoise(x, t, each, conditioning.guidance, conditioning.timestep_cond)

        x0 = denoise(chain(begun, source), noise, conditioning.rows, call, window)
        while part := list(islice(x0, CLIP_CHUNK)):
            yield color.to_frames(sampler.decode(torch.cat(part)))
