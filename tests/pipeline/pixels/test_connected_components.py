"""Connected components in Triton: on a GPU, or without one in Triton's interpreter:

    TRITON_INTERPRET=1 python -m pytest tests/pipeline/pixels/test_connected_components.py

The interpreter runs one program after the other, so it says nothing of what they do to each other.
"""

from __future__ import annotations

import os

import av
import cv2
import numpy as np
import pytest
import torch

from pipeline.pixels import canny
from tests.chromium import CLIP

pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA on Linux")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from pipeline.pixels import connected_components  # noqa: E402 - it imports Triton

rng = np.random.default_rng(0)


def spiral(side: int) -> np.ndarray:
    """One line, a pixel wide, that winds from the corner to the middle."""
    marked = np.zeros((side, side), bool)
    y, x, down, right = 0, -1, 0, 1
    for length in (side, *np.repeat(np.arange(side - 1, 0, -2), 2)):
        for _ in range(length):
            y, x = y + down, x + right
            marked[y, x] = True
        down, right = right, -down
    return marked


def comb(side: int) -> np.ndarray:
    """Teeth that meet at the last row only."""
    marked = np.zeros((side, side), bool)
    marked[:, ::2] = marked[-1] = True
    return marked


def zigzag(side: int) -> np.ndarray:
    """Lines that join at one end, then at the other."""
    marked = np.zeros((side, side), bool)
    marked[::2] = marked[1::4, -1] = marked[3::4, 0] = True
    return marked


SHAPES = {
    "nothing": np.zeros((5, 7), bool),
    "all": np.ones((33, 65), bool),
    "one pixel": np.ones((1, 1), bool),
    "a row": rng.random((1, 300)) < 0.8,
    "a column": rng.random((300, 1)) < 0.8,
    "diagonals": np.eye(50, dtype=bool) | np.eye(50, dtype=bool)[::-1],
    "spiral": spiral(41),
    "comb": comb(40),
    "zigzag": zigzag(41),
    **{f"noise of {share}": rng.random((33, 47)) < share for share in (0.1, 0.3, 0.45, 0.6, 0.9)},
}


@pytest.mark.parametrize("block", [128, 1024])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_root_is_the_first_pixel_of_the_region(shape, block, monkeypatch):
    monkeypatch.setattr(connected_components, "BLOCK", block)
    one = SHAPES[shape]
    for marked in (one, one[::-1], one[:, ::-1], one.T):
        batch = np.stack([marked, rng.random(marked.shape) < 0.5, marked])  # no region goes on in the next frame
        roots = connected_components.roots(torch.from_numpy(batch).to(DEVICE)).cpu().numpy()
        assert np.array_equal(roots, np.stack([firsts(each) + i * one.size for i, each in enumerate(batch)]))


def firsts(marked: np.ndarray) -> np.ndarray:
    """By OpenCV: of each pixel the first of its region, of one that is not marked itself."""
    count, labels = cv2.connectedComponents(marked.astype(np.uint8), connectivity=8)
    places = np.arange(marked.size).reshape(marked.shape)
    first = np.full(count, marked.size)
    np.minimum.at(first, labels.ravel(), places.ravel())
    return np.where(marked, first[labels], places)


def test_a_spiral_is_one_line():
    assert spiral(41).sum() > 800
    assert len(np.unique(firsts(spiral(41))[spiral(41)])) == 1


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """Frames of the clip at 384x288, uint8 [4, H, W, 3]."""
    with av.open(str(CLIP)) as clip:
        frames = [next(clip.decode(video=0)).reformat(384, 288, "rgb24").to_ndarray() for _ in range(2)]
    return np.stack([*frames, frames[0][::-1], rng.integers(0, 256, frames[0].shape, np.uint8)])


def test_canny_without_a_wait_is_opencvs_on_every_pixel(photos, monkeypatch):
    monkeypatch.setattr(canny, "_hysteresis_on", lambda device: canny.by_regions)
    monkeypatch.setattr(connected_components, "BLOCK", 1024)
    for low, high in (([20, 100, 0, 100], [60, 200, 0, 200]), ([255, 10, 50, 300], [50, 250, 255, 600])):
        greys = [cv2.cvtColor(np.ascontiguousarray(photo), cv2.COLOR_RGB2GRAY) for photo in photos]
        expected = [cv2.Canny(*one) > 0 for one in zip(greys, low, high, strict=True)]
        thresholds = (torch.tensor(each, device=DEVICE)[:, None, None, None] for each in (low, high))
        edges = canny.canny_on_device(torch.from_numpy(photos).permute(0, 3, 1, 2).to(DEVICE), *thresholds)
        assert all(one.any() for one in expected)
        assert np.array_equal(edges[:, 0].cpu().numpy(), expected)
