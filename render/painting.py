"""A film's calls of the engine: batches of frames, pictures from text alone, clips by AnimateDiff."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from pipeline.batch import Batch, Pending, Pictures
from pipeline.errors import CaptureFailed
from pipeline.settings import Controls, ModelSpec

from .errors import FilmError

# Frames painted at once, by device: from here on more gained little. Measured on CPUs: benchmarks/results.
BATCH = {"cpu": 4, "cuda": 4, "mps": 2}
ANIMATED = 16  # frames of a clip by AnimateDiff from text, as in its training

Submit = Callable[[Batch], Pending[Pictures]]


class FilmEngine(Protocol):
    """What is used of pipeline.Stylizer."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def runs_ahead(self) -> bool: ...

    def submit(self, batch: Batch) -> Pending[Pictures]: ...

    def animate_stream(
        self, controls: Controls, frames: Iterable[np.ndarray] | None = ..., count: int = ..., first: int = ...
    ) -> Iterator[np.ndarray]: ...

    def animation_restart(self, controls: Controls, done: int) -> int: ...

    def remarks(self, controls: Controls) -> Mapping[str, str]: ...

    def capture_calls(self, *calls: Callable[[], object]) -> None: ...


def from_text(submit: Submit, *, sees_clip: bool) -> Submit:
    """Pictures of the prompt alone. sees_clip: what would be painted on is what control images are made of."""

    def imagine(batch: Batch) -> Pending[Pictures]:
        try:
            return submit(replace(batch, frames=None, control_frames=batch.frames if sees_clip else None))
        except ValueError as error:
            raise FilmError(str(error)) from error

    return imagine


@dataclass(frozen=True)
class Animate:
    """Paints pictures that depend on the frames around them: such frames cannot go in batches.

    paint: frames and the number of the first -> a picture of each, in order, as soon as it is known. restart: how many
    pictures there are of a clip -> the number of the frame to begin with for those that follow.
    """

    paint: Callable[[Iterator[np.ndarray], int], Iterator[np.ndarray]]
    restart: Callable[[int], int]


def animated(stylizer: FilmEngine, controls: Controls, count: int | None = None) -> Animate:
    """By AnimateDiff; count: of pictures of the prompt alone."""

    def paint(frames: Iterator[np.ndarray], first: int) -> Iterator[np.ndarray]:
        if count is None:
            return stylizer.animate_stream(controls, frames, first=first)
        pictures = stylizer.animate_stream(controls, count=count, first=first)
        return (picture for _, picture in zip(frames, pictures, strict=True))

    return Animate(paint, lambda done: stylizer.animation_restart(controls, done))


def captured(load: Callable[..., FilmEngine], spec: ModelSpec, call: Callable[[FilmEngine], object]) -> FilmEngine:
    """load(spec) with this call captured as CUDA graphs; should that break off, load(spec, graphs=False)."""
    stylizer = load(spec)
    if spec.motion is not None:
        return stylizer
    try:
        stylizer.capture_calls(partial(call, stylizer))
    except CaptureFailed as error:
        print(f"{error} The model is loaded anew, without CUDA graphs.", file=sys.stderr)
    else:
        return stylizer
    del stylizer
    return load(spec, graphs=False)


def paint_blank(
    stylizer: FilmEngine, controls: Controls, count: int, *, text_to_image: bool, sees_clip: bool, masked: bool
) -> None:
    """One call as a film makes them, to be captured. sees_clip: where the pictures come from text."""
    frames = np.zeros((1 if text_to_image else count, stylizer.spec.height, stylizer.spec.width, 3), np.uint8)
    submit: Submit = stylizer.submit
    if text_to_image:
        submit = from_text(submit, sees_clip=sees_clip)
    submit(Batch(frames, (controls,) * len(frames), frames[..., 0] if masked else None))()
