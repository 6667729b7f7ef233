"""The engine room without any network: frames put, pictures got, faults kept where they belong."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from dataclasses import replace
from functools import partial
from itertools import groupby

import cv2
import numpy as np
import pytest
from av import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from masks import Mask
from pipeline import capabilities
from pipeline.batch import Pending, Pictures
from pipeline.capabilities import paints
from pipeline.errors import CaptureFailed
from pipeline.settings import Controls
from stream.engine import loop as serving_loop
from stream.engine import scheduler, similarity
from stream.engine import turns as turns_module
from stream.engine.batches import Workload
from stream.engine.compiling import swap_in
from stream.engine.i420 import to_i420
from stream.engine.mailbox import Mailbox
from stream.engine.room import EngineFailed, EngineRoom
from stream.streams import Stream, Streams
from tests.stream.fakes import SIZE, FakeStylizer, solid

PATIENCE_S = 10.0


class Source:
    kind = "test"


class House:
    """An engine room, its streams, and shorthands."""

    def __init__(self, stylizer=None, *, load=None, **options):
        self.stylizer = stylizer or FakeStylizer()
        self.room = EngineRoom(load or (lambda report: self.stylizer), model="fake", **options)
        self.streams = Streams(self.room)
        self.room.start()

    def open(self, name):
        stream, shown = self.streams.get(name), Mailbox()
        stream.watch(shown.put)
        return stream, stream.publish(Source())[0], shown

    def occupy(self):
        """Hold the engine up with a frame of another stream: what is put now lies in the slots until the gate opens."""
        stream, publication, _ = self.open("occupant")
        self.stylizer.gate.clear()
        publication.put(solid(1, 1, 1))
        wait_for(lambda: stream.mailbox.peek() is None)

    def settle(self, stream):
        """Wait until nothing of the stream is in flight."""
        wait_for(lambda: in_flight(stream) == 0)
        return stream.snapshot()


def in_flight(stream):
    stats = stream.snapshot()
    return stats["frames_in"] - stats["frames_out"] - stats["frames_dropped"]


def wait_for(condition):
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def house():
    houses = []

    def build(*args, **options):
        houses.append(House(*args, **options))
        return houses[-1]

    yield build
    for one in houses:
        one.stylizer.gate.set()
        one.room.close()


def test_a_frame_goes_in_and_its_picture_comes_out(house):
    one = house()
    stream, publication, shown = one.open("a")
    publication.put(solid(200, 100, 50))
    picture = shown.take(PATIENCE_S)
    assert picture.rgb.shape == (SIZE, SIZE, 3)
    assert tuple(picture.rgb[0, 0]) == (50, 100, 200)
    frame = VideoFrame.from_ndarray(solid(90, 90, 90), format="rgb24").reformat(format="yuv420p")
    publication.put(frame, media_s=5.0)
    assert np.abs(shown.take(PATIENCE_S).rgb.astype(int) - 90).max() <= 3
    assert one.settle(stream)["frames_out"] == 2


class TakesI420(FakeStylizer):
    """Like the real one on CUDA; `came` keeps the shapes of frames."""

    takes_i420 = True

    def __init__(self, **options):
        super().__init__(**options)
        self.came = []

    def painted(self, batch):
        if batch.frames is None or batch.mask is not None:
            return super().painted(batch)
        if paints(batch.controls[0]):
            self.came.append(batch.frames.shape)
        rgb = super().painted(replace(batch, frames=in_rgb(batch.frames))).rgb
        return Pictures(rgb, np.stack([to_i420(one) for one in rgb]))


def in_rgb(frames):
    return frames if frames.ndim == 4 else np.stack([cv2.cvtColor(one, cv2.COLOR_YUV2RGB_I420) for one in frames])


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


def test_controls_apply_from_the_next_frame_and_the_last_value_wins(house):
    one = house()
    stream, publication, shown = one.open("a")
    publication.put(solid(200, 0, 0))
    assert tuple(shown.take(PATIENCE_S).rgb[0, 0]) == (0, 0, 200)
    stream.set_controls(Controls(prompt="never seen"))
    stream.set_controls(Controls(bypass=True))
    publication.put(solid(200, 0, 0))
    assert tuple(shown.take(PATIENCE_S).rgb[0, 0]) == (200, 0, 0)
    assert "never seen" not in [one.prompt for call in one.stylizer.calls for one in call]


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


def test_while_the_engine_works_only_the_newest_frame_is_kept_and_the_rest_is_counted(house):
    one = house()
    stream, publication, shown = one.open("a")
    one.stylizer.gate.clear()
    publication.put(solid(0, 0, 0))
    wait_for(lambda: stream.mailbox.peek() is None)
    for level in range(1, 20):
        publication.put(solid(level * 10, 0, 0))
        assert 0 <= in_flight(stream) <= 3
    one.stylizer.gate.set()
    stats = one.settle(stream)
    assert (stats["frames_in"], stats["frames_out"], stats["frames_dropped"]) == (20, 2, 18)
    assert shown.take().rgb[0, 0, 2] == 190


def test_frames_put_before_the_model_is_ready_wait_newest_wins_and_then_flow(house):
    loaded, stylizer = threading.Event(), FakeStylizer()

    def load(report):
        report("Reading weights.", 0.5)
        loaded.wait(PATIENCE_S)
        return stylizer

    one = house(stylizer, load=load)
    stream, publication, shown = one.open("a")
    for level in (10, 20, 30):
        publication.put(solid(level, 0, 0))
    wait_for(lambda: one.room.status()["progress"] == 0.5)
    assert one.room.status() == {
        "state": "loading",
        "model": "fake",
        "device": "",
        "detail": "Reading weights.",
        "progress": 0.5,
        "compiled": "no",
    }
    loaded.set()
    assert one.room.wait_settled(PATIENCE_S)
    assert shown.take(PATIENCE_S).rgb[0, 0, 2] == 30
    status = one.room.status()
    assert (status["state"], status["size"], status["loras"]) == ("ready", f"{SIZE}x{SIZE}", ["ink"])
    assert status["lora_weights"] == {"ink": 0.55}
    assert one.settle(stream)["frames_dropped"] == 2


def test_a_frame_that_waited_beyond_the_budget_is_dropped_and_a_fresh_one_shown(house):
    one = house(budget_s=0.5)
    stream, publication, shown = one.open("a")
    publication.put(solid(10, 0, 0), arrived_s=time.monotonic() - 0.6)
    assert one.settle(stream)["frames_dropped"] == 1
    publication.put(solid(20, 0, 0))
    assert shown.take(PATIENCE_S).rgb[0, 0, 2] == 20


def test_a_model_that_cannot_load_is_told_in_one_sentence(house):
    def load(report):
        raise FileNotFoundError("No model at weights.safetensors;\n  run python main.py models pull mini.")

    one = house(load=load)
    assert not one.room.wait_settled(PATIENCE_S)
    assert one.room.status()["state"] == "failed"
    assert one.room.status()["detail"] == "No model at weights.safetensors; run python main.py models pull mini."
    assert isinstance(one.room.failure, FileNotFoundError)
    stream, publication, _ = one.open("a")
    for _ in range(5):
        publication.put(solid(0, 0, 0))
    assert in_flight(stream) == 1


@pytest.mark.parametrize("max_batch", [1, 2])
def test_a_fault_in_one_stream_harms_no_other_and_is_told_and_logged_once(house, caplog, max_batch):
    one = house(FakeStylizer(max_batch=max_batch))
    good, good_publication, good_shown = one.open("good")
    bad, bad_publication, _ = one.open("bad")
    bad.set_controls(Controls(prompt="fail"))
    with caplog.at_level(logging.ERROR):
        for level in (10, 20, 30):
            one.occupy()
            bad_publication.put(solid(0, 0, 0))
            good_publication.put(solid(level, 0, 0))
            one.stylizer.gate.set()
            assert good_shown.take(PATIENCE_S).rgb[0, 0, 2] == level
            one.settle(bad)
    assert bad.snapshot()["detail"] == "The paint ran out."
    assert bad.snapshot()["frames_dropped"] == 3
    assert good.snapshot()["detail"] == ""
    assert len([record for record in caplog.records if "bad" in record.getMessage()]) == 1
    assert max(len(call) for call in one.stylizer.calls) == max_batch
    bad.set_controls(Controls())
    bad_publication.put(solid(0, 0, 0))
    assert one.settle(bad)["detail"] == ""


def test_a_viewer_that_fails_is_let_go_and_the_others_go_on(house, caplog):
    one = house()
    stream, publication, shown = one.open("a")
    stream.watch(lambda picture: 1 / 0)
    for level in (10, 20):
        publication.put(solid(level, 0, 0))
        assert shown.take(PATIENCE_S).rgb[0, 0, 2] == level
        one.settle(stream)
    assert stream.viewers == 1


def test_an_engine_that_cannot_judge_some_controls_serves_the_others(house, monkeypatch):
    shape_key = capabilities.shape_key

    def picky(model, controls):
        if controls.seed == 13:
            raise ValueError("The seed 13 is unlucky.")
        return shape_key(model, controls)

    monkeypatch.setattr(capabilities, "shape_key", picky)
    one = house()
    bad, bad_publication, _ = one.open("bad")
    _, good_publication, good_shown = one.open("good")
    bad.set_controls(Controls(seed=13))
    bad_publication.put(solid(0, 0, 0))
    good_publication.put(solid(10, 0, 0))
    assert good_shown.take(PATIENCE_S) is not None
    assert one.settle(bad)["detail"] == "The seed 13 is unlucky."


def test_streams_of_equal_shape_share_a_batch_and_others_do_not(house):
    one = house(FakeStylizer(max_batch=4))
    streams = {name: one.open(name) for name in ("a", "b", "c")}
    streams["c"][0].set_controls(Controls(steps=4))
    one.occupy()
    for level, name in enumerate("abc", start=1):
        streams[name][1].put(solid(level * 50, 0, 0))
    one.stylizer.gate.set()
    for level, name in enumerate("abc", start=1):
        assert streams[name][2].take(PATIENCE_S).rgb[0, 0, 2] == level * 50
    assert sorted(len(call) for call in one.stylizer.calls) == [1, 1, 2]


def test_streams_with_sources_of_different_sizes_are_served_by_a_batching_engine(house):
    one = house(FakeStylizer(max_batch=4))
    small, large, small_too = one.open("small"), one.open("large"), one.open("small-too")
    one.occupy()
    small[1].put(solid(50, 0, 0, size=32))
    large[1].put(solid(100, 0, 0, size=96))
    small_too[1].put(solid(150, 0, 0, size=32))
    one.stylizer.gate.set()
    for (_, _, shown), red in ((small, 50), (large, 100), (small_too, 150)):
        assert shown.take(PATIENCE_S).rgb[0, 0, 2] == red
    assert sorted(len(call) for call in one.stylizer.calls) == [1, 1, 2]


def test_a_frame_whose_size_changes_between_the_plan_and_the_taking_harms_nobody(house, monkeypatch):
    shape_key, arrivals = capabilities.shape_key, []

    def interrupted(model, controls):
        """While the plan is made, a frame of another size comes in for the stream with seed 1."""
        if controls.seed == 1 and arrivals:
            arrivals.pop()()
        return shape_key(model, controls)

    monkeypatch.setattr(capabilities, "shape_key", interrupted)
    one = house(FakeStylizer(max_batch=2))
    changing, steady = one.open("changing"), one.open("steady")
    changing[0].set_controls(Controls(seed=1))
    one.occupy()
    changing[1].put(solid(50, 0, 0, size=32))
    steady[1].put(solid(100, 0, 0, size=32))
    arrivals.append(lambda: changing[1].put(solid(150, 0, 0, size=96)))
    one.stylizer.gate.set()
    assert changing[2].take(PATIENCE_S).rgb[0, 0, 2] == 150
    assert steady[2].take(PATIENCE_S).rgb[0, 0, 2] == 100
    assert (changing[0].fault, steady[0].fault, arrivals) == (None, None, [])
    assert one.settle(changing[0])["frames_dropped"] == 1


def test_steps_are_taken_off_when_the_engine_exceeds_the_budget(house):
    class Slow(FakeStylizer):
        def paint(self, batch):
            time.sleep(0.1 * batch.controls[0].steps)
            return super().paint(batch)

    one = house(Slow(), budget_s=0.5)
    stream, publication, shown = one.open("a")
    stream.set_controls(Controls(steps=8))
    for _ in range(5):
        publication.put(solid(0, 0, 0))
        assert shown.take(PATIENCE_S) is not None
    stats = stream.snapshot()
    assert stats["quality"] > 0
    assert stats["steps"] == 8 - stats["quality"]
    assert [call[0].steps for call in one.stylizer.calls][:3] == [8, 8, 8]
    assert one.stylizer.calls[-1][0].steps < 8
    assert stream.controls.steps == 8  # what was asked for stays


@pytest.fixture
def sharing(house, monkeypatch):
    """A house whose streams' frames share calls whenever they may; tests/stream/test_scheduler.py has the choice."""
    monkeypatch.setattr(scheduler, "gains_behind", lambda *args: True)
    return house(FakeStylizer(max_batch=4))


