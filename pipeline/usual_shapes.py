"""The batches that a live engine will soon be asked for, as blank ones: what is captured before frames are taken."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import capabilities
from .batch import BATCHES, Batch
from .capabilities import Capabilities
from .settings import Controls

CAMERAS = ((640, 480), (1280, 720), (512, 512))  # usual sizes of live video: (width, height)


def usual_shapes(
    model: Capabilities, controls: Controls, *, max_batch: int, scales: tuple[float, ...], depth: int
) -> Iterator[tuple[Batch, ...]]:
    """Of each shape the batches to be submitted one after the other; other shapes wait until they were met.

    Every batch that streams may share, with CFG and without, as both are a touch of a slider away. Of one frame alone
    the rungs below, fewer steps and then smaller pictures: where they are needed a batch takes too long. What shares
    steps, `depth` batches at once, as the scheduler compares that with whole frames, which are replayed. Usual cameras
    in each batch, little work each. With two steps that makes 11 ways to paint, 4 to share steps, and 20 small graphs
    around them.
    """
    asked = painting(controls)
    sizes = [size for size in BATCHES if size <= max_batch]
    other = asked.model_copy(update={"guidance": 1.0 if capabilities.uses_cfg(model, asked) else 2.0})
    for kind in [asked] if model.guidance_embedding else [asked, other]:
        yield from (_painted(kind, size) for size in sizes)
    for steps in range(asked.steps - 1, 0, -1):
        yield _painted(asked.model_copy(update={"steps": steps}), 1)
    for scale in scales[1:]:
        yield _painted(asked.model_copy(update={"steps": 1}), 1, scale)
    if depth > 1:
        yield (_blank(asked, 1, behind=depth - 1),) * depth
    for camera in CAMERAS:
        yield from ((_blank(asked.model_copy(update={"bypass": True}), size, camera),) for size in sizes)


def painting(controls: Controls) -> Controls:
    """The nearest under which something is painted."""
    return controls.model_copy(update={"bypass": False, "strength": controls.strength or 0.5})


def _painted(controls: Controls, size: int, scale: float = 1.0) -> tuple[Batch, ...]:
    """Twice, where features are reused: they are made, then used."""
    return (_blank(controls, size, scale=scale),) * (2 if controls.reuse else 1)


def _blank(
    controls: Controls, size: int, camera: tuple[int, int] = CAMERAS[0], scale: float = 1.0, behind: int = 0
) -> Batch:
    width, height = camera
    frames = np.zeros((size, height * 3 // 2, width), np.uint8)  # I420
    return Batch(frames, (controls,) * size, scale=scale, streams=tuple(range(size)), behind=behind, i420=True)
