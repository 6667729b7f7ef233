"""Frames of one stream on their way through the engine together, each a step behind the one before it."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Protocol

import numpy as np


class StreamBatch(Protocol):
    """What is asked of pipeline.sampling.stream_batch.StreamBatch."""

    def __call__(
        self, frames: np.ndarray | None = None, controls: Any = None, mask: Any = None
    ) -> np.ndarray | None: ...


class Flight:
    """Who is in a stream batch, oldest first; a job is whatever the caller knows a frame by.

    call_s: how long the last call took with all in it whom there are steps for; None where it was no such call. On a
    GPU only a call behind another that gave a picture out begins with nothing left to wait for.
    """

    def __init__(self, batch: StreamBatch):
        self._batch = batch
        self._jobs: deque[tuple[Any, float]] = deque()
        self._gave = False
        self.call_s: float | None = None

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def jobs(self) -> list[Any]:
        return [job for job, _ in self._jobs]

    def advance(self, steps: int, job: Any = None, **begins: Any) -> tuple[Any, Any, float] | None:
        """All one step on, with `job` among them if there is one, for which the stream batch is given `begins`: the job
        that is finished, its pictures, and for how many seconds it was in flight; None where none is finished yet.
        Raises what the engine raises."""
        started_s = time.monotonic()
        if job is not None:
            self._jobs.append((job, started_s))
        is_full = len(self._jobs) == steps
        pictures = self._batch(**begins)
        ended_s = time.monotonic()
        self.call_s = ended_s - started_s if is_full and self._gave else None
        self._gave = pictures is not None
        if pictures is None:
            return None
        done, entered_s = self._jobs.popleft()
        return done, pictures, ended_s - entered_s
