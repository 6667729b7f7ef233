"""What may be skipped, on real pictures and a made-up clock: noise may; a slow fade, a blink or a cut may not."""

from __future__ import annotations

from itertools import pairwise

import av
import cv2
import numpy as np
import pytest

from stream.engine import similarity
from stream.engine.similarity import STANDS_S, Painted, difference, stands, thumbnail
from tests.paths import CARPHONE

FPS = 30
LIMIT = 3.0


@pytest.fixture(scope="module")
def clip() -> list[av.VideoFrame]:
    with av.open(str(CARPHONE)) as container:
        return list(container.decode(video=0))


@pytest.fixture(scope="module")
def still(clip) -> np.ndarray:
    """A picture as large as a webcam's: int16 [480, 640, 3]."""
    return cv2.resize(clip[0].to_ndarray(format="rgb24"), (640, 480), interpolation=cv2.INTER_CUBIC).astype(np.int16)


def painted(frames, limit=LIMIT) -> list[int]:
    """The numbers of the frames that are painted, 30 of them a second."""
    last, numbers = None, []
    for number, frame in enumerate(map(thumbnail, frames)):
        if not stands(number / FPS, last, "as before", frame, limit):
            last = Painted(number / FPS, "as before", frame)
            numbers.append(number)
    return numbers


def seen(picture, sigma=0.0, seed=0) -> np.ndarray:
    """What a camera of so much noise makes of it."""
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape) if sigma else 0
    return (picture + noise).round().clip(0, 255).astype(np.uint8)


def test_of_a_still_scene_one_frame_a_second_is_painted_whatever_the_cameras_noise(still):
    frames = [seen(still, sigma=4.0, seed=number) for number in range(20)]
    assert painted(frames) == [0]
    assert painted(frames, limit=0) == list(range(20))
    # A picture never stands for longer, however alike the frames are.
    assert painted([seen(still)] * 95) == [0, 30, 60, 90]


def test_a_slow_fade_adds_up_and_is_painted(still):
    """No frame differs from the one before it by half of the limit, and the picture follows all the same."""
    frames = [seen(still * (1 - number / 600)) for number in range(25)]
    assert max(difference(thumbnail(a), thumbnail(b)) for a, b in pairwise(frames)) < LIMIT / 2
    numbers = painted(frames)
    assert 3 <= len(numbers) < 25
    assert difference(thumbnail(frames[numbers[-1]]), thumbnail(frames[-1])) < LIMIT


def test_something_small_that_moves_is_painted(still):
    """An eyelid: a thousandth of the picture, and nothing at all in the mean of it."""
    closed = still.copy()
    closed[200:212, 300:324] = closed[200:212, 300:324].mean() + 25
    open_, closed = (seen(picture, sigma=2.0, seed=seed) for seed, picture in enumerate((still, closed)))
    assert abs(open_.mean() - closed.mean()) < 0.1
    assert painted([open_, open_, closed, closed, open_]) == [0, 2, 4]


def test_a_colour_that_changes_and_leaves_the_brightness_is_painted(still):
    hue = cv2.cvtColor(seen(still), cv2.COLOR_RGB2YUV)
    hue[100:140, 100:140, 1:] += 20
    assert painted([seen(still), cv2.cvtColor(hue, cv2.COLOR_YUV2RGB)]) == [0, 1]


def test_a_cut_is_painted(clip, still):
    assert painted([still.astype(np.uint8)] * 3 + [seen(255 - still)] * 3) == [0, 3]


def test_a_talking_man_in_a_moving_car_is_painted_frame_by_frame(clip):
    assert painted(clip) == list(range(len(clip)))


def test_a_picture_stands_only_under_the_circumstances_it_was_painted_in(still):
    frame = thumbnail(seen(still))
    last = Painted(10.0, "a prompt", frame)
    assert stands(10.5, last, "a prompt", frame, LIMIT)
    assert not stands(10.5, last, "another", frame, LIMIT)
    assert not stands(10.0 + STANDS_S, last, "a prompt", frame, LIMIT)
    assert not stands(10.5, None, "a prompt", frame, LIMIT)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuyv422", "nv12", "rgb24", "bgr24", "gray"])
def test_frames_of_any_kind_are_reduced_alike(still, pixel_format):
    rgb = seen(still)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pixel_format)
    small = thumbnail(frame)
    assert small.shape == thumbnail(rgb).shape == (3 * similarity.HEIGHT, similarity.WIDTH)
    assert small.dtype == np.uint8
    brightness = cv2.resize(rgb, (similarity.WIDTH, similarity.HEIGHT), interpolation=cv2.INTER_AREA).mean(axis=2)
    assert np.corrcoef(small[: similarity.HEIGHT].ravel(), brightness.ravel())[0, 1] > 0.98