def hold(one, stream, publication, red):
    """Stop the engine with this frame in hand."""
    one.stylizer.gate.clear()
    publication.put(solid(red, 0, 0))
    wait_for(lambda: stream.mailbox.peek() is None)


def test_frames_at_different_steps_share_calls_and_none_is_stuck(sharing):
    stream, publication, _ = sharing.open("a")
    pictures = []
    stream.watch(pictures.append)
    stream.set_controls(Controls(prompt="first", steps=3))
    hold(sharing, stream, publication, 10)
    stream.set_controls(Controls(prompt="second", steps=3))
    publication.put(solid(20, 0, 0))
    assert stream.snapshot()["in_flight"] == 2
    sharing.stylizer.gate.set()
    wait_for(lambda: len(pictures) == 2)
    assert [(picture.rgb[0, 0, 2], picture.controls.prompt) for picture in pictures] == [(10, "first"), (20, "second")]
    assert [[each.prompt for each in call] for call in sharing.stylizer.calls] == [
        ["first"], ["first", "second"], ["first", "second"], ["second"],
    ]  # fmt: skip
    assert pictures[0].captured_s < pictures[1].captured_s
    stats = sharing.settle(stream)
    assert (stats["frames_in"], stats["frames_out"], stats["in_flight"]) == (2, 2, 0)
    assert stats["latency_ms"]["p95"] >= stats["engine_ms"]["p95"]


@pytest.mark.parametrize(
    "change", [{"steps": 2}, {"bypass": True}, {"guidance": 2.0, "steps": 4}], ids=["steps", "bypass", "more steps"]
)
def test_a_frame_that_cannot_share_waits_for_those_in_flight(sharing, change):
    stream, publication, _ = sharing.open("a")
    pictures = []
    stream.watch(pictures.append)
    stream.set_controls(Controls(steps=3))
    hold(sharing, stream, publication, 10)
    stream.set_controls(Controls(steps=3).merged(change))
    publication.put(solid(20, 0, 0))
    sharing.stylizer.gate.set()
    wait_for(lambda: len(pictures) == 2)
    assert [picture.rgb[0, 0].max() for picture in pictures] == [10, 20]
    assert max(len(call) for call in sharing.stylizer.calls) == 1


