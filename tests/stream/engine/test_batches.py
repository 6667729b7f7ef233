"""What the engine is given for frames, and what is made of its pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from av import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from masks import Mask
from pipeline.settings import Controls
from stream.engine import scheduler
from stream.engine.batches import Workload
from stream.engine.i420 import to_i420
from tests.stream.fakes import FakeStylizer, solid

from .harness import PATIENCE_S, AheadStylizer, TakesI420, works


def test_where_the_engine_takes_i420_frames_go_in_as_they_came_and_planes_come_out(house):
    one = house(TakesI420())
    _, publication, shown = one.open("a")
    rgb = VideoFrame.from_ndarray(solid(200, 100, 50), format="rgb24")
    webcam = rgb.reformat(format="yuv420p")
    odd = rgb.reformat(47, 47, "yuv420p")
    obs = rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
    full = rgb.reformat(format="yuv420p", dst_color_range=ColorRange.JPEG)
    for frame, shape in [
        (webcam, (1, 72, 48)),
        (odd, (1, 47, 47, 3)),  # I420 in one array has even sides
        (obs, (1, 48, 48, 3)),  # of another matrix, and of another range: swscale reads both from the frame
        (full, (1, 48, 48, 3)),
        (rgb, (1, 48, 48, 3)),
        (solid(200, 100, 50), (1, 48, 48, 3)),
    ]:
        publication.put(frame)
        picture = shown.take(PATIENCE_S)
        assert one.stylizer.came.pop() == shape
        assert np.abs(picture.rgb[0, 0].astype(int) - (50, 100, 200)).max() <= 3
        assert picture.i420 is picture.planes
        assert np.array_equal(picture.i420, to_i420(picture.rgb))


def test_frames_that_came_in_different_ways_do_not_share_a_batch_and_those_to_be_masked_go_in_as_rgb(house):
    one = house(TakesI420(max_batch=4))
    streams = {name: one.open(name) for name in ("webcam", "webcam-too", "camera", "masked")}
    streams["masked"][0].set_mask(Mask(np.full((8, 8), 255, np.uint8)))
    one.occupy()
    webcam = VideoFrame.from_ndarray(solid(200, 100, 50), format="rgb24").reformat(format="yuv420p")
    for name, (_, publication, _) in streams.items():
        publication.put(solid(200, 100, 50) if name == "camera" else webcam)
    one.stylizer.gate.set()
    for _, _, shown in streams.values():
        assert np.abs(shown.take(PATIENCE_S).rgb[30, 30].astype(int) - (50, 100, 200)).max() <= 3
    assert sorted(one.stylizer.came, key=len) == [(2, 72, 48), (1, 48, 48, 3), (1, 48, 48, 3)]  # one is the occupant


def test_outside_the_mask_the_source_stays(house):
    one = house()
    stream, publication, shown = one.open("a")
    half = np.zeros((20, 40), np.uint8)
    half[:, 20:] = 255
    stream.set_mask(Mask(half))
    publication.put(solid(200, 100, 50))
    rgb = shown.take(PATIENCE_S).rgb
    assert tuple(rgb[10, 2]) == (200, 100, 50)
    assert tuple(rgb[10, -3]) == (50, 100, 200)
    stream.set_mask(None)
    publication.put(solid(200, 100, 50))
    assert tuple(shown.take(PATIENCE_S).rgb[10, 2]) == (50, 100, 200)


class RememberingStylizer(FakeStylizer):
    """Keeps features of each stream while it asks for that, and tells `kind`; `given` keeps how old they were."""

    def __init__(self):
        super().__init__(max_batch=4)
        self.given, self.ages = [], {}

    def forget(self):
        super().forget()
        self.ages = {}

    def submit(self, batch):
        if not batch.controls[0].reuse:
            for name in batch.streams:
                self.ages.pop(name, None)
        return super().submit(batch)

    def paint(self, batch):
        if not batch.controls[0].reuse:
            return super().paint(batch)
        for name, controls in zip(batch.streams, batch.controls, strict=True):
            self.given.append((controls.prompt, self.ages.get(name)))
            self.ages[name] = self.aged(self.ages.get(name))
        again = all(self.ages[name] for name in batch.streams)
        return replace(super().paint(batch), kind="again" if again else "anew")

    def aged(self, age):
        return 1 + (age or 0)


def test_each_stream_has_its_own_memory_and_loses_it_with_reuse(house):
    one = house(RememberingStylizer())
    feeds = {name: one.open(name) for name in "ab"}

    def frame(name, reuse):
        stream, publication, shown = feeds[name]
        stream.controls = Controls(prompt=name, reuse=reuse)
        publication.put(solid(1, 2, 3))
        assert shown.take(PATIENCE_S) is not None

    for name, reuse in (("a", 2), ("a", 2), ("b", 2), ("a", 2), ("b", 2), ("a", 0), ("a", 2)):
        frame(name, reuse)
    assert one.stylizer.given == [("a", None), ("a", 1), ("b", None), ("a", 2), ("b", 1), ("a", None)]


@pytest.mark.parametrize("kind", [FakeStylizer, TakesI420, AheadStylizer])
def test_a_picture_holds_no_more_than_itself(house, kind):
    one = house(kind(max_batch=4))
    one.stylizer.fails = None
    feeds = [one.open(name) for name in "abcd"]
    webcam = VideoFrame.from_ndarray(solid(200, 100, 50), format="rgb24").reformat(format="yuv420p")
    for _ in range(2):
        one.occupy()
        for _, publication, _ in feeds:
            publication.put(webcam)
        one.stylizer.gate.set()
        pictures = [shown.take(PATIENCE_S) for _, _, shown in feeds]
    assert max(len(call) for call in one.stylizer.calls) == 4
    for picture in pictures:
        for kept in filter(lambda kept: kept is not None, (picture.rgb, picture.planes)):
            owner = kept
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            assert owner.nbytes == kept.nbytes


def test_engine_times_are_kept_by_what_is_run(house):
    one = house(TakesI420())
    stream, publication, shown = one.open("a")
    webcam = VideoFrame.from_ndarray(solid(200, 100, 50), format="rgb24").reformat(format="yuv420p")

    def paint(count=1, pixels=webcam, **changes):
        stream.set_controls(Controls(steps=1, **changes))
        for _ in range(count):
            publication.put(pixels)
            assert shown.take(PATIENCE_S)
            one.settle(stream)

    paint(2)
    paint(prompt="another", seed=4, strength=0.9, canny_low=3, lora_weights={"ink": 0.5})  # costs its rewriting once
    paint(prompt="a third", lora_weights={"ink": 0.5})
    (plain,) = works(one)
    assert works(one)[plain] == 3
    assert plain == Workload(scheduler.Rung(1), cfg=False, masked=False, i420=True, imagined=False, kind=None)
    paint(guidance=2.0, lora_weights={"ink": 0.5})
    stream.set_mask(Mask(np.full((8, 8), 255, np.uint8)))
    paint(2, lora_weights={"ink": 0.5})
    stream.set_mask(None)
    paint(pixels=None, lora_weights={"ink": 0.5})
    paint(bypass=True)
    seen = works(one)
    assert seen == {
        plain: 3,
        plain._replace(cfg=True): 1,
        plain._replace(masked=True, i420=False): 2,
        plain._replace(imagined=True, i420=False): 1,
    }


def test_features_made_anew_and_used_again_are_measured_apart(house):
    class Twice(RememberingStylizer):
        """Made anew every third time."""

        def aged(self, age):
            return 0 if age is None else (age + 1) % 3

    one = house(Twice())
    stream, publication, shown = one.open("a")
    stream.set_controls(Controls(reuse=2))
    for _ in range(6):
        publication.put(solid(1, 2, 3))
        assert shown.take(PATIENCE_S)
        one.settle(stream)
    assert sorted((work.kind, count) for work, count in works(one).items()) == [("again", 4), ("anew", 2)]
