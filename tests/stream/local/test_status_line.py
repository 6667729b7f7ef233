"""What the terminal says while a stream runs."""

from __future__ import annotations

import io
import os

import cv2
import numpy as np
import pytest

from stream.local import status_line
from stream.local.status_line import ERASE_TO_END, NOISE, PIPE_EVERY_S, StatusLine, status_text, undisturbed

READY = {"state": "ready", "model": "mini", "device": "cpu", "detail": "Ready.", "progress": None, "compiled": "no"}
STREAM = {
    "fps_in": 29.97,
    "fps_out": 12.04,
    "latency_ms": {"p50": 98.4, "p95": 117.6},
    "frames_dropped": 178,
    "quality": 0,
    "steps": 2,
    "steps_asked": 2,
    "scale": 1.0,
    "detail": "",
}


def test_loading_is_told_with_its_progress():
    loading = READY | {"state": "loading", "detail": "Reading weights.", "progress": 0.4}
    assert status_text(loading, STREAM) == "loading mini on cpu: Reading weights 40%"


def test_rates_latency_and_drops():
    assert status_text(READY, STREAM) == "in 30.0 out 12.0 fps | latency 98, p95 118 ms | dropped 178"


def test_nothing_is_said_of_a_latency_that_is_not_known():
    assert "latency" not in status_text(READY, STREAM | {"latency_ms": {"p50": None, "p95": None}})


@pytest.mark.parametrize(
    ("status", "stream", "trouble", "words"),
    [
        (READY, STREAM, "Camera 0 is gone", "Camera 0 is gone | in 30.0"),
        (READY, STREAM | {"detail": "The paint ran out."}, None, "The paint ran out. | in 30.0"),
        (READY | {"compiled": "compiling", "detail": "Compiling", "progress": 0.5}, STREAM, None, "| Compiling 50%"),
        (READY, STREAM | {"quality": 1, "steps": 1}, None, "| too slow, so painted in 1 of 2 steps"),
        (READY, STREAM | {"quality": 2, "steps": 1, "scale": 0.75}, None, "painted in 1 of 2 steps at 75% of the size"),
        (READY, STREAM | {"quality": 2, "scale": 0.5}, None, "| too slow, so painted at 50% of the size"),
        (READY | {"state": "loading"}, STREAM, "Camera 0 is gone", "| Camera 0 is gone"),
    ],
)
def test_what_is_out_of_the_ordinary_is_told_too(status, stream, trouble, words):
    assert words in status_text(status, stream, trouble)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    monkeypatch.setattr(status_line.shutil, "get_terminal_size", lambda: os.terminal_size((21, 24)))
    return Terminal()


def test_a_terminal_shows_one_line_that_is_rewritten(terminal):
    line = StatusLine(terminal)
    line.show("a first state", 0.0)
    line.show("a second state that is far too long", 0.01)
    line.end()
    assert terminal.getvalue() == "a first state       \ra second state that \r\n"


def test_what_is_said_covers_the_line_and_stays(terminal):
    line = StatusLine(terminal)
    line.say("begin")
    line.show("state", 0.0)
    line.say("ready")
    line.end()
    assert terminal.getvalue() == "begin\nstate               \rready               \n"


def test_a_pipe_gets_a_line_now_and_then():
    pipe = io.StringIO()
    line = StatusLine(pipe)
    line.show("one", 100.0)
    line.show("two", 100.0 + PIPE_EVERY_S / 2)
    line.show("three", 100.0 + PIPE_EVERY_S)
    line.end()
    assert pipe.getvalue() == "one\nthree\n"


def test_a_reader_that_leaves_ends_nothing():
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as pipe:
        line = StatusLine(pipe)
        line.say("begin")
        line.show("state", 0.0)
        line.end()


def test_a_cameras_damaged_frames_are_not_told_and_other_words_are(capfd):
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    damaged = cv2.imencode(".jpg", picture)[1]
    damaged[len(damaged) // 2 :: 50] = 0xFF
    cv2.imdecode(damaged, cv2.IMREAD_COLOR)
    assert capfd.readouterr().err.startswith(NOISE[0].decode())
    with undisturbed():
        os.write(2, b"before\n")
        cv2.imdecode(damaged, cv2.IMREAD_COLOR)
        os.write(2, b"after\nunfinished")
    os.write(2, b", restored\n")
    erase = ERASE_TO_END.decode()
    assert capfd.readouterr().err == f"before{erase}\nafter{erase}\nunfinished, restored\n"
