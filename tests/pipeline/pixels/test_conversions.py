"""Pixels on their way in and out, as they are and captured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.pixels.conversions import Conversions
from pipeline.runtime.graphs import Graphs
from pipeline.trees import leaves
from tests.pipeline.recorders import Recorder

SIZES = {1.0: (64, 96), 0.75: (48, 72), 0.5: (32, 48)}


def test_captured_conversions_equal_plain_ones():
    recorder = Recorder()
    plain = Conversions(SIZES, torch.float32, lambda way: way)
    captured = Conversions(SIZES, torch.float32, lambda way: Graphs(way, recorder))
    dice = np.random.default_rng(1)

    def noise(*shape):
        return torch.from_numpy(dice.integers(0, 256, shape, np.uint8))

    cases = {
        "fitted_i420": lambda: noise(2, 180, 160),
        "fitted": lambda: noise(2, 120, 200, 3),
        "fitted_mask": lambda: noise(1, 120, 200),
        "enlarged": lambda: noise(2, 32, 48, 3),
        "in_both_ways": lambda: noise(2, 64, 96, 3),
    }
    for name, make in cases.items():
        graphs = {"enlarged": captured._enlarged, "fitted": captured._scaled}.get(name) or getattr(captured, name)
        getattr(captured, name)(make())
        assert graphs.capture_next(1)
        for given in [make() for _ in range(2)]:
            assert torch.equal(getattr(captured, name)(given), getattr(plain, name)(given)), name
    assert recorder.count == len(cases)
    assert plain.at_scale.keys() == {0.75, 0.5}
    for scale, mask in ((0.75, None), (0.5, torch.ones(2, 1, 64, 96))):
        for _ in range(3):
            given = (noise(2, 3, 64, 96), noise(2, 3, 64, 96), mask)
            ours, expected = (list(leaves(each.at_scale[scale](given))) for each in (captured, plain))
            assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
            captured.at_scale[scale].capture_next(1)
    assert recorder.count == len(cases) + 2


def test_frames_of_the_right_size_need_no_capture():
    conversions = Conversions(SIZES, torch.float32, lambda way: pytest.fail)
    frames = torch.zeros(2, 64, 96, 3, dtype=torch.uint8)
    assert conversions.fitted(frames).data_ptr() == frames.data_ptr()
    assert conversions.enlarged(frames) is frames
