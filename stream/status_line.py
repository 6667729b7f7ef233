"""What a terminal shows while a stream runs: one line, rewritten in place; on a pipe a line every few seconds."""

from __future__ import annotations

import shutil
import sys
from typing import Any, TextIO

PIPE_EVERY_S = 5.0


def status_text(status: dict[str, Any], stream: dict[str, Any], trouble: str | None = None) -> str:
    """status: of the EngineRoom. stream: a Stream's snapshot. trouble: why no frames come in."""
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
    if stream["quality"]:
        parts.append(f"too slow for all steps: {stream['steps']} run")
    # What is wrong comes first: a narrow terminal cuts the end off.
    return " | ".join([*filter(None, (trouble, stream["detail"])), *parts])


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
            self._out.write(self._padded(text) + "\r")
            self._shown = True
        elif now_s >= self._next_s:
            self._next_s = now_s + PIPE_EVERY_S
            self._out.write(text + "\n")
        self._out.flush()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._out.write((self._padded(text) if self._shown else text) + "\n")
        self._shown = False
        self._out.flush()

    def end(self) -> None:
        """Leave the last state standing; what follows begins on a line of its own."""
        if self._shown:
            self._shown = False
            self._out.write("\n")
            self._out.flush()

    def _padded(self, text: str) -> str:
        columns = shutil.get_terminal_size().columns - 1
        return f"{text[:columns]:<{columns}}"
