"""Frames put, pictures got: newest wins, streams share batches, faults are kept where they belong."""

from __future__ import annotations

import logging
import time
import weakref

import numpy as np
import pytest
from av import VideoFrame

from pipeline import capabilities
from pipeline.settings import Controls
from stream.engine import loop as serving_loop
from tests.stream.fakes import SIZE, FakeStylizer, solid

from .harness import PATIENCE_S, OutOfMemoryError, in_flight, wait_for


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


def test_a_frame_that_waited_beyond_the_budget_is_dropped_and_a_fresh_one_shown(house):
    one = house(budget_s=0.5)
    stream, publication, shown = one.open("a")
    publication.put(solid(10, 0, 0), arrived_s=time.monotonic() - 0.6)
    assert one.settle(stream)["frames_dropped"] == 1
    publication.put(solid(20, 0, 0))
    assert shown.take(PATIENCE_S).rgb[0, 0, 2] == 20


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
    assert len([capture for capture in caplog.records if "bad" in capture.getMessage()]) == 1
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


def test_when_nothing_comes_in_shapes_that_were_met_are_captured_one_by_one(house, monkeypatch):
    monkeypatch.setattr(serving_loop, "IDLE_S", 0.01)

    class Meets(FakeStylizer):
        left = 0

        def capture_next(self):
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
