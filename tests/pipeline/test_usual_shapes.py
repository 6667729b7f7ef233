"""Which blank batches stand for what a server will be asked for."""

from __future__ import annotations

import pytest

from pipeline import Controls
from pipeline.capabilities import Capabilities, paints
from pipeline.usual_shapes import CAMERAS, usual_shapes

MODEL, FULL = Capabilities(64, 64), Capabilities(64, 64, guidance_embedding=True)


def shapes(controls: Controls, model: Capabilities = MODEL, max_batch: int = 4, depth: int = 1):
    return list(usual_shapes(model, controls, max_batch=max_batch, scales=(1.0, 0.5), depth=depth))


def painted(batches):
    return [
        (len(one.controls), one.controls[0].steps, one.controls[0].guidance, one.scale)
        for (one, *_) in batches
        if paints(one.controls[0]) and not one.behind
    ]


def test_every_batch_with_cfg_and_without_then_the_rungs_below():
    asked = painted(shapes(Controls(steps=2, guidance=1.5)))
    assert asked == [*((n, 2, g, 1.0) for g in (1.5, 1.0) for n in (1, 2, 4)), (1, 1, 1.5, 1.0), (1, 1, 1.5, 0.5)]
    assert painted(shapes(Controls(steps=1, guidance=1.5), FULL)) == [
        *((n, 1, 1.5, 1.0) for n in (1, 2, 4)),
        (1, 1, 1.5, 0.5),
    ]


@pytest.mark.parametrize("controls", [Controls(bypass=True), Controls(strength=0.0)])
def test_what_would_not_be_painted_is_until_it_is_turned(controls):
    assert len(painted(shapes(controls))) == len(painted(shapes(Controls())))


def test_features_are_made_and_then_used():
    batches = shapes(Controls(steps=1, reuse=3))
    assert {len(each) for each in batches if paints(each[0].controls[0])} == {2}
    assert all(len(one.streams) == len(one.controls) for each in batches for one in each)


def test_as_many_frames_share_steps_as_there_may():
    (shared,) = [each for each in shapes(Controls(steps=3), depth=3) if each[0].behind]
    assert [(len(one.controls), one.behind, one.controls[0].steps) for one in shared] == [(1, 2, 3)] * 3
    assert not any(each[0].behind for each in shapes(Controls(steps=3)))


def test_usual_cameras_in_each_batch():
    through = [one for each in shapes(Controls()) for one in each if not paints(one.controls[0])]
    expected = {(n, height * 3 // 2, width) for n in (1, 2, 4) for width, height in CAMERAS}
    assert {one.frames.shape for one in through} == expected
