"""Compiling beside the frames, putting in what was compiled, and CUDA graphs captured anew behind it."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from functools import partial

import pytest

from pipeline.errors import CaptureFailed
from pipeline.settings import Controls
from stream.engine import loop as serving_loop
from stream.engine.compiling import swap_in
from tests.stream.fakes import FakeStylizer, solid

from .harness import PATIENCE_S, accounts, hold, wait_for


def test_compiling_runs_beside_the_frames_and_its_states_are_told(house):
    begun, finish = threading.Event(), threading.Event()

    def compile(stylizer, report, put_in):
        report("Compiling the UNet.", 0.3)
        begun.set()
        finish.wait(PATIENCE_S)

    one = house(compile=compile)
    begun.wait(PATIENCE_S)
    status = one.engine.status()
    assert (status["state"], status["compiled"], status["detail"]) == ("ready", "compiling", "Compiling the UNet.")
    _, publication, shown = one.open("a")
    publication.put(solid(10, 0, 0))
    assert shown.take(PATIENCE_S) is not None
    finish.set()
    wait_for(lambda: one.engine.status()["compiled"] == "yes")


def test_a_failed_compilation_leaves_the_engine_running(house):
    def compile(stylizer, report, put_in):
        raise RuntimeError("No C++ compiler was found.")

    one = house(compile=compile)
    wait_for(lambda: "No C++ compiler" in one.engine.status()["detail"])
    assert (one.engine.status()["state"], one.engine.status()["compiled"]) == ("ready", "no")
    _, publication, shown = one.open("a")
    publication.put(solid(10, 0, 0))
    assert shown.take(PATIENCE_S) is not None


def test_a_compiler_that_wants_to_end_the_program_is_told_of(house):
    def compile(stylizer, report, put_in):
        raise SystemExit("g++ is too old.")

    one = house(compile=compile)
    wait_for(lambda: "g++ is too old" in one.engine.status()["detail"])
    assert (one.engine.status()["state"], one.engine.status()["compiled"]) == ("ready", "no")


def test_shapes_are_captured_before_frames_are_taken_and_again_behind_compiled_code(house):
    go_on = threading.Event()

    class Told(FakeStylizer):
        def __init__(self):
            super().__init__(max_batch=2)
            self.story = []

        def capture(self, controls, report):
            self.story.append(("capture", controls.steps))

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
    wait_for(lambda: len(one.engine._loop.callbacks) == 3)  # two swaps, and the word that it is done
    assert one.engine.status()["compiled"] == "compiling"
    stylizer.gate.set()
    wait_for(lambda: one.engine.status()["compiled"] == "yes")
    painted = ("paint", 2)
    again = [("capture", 2), ("capture", 3)]  # what is in use goes first
    assert stylizer.story == [("capture", 3), painted, painted, "single", *again, "batch", *again]
    assert accounts(stream)["frames_out"] == 2


@pytest.mark.parametrize("fails", [(0, 1, 2), (1,)])
def test_compiled_code_that_cannot_be_put_in_leaves_the_engine_as_it_was_and_is_no_breakdown(house, caplog, fails):
    def compile(stylizer, report, put_in):
        for number in range(3):
            put_in(lambda number=number: 1 / 0 if number in fails else None)

    one = house(compile=compile)
    wait_for(lambda: one.engine.status()["compiled"] == ("no" if len(fails) == 3 else "yes"))
    wait_for(lambda: not one.engine._loop.callbacks and one.engine.status()["compiled"] != "compiling")
    status = one.engine.status()
    because = "Ready, uncompiled: compiled code could not be put in (division by zero)"
    assert (status["state"], status["detail"]) == ("ready", because if len(fails) == 3 else "Ready.")
    assert len([capture for capture in caplog.records if "division by zero" in capture.getMessage()]) == len(fails)
    assert "broke down" not in caplog.text
    _, publication, shown = one.open("a")
    publication.put(solid(10, 0, 0))
    assert shown.take(PATIENCE_S)


def test_what_is_in_use_is_captured_once_for_all_lora_weights_and_goes_on_where_that_fails(house):
    go_on = threading.Event()

    class Weighted(FakeStylizer):
        def capture(self, controls, report):
            super().capture(controls, report)
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
    wait_for(lambda: one.engine.status()["compiled"] == "yes")
    assert [(one.steps, one.lora_weights) for one in one.stylizer.captured[1:]] == [
        (steps, {}) for steps in (1, 4, Controls().steps)
    ]
    assert one.engine.status()["detail"] == "Ready."


def test_compiled_code_waits_for_frames_in_flight_together(sharing):
    stream, publication, shown = sharing.open("a")
    stream.set_controls(Controls(steps=3))
    hold(sharing, stream, publication, 10)
    seen = []
    loop = sharing.engine._loop
    loop.call_soon(partial(swap_in, loop, lambda: seen.append(shown.peek()), Controls()))
    publication.put(solid(20, 0, 0))
    sharing.stylizer.gate.set()
    wait_for(lambda: seen)
    assert seen[0].rgb[0, 0, 2] == 10
    sharing.settle(stream)
    assert shown.take().rgb[0, 0, 2] == 20


class Captures(FakeStylizer):
    """With graphs, a capture breaks off where it is told to."""

    def __init__(self, where, graphs=True):
        super().__init__()
        self.where, self.graphs = where, graphs

    def breaks_off(self, where):
        if self.graphs and where == self.where:
            raise CaptureFailed("The driver broke a capture off.")

    def capture(self, controls, report):
        super().capture(controls, report)
        self.breaks_off("start" if len(self.captured) == 1 else "swap")

    def capture_next(self):
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
    one.engine.subscribe(lambda: told.append(one.engine.status()["state"]))
    stream, publication, shown = one.open("a")
    assert loads.wait(PATIENCE_S)
    status = one.engine.status()
    assert (status["state"], status["compiled"]) == ("loading", "no")
    assert "without CUDA graphs: The driver broke a capture off." in status["detail"]
    for level in (10, 20):
        publication.put(solid(level, 0, 0))  # the newest waits
    go_on.set()
    assert one.engine.wait_settled(PATIENCE_S)
    assert shown.take(PATIENCE_S).rgb[0, 0, 2] == 20
    one.settle(stream)
    assert accounts(stream)["frames_dropped"] == 1
    wait_for(lambda: one.engine.status()["compiled"] == ("yes" if where == "swap" else "no"))
    assert (one.engine.status()["state"], len(made)) == ("ready", 2)
    assert "goes on without CUDA graphs: The driver broke a capture off." in one.engine.status()["detail"]
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
    wait_for(lambda: "uncompiled" in one.engine.status()["detail"])
    assert compiled == [[], [None]], "there are never two"
    assert one.engine.status()["detail"] == (
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
    wait_for(lambda: one.engine.status()["state"] == "failed")
    assert one.engine.status()["detail"] == "The engine does not load again (The card is gone): start the server again."
    assert not one.engine.wait_settled(PATIENCE_S)
