"""The deep part of a UNet rests while the picture hardly changes: its features of an earlier frame are used again.

The idea of DeepCache (Ma et al. 2023, arXiv 2312.00858), across frames instead of denoising steps, of which an LCM has
too few to skip any. The outermost blocks run for every frame, on its own latents, so that movement is followed; the
rest (pipeline.sampling.deep_features) runs for a frame now and then. How far such pictures are from whole ones says
benchmarks/reuse.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from torch import Tensor

from pipeline.trees import joined

from .deep_features import Deep
from .sampler import SampleRequest

SIDE = 32  # frames are compared at this size: in little, as the deep blocks see them
SAMPLES = 8
LITTLE = 8.0  # of 255: a mean change from which on the deep features are made anew
MOST_STREAMS = 32  # whose features are kept
ANEW, AGAIN = "anew", "again"  # how pictures were painted: with features of their own, on kept ones


@dataclass(frozen=True)
class Seen:
    """What deep features depend on. circumstances: all but the picture and the mask. picture: `coarse`."""

    circumstances: Hashable
    picture: np.ndarray
    mask: np.ndarray | None


@dataclass(frozen=True)
class KeptFeatures:
    """Deep features of one stream's frame, each [1, C, h, w]. used: for how many frames since."""

    seen: Seen
    deep: Deep
    used: int = 0


def part(deep: Deep, number: int) -> Deep:
    """Those of one picture of a batch, which do not hold the others'."""
    return tuple(tuple(_one(features, number) for features in step) for step in deep)


def _one(features: Tensor, number: int) -> Tensor:
    return features if len(features) == 1 else features[number : number + 1].clone()


def coarse(frame: np.ndarray) -> np.ndarray:
    """A frame in little, int16: of uint8 [H, W, 3] RGB [SIDE, SIDE, 3], of uint8 [H * 3 / 2, W] I420 its brightness,
    [SIDE, SIDE]. Each pixel is the mean of SAMPLES x SAMPLES of its area: enough to take noise away, and soon done
    however large the frame is."""
    picture = frame if frame.ndim == 3 else frame[: len(frame) * 2 // 3]
    picked = cv2.resize(picture, (SIDE * SAMPLES, SIDE * SAMPLES), interpolation=cv2.INTER_NEAREST)
    return cv2.resize(picked, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)


def serves(memory: KeptFeatures, seen: Seen, most: int) -> bool:
    """Whether the features kept will do for a frame. most: for how many frames they may.

    It is compared with the frame that they are of, not with the last one, so that a slow change adds up.
    """
    return (
        memory.used < most
        and memory.seen.circumstances == seen.circumstances
        and _equal(memory.seen.mask, seen.mask)
        and float(np.abs(memory.seen.picture - seen.picture).mean()) < LITTLE
    )


def _equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


class Reuse:
    """Paints the frames of streams, and keeps their deep features. keep, reuse: those of a Sampler."""

    def __init__(
        self,
        keep: Callable[[SampleRequest], tuple[Tensor, Deep]],
        reuse: Callable[[tuple[SampleRequest, Deep]], Tensor],
    ):
        self._keep, self._reuse = keep, reuse
        self._kept: OrderedDict[Hashable, KeptFeatures] = OrderedDict()

    def __call__(
        self, request: SampleRequest, streams: Sequence[Hashable], seen: Sequence[Seen], most: Sequence[int]
    ) -> tuple[Tensor, str]:
        """The pictures, and ANEW or AGAIN. streams, seen, most: of each frame; most: as `serves` has it.

        All frames of a batch are painted on kept features, or none: streams that share batches soon agree on when.
        """
        kept = [self._kept.get(stream) for stream in streams]
        serving = [
            memory
            for memory, one, times in zip(kept, seen, most, strict=True)
            if memory is not None and serves(memory, one, times)
        ]
        if len(serving) == len(kept):
            deep = serving[0].deep if len(serving) == 1 else joined([memory.deep for memory in serving])
            pictures = self._reuse((request, deep))
            self._remember(streams, [replace(memory, used=memory.used + 1) for memory in serving])
            return pictures, AGAIN
        pictures, deep = self._keep(request)
        self._remember(streams, [KeptFeatures(one, part(deep, i)) for i, one in enumerate(seen)])
        return pictures, ANEW

    def _remember(self, streams: Sequence[Hashable], kept: Sequence[KeptFeatures]) -> None:
        for stream, memory in zip(streams, kept, strict=True):
            self._kept[stream] = memory
            self._kept.move_to_end(stream)
        while len(self._kept) > MOST_STREAMS:
            self._kept.popitem(last=False)

    def forget(self, streams: Iterable[Hashable] | None = None) -> None:
        """The features of these streams, of all by default."""
        for stream in list(self._kept if streams is None else streams):
            self._kept.pop(stream, None)
