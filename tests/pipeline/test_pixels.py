"""Pixels on the device: OpenCV's own edges, nothing stretched, nothing lost on the way in and out."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import canny, color
from tests.chromium import CLIP


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """One frame of the clip at 512x512, uint8 [H, W, 3]."""
    with av.open(str(CLIP)) as clip:
        frame = next(clip.decode(video=0))
    return frame.reformat(512, 512, "rgb24").to_ndarray()


@pytest.mark.parametrize(("low", "high"), [(100, 200), (200, 100), (0, 0), (20, 60), (50, 255), (255, 255)])
def test_canny_on_the_device_is_opencvs_on_every_pixel(photo, low, high):
    expected = cv2.Canny(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), low, high) > 0
    ours = canny.canny_on_device(torch.from_numpy(photo).permute(2, 0, 1), low, high)
    assert expected.any()
    assert np.array_equal(ours.numpy(), expected)


@given(data=st.data())
def test_canny_is_opencvs_on_noise_too(data):
    height, width = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 24))
    low, high = data.draw(st.integers(0, 255)), data.draw(st.integers(0, 255))
    pixels = np.random.default_rng(data.draw(st.integers(0, 999))).integers(0, 256, (height, width, 3), np.uint8)
    expected = cv2.Canny(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), low, high) > 0
    assert np.array_equal(canny.canny_on_device(torch.from_numpy(pixels).permute(2, 0, 1), low, high), expected)


def test_hysteresis_runs_until_nothing_changes():
    """A weak line of 400 pixels from one strong one: a fixed number of passes would cut it."""
    candidate = torch.zeros(8, 400, dtype=torch.bool)
    candidate[4] = True
    strong = torch.zeros_like(candidate)
    strong[4, 0] = True
    assert canny._hysteresis(strong, candidate)[4].all()


@given(w=st.integers(1, 2000), h=st.integers(1, 2000), to_w=st.integers(8, 1024), to_h=st.integers(8, 1024))
def test_the_crop_is_inside_centred_and_of_the_targets_aspect(w, h, to_w, to_h):
    left, top, width, height = color.cover_box(w, h, to_w, to_h)
    assert left >= 0
    assert top >= 0
    assert left + width <= w
    assert top + height <= h
    assert width == w or height == h
    assert abs(2 * left + width - w) <= 1
    assert abs(2 * top + height - h) <= 1
    assert abs(width * to_h - height * to_w) <= max(to_w, to_h)  # within half a pixel


def test_a_circle_stays_a_circle():
    frame = np.zeros((480, 640, 3), np.uint8)
    cv2.circle(frame, (320, 240), 120, (255, 255, 255), -1)
    out = color.fit(torch.from_numpy(frame)[None], 256, 256)[0, 0] > 127
    wide, high = int(out.any(0).sum()), int(out.any(1).sum())
    assert abs(wide - high) <= 1
    assert abs(wide - 240 * 256 / 480) <= 2


def test_a_frame_of_the_right_size_passes_untouched_and_back(photo):
    frames = torch.from_numpy(photo)[None]
    pixels = color.fit(frames, 512, 512)
    assert torch.equal(color.to_frames(color.to_model(pixels, torch.float32)), frames)