def test_another_streams_frame_waits_no_longer_than_those_in_flight_take(sharing):
    (one, one_in, one_out), (_, other_in, other_out) = sharing.open("one"), sharing.open("other")
    one.set_controls(Controls(steps=3))
    hold(sharing, one, one_in, 10)
    other_in.put(solid(20, 0, 0))
    one_in.put(solid(30, 0, 0))
    sharing.stylizer.gate.set()
    assert other_out.take(PATIENCE_S).rgb[0, 0, 2] == 20
    wait_for(lambda: (latest := one_out.peek()) is not None and latest.rgb[0, 0, 2] == 30)
    assert sharing.settle(one)["frames_out"] == 2


def test_a_mask_holds_for_the_frame_it_came_with(sharing):
    stream, publication, _ = sharing.open("a")
    pictures = []
    stream.watch(pictures.append)
    half = np.zeros((20, 40), np.uint8)
    half[:, 20:] = 255
    stream.set_mask(Mask(half))
    hold(sharing, stream, publication, 200)
    stream.set_mask(None)
    publication.put(solid(100, 0, 0))
    sharing.stylizer.gate.set()
    wait_for(lambda: len(pictures) == 2)
    assert [[tuple(p.rgb[10, column]) for column in (2, -3)] for p in pictures] == [
        [(200, 0, 0), (0, 0, 200)],
        [(0, 0, 100), (0, 0, 100)],
    ]


def test_frames_that_share_calls_go_in_as_they_came_and_their_planes_come_out(house, monkeypatch):
    monkeypatch.setattr(scheduler, "gains_behind", lambda *args: True)
    one = house(TakesI420(max_batch=4))
    stream, publication, shown = one.open("a")
    publication.put(VideoFrame.from_ndarray(solid(200, 100, 50), format="rgb24").reformat(format="yuv420p"))
    picture = shown.take(PATIENCE_S)
    assert one.stylizer.came == [(1, 72, 48)]
    assert np.abs(picture.rgb[0, 0].astype(int) - (50, 100, 200)).max() <= 3
    assert picture.i420 is picture.planes
    assert np.array_equal(picture.i420, to_i420(picture.rgb))
    stream.set_mask(Mask(np.full((8, 8), 255, np.uint8)))
    publication.put(solid(200, 100, 50))
    assert tuple(shown.take(PATIENCE_S).rgb[9, 9]) == (50, 100, 200)


def test_a_fault_in_a_shared_call_harms_its_own_frame_only(sharing):
    stream, publication, shown = sharing.open("a")
    hold(sharing, stream, publication, 10)
    stream.set_controls(Controls(prompt="fail"))
    publication.put(solid(20, 0, 0))
    sharing.stylizer.gate.set()
    assert shown.take(PATIENCE_S).rgb[0, 0, 2] == 10
    stats = sharing.settle(stream)
    assert (stats["frames_out"], stats["frames_dropped"], stats["detail"]) == (1, 1, "The paint ran out.")
    stream.set_controls(Controls())
    publication.put(solid(30, 0, 0))
    assert shown.take(PATIENCE_S).rgb[0, 0, 2] == 30
    assert sharing.settle(stream)["detail"] == ""


def test_when_one_step_is_too_slow_the_picture_is_painted_smaller_and_comes_back_as_large(house):
    class Slow(FakeStylizer):
        painted_at = ()

        def paint(self, batch):
            self.painted_at += (batch.scale,)
            time.sleep(0.5 * batch.scale**2)
            return super().paint(batch)

    one = house(Slow(), budget_s=0.4)
    one.stylizer.scales = (1.0, 0.75, 0.5)
    stream, publication, shown = one.open("a")
    stream.set_controls(Controls(steps=1))
    for _ in range(4):
        publication.put(solid(0, 0, 0))
        assert shown.take(PATIENCE_S).rgb.shape == (SIZE, SIZE, 3)
    assert one.stylizer.painted_at[:3] == (1.0, 1.0, 1.0)
    assert one.stylizer.painted_at[3] in (0.75, 0.5)
    stats = one.settle(stream)
    assert stats["quality"] > 0
    assert (stats["steps"], stats["steps_asked"]) == (1, 1)
    assert stats["scale"] < 1


@pytest.fixture
def still(house, monkeypatch):
    """A stream that shows a still scene and skips what is similar, for as long as a slow machine takes."""
    monkeypatch.setattr(similarity, "STANDS_S", 60.0)
    one = house()
    stream, publication, shown = one.open("a")
    stream.set_controls(Controls(skip_similar=3))

    def show(level):
        publication.put(solid(level, 0, 0))
        return shown.take(PATIENCE_S)

    return one, stream, show


def test_nothing_is_skipped_unless_asked_for(house):
    one = house()
    stream, publication, shown = one.open("a")
    for _ in range(5):
        publication.put(solid(100, 0, 0))
        shown.take(PATIENCE_S)
    assert one.settle(stream)["frames_skipped"] == 0
    assert len(one.stylizer.calls) == 5


def test_a_similar_frame_is_shown_at_its_own_time_with_the_picture_that_was_painted(still):
    one, stream, show = still
    first = show(100)
    second = show(101)
    assert second.rgb is first.rgb
    assert second.captured_s > first.captured_s
    assert second.controls == first.controls
    stats = one.settle(stream)
    assert (stats["frames_in"], stats["frames_out"], stats["frames_skipped"]) == (2, 2, 1)
    assert len(one.stylizer.calls) == 1
    told = one.streams.metrics.text().decode()
    for kind, count in (("in", 2), ("out", 2), ("dropped", 0), ("skipped", 1)):
        assert f'lcmirror_frames_total{{kind="{kind}",stream="a"}} {count}.0' in told
    assert "lcmirror_engine_seconds_count 1.0" in told
    assert "lcmirror_latency_seconds_count 2.0" in told


def test_it_is_compared_with_what_was_painted_so_a_slow_change_is_seen(still):
    one, stream, show = still
    levels = [show(level).rgb[0, 0, 2] for level in range(100, 130)]
    assert max(abs(int(level) - now) for level, now in zip(levels, range(100, 130), strict=True)) <= 12
    assert 0 < one.settle(stream)["frames_skipped"] < 29


@pytest.mark.parametrize(
    "change",
    [
        lambda one, stream: stream.set_controls(Controls(skip_similar=3, prompt="another")),
        lambda one, stream: stream.set_controls(Controls(skip_similar=3, steps=3)),
        lambda one, stream: stream.set_controls(Controls(skip_similar=3, lora_weights={"ink": 0.5})),
        lambda one, stream: stream.set_mask(Mask(np.full((8, 8), 255, np.uint8))),
        lambda one, stream: one.room._loop.start_over(),
    ],
    ids=["prompt", "steps", "lora", "mask", "compiled"],
)
def test_whatever_is_changed_is_seen_in_the_next_frame(still, change):
    one, stream, show = still
    first = show(100)
    one.settle(stream)
    change(one, stream)
    assert show(100).rgb is not first.rgb
    assert one.settle(stream)["frames_skipped"] == 0


