"""Frames that came in one after the other share every call of the UNet, each at a step of its own.

The stream batch of StreamDiffusion (Kodaira et al. 2023, arXiv 2312.12491, sec. 3.1): with K steps a call takes up to K
frames one step on, so that a picture comes out for one call of K instead of K calls of one, K - 1 calls later. Here it
holds no more than the frames that there are: while it fills nothing comes out, and without a new frame those in it go
on when their pictures are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from pipeline.batch import Pending

from .sampler import Conditioning, SampleRequest, SamplingState

T = TypeVar("T")


class _Outcome(Generic[T]):
    """What became of a frame; neither while it is under way."""

    def __init__(self) -> None:
        self.pending: Pending[T] | None = None
        self.error: BaseException | None = None

    def is_there(self) -> bool:
        return self.error is not None or (self.pending is not None and self.pending.is_there())


@dataclass(frozen=True)
class _UnderWay(Generic[T]):
    """Between two steps. prepare: called before each step. hand_over: makes of its pictures, uint8 [N, H, W, 3] on the
    device, what was asked for."""

    state: SamplingState
    conditioning: Conditioning
    prepare: Callable[[], None]
    hand_over: Callable[[Tensor], Pending[T]]
    outcome: _Outcome[T]
    steps_done: int = 0


class StreamBatch(Generic[T]):
    """Frames under way, oldest first. begin, step, finish: those of a Sampler. One thread calls it and its Pendings."""

    def __init__(
        self,
        begin: Callable[[SampleRequest], SamplingState],
        step: Callable[[tuple[tuple[SamplingState, Conditioning], ...]], Tensor],
        finish: Callable[[SamplingState], Tensor],
    ):
        self._begin, self._step, self._finish = begin, step, finish
        self._frames: list[_UnderWay[T]] = []
        self._key: Hashable = None

    def __len__(self) -> int:
        return len(self._frames)

    def joins(self, key: Hashable) -> bool:
        """Whether a frame of this key would finish nobody first."""
        return not self._frames or key == self._key

    @torch.inference_mode()
    def add(
        self,
        request: SampleRequest,
        key: Hashable,
        behind: int,
        prepare: Callable[[], None],
        hand_over: Callable[[Tensor], Pending[T]],
    ) -> Pending[T]:
        """Take all one step on, with this frame among them.

        key: equal for frames that can share calls; others under way are finished first. behind: how many may be under
        way afterwards. Called before its time, the Pending takes the remaining steps itself. Where a step fails, that
        is raised here, and by the Pendings of all that were under way.
        """
        if not self.joins(key):
            self.finish()
        state, outcome = self._begin(replace(request, conditioning=request.conditioning.at(0))), _Outcome[T]()
        self._frames.append(_UnderWay(state, request.conditioning, prepare, hand_over, outcome))
        self._key = key
        self._advance()
        while len(self._frames) > behind:
            self._advance()
        return Pending(outcome.is_there, lambda: self._result(outcome))

    def finish(self) -> None:
        """Take all that are under way through their last step."""
        while self._frames:
            self._advance()

    def forget(self) -> None:
        """Let go of what is under way; its Pendings raise RuntimeError."""
        self._fail(RuntimeError("This frame was let go before it was finished: give it to the engine again."))

    def _result(self, outcome: _Outcome[T]) -> T:
        while outcome.pending is None and outcome.error is None:
            self._advance()
        if outcome.error is not None:
            raise outcome.error
        assert outcome.pending is not None
        return outcome.pending()

    @torch.inference_mode()
    def _advance(self) -> None:
        try:
            self._frames[0].prepare()
            x = self._step(tuple((each.state, each.conditioning.at(each.steps_done)) for each in self._frames))
            own = x.split([len(each.state.x) for each in self._frames])
            first, *others = (
                replace(each, state=replace(each.state, x=x), steps_done=each.steps_done + 1)
                for each, x in zip(self._frames, own, strict=True)
            )
            # All have equally many steps to go through, so none is overtaken and one at the most is finished.
            if first.steps_done == first.conditioning.steps:
                first.outcome.pending = first.hand_over(self._finish(first.state))
                self._frames = others
            else:
                self._frames = [first, *others]
        except BaseException as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        for frame in self._frames:
            frame.outcome.error = error
        self._frames = []
