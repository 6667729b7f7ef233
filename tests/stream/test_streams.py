"""Publishers, viewers, statistics and the bounded register."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masks import Mask
from pipeline.settings import Controls
from stream.engine.mailbox import Mailbox
from stream.engine.runner import EngineRunner
from stream.engine.statistics import WINDOW_S, Statistics, percentiles_ms, rate_hz
from stream.streams import MAX_IDLE_PICTURES, BadStreamName, NoFreeStream, Streams

from .fakes import FakeStylizer, solid


class Source:
    kind = "test"


@pytest.fixture
def streams():
    """Nobody runs the engine: the tests take its part."""
    return Streams(EngineRunner(lambda report: FakeStylizer()), max_names=3)


def serve(stream, engine_s=0.01):
    """What the engine does with a waiting frame."""
    frame = stream.mailbox.take()
    stream.show(frame, frame.rgb(), engine_s)


def counters(stream):
    stats = stream.snapshot()
    return stats["frames_in"], stats["frames_out"], stats["frames_dropped"]


@pytest.mark.parametrize("name", ["", "A", "a b", "ä", "a" * 65, "../etc", "a/b", "a\n", "a_b", "%61"])
def test_bad_names_are_refused(streams, name):
    with pytest.raises(BadStreamName):
        streams.get(name)
    with pytest.raises(BadStreamName):
        streams.find(name)


@pytest.mark.parametrize("name", ["a", "0", "-", "studio-1", "a" * 64])
def test_good_names_are_not(streams, name):
    assert streams.find(name) is None
    assert streams.get(name) is streams.find(name)


def test_the_longest_unused_name_makes_room(streams):
    for name in "abc":
        streams.get(name).set_controls(Controls(seed=7))
    streams.get("a").set_controls(Controls(seed=8))
    streams.get("d")
    assert [streams.find(name) is None for name in "abcd"] == [False, True, False, False]


def test_names_in_use_are_kept_and_a_full_house_is_told(streams):
    streams.get("a").publish(Source())
    streams.get("b").watch(lambda picture: None)
    leave = streams.get("c").subscribe(lambda: None)
    with pytest.raises(NoFreeStream):
        streams.get("d")
    leave()
    assert streams.get("d")
    assert streams.find("c") is None


def test_only_so_many_idle_streams_keep_a_picture_and_a_mask():
    streams = Streams(EngineRunner(lambda report: FakeStylizer()))
    kept = MAX_IDLE_PICTURES + 4
    for number in range(kept + 1):
        stream = streams.get(f"s{number}")
        stream.set_mask(Mask(np.zeros((8, 8), np.uint8)))
        publication, _ = stream.publish(Source())
        publication.put(solid(1, 2, 3))
        serve(stream)
        publication.end()
    pictures = [streams.get(f"s{number}").last_picture is not None for number in range(kept + 1)]
    assert pictures.count(True) <= MAX_IDLE_PICTURES + 1
    assert pictures[-1]
    assert [streams.get(f"s{number}").mask is not None for number in range(kept + 1)] == pictures


def test_the_newest_publisher_takes_over_with_clean_counters(streams):
    stream = streams.get("a")
    first, replaced = stream.publish(Source())
    assert replaced is None
    for _ in range(3):
        first.put(solid(1, 1, 1))
    second, replaced = stream.publish(Source())
    assert replaced is first
    assert counters(stream) == (0, 0, 0)
    assert (first.statistics.frames_in, first.statistics.frames_dropped) == (3, 3)
    assert not first.put(solid(1, 1, 1)), "the old publisher's frames go nowhere"
    first.end()
    assert stream.publication is second, "the old publisher's end is not the new one's"
    assert second.put(solid(2, 2, 2))
    assert counters(stream) == (1, 0, 0)


def test_a_picture_of_the_old_publisher_that_was_in_the_engine_is_not_shown_under_the_new_one(streams):
    stream, shown = streams.get("a"), Mailbox()
    stream.watch(shown.put)
    first, _ = stream.publish(Source())
    first.put(solid(1, 1, 1))
    frame = stream.mailbox.take()
    stream.publish(Source())
    stream.show(frame, frame.rgb(), 0.01)
    assert shown.take() is None
    assert counters(stream) == (0, 0, 0)
    assert first.statistics.frames_dropped == 1


def test_viewers_share_the_picture_and_a_late_one_gets_the_last(streams):
    stream, early, late = streams.get("a"), Mailbox(), Mailbox()
    leave = stream.watch(early.put)
    publication, _ = stream.publish(Source())
    publication.put(solid(9, 8, 7))
    serve(stream)
    publication.end()
    stream.watch(late.put)
    picture = early.take()
    assert picture is not None
    assert late.take() is picture
    assert stream.snapshot()["viewers"] == 2
    leave()
    leave()
    assert stream.snapshot()["viewers"] == 1


def test_capture_times_follow_the_senders_clock_and_survive_its_jumps(streams):
    stream = streams.get("a")
    publication, _ = stream.publish(Source())
    captured_s = []
    for media_s, arrived_s in [(0.0, 100.0), (0.033, 100.09), (0.066, 100.1), (900.0, 100.2), (900.033, 100.3)]:
        publication.put(solid(0, 0, 0), media_s, arrived_s)
        captured_s.append(round(stream.mailbox.take().captured_s, 3))
    assert captured_s == [100.0, 100.033, 100.066, 100.2, 100.233]


def test_a_new_viewer_is_not_left_with_an_older_picture_than_the_engine_shows_meanwhile(streams):
    stream, begun, got = streams.get("a"), threading.Event(), []
    publication, _ = stream.publish(Source())
    publication.put(solid(1, 1, 1))
    serve(stream)

    def sink(picture):
        if not begun.is_set():
            begun.set()
            time.sleep(0.1)  # time enough for the engine's thread to overtake, if it could
        got.append(picture.rgb[0, 0, 0])

    def engine():
        begun.wait(10)
        publication.put(solid(2, 2, 2))
        serve(stream)

    thread = threading.Thread(target=engine)
    thread.start()
    stream.watch(sink)
    thread.join(10)
    assert got == [1, 2]


@given(st.lists(st.sampled_from(["put", "skip", "serve", "fail", "take over", "end"]), max_size=60))
def test_in_is_out_plus_dropped_plus_what_is_in_flight(steps):
    stream = Streams(EngineRunner(lambda report: FakeStylizer())).get("a")
    publication, _ = stream.publish(Source())
    for step in steps:
        if step == "put":
            publication.put(solid(0, 0, 0, size=2))
        elif step == "skip":
            publication.skip()
        elif step == "take over":
            publication, _ = stream.publish(Source())
        elif step == "end":
            publication.end()
        elif stream.mailbox.peek() is not None:
            serve(stream) if step == "serve" else stream.drop(stream.mailbox.take())
        came, out, dropped = counters(stream)
        assert came == out + dropped + (stream.mailbox.peek() is not None)


def test_rates_and_percentiles_are_of_the_last_seconds_and_counters_of_all():
    statistics = Statistics()
    for number in range(300):
        statistics.count_in(number / 30)
        statistics.count_out(number / 30 + 0.1, latency_s=0.1, engine_s=0.05)
    now_s = 300 / 30 + 0.1
    told = statistics.snapshot(now_s)
    assert told["frames_in"] == told["frames_out"] == 300
    assert told["fps_in"] == pytest.approx(30, abs=1)
    assert told["latency_ms"] == {"p50": 100.0, "p95": 100.0}
    assert told["engine_ms"] == {"p50": 50.0, "p95": 50.0}
    later = statistics.snapshot(now_s + WINDOW_S + 1)
    assert later["frames_out"] == 300
    assert (later["fps_in"], later["fps_out"], later["latency_ms"]) == (0.0, 0.0, {"p50": None, "p95": None})


def test_percentiles_are_by_nearest_rank():
    assert percentiles_ms(number / 1000 for number in range(1, 101)) == {"p50": 50.0, "p95": 95.0}
    assert percentiles_ms([0.007]) == {"p50": 7.0, "p95": 7.0}


def test_a_rate_is_right_at_once_and_falls_when_the_frames_stop():
    assert rate_hz([0.0], 1.0) == 0.0
    assert rate_hz([0.0, 0.1, 0.2], 0.2) == 10.0
    assert rate_hz([0.0, 0.1, 0.2], 2.0) == 1.0
