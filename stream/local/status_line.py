"""The terminal's status line while a stream runs: rewritten in place; on a pipe a line every few seconds."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

PIPE_EVERY_S = 5.0
NOISE = (b"Corrupt JPEG data: ", b"Premature end of JPEG file")  # libjpeg's word on damaged frames; webcams send many
ERASE_TO_END = b"\x1b[K"


def status_text(status: dict[str, Any], stream: dict[str, Any], trouble: str | None = None) -> str:
    """status: of the EngineRunner. stream: a Stream's snapshot. trouble: why no frames come in."""
    if status["state"] != "ready":
        parts = [f"{status['state']} {status['model']} on {status['device']}: {_progress(status)}"]
        return " | ".join([*parts, trouble] if trouble else parts)
    latency = stream["latency_ms"]
    parts = [f"in {stream['fps_in']:.1f} out {stream['fps_out']:.1f} fps"]
    if latency["p50"] is not None:
        parts.append(f"latency {latency['p50']:.0f}, p95 {latency['p95']:.0f} ms")
    parts.append(f"dropped {stream['frames_dropped']}")
    if status["compiled"] == "compiling":
        parts.append(_progress(status))
    if less := _lowered(stream):
        parts.append(f"too slow, so painted {less}")
    # What is wrong comes first: a narrow terminal cuts the end off.
    return " | ".join([*filter(None, (trouble, stream["detail"])), *parts])


def _lowered(stream: dict[str, Any]) -> str:
    """What is taken off by itself; empty while nothing is."""
    less = [f"in {stream['steps']} of {stream['steps_asked']} steps"] if stream["steps"] < stream["steps_asked"] else []
    return " ".join([*less, f"at {stream['scale']:.0%} of the size"] if stream["scale"] < 1 else less)


def _progress(status: dict[str, Any]) -> str:
    detail = status["detail"].rstrip(".")
    return detail if status["progress"] is None else f"{detail} {status['progress']:.0%}"


class StatusLine:
    """Each line in place ends with a carriage return, so that what others print begins at its start."""

    def __init__(self, out: TextIO | None = None):
        self._out = sys.stdout if out is None else out
        self._in_place = self._out.isatty()
        self._shown = False
        self._next_s = float("-inf")

    def show(self, text: str, now_s: float) -> None:
        """text: the state by now. now_s: time.monotonic()."""
        if self._in_place:
            self._write(self._padded(text) + "\r")
            self._shown = True
        elif now_s >= self._next_s:
            self._next_s = now_s + PIPE_EVERY_S
            self._write(text + "\n")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._write((self._padded(text) if self._shown else text) + "\n")
        self._shown = False

    def end(self) -> None:
        """Leave the last state standing; what follows begins on a line of its own."""
        if self._shown:
            self._shown = False
            self._write("\n")

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except BrokenPipeError:  # whoever read it has left: the pictures go on
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())

    def _padded(self, text: str) -> str:
        columns = shutil.get_terminal_size().columns - 1
        return f"{text[:columns]:<{columns}}"


@contextlib.contextmanager
def undisturbed(stderr: int = 2) -> Iterator[None]:
    """Within, other lines on the terminal `stderr` leave nothing of the status line beside them, and NOISE is left out.

    Libraries in C write there, so it is the process's stderr that is led through a pipe.
    """
    terminal = os.dup(stderr)
    read_end, write_end = os.pipe()
    os.dup2(write_end, stderr)
    os.close(write_end)
    passing = threading.Thread(target=_pass_on, args=(read_end, terminal), name="stderr", daemon=True)
    passing.start()
    try:
        yield
    finally:
        os.dup2(terminal, stderr)
        passing.join(1.0)  # longer only where a child process still holds the pipe


def _pass_on(read_end: int, terminal: int) -> None:
    with open(read_end, "rb") as lines:
        for line in lines:
            if not line.startswith(NOISE):
                os.write(terminal, line.replace(b"\n", ERASE_TO_END + b"\n"))
    os.close(terminal)
