"""The engine room without any network: frames put, pictures got, faults kept where they belong."""

from __future__ import annotations

import logging
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from av import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from pipeline.settings import Controls
from pipeline.transfers import Pending
from stream import scheduler, similarity
from stream.engine_room import EngineRoom
from stream.i420 import to_i420
from stream.mailbox import Mailbox
from stream.masks import Mask
from stream.streams import Streams

from .fakes import SIZE, FakeStylizer, solid

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

    def live(self, frames, controls):
        return self._in_both_ways(self(self._in_rgb(frames), controls))

    def begin(self, frames, controls, mask=None, live=False):
        begun = super().begin(self._in_rgb(frames) if live else frames, controls, mask)
        begun.live = live
        return begun

    def finish(self, done):
        pictures = super().finish(done)
        return self._in_both_ways(pictures) if done.live else pictures

    def _in_rgb(self, frames):
        self.came.append(frames.shape)
        return frames if frames.ndim == 4 else np.stack([cv2.cvtColor(one, cv2.COLOR_YUV2RGB_I420) for one in frames])

    def _in_both_ways(self, pictures):
        return pictures, np.stack([to_i420(one) for one in pictures])


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


def test_an_engine_that_cannot_judge_some_controls_serves_the_others(house):
    class Picky(FakeStylizer):
        def shape_key(self, controls):
            if controls.seed == 13:
                raise ValueError("The seed 13 is unlucky.")
            return super().shape_key(controls)

    one = house(Picky())
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


def test_a_frame_whose_size_changes_between_the_plan_and_the_taking_harms_nobody(house):
    class Interrupted(FakeStylizer):
        """While the plan is made, a frame of another size comes in for the stream with seed 1."""

        arrive = None

        def shape_key(self, controls):
            if controls.seed == 1 and self.arrive is not None:
                arrive, self.arrive = self.arrive, None
                arrive()
            return super().shape_key(controls)

    one = house(Interrupted(max_batch=2))
    changing, steady = one.open("changing"), one.open("steady")
    changing[0].set_controls(Controls(seed=1))
    one.occupy()
    changing[1].put(solid(50, 0, 0, size=32))
    steady[1].put(solid(100, 0, 0, size=32))
    one.stylizer.arrive = lambda: changing[1].put(solid(150, 0, 0, size=96))
    one.stylizer.gate.set()
    assert changing[2].take(PATIENCE_S).rgb[0, 0, 2] == 150
    assert steady[2].take(PATIENCE_S).rgb[0, 0, 2] == 100
    assert (changing[0].fault, steady[0].fault, one.stylizer.arrive) == (None, None, None)
    assert one.settle(changing[0])["frames_dropped"] == 1


def test_steps_are_taken_off_when_the_engine_exceeds_the_budget(house):
    class Slow(FakeStylizer):
        def __call__(self, frames, controls):
            time.sleep(0.1 * controls[0].steps)
            return super().__call__(frames, controls)

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
    monkeypatch.setattr(scheduler, "shares_steps", lambda *args: True)
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
    monkeypatch.setattr(scheduler, "shares_steps", lambda *args: True)
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

        def __call__(self, frames, controls, scale=1.0):
            self.painted_at += (scale,)
            time.sleep(0.5 * scale**2)
            return super().__call__(frames, controls)

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
        lambda one, stream: one.room._start_over(),
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
    """Hands each stream's memory back one older; keeps what it was given."""

    def __init__(self):
        super().__init__(max_batch=4)
        self.given = []

    def remembering(self, frames, controls, memories, mask=None, live=False):
        self.given += [(one.prompt, memory and memory.used) for one, memory in zip(controls, memories, strict=True)]
        pictures = self.live(frames, controls) if live else self(frames, controls, mask)
        return pictures, [SimpleNamespace(used=1 + (memory.used if memory else 0)) for memory in memories]


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
    """Like the real one on CUDA, too: live calls return at once, and their pictures are there when `ready` is set.

    `told` keeps what was launched and what was waited for, by prompt.
    """

    runs_ahead = True

    def __init__(self, **options):
        super().__init__(**options)
        self.told: list[str] = []
        self.ready = threading.Event()
        self.ready.set()
        self.fails = ""

    def live(self, frames, controls, wait=True):
        assert not wait
        name = " and ".join(one.prompt for one in controls)
        self.told.append(f"launched {name}")
        pictures = super().live(frames, controls)

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
    wait_for(lambda: one.room._launched is None)
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
    (times,) = ahead.room._batch_times.values()
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
    assert ahead.stylizer.told[:2] == ["launched a", "waiting for a"]
    assert "launched b" not in ahead.stylizer.told or need == "skip_similar"


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
