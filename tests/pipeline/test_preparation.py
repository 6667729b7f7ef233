"""What cannot be painted is refused in a sentence, before anything is painted."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import Controls, ModelSpec, load
from tests import tiny
from tests.pipeline.calls import submitted


@pytest.fixture(scope="module")
def stylizer(tmp_path_factory):
    base = tiny.checkpoint(tmp_path_factory.mktemp("stylizer"))
    return load(ModelSpec(str(base), width=96, height=64, dtype="float32"), "cpu")


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (3, 120, 160, 3), np.uint8)


def test_a_batch_of_unequal_shapes_is_refused(stylizer, frames):
    with pytest.raises(ValueError, match="shape keys"):
        stylizer(frames, [Controls(steps=1), Controls(steps=2), Controls(steps=1)])
    with pytest.raises(ValueError, match="3 frames came with 2"):
        stylizer(frames, [Controls(), Controls()])


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((64, 96, 3), np.uint8),
        np.zeros((1, 64, 96, 4), np.uint8),
        np.zeros((1, 64, 96, 3), np.float32),
        np.zeros((1, 0, 96, 3), np.uint8),
    ],
)
def test_frames_of_another_kind_are_refused(stylizer, frames):
    with pytest.raises(ValueError, match="uint8"):
        stylizer(frames, Controls())


@pytest.mark.parametrize("shape", [(1, 179, 160), (1, 180, 161), (0, 180, 160), (1, 180, 160, 4)], ids=str)
def test_what_is_neither_rgb_nor_i420_is_refused(stylizer, shape):
    with pytest.raises(ValueError, match=r"must be uint8 \[N, H"):
        submitted(stylizer, np.zeros(shape, np.uint8), [Controls()])
    with pytest.raises(ValueError, match="2 frames came with 1"):
        submitted(stylizer, np.zeros((2, 180, 160), np.uint8), [Controls()])


def test_what_does_not_belong_together_is_refused(stylizer, frames):
    with pytest.raises(ValueError, match="3 controls came with 2 streams"):
        submitted(stylizer, frames, Controls(), streams=("a", "b"))
    with pytest.raises(ValueError, match="no controls"):
        submitted(stylizer, None, ())
    with pytest.raises(ValueError, match="there are none"):
        submitted(stylizer, None, [Controls()], mask=np.zeros((1, 64, 96), np.uint8))
