"""Frames that are similar to what was painted last are shown its picture once more."""

from __future__ import annotations

import numpy as np
import pytest

from masks import Mask
from pipeline.settings import Controls
from stream.engine import similarity
from stream.engine.mailbox import Mailbox
from tests.stream.fakes import solid

from .harness import PATIENCE_S, Source


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
        lambda one, stream: one.engine._loop.start_over(),
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
