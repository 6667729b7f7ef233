"""The life of an engine: it loads, is asked, breaks down, is started again, and ends."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline.settings import Controls
from stream.engine import scheduler
from stream.engine.runner import EngineFailed, EngineRunner
from stream.streams import Stream
from tests.stream.fakes import SIZE, FakeStylizer, solid

from .harness import PATIENCE_S, TheEnd, accounts, in_flight, wait_for


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
    wait_for(lambda: one.engine.status()["progress"] == 0.5)
    assert one.engine.status() == {
        "state": "loading",
        "model": "fake",
        "device": "",
        "detail": "Reading weights.",
        "progress": 0.5,
        "compiled": "no",
    }
    loaded.set()
    assert one.engine.wait_settled(PATIENCE_S)
    assert shown.take(PATIENCE_S).rgb[0, 0, 2] == 30
    status = one.engine.status()
    assert (status["state"], status["size"], status["loras"]) == ("ready", f"{SIZE}x{SIZE}", ["ink"])
    assert status["lora_weights"] == {"ink": 0.55}
    assert one.settle(stream)["frames_dropped"] == 2


def test_a_model_that_cannot_load_is_told_in_one_sentence(house):
    def load(report):
        raise FileNotFoundError("No model at weights.safetensors;\n  run python main.py models pull mini.")

    one = house(load=load)
    assert not one.engine.wait_settled(PATIENCE_S)
    assert one.engine.status()["state"] == "failed"
    assert one.engine.status()["detail"] == "No model at weights.safetensors; run python main.py models pull mini."
    assert isinstance(one.engine.failure, FileNotFoundError)
    stream, publication, _ = one.open("a")
    for _ in range(5):
        publication.put(solid(0, 0, 0))
    assert in_flight(stream) == 1


def test_closing_does_not_wait_for_a_load_and_nobody_is_told_of_it_any_more():
    loading, go_on, told = threading.Event(), threading.Event(), []

    def load(report):
        loading.set()
        go_on.wait(PATIENCE_S)
        report("Still reading.", 0.9)
        return FakeStylizer()

    engine = EngineRunner(load)
    engine.subscribe(lambda: told.append(engine.status()["detail"]))
    engine.start()
    assert loading.wait(PATIENCE_S)
    engine.close(timeout_s=60)
    assert engine.status()["state"] == "loading", "closing waited for the load, which goes on only below"
    go_on.set()
    assert engine.wait_settled(PATIENCE_S)
    assert told == []


def test_status_changes_reach_subscribers_until_they_leave(house):
    told = []
    engine = EngineRunner(lambda report: FakeStylizer())
    leave = engine.subscribe(lambda: told.append(engine.status()["state"]))
    engine.start()
    engine.wait_settled(PATIENCE_S)
    wait_for(lambda: "ready" in told)
    leave()
    engine.close()


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


@BREAKDOWNS
def test_an_engine_that_breaks_down_is_started_again_and_every_frame_is_accounted_for(
    house, monkeypatch, where, caplog
):
    one = house(break_down(monkeypatch, where, times=2))
    (stream, publication, shown), (_, other, other_shown) = one.open("a"), one.open("b")
    stream.set_controls(Controls(prompt=where))
    assert one.engine.wait_settled(PATIENCE_S)
    deadline_s = time.monotonic() + PATIENCE_S
    while (picture := shown.take(0.02)) is None:
        publication.put(solid(200, 0, 0))
        assert time.monotonic() < deadline_s
    other.put(solid(100, 0, 0))
    assert (picture.rgb[0, 0, 2], other_shown.take(PATIENCE_S).rgb[0, 0, 2]) == (200, 100)
    one.settle(stream)
    stats = accounts(stream)
    assert (stats["in_flight"], stats["detail"]) == (0, "")
    assert one.engine.status()["state"] == "ready"
    assert one.engine.wait_settled(0)
    one.engine.check_serves()
    assert "Traceback" in caplog.text


@BREAKDOWNS
def test_an_engine_that_breaks_down_again_and_again_has_failed_and_says_why(house, monkeypatch, where):
    one = house(break_down(monkeypatch, where, times=99))
    stream, publication, _ = one.open("a")
    stream.set_controls(Controls(prompt=where))
    deadline_s = time.monotonic() + PATIENCE_S
    while one.engine.status()["state"] != "failed":
        publication.put(solid(200, 0, 0))
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    one.engine._thread.join(PATIENCE_S)
    assert one.stylizer.times == 99 - 3
    reason = {"forget": "No forgetting", "exit": "A library thought"}.get(where, "division by zero")
    for told in (one.engine.status()["detail"], accounts(stream)["detail"]):
        assert reason in told
        assert told.endswith("start the server again.")
    assert one.engine.failure is None, "the model did load"
    assert not one.engine.wait_settled(PATIENCE_S)
    with pytest.raises(EngineFailed, match=reason):
        one.engine.check_serves()
    for _ in range(5):
        publication.put(solid(0, 0, 0))
    assert accounts(stream)["in_flight"] <= 1
    assert one.streams.get("late").snapshot()["detail"] == one.engine.status()["detail"]


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
    assert one.engine.status()["detail"].endswith("broke down: Unspeakable without a message.")


def test_an_engine_that_cannot_even_be_started_again_says_that_it_failed(house, monkeypatch):
    monkeypatch.setattr(scheduler, "may_restart", lambda *args: [][0])
    one = house(break_down(monkeypatch, "plan", times=1))
    stream, publication, _ = one.open("a")
    publication.put(solid(10, 0, 0))
    wait_for(lambda: one.engine.status()["state"] == "failed")
    assert "list index out of range" in one.engine.status()["detail"]
    wait_for(lambda: in_flight(stream) == 0)
    publication.put(solid(20, 0, 0))  # by a publisher who has not heard of it yet
    assert accounts(stream)["frames_dropped"] == 2


def test_a_library_that_wants_to_end_the_program_while_it_loads_does_not_leave_it_loading(house):
    def load(report):
        raise SystemExit("CUDA_HOME is not set.")

    one = house(load=load)
    assert not one.engine.wait_settled(PATIENCE_S)
    assert (one.engine.status()["state"], one.engine.status()["detail"]) == ("failed", "CUDA_HOME is not set.")
    assert isinstance(one.engine.failure, SystemExit)