def test_the_next_publisher_never_gets_the_picture_of_the_last(still):
    one, stream, show = still
    first = show(100)
    one.settle(stream)
    publication, _ = stream.publish(Source())
    shown = Mailbox()
    stream.watch(shown.put)
    shown.take()  # the last one, left standing
    publication.put(solid(100, 0, 0))
    assert shown.take(PATIENCE_S).rgb is not first.rgb


def test_a_picture_that_came_out_of_a_shared_call_stands_too(sharing, monkeypatch):
    monkeypatch.setattr(similarity, "STANDS_S", 60.0)
    stream, publication, shown = sharing.open("a")
    stream.set_controls(Controls(steps=2, skip_similar=3))
    pictures = []
    for level in (100, 101, 160, 161):
        publication.put(solid(level, 0, 0))
        pictures.append(shown.take(PATIENCE_S))
    assert [picture.rgb[0, 0, 2] for picture in pictures] == [100, 100, 160, 160]
    assert sharing.settle(stream)["frames_skipped"] == 2


def test_bypass_shows_the_camera_itself(still):
    one, stream, show = still
    stream.set_controls(Controls(skip_similar=3, bypass=True))
    for level in (100, 101, 102):
        assert show(level).rgb[0, 0, 0] == level
    assert one.settle(stream)["frames_skipped"] == 0


def test_a_frame_that_cannot_be_compared_is_blamed_on_its_stream(still):
    one, stream, show = still
    show(100)
    stream.publication.put(np.zeros((0, 0, 3), np.uint8))
    assert one.settle(stream)["detail"]
    assert show(100) is not None


def test_compiling_runs_beside_the_frames_and_its_states_are_told(house):
    begun, finish = threading.Event(), threading.Event()

    def compile(stylizer, report, put_in):
        report("Compiling the UNet.", 0.3)
        begun.set()
        finish.wait(PATIENCE_S)

    one = house(compile=compile)
    begun.wait(PATIENCE_S)
    status = one.room.status()
    assert (status["state"], status["compiled"], status["detail"]) == ("ready", "compiling", "Compiling the UNet.")
    _, publication, shown = one.open("a")
    publication.put(solid(10, 0, 0))
    assert shown.take(PATIENCE_S) is not None
    finish.set()
    wait_for(lambda: one.room.status()["compiled"] == "yes")


def test_a_failed_compilation_leaves_the_engine_running(house):
    def compile(stylizer, report, put_in):
        raise RuntimeError("No C++ compiler was found.")

    one = house(compile=compile)
    wait_for(lambda: "No C++ compiler" in one.room.status()["detail"])
    assert (one.room.status()["state"], one.room.status()["compiled"]) == ("ready", "no")
    _, publication, shown = one.open("a")
    publication.put(solid(10, 0, 0))
    assert shown.take(PATIENCE_S) is not None


def test_closing_does_not_wait_for_a_load_and_nobody_is_told_of_it_any_more():
    loading, go_on, told = threading.Event(), threading.Event(), []

    def load(report):
        loading.set()
        go_on.wait(PATIENCE_S)
        report("Still reading.", 0.9)
        return FakeStylizer()

    room = EngineRoom(load)
    room.subscribe(lambda: told.append(room.status()["detail"]))
    room.start()
    assert loading.wait(PATIENCE_S)
    room.close(timeout_s=60)
    assert room.status()["state"] == "loading", "closing waited for the load, which goes on only below"
    go_on.set()
    assert room.wait_settled(PATIENCE_S)
    assert told == []


def test_status_changes_reach_subscribers_until_they_leave(house):
    told = []
    room = EngineRoom(lambda report: FakeStylizer())
    leave = room.subscribe(lambda: told.append(room.status()["state"]))
    room.start()
    room.wait_settled(PATIENCE_S)
    wait_for(lambda: "ready" in told)
    leave()
    room.close()


class RememberingStylizer(FakeStylizer):
    """Keeps features of each stream while it asks for that, and tells `kind`; `given` keeps how old they were."""

    def __init__(self):
        super().__init__(max_batch=4)
        self.given, self.ages = [], {}

    def forget(self):
        super().forget()
        self.ages = {}

    def paint(self, batch):
        if not batch.controls[0].reuse:
            for name in batch.streams:
                self.ages.pop(name, None)
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


class AheadStylizer(TakesI420):
    """Like the real one on CUDA, too: `submit` returns at once, and its pictures are there when `ready` is set.

    `told` keeps what was launched and what was waited for, by prompt.
    """

    runs_ahead = True

    def __init__(self, **options):
        super().__init__(**options)
        self.told: list[str] = []
        self.ready = threading.Event()
        self.ready.set()
        self.fails = ""

    def submit(self, batch):
        name = " and ".join(one.prompt for one in batch.controls)
        self.told.append(f"launched {name}")
        pictures = self.paint(batch)

        def when_ready():
            self.told.append(f"waiting for {name}")
            self.ready.wait(PATIENCE_S)
            if name == self.fails:
                raise RuntimeError("The card was lost.")
            return pictures

        return Pending(self.ready.is_set, when_ready)


@pytest.fixture
def ahead(house):
    """A house whose engine runs ahead, and how long it takes is known: a, b and c are its streams."""
    one = house(AheadStylizer())
    one.feeds = {name: one.open(name) for name in "abc"}
    for name, (stream, publication, shown) in one.feeds.items():
        stream.controls = Controls(prompt=name)
        publication.put(solid(1, 2, 3))
        assert shown.take(PATIENCE_S) is not None
    wait_for(lambda: not one.room._loop.under_way)
    one.stylizer.told.clear()
    return one


def send(one, *names):
    for name in names:
        one.feeds[name][1].put(solid(4, 5, 6))


def told(one, *expected):
    wait_for(lambda: len(one.stylizer.told) >= len(expected))
    assert one.stylizer.told == list(expected)


def test_the_engine_is_given_the_next_batch_before_the_last_is_there(ahead):
    ahead.stylizer.ready.clear()
    ahead.stylizer.gate.clear()
    send(ahead, "a")
    told(ahead, "launched a")
    send(ahead, "b")
    ahead.stylizer.gate.set()
    told(ahead, "launched a", "launched b", "waiting for a")
    assert ahead.feeds["a"][2].take() is None
    ahead.stylizer.ready.set()
    told(ahead, "launched a", "launched b", "waiting for a", "waiting for b")
    assert all(ahead.feeds[name][2].take(PATIENCE_S) for name in "ab")


def test_a_frame_that_nobody_follows_is_shown_without_waiting_for_more(ahead):
    send(ahead, "a")
    assert ahead.feeds["a"][2].take(PATIENCE_S) is not None
    told(ahead, "launched a", "waiting for a")


@pytest.mark.parametrize("bypass", [False, True])
def test_what_is_there_sooner_than_was_expected_is_shown_at_once(ahead, bypass):
    """A first call that took long would else hold back all that follow, and seem to be right."""
    stream, _, shown = ahead.feeds["a"]
    stream.controls = Controls(prompt="a", bypass=bypass)
    (times,) = ahead.room._loop.batch_times.values()
    times.__init__()
    times.add(time.monotonic(), 1, 10 * PATIENCE_S)
    send(ahead, "a")
    assert shown.take(PATIENCE_S) is not None
    measured = times.recent(time.monotonic())[1]
    assert len(measured) == (1 if bypass else 2)
    assert bypass or min(measured) < PATIENCE_S


