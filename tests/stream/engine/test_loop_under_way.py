"""An engine that is at several batches at once: behind each other, or launched before the last is there."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest
from av import VideoFrame

from masks import Mask
from pipeline.settings import Controls
from stream.engine import scheduler
from stream.engine.i420 import to_i420
from tests.stream.fakes import solid

from .harness import PATIENCE_S, AheadStylizer, OutOfMemoryError, TakesI420, TheEnd, accounts, hold, wait_for


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


def test_a_picture_that_is_done_does_not_wait_for_the_next_frame(sharing, monkeypatch):
    stream, publication, _ = sharing.open("a")
    shown, shown_before, work = [], [], sharing.stylizer.work
    stream.watch(lambda picture: shown.append(int(picture.rgb[0, 0, 2])))
    arrivals = {1: 20, 3: 30, 4: 40}  # during which call

    def works(controls):
        work(controls)
        shown_before.append((len(controls), list(shown)))
        if level := arrivals.get(len(shown_before)):
            publication.put(solid(level, 0, 0))

    monkeypatch.setattr(sharing.stylizer, "work", works)
    stream.set_controls(Controls(steps=3))
    publication.put(solid(10, 0, 0))
    wait_for(lambda: len(shown) == 4)
    assert shown_before[:5] == [(1, []), (2, []), (2, []), (2, [10]), (2, [10, 20])]
    assert shown == [10, 20, 30, 40]


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


@pytest.fixture
def ahead(house):
    """A house whose engine runs ahead, and how long it takes is known: a, b and c are its streams."""
    one = house(AheadStylizer())
    one.feeds = {name: one.open(name) for name in "abc"}
    for name, (stream, publication, shown) in one.feeds.items():
        stream.controls = Controls(prompt=name)
        publication.put(solid(1, 2, 3))
        assert shown.take(PATIENCE_S) is not None
    wait_for(lambda: not one.engine._loop.under_way)
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
    (times,) = ahead.engine._loop.batch_times.values()
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
    closing = threading.Thread(target=ahead.engine.close)
    closing.start()
    ahead.stylizer.ready.set()
    closing.join()
    assert ahead.feeds["a"][2].take() is not None


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
