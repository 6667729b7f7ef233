"""Who is under way, and what comes out when: with numbers for frames, whose picture is what they went through."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pipeline.batch import there
from pipeline.sampling.stream_batch import StreamBatch


@dataclass(frozen=True)
class Steps:
    """In place of a conditioning."""

    numbers: tuple[int, ...]

    @property
    def steps(self) -> int:
        return len(self.numbers)

    def at(self, step: int) -> Steps:
        return Steps(self.numbers[step : step + 1])


@dataclass(frozen=True)
class Asked:
    conditioning: Steps
    frame: int


@dataclass(frozen=True)
class State:
    x: Tensor  # [1]: frame + 1000 for each step


class Engine:
    """calls: the frames of every shared step. asked: for which of them each was prepared."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.prepared: list[int] = []
        self.batch: StreamBatch[str] = StreamBatch(self.begin, self.step, self.finish)

    def begin(self, asked: Asked) -> State:
        if asked.frame == 99:
            raise ValueError("cannot be begun")
        return State(torch.tensor([asked.frame]))

    def step(self, states: tuple[tuple[State, Steps], ...]) -> Tensor:
        frames = [int(state.x) % 1000 for state, _ in states]
        if 13 in frames:
            raise RuntimeError("unlucky")
        assert [conditioning.numbers for _, conditioning in states] == [(int(state.x) // 1000,) for state, _ in states]
        self.calls.append(frames)
        return torch.cat([state.x + 1000 for state, _ in states])

    def finish(self, state: State) -> Tensor:
        return state.x

    def add(self, frame: int, steps: int, behind: int | None = None):
        def prepare() -> None:
            self.prepared.append(frame)

        def hand_over(x: Tensor):
            return there(f"{int(x) % 1000} in {int(x) // 1000}")

        asked = Asked(Steps(tuple(range(steps))), frame)
        return self.batch.add(asked, steps, steps - 1 if behind is None else behind, prepare, hand_over)


@pytest.fixture
def engine() -> Engine:
    return Engine()


def there_now(pendings) -> list[bool]:
    return [pending.is_there() for pending in pendings]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_full_one_finishes_a_frame_a_call_and_none_before_the_first_is_through(engine, steps):
    pendings = []
    for frame in range(6):
        pendings.append(engine.add(frame, steps))
        assert there_now(pendings) == [number <= frame - steps + 1 for number in range(frame + 1)]
    assert engine.calls[5] == list(range(6 - steps, 6))
    assert len(engine.batch) == steps - 1
    assert [pending() for pending in pendings] == [f"{frame} in {steps}" for frame in range(6)]
    assert len(engine.batch) == 0
    assert sum(map(len, engine.calls)) == 6 * steps
    assert len(engine.prepared) == len(engine.calls)


def test_frames_that_come_slowly_go_on_when_their_pictures_are_asked_for(engine):
    first = engine.add(0, 3)
    assert not first.is_there()
    assert first() == "0 in 3"
    assert engine.calls == [[0], [0], [0]]
    second, third = engine.add(1, 3), engine.add(2, 3)
    assert second() == "1 in 3"
    assert not third.is_there()
    assert engine.calls[3:] == [[1], [1, 2], [1, 2]]
    assert third() == "2 in 3"


def test_who_is_asked_for_early_finishes_older_ones_which_keep_their_pictures(engine):
    first, second = engine.add(0, 3), engine.add(1, 3)
    assert second() == "1 in 3"
    assert first.is_there()
    assert first() == "0 in 3"
    assert first() == "0 in 3"


def test_a_picture_waits_for_no_more_later_frames_than_it_may(engine):
    pendings = []
    for frame in range(4):
        pendings.append(engine.add(frame, 4, behind=1))
        assert there_now(pendings) == [number < frame for number in range(frame + 1)]


def test_who_cannot_share_finishes_the_others_first(engine):
    first = engine.add(0, 2)
    assert engine.batch.joins(2)
    assert not engine.batch.joins(3)
    second = engine.add(1, 3)
    assert there_now([first, second]) == [True, False]
    assert engine.calls == [[0], [0], [1]]
    assert (first(), second()) == ("0 in 2", "1 in 3")
    assert engine.batch.joins(2), "nobody is under way"


def test_what_cannot_be_begun_leaves_under_way_what_was(engine):
    first = engine.add(0, 2)
    with pytest.raises(ValueError, match="cannot be begun"):
        engine.add(99, 2)
    assert len(engine.batch) == 1
    assert first() == "0 in 2"


def test_a_step_that_fails_is_raised_by_all_that_shared_it(engine):
    done = engine.add(7, 1)
    first = engine.add(0, 3)
    with pytest.raises(RuntimeError, match="unlucky"):
        engine.add(13, 3)
    assert first.is_there()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="unlucky"):
            first()
    assert done() == "7 in 1"
    assert len(engine.batch) == 0
    assert engine.add(1, 3)() == "1 in 3"


def test_a_step_that_fails_when_a_picture_is_asked_for_is_raised_there(engine, monkeypatch):
    first, second = engine.add(0, 3), engine.add(1, 3)
    monkeypatch.setattr(engine.batch, "_step", lambda states: [][0])
    with pytest.raises(IndexError):
        first()
    with pytest.raises(IndexError):
        second()


def test_frames_that_were_let_go_say_so(engine):
    pending = engine.add(0, 2)
    engine.batch.forget()
    assert len(engine.batch) == 0
    assert engine.calls == [[0]]
    with pytest.raises(RuntimeError, match="let go"):
        pending()
