"""Sources of live frames without a browser: what a camera, or a file that plays as one, has to be."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class CameraError(Exception):
    """There are no frames to be had from there; one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Captured:
    """One frame. `media_s` is its time on the source's own clock, None where it has none."""

    rgb: np.ndarray  # uint8 [H, W, 3]
    media_s: float | None


class Source(Protocol):
    """A camera, used by one thread. `name` begins sentences; `address` tells two apart."""

    name: str
    address: str
    rate_hz: float

    def read(self, closing: threading.Event) -> Captured | None:
        """The next frame, as soon as there is one or `closing` is set; None once the source is gone."""

    def close(self) -> None: ...