@pytest.mark.parametrize("need", ["skip_similar", "mask", "no camera"])
def test_what_needs_the_last_picture_does_not_run_ahead(ahead, need):
    stream, publication, _ = ahead.feeds["b"]
    if need == "skip_similar":
        stream.controls = Controls(prompt="b", skip_similar=0.5)
    elif need == "mask":
        stream.set_mask(Mask(np.full((8, 8), 255, np.uint8)))
    ahead.stylizer.gate.clear()
    send(ahead, "a")
    told(ahead, "launched a")
    publication.put(None if need == "no camera" else solid(4, 5, 6))
    ahead.stylizer.gate.set()
    ahead.settle(stream)
    assert ahead.stylizer.told[:3] == ["launched a", "waiting for a", "launched b"]


def test_a_batch_that_fails_on_the_device_is_told_of_and_the_next_goes_on(ahead):
    ahead.stylizer.fails = "a"
    send(ahead, "a")
    wait_for(lambda: ahead.feeds["a"][0].fault == "The card was lost.")
    assert ahead.settle(ahead.feeds["a"][0])["frames_dropped"] == 1
    send(ahead, "b")
    assert ahead.feeds["b"][2].take(PATIENCE_S) is not None
    ahead.stylizer.fails = ""
    send(ahead, "a")
    assert ahead.feeds["a"][2].take(PATIENCE_S) is not None
    assert ahead.feeds["a"][0].fault is None


def test_a_launch_that_fails_is_told_of_after_what_was_under_way(ahead):
    ahead.stylizer.ready.clear()
    ahead.stylizer.gate.clear()
    send(ahead, "a")
    told(ahead, "launched a")
    stream, publication, shown = ahead.feeds["a"]
    stream.controls = Controls(prompt="fail")
    publication.put(solid(4, 5, 6))
    ahead.stylizer.gate.set()
    told(ahead, "launched a", "launched fail", "waiting for a")
    ahead.stylizer.ready.set()
    assert shown.take(PATIENCE_S) is not None
    ahead.settle(stream)
    assert stream.fault == "The paint ran out."


def test_frames_of_one_stream_are_shown_in_their_order_when_the_next_is_launched_ahead(ahead):
    stream, publication, _ = ahead.feeds["a"]
    seen = []
    stream.watch(lambda picture: seen.append(int(picture.rgb[0, 0, 2])))
    for level in range(10, 250, 10):
        publication.put(solid(level, 0, 0))
        time.sleep(0.001)
    ahead.settle(stream)
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == 240


def test_a_room_that_closes_hands_over_what_the_engine_is_at(ahead):
    ahead.stylizer.ready.clear()
    send(ahead, "a")
    told(ahead, "launched a", "waiting for a")
    closing = threading.Thread(target=ahead.room.close)
    closing.start()
    ahead.stylizer.ready.set()
    closing.join()
    assert ahead.feeds["a"][2].take() is not None


# -- an engine that breaks down ----------------------------------------------------------------------------------------


class TheEnd(SystemExit):
    pass


class Breaking(FakeStylizer):
    """Breaks down `times` times: where a prompt says, or while it is told to forget."""

    def __init__(self, times, where=""):
        super().__init__()
        self.times, self.where = times, where

    def breaks(self):
        self.times -= 1
        return self.times >= 0

    def forget(self):
        if self.where == "forget" and self.breaks():
            raise RuntimeError("No forgetting today.")
        super().forget()

    def paint(self, batch):
        if any(one.prompt == "exit" for one in batch.controls) and self.breaks():
            raise TheEnd("A library thought that it was a program.")
        return super().paint(batch)


def break_down(monkeypatch, where, times):
    """A stylizer, with which, or beside which, the engine breaks down so often."""
    stylizer = Breaking(times, where)
    whole = {"plan": scheduler.plan, "show": Stream.show}
    if where == "plan":
        monkeypatch.setattr(scheduler, "plan", lambda *args: 1 / 0 if stylizer.breaks() else whole["plan"](*args))
    elif where == "show":
        monkeypatch.setattr(Stream, "show", lambda *args: 1 / 0 if stylizer.breaks() else whole["show"](*args))
    return stylizer


BREAKDOWNS = pytest.mark.parametrize("where", ["plan", "show", "forget", "exit"])


def accounts(stream):
    stats = stream.snapshot()
    assert stats["frames_in"] == stats["frames_out"] + stats["frames_dropped"] + stats["in_flight"]
    return stats


@BREAKDOWNS
def test_an_engine_that_breaks_down_is_started_again_and_every_frame_is_accounted_for(
    house, monkeypatch, where, caplog
):
    one = house(break_down(monkeypatch, where, times=2))
    (stream, publication, shown), (_, other, other_shown) = one.open("a"), one.open("b")
    stream.set_controls(Controls(prompt=where))
    assert one.room.wait_settled(PATIENCE_S)
    deadline_s = time.monotonic() + PATIENCE_S
    while (picture := shown.take(0.02)) is None:
        publication.put(solid(200, 0, 0))
        assert time.monotonic() < deadline_s
    other.put(solid(100, 0, 0))
    assert (picture.rgb[0, 0, 2], other_shown.take(PATIENCE_S).rgb[0, 0, 2]) == (200, 100)
    one.settle(stream)
    stats = accounts(stream)
    assert (stats["in_flight"], stats["detail"]) == (0, "")
    assert one.room.status()["state"] == "ready"
    assert one.room.wait_settled(0)
    one.room.check_serves()
    assert "Traceback" in caplog.text


@BREAKDOWNS
def test_an_engine_that_breaks_down_again_and_again_has_failed_and_says_why(house, monkeypatch, where):
    one = house(break_down(monkeypatch, where, times=99))
    stream, publication, _ = one.open("a")
    stream.set_controls(Controls(prompt=where))
    deadline_s = time.monotonic() + PATIENCE_S
    while one.room.status()["state"] != "failed":
        publication.put(solid(200, 0, 0))
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    one.room._thread.join(PATIENCE_S)
    assert one.stylizer.times == 99 - 3
    reason = {"forget": "No forgetting", "exit": "A library thought"}.get(where, "division by zero")
    for told in (one.room.status()["detail"], accounts(stream)["detail"]):
        assert reason in told
        assert told.endswith("start the server again.")
    assert one.room.failure is None, "the model did load"
    assert not one.room.wait_settled(PATIENCE_S)
    with pytest.raises(EngineFailed, match=reason):
        one.room.check_serves()
    for _ in range(5):
        publication.put(solid(0, 0, 0))
    assert accounts(stream)["in_flight"] <= 1
    assert one.streams.get("late").snapshot()["detail"] == one.room.status()["detail"]


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("No words.")


def test_an_error_that_has_no_words_is_told_by_its_name(house, monkeypatch):
    plan, broken = scheduler.plan, iter([True])

    def breaks(*args):
        if next(broken, False):
            raise Unspeakable
        return plan(*args)

    monkeypatch.setattr(scheduler, "plan", breaks)
    one = house()
    _, publication, shown = one.open("a")
    publication.put(solid(10, 0, 0))
    assert shown.take(PATIENCE_S)
    assert one.room.status()["detail"].endswith("broke down: Unspeakable without a message.")


def test_an_engine_that_cannot_even_be_started_again_says_that_it_failed(house, monkeypatch):
    monkeypatch.setattr(scheduler, "may_restart", lambda *args: [][0])
    one = house(break_down(monkeypatch, "plan", times=1))
    stream, publication, _ = one.open("a")
    publication.put(solid(10, 0, 0))
    wait_for(lambda: one.room.status()["state"] == "failed")
    assert "list index out of range" in one.room.status()["detail"]
    wait_for(lambda: in_flight(stream) == 0)
    publication.put(solid(20, 0, 0))  # by a publisher who has not heard of it yet
    assert accounts(stream)["frames_dropped"] == 2


