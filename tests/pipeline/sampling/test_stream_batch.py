"""Who is in flight, and what comes out when: with numbers for frames, whose picture is what they went through."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from pipeline.sampling.stream_batch import StreamBatch


@dataclass(frozen=True)
class Number:
    key: int
    frame: int
    controls: str
    steps_left: int


class Counting:
    """controls: "<steps><letter>". `calls`: the frames of every call of the UNet."""

    def __init__(self):
        self.calls: list[list[int]] = []

    def begin(self, frames, controls, mask=None, control_frames=None):
        steps = int(controls[0])
        return Number(steps, frames, controls, steps)

    def advance(self, flight):
        if any(one.frame == 13 for one in flight):
            raise RuntimeError("unlucky")
        self.calls.append([one.frame for one in flight])
        return [replace(one, steps_left=one.steps_left - 1) for one in flight]

    def finish(self, done):
        assert done.steps_left == 0
        return f"{done.frame} by {done.controls}"


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_full_one_gives_a_picture_a_call_and_none_before_the_first_is_finished(steps):
    engine = Counting()
    batch = StreamBatch(engine)
    out = [batch(frame, f"{steps}a") for frame in range(6)]
    assert out == [None] * (steps - 1) + [f"{frame} by {steps}a" for frame in range(6 - steps + 1)]
    assert engine.calls[5] == list(range(6 - steps, 6))
    assert len(batch) == steps - 1
    assert [batch() for _ in range(steps - 1)] == [f"{frame} by {steps}a" for frame in range(6 - steps + 1, 6)]
    assert (len(batch), batch()) == (0, None)
    assert sum(map(len, engine.calls)) == 6 * steps


def test_frames_that_come_slowly_go_on_by_themselves_and_in_order():
    batch = StreamBatch(Counting())
    out = [batch(0, "3a"), batch(), batch(1, "3b"), batch(), batch(2, "3c"), batch(), batch()]
    assert out == [None, None, "0 by 3a", None, "1 by 3b", None, "2 by 3c"]


def test_who_cannot_share_is_refused_until_the_others_are_finished():
    batch = StreamBatch(Counting())
    batch(0, "2a")
    with pytest.raises(ValueError, match="finish those first"):
        batch(1, "3a")
    assert len(batch) == 1
    assert batch() == "0 by 2a"
    assert batch(1, "3a") is None


def test_a_call_that_fails_leaves_in_flight_what_was():
    batch = StreamBatch(Counting())
    batch(0, "2a")
    with pytest.raises(RuntimeError, match="unlucky"):
        batch(13, "2a")
    assert len(batch) == 1
    assert batch(1, "2a") == "0 by 2a"
