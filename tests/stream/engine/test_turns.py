"""Streams that want the LoRAs at other weights are painted in turns."""

from __future__ import annotations

import time
from itertools import groupby

from pipeline.settings import Controls
from stream.engine import scheduler
from stream.engine import turns as turns_module
from tests.stream.fakes import FakeStylizer, solid

from .harness import PATIENCE_S, accounts, wait_for, works


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
    assert one.engine.status()["lora_dwell_s"] == 0
    story = one.stylizer.story
    deadline_s = time.monotonic() + 60
    while len(story) < 150:
        for _, publication, _ in feeds:
            publication.put(solid(1, 2, 3))
        time.sleep(0.01)
        assert time.monotonic() < deadline_s
    dwell_s = one.engine.status()["lora_dwell_s"]
    assert dwell_s > 0
    assert f"turns of {dwell_s:.2g} s" in one.engine.remarks(Controls())["lora_weights"]
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
    wait_for(lambda: one.engine.status()["lora_dwell_s"] == 0)
    assert "lora_weights" not in one.engine.remarks(Controls())


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


def test_weights_that_a_capture_has_written_are_not_written_again_nor_taken_for_others(house):
    class Recorded(Rewrites):
        def capture(self, controls, report):
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
    assert one.engine._loop.turns.dwell(time.monotonic(), {(("ink", 0.5),), "others"}) is None
    good_in.put(solid(1, 2, 3))
    assert shown.take(PATIENCE_S)
    one.settle(good)
    assert one.engine._loop.turns.dwell(time.monotonic(), {(("ink", 0.5),), "others"}) is not None


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