def test_a_library_that_wants_to_end_the_program_while_it_loads_does_not_leave_it_loading(house):
    def load(report):
        raise SystemExit("CUDA_HOME is not set.")

    one = house(load=load)
    assert not one.room.wait_settled(PATIENCE_S)
    assert (one.room.status()["state"], one.room.status()["detail"]) == ("failed", "CUDA_HOME is not set.")
    assert isinstance(one.room.failure, SystemExit)


def test_a_compiler_that_wants_to_end_the_program_is_told_of(house):
    def compile(stylizer, report, put_in):
        raise SystemExit("g++ is too old.")

    one = house(compile=compile)
    wait_for(lambda: "g++ is too old" in one.room.status()["detail"])
    assert (one.room.status()["state"], one.room.status()["compiled"]) == ("ready", "no")


def test_frames_in_flight_together_are_accounted_for_when_the_engine_breaks_down(sharing, monkeypatch):
    stream, publication, shown = sharing.open("a")
    stream.set_controls(Controls(steps=3))
    hold(sharing, stream, publication, 10)
    publication.put(solid(20, 0, 0))
    broken = iter([True])
    work = sharing.stylizer.work

    def breaks(controls):
        work(controls)
        if len(controls) == 2 and next(broken, False):
            raise TheEnd("Over.")

    monkeypatch.setattr(sharing.stylizer, "work", breaks)
    sharing.stylizer.gate.set()
    sharing.settle(stream)
    assert (accounts(stream)["frames_in"], accounts(stream)["frames_dropped"]) == (2, 2)
    publication.put(solid(30, 0, 0))
    assert shown.take(PATIENCE_S).rgb[0, 0, 2] == 30


def test_what_the_device_is_at_is_accounted_for_when_the_engine_breaks_down(ahead, monkeypatch):
    plan, broken = scheduler.plan, iter([True])
    ahead.stylizer.ready.clear()
    send(ahead, "a")
    told(ahead, "launched a", "waiting for a")
    ahead.stylizer.fails = "a"
    monkeypatch.setattr(scheduler, "plan", lambda *args: 1 / 0 if next(broken, False) else plan(*args))
    send(ahead, "b")
    ahead.stylizer.ready.set()
    for name in "ab":
        ahead.settle(ahead.feeds[name][0])
        accounts(ahead.feeds[name][0])
    send(ahead, "c")
    assert ahead.feeds["c"][2].take(PATIENCE_S) is not None


# -- out of memory -----------------------------------------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


class Small(FakeStylizer):
    """Runs out of memory with batches of more than `fits`; `tried` keeps their sizes, `held` what a try left behind."""

    def __init__(self, fits):
        super().__init__(max_batch=8)
        self.fits, self.tried, self.held = fits, [], []
        self.dangling = None

    def paint(self, batch):
        self.tried.append(len(batch.frames))
        if len(batch.frames) > self.fits:
            half_done = np.zeros(9)
            self.dangling = weakref.ref(half_done)
            raise OutOfMemoryError(f"{len(batch.frames)} frames do not fit.")
        return super().paint(batch)

    def free_memory(self):
        super().free_memory()
        self.held.append(self.dangling())


def test_a_batch_that_does_not_fit_into_memory_is_tried_once_and_what_it_left_behind_is_freed(house):
    one = house(Small(fits=2), budget_s=60.0)  # on a busy machine what waits behind eight that are tried takes a while
    feeds = [one.open(f"s{number}") for number in range(8)]
    for level in range(1, 9):
        one.occupy()
        for _, publication, _ in feeds:
            publication.put(solid(level, 0, 0))
        one.stylizer.gate.set()
        for stream, _, shown in feeds:
            assert shown.take(PATIENCE_S).rgb[0, 0, 2] == level
            assert one.settle(stream)["detail"] == ""
    tried = one.stylizer.tried
    assert (tried.count(8), tried.count(4)) == (1, 1)
    assert 2 in tried[-4:]
    assert (one.stylizer.swept, one.stylizer.held) == (2, [None, None])


def test_frames_in_flight_together_are_let_go_of_before_memory_is_freed(sharing, monkeypatch):
    held, begun, swept = [], [], sharing.stylizer.free_memory
    submit, work = sharing.stylizer.submit, sharing.stylizer.work

    def submits(batch):
        if batch.behind:
            begun.append(weakref.ref(batch.frames))
        return submit(batch)

    def small(controls):
        work(controls)
        if len(controls) == 2:
            raise OutOfMemoryError("Two do not fit.")

    def free_memory():
        swept()
        gc.collect()
        held.extend(one() for one in begun)

    for name, fake in {"submit": submits, "work": small, "free_memory": free_memory}.items():
        monkeypatch.setattr(sharing.stylizer, name, fake)
    stream, publication, _ = sharing.open("a")
    stream.set_controls(Controls(steps=3))
    hold(sharing, stream, publication, 10)
    publication.put(solid(20, 0, 0))
    sharing.stylizer.gate.set()
    sharing.settle(stream)
    assert accounts(stream)["frames_out"] == 2
    assert held == [None, None]


def test_a_single_frame_that_does_not_fit_is_told_and_what_it_left_behind_is_freed(house):
    one = house(Small(fits=0))
    stream, publication, _ = one.open("a")
    publication.put(solid(1, 0, 0))
    assert one.settle(stream)["detail"] == "1 frames do not fit."
    assert (one.stylizer.swept, one.stylizer.held) == (1, [None])


def test_what_one_stream_is_to_blame_for_spoils_one_batch_and_is_not_held_against_others(house):
    one = house(FakeStylizer(max_batch=2), budget_s=60.0)
    (good, good_in, good_out), (bad, bad_in, bad_out) = one.open("good"), one.open("bad")
    for stream, publication, shown in ((good, good_in, good_out), (bad, bad_in, bad_out)):
        stream.set_controls(Controls(steps=1))
        publication.put(solid(1, 0, 0))
        assert shown.take(PATIENCE_S)

    def round(level):
        """Both at once; how large the largest call was that was made for them."""
        one.occupy()
        before = len(one.stylizer.calls)
        bad_in.put(solid(level, 0, 0))
        good_in.put(solid(level, 0, 0))
        one.stylizer.gate.set()
        assert good_out.take(PATIENCE_S).rgb[0, 0, 2] == level
        one.settle(bad)
        return max(len(call) for call in one.stylizer.calls[before:])

    bad.set_controls(Controls(steps=1, prompt="fail"))
    assert round(10) == 2
    assert [round(level) for level in (20, 30)] == [1, 1], "what failed last is painted alone"
    bad.set_controls(Controls(steps=1))
    assert round(40) == 1
    assert bad_out.take(PATIENCE_S).rgb[0, 0, 2] == 40
    assert round(50) == 2


# -- CUDA graphs and compiled code -------------------------------------------------------------------------------------


