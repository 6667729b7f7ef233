"""Pixels on the device: OpenCV's own edges, nothing stretched, nothing lost on the way in and out."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Controls
from pipeline.pixels import canny, color
from pipeline.pixels.annotators import annotate, as_tensors
from stream.engine.i420 import to_i420
from tests.chromium import CLIP


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """One frame of the clip at 512x512, uint8 [H, W, 3]."""
    with av.open(str(CLIP)) as clip:
        frame = next(clip.decode(video=0))
    return frame.reformat(512, 512, "rgb24").to_ndarray()


@pytest.mark.parametrize(("low", "high"), [(100, 200), (200, 100), (0, 0), (20, 60), (50, 255), (255, 255)])
def test_canny_on_the_device_is_opencvs_on_every_pixel(photo, low, high):
    expected = opencvs_edges([photo], [low], [high])
    assert expected.any()
    assert np.array_equal(edges_on_the_device([photo], [low], [high]), expected)


def test_each_frame_of_a_batch_has_its_own_thresholds(photo):
    batch, low, high = [photo, photo[::-1], photo], [20, 200, 255], [60, 100, 0]
    edges = edges_on_the_device(batch, low, high)
    assert np.array_equal(edges, opencvs_edges(batch, low, high))
    assert len({int(one.sum()) for one in edges}) == 3
    pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
    assert np.array_equal(canny.find_edges(pixels, thresholds(low), thresholds(high))[:, 0], edges)


def opencvs_edges(frames, low, high) -> np.ndarray:
    greys = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    return np.stack([cv2.Canny(*one) > 0 for one in zip(greys, low, high, strict=True)])


def edges_on_the_device(frames, low, high) -> np.ndarray:
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    return canny.canny_on_device(pixels, thresholds(low), thresholds(high))[:, 0].numpy()


def thresholds(each) -> torch.Tensor:
    return torch.tensor(each)[:, None, None, None]


@given(data=st.data())
def test_canny_is_opencvs_on_noise_too(data):
    height, width = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 24))
    low, high = ([data.draw(st.integers(0, 255)) for _ in range(2)] for _ in range(2))
    pixels = np.random.default_rng(data.draw(st.integers(0, 999))).integers(0, 256, (2, height, width, 3), np.uint8)
    assert np.array_equal(edges_on_the_device(pixels, low, high), opencvs_edges(pixels, low, high))


def test_hysteresis_runs_until_nothing_changes():
    """A weak line of 400 pixels from one strong one: a fixed number of passes would cut it."""
    strong, candidates = torch.zeros(2, 1, 1, 8, 400, dtype=torch.bool)
    candidates[:, :, 4] = True
    strong[:, :, 4, 0] = True
    assert torch.equal(canny.by_growing(strong, candidates), candidates)


def test_the_edges_of_a_batch_are_found_without_a_look_at_a_value_or_at_the_host():
    """On the device without contents: whatever would need them, or a tensor beside it, raises."""
    pixels, each = torch.empty((2, 3, 64, 96), dtype=torch.uint8, device="meta"), thresholds([100, 200]).to("meta")
    strong, candidates = canny.ridges(pixels, each, each)
    assert strong.shape == candidates.shape == (2, 1, 64, 96)
    with pytest.raises(NotImplementedError):
        canny.by_growing(strong, candidates)


def test_where_triton_does_not_work_canny_grows_its_edges_and_says_so_once(monkeypatch, caplog):
    def broken(strong, candidates):
        raise RuntimeError("Failed to find C compiler. And more")

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None, **kind: zeros(*shape, **kind))
    monkeypatch.setattr(canny, "by_regions", broken)
    canny._hysteresis_on.cache_clear()
    assert [canny._hysteresis_on(torch.device("cuda")) for _ in range(2)] == [canny.by_growing] * 2
    canny._hysteresis_on.cache_clear()
    assert [capture.message for capture in caplog.records] == [
        "Canny waits for the device in every frame, since Triton does not work: Failed to find C compiler."
    ]


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


EVEN = st.integers(1, 12).map(lambda half: 2 * half)


@given(height=EVEN, width=EVEN, seed=st.integers(0, 999))
def test_i420_becomes_opencvs_rgb_on_every_pixel_and_back_again(height, width, seed):
    """On noise, so on what no camera sends too. Back again it is what the host makes of it."""
    planes = np.random.default_rng(seed).integers(0, 256, (2, height * 3 // 2, width), np.uint8)
    rgb = color.to_rgb(torch.from_numpy(planes))
    assert np.array_equal(rgb.numpy(), [cv2.cvtColor(one, cv2.COLOR_YUV2RGB_I420) for one in planes])
    ours, expected = color.to_i420(rgb).numpy(), np.stack([to_i420(one) for one in rgb.contiguous().numpy()])
    assert np.array_equal(ours[:, :height], expected[:, :height])
    assert np.abs(ours.astype(int) - expected).max() <= 1


def test_a_decoded_frame_is_swscales_but_for_rounding():
    with av.open(str(CLIP)) as clip:
        frame = next(clip.decode(video=0))
    ours = color.to_rgb(torch.from_numpy(frame.to_ndarray()[None]))[0].numpy()
    off = np.abs(ours.astype(int) - frame.to_ndarray(format="rgb24"))
    assert off.max() <= 4
    assert off.mean() < 1.5


def test_grey_is_the_brightness_of_bt601():
    red, white = np.zeros((2, 1, 8, 8, 3), np.uint8)
    red[..., 0], white[:] = 255, 255
    pixels = torch.from_numpy(np.concatenate([red, white])).permute(0, 3, 1, 2)
    grey = annotate("grey", pixels, as_tensors([Controls()] * 2, pixels.device), torch.float32)
    assert torch.allclose(grey, torch.tensor([0.299, 1.0])[:, None, None, None].expand(2, 3, 8, 8))
