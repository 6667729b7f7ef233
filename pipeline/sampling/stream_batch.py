"""Which frames are at which step? Frames that came in one after the other share every call of the UNet.

The stream batch of StreamDiffusion (Kodaira et al. 2023, arXiv 2312.12491, sec. 3.1): with K steps a call takes up to K
frames one step on, each frame its own, so that a picture comes out for one call of K instead of K calls of one, K - 1
calls later. Here it holds no more than the frames that there are: while it fills nothing comes out, and without a new
frame those in it go on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol


class InFlight(Protocol):
    """A frame between two steps. Those of equal keys can share calls; steps_left counts down to 0."""

    key: Hashable
    steps_left: int


class Steps(Protocol):
    """What pipeline.Stylizer has for it."""

    def begin(self, frames, controls, **options) -> InFlight: ...

    def advance(self, flight: Sequence[InFlight]) -> Sequence[InFlight]: ...

    def finish(self, done: InFlight) -> Any: ...


class StreamBatch:
    """The frames of one stream that are in flight, oldest first."""

    def __init__(self, steps: Steps):
        self._steps = steps
        self._flight: tuple[InFlight, ...] = ()

    def __len__(self) -> int:
        return len(self._flight)

    def __call__(self, frames=None, controls=None, **options) -> Any:
        """Take all in flight one step on, with `frames` among them if there are any; the pictures of those that are
        finished, None where none are.

        Arguments are those of Stylizer.begin; the result is that of a Stylizer's call, whose pictures these are, or of
        `live`. Frames that went in together come out together, and all come out in the order they went in; what was
        asked for them when they went in holds until they come out. Raises ValueError as that call does, and when the
        frames cannot share calls with those in flight (another number of steps, CFG, LoRA weights, a mask or none); in
        flight is then what was before.
        """
        flight = self._flight
        if frames is not None:
            begun = self._steps.begin(frames, controls, **options)
            if flight and flight[0].key != begun.key:
                raise ValueError("These frames cannot share calls with those in flight: finish those first.")
            flight = (*flight, begun)
        if not flight:
            return None
        first, *others = self._steps.advance(flight)
        if first.steps_left:
            self._flight = (first, *others)
            return None
        # All have equally many steps to go through, so none is overtaken and one at the most is finished.
        self._flight = tuple(others)
        return self._steps.finish(first)