def test_shapes_are_recorded_before_frames_are_taken_and_again_behind_compiled_code(house):
    go_on = threading.Event()

    class Told(FakeStylizer):
        def __init__(self):
            super().__init__(max_batch=2)
            self.story = []

        def record(self, controls, report):
            self.story.append(("record", controls.steps))

        def paint(self, batch):
            self.story.append(("paint", batch.controls[0].steps))
            return super().paint(batch)

    stylizer = Told()

    def compile(stylizer, report, put_in):
        go_on.wait(PATIENCE_S)
        put_in(lambda: stylizer.story.append("single"))
        put_in(lambda: stylizer.story.append("batch"))

    one = house(stylizer, compile=compile, controls=Controls(steps=3))
    stream, publication, shown = one.open("a")
    stream.set_controls(Controls(steps=2))
    publication.put(solid(1, 0, 0))
    assert shown.take(PATIENCE_S)
    stylizer.gate.clear()
    publication.put(solid(2, 0, 0))
    wait_for(lambda: stream.mailbox.peek() is None)
    go_on.set()
    wait_for(lambda: len(one.room._loop.errands) == 3)  # two swaps, and the word that it is done
    assert one.room.status()["compiled"] == "compiling"
    stylizer.gate.set()
    wait_for(lambda: one.room.status()["compiled"] == "yes")
    painted = ("paint", 2)
    again = [("record", 2), ("record", 3)]  # what is in use goes first
    assert stylizer.story == [("record", 3), painted, painted, "single", *again, "batch", *again]
    assert accounts(stream)["frames_out"] == 2


@pytest.mark.parametrize("fails", [(0, 1, 2), (1,)])
def test_compiled_code_that_cannot_be_put_in_leaves_the_engine_as_it_was_and_is_no_breakdown(house, caplog, fails):
    def compile(stylizer, report, put_in):
        for number in range(3):
            put_in(lambda number=number: 1 / 0 if number in fails else None)

    one = house(compile=compile)
    wait_for(lambda: one.room.status()["compiled"] == ("no" if len(fails) == 3 else "yes"))
    wait_for(lambda: not one.room._loop.errands and one.room.status()["compiled"] != "compiling")
    status = one.room.status()
    because = "Ready, uncompiled: compiled code could not be put in (division by zero)"
    assert (status["state"], status["detail"]) == ("ready", because if len(fails) == 3 else "Ready.")
    assert len([record for record in caplog.records if "division by zero" in record.getMessage()]) == len(fails)
    assert "broke down" not in caplog.text
    _, publication, shown = one.open("a")
    publication.put(solid(10, 0, 0))
    assert shown.take(PATIENCE_S)


def test_what_is_in_use_is_recorded_once_for_all_lora_weights_and_goes_on_where_that_fails(house):
    go_on = threading.Event()

    class Weighted(FakeStylizer):
        def record(self, controls, report):
            super().record(controls, report)
            if controls.steps == 4:
                raise ValueError("This model's schedule holds 3.")

    def compile(stylizer, report, put_in):
        go_on.wait(PATIENCE_S)
        put_in(lambda: None)

    one = house(Weighted(), compile=compile)
    for number in range(6):
        stream, publication, shown = one.open(f"s{number}")
        stream.set_controls(Controls(steps=1 if number < 5 else 4, lora_weights={"ink": number / 10}))
        publication.put(solid(1, 0, 0))
        assert shown.take(PATIENCE_S)
    go_on.set()
    wait_for(lambda: one.room.status()["compiled"] == "yes")
    assert [(one.steps, one.lora_weights) for one in one.stylizer.recorded[1:]] == [
        (steps, {}) for steps in (1, 4, Controls().steps)
    ]
    assert one.room.status()["detail"] == "Ready."


def test_compiled_code_waits_for_frames_in_flight_together(sharing):
    stream, publication, shown = sharing.open("a")
    stream.set_controls(Controls(steps=3))
    hold(sharing, stream, publication, 10)
    seen = []
    loop = sharing.room._loop
    loop.errand(partial(swap_in, loop, lambda: seen.append(shown.peek()), Controls()))
    publication.put(solid(20, 0, 0))
    sharing.stylizer.gate.set()
    wait_for(lambda: seen)
    assert seen[0].rgb[0, 0, 2] == 10
    sharing.settle(stream)
    assert shown.take().rgb[0, 0, 2] == 20


def test_when_nothing_comes_in_shapes_that_were_met_are_recorded_one_by_one(house, monkeypatch):
    monkeypatch.setattr(serving_loop, "IDLE_S", 0.01)

    class Meets(FakeStylizer):
        left = 0

        def record_next(self):
            self.left -= 1
            return self.left >= 0

    one = house(Meets())
    _, publication, shown = one.open("a")
    wait_for(lambda: one.stylizer.left == -1)
    for _ in range(2):
        one.stylizer.left = 3
        publication.put(solid(1, 0, 0))
        assert shown.take(PATIENCE_S)
        wait_for(lambda: one.stylizer.left == -1)


class Captures(FakeStylizer):
    """With graphs, a capture breaks off where it is told to."""

    def __init__(self, where, graphs=True):
        super().__init__()
        self.where, self.graphs = where, graphs

    def breaks_off(self, where):
        if self.graphs and where == self.where:
            raise CaptureFailed("The driver broke a capture off.")

    def record(self, controls, report):
        super().record(controls, report)
        self.breaks_off("start" if len(self.recorded) == 1 else "swap")

    def record_next(self):
        self.breaks_off("idle")
        return False


@pytest.mark.parametrize("where", ["start", "swap", "idle"])
def test_a_capture_that_breaks_off_ends_with_the_engine_loaded_anew_without_graphs(house, monkeypatch, where):
    monkeypatch.setattr(serving_loop, "IDLE_S", 0.01)
    made, told, loads, go_on = [], [], threading.Event(), threading.Event()

    def load(report, graphs=True):
        if not graphs:
            gc.collect()
            assert [one() for one in made] == [None], "the first is let go of"
            loads.set()
            go_on.wait(PATIENCE_S)
        stylizer = Captures(where, graphs)
        made.append(weakref.ref(stylizer))
        return stylizer

    def compile(stylizer, report, put_in):
        put_in(lambda: None)
        del stylizer

    one = house(FakeStylizer(), load=load, compile=compile if where == "swap" else None)
    one.room.subscribe(lambda: told.append(one.room.status()["state"]))
    stream, publication, shown = one.open("a")
    assert loads.wait(PATIENCE_S)
    status = one.room.status()
    assert (status["state"], status["compiled"]) == ("loading", "no")
    assert "without CUDA graphs: The driver broke a capture off." in status["detail"]
    for level in (10, 20):
        publication.put(solid(level, 0, 0))  # the newest waits
    go_on.set()
    assert one.room.wait_settled(PATIENCE_S)
    assert shown.take(PATIENCE_S).rgb[0, 0, 2] == 20
    one.settle(stream)
    assert accounts(stream)["frames_dropped"] == 1
    wait_for(lambda: one.room.status()["compiled"] == ("yes" if where == "swap" else "no"))
    assert (one.room.status()["state"], len(made)) == ("ready", 2)
    assert "goes on without CUDA graphs: The driver broke a capture off." in one.room.status()["detail"]
    assert "failed" not in told


def test_a_compilation_for_an_engine_that_is_replaced_ends_before_the_next_is_loaded(house):
    made, compiled = [], []

    def load(report, graphs=True):
        gc.collect()
        compiled.append([one() for one in made])
        stylizer = Captures("swap", graphs)
        made.append(weakref.ref(stylizer))
        return stylizer

    def compile(stylizer, report, put_in):
        if not stylizer.graphs:
            raise RuntimeError("No compiler.")
        put_in(lambda: None)
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:  # as it waits for a child
            report("Compiling for batches")
            time.sleep(0.01)

    one = house(FakeStylizer(), load=load, compile=compile)
    wait_for(lambda: "uncompiled" in one.room.status()["detail"])
    assert compiled == [[], [None]], "there are never two"
    assert one.room.status()["detail"] == (
        "Ready, uncompiled: compiling failed (No compiler.); it goes on without CUDA graphs: "
        "The driver broke a capture off."
    )


def test_an_engine_that_does_not_load_without_graphs_either_has_failed(house, monkeypatch):
    monkeypatch.setattr(serving_loop, "IDLE_S", 0.01)

    def load(report, graphs=True):
        if not graphs:
            raise RuntimeError("The card is gone.")
        return Captures("idle")

    one = house(FakeStylizer(), load=load)
    wait_for(lambda: one.room.status()["state"] == "failed")
    assert one.room.status()["detail"] == "The engine does not load again (The card is gone): start the server again."
    assert not one.room.wait_settled(PATIENCE_S)


# -- what is held, and measured ----------------------------------------------------------------------------------------


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


def works(one):
    """What was measured: by what was run, the numbers of batches of one frame."""
    now_s = time.monotonic()
    return {work: len(times.of(1, now_s)) for work, times in one.room._loop.batch_times.items() if times.of(1, now_s)}


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


def test_guidance_that_doubles_the_work_lowers_the_quality_for_itself_alone(house):
    """Times seen without it say nothing of it, and the other way round."""

    class Guided(FakeStylizer):
        def paint(self, batch):
            one = batch.controls[0]
            time.sleep((0.4 if one.guidance > 1 else 0.1) * one.steps)
            return super().paint(batch)

    one = house(Guided(), budget_s=0.6)
    stream, publication, shown = one.open("a")
    seen = []
    for guidance, count in ((1.0, 3), (2.0, 5), (1.0, 1)):
        stream.set_controls(Controls(steps=2, guidance=guidance))
        for _ in range(count):
            publication.put(solid(0, 0, 0))
            assert shown.take(PATIENCE_S)
            one.settle(stream)
            seen.append(one.stylizer.calls[-1][0].steps)
    assert seen[:6] == [2] * 6
    assert seen[6:8] == [1, 1]
    assert seen[8] == 1, "quality comes back after lasting headroom"


# -- LoRA weights ------------------------------------------------------------------------------------------------------


class Rewrites(FakeStylizer):
    """Takes `rewrite_s` to write other weights; `story` keeps whose turn it was."""

    def __init__(self, rewrite_s):
        super().__init__(engine_s=0.01)
        self.rewrite_s, self.weights, self.story = rewrite_s, {"ink": 1.0}, []

    def stands_at(self, controls):
        return self.weights == {"ink": 1.0, **controls.lora_weights}

    def paint(self, batch):
        weights = {"ink": 1.0, **batch.controls[0].lora_weights}
        self.story.append(weights["ink"])
        if weights != self.weights:
            time.sleep(self.rewrite_s)
            self.weights = weights
        return super().paint(batch)


def test_streams_of_other_lora_weights_are_painted_in_turns_and_the_status_says_so(house):
    one = house(Rewrites(0.1), budget_s=2.0)
    feeds = [one.open(name) for name in ("as-loaded", "light", "light-too")]
    for stream, _, _ in feeds[1:]:
        stream.set_controls(Controls(lora_weights={"ink": 0.5}))
    assert one.room.status()["lora_dwell_s"] == 0
    story = one.stylizer.story
    deadline_s = time.monotonic() + 60
    while len(story) < 150:
        for _, publication, _ in feeds:
            publication.put(solid(1, 2, 3))
        time.sleep(0.01)
        assert time.monotonic() < deadline_s
    dwell_s = one.room.status()["lora_dwell_s"]
    assert dwell_s > 0
    assert f"turns of {dwell_s:.2g} s" in one.room.remarks(Controls())["lora_weights"]
    turns = [len(list(turn)) for _, turn in groupby(story)]
    assert len(turns) > 2, "each has its turn"
    assert sum(turns[1:-1]) / len(turns[1:-1]) > 3, "of more than a frame"
    for stream, _, shown in feeds:
        assert shown.take() is not None
        one.settle(stream)
        accounts(stream)
    # One of them goes: nobody is held back any more.
    time.sleep(turns_module.WANTED_S)
    _, publication, shown = feeds[0]
    publication.put(solid(1, 2, 3))
    assert shown.take(PATIENCE_S)
    wait_for(lambda: one.room.status()["lora_dwell_s"] == 0)
    assert "lora_weights" not in one.room.remarks(Controls())


def test_streams_that_come_to_an_engine_whose_rewrites_are_not_known_share_batches(house):
    """Writing takes longer than the whole budget lets weights dwell."""
    one = house(Rewrites(0.3), budget_s=0.5)
    one.stylizer.max_batch = 4
    feeds = [one.open(f"s{number}") for number in range(4)]
    for number, (stream, _, _) in enumerate(feeds):
        stream.set_controls(Controls(steps=1, lora_weights={"ink": number % 2 / 4}))
    deadline_s = time.monotonic() + 60
    while [len(call) for call in one.stylizer.calls].count(2) < 10:
        for _, publication, _ in feeds:
            publication.put(solid(1, 2, 3))
        time.sleep(0.01)
        assert time.monotonic() < deadline_s
    turns = [len(list(turn)) for _, turn in groupby(one.stylizer.story)]
    assert all(turn > 1 for turn in turns[1:-1])


def test_a_dwell_that_comes_and_goes_is_told_now_and_then():
    told = []
    tell, later_s = turns_module.DwellTold(told.append), 1000.0
    for number in range(100):
        tell(later_s + number / 30, 0.3 * (number % 2))
    tell(later_s + 10, 0.0)
    tell(later_s + 12, 0.0)
    assert told == [0.3, 0.0]


def test_weights_that_a_recording_has_written_are_not_written_again_nor_taken_for_others(house):
    class Recorded(Rewrites):
        def record(self, controls, report):
            self.weights = {"ink": 1.0, **controls.lora_weights}

    one = house(Recorded(0.05), controls=Controls(lora_weights={"ink": 0.2}))
    stream, publication, shown = one.open("a")
    stream.set_controls(Controls(lora_weights={"ink": 0.2}))
    for _ in range(2):
        publication.put(solid(1, 2, 3))
        assert shown.take(PATIENCE_S)
        one.settle(stream)
    assert list(works(one).values()) == [2]


def test_a_launch_that_fails_leaves_weights_that_nobody_takes_for_what_was_asked(house):
    one = house(Rewrites(0.0))
    (bad, bad_in, _), (good, good_in, shown) = one.open("bad"), one.open("good")
    for stream in (bad, good):
        stream.set_controls(Controls(lora_weights={"ink": 0.5}))
    bad.set_controls(Controls(lora_weights={"ink": 0.5}, prompt="fail"))
    bad_in.put(solid(1, 2, 3))
    one.settle(bad)
    assert one.room._loop.turns.dwell(time.monotonic(), {(("ink", 0.5),), "others"}) is None
    good_in.put(solid(1, 2, 3))
    assert shown.take(PATIENCE_S)
    one.settle(good)
    assert one.room._loop.turns.dwell(time.monotonic(), {(("ink", 0.5),), "others"}) is not None


def test_a_stream_alone_may_change_its_weights_with_every_frame(house, monkeypatch):
    plan, dwells = scheduler.plan, set()
    monkeypatch.setattr(scheduler, "plan", lambda *args: dwells.add(args[4]) or plan(*args))
    one = house(Rewrites(0.0))
    stream, publication, shown = one.open("a")
    for number in range(10):
        stream.set_controls(Controls(lora_weights={"ink": number / 10}))
        publication.put(solid(1, 2, 3))
        assert shown.take(PATIENCE_S)
    assert one.stylizer.story == [number / 10 for number in range(10)]
    assert dwells == {None}, "nobody else wants any"
