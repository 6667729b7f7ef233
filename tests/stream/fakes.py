"""Stand-ins for the engine: they have the Stylizer's shape, and faults and pace that a test can set."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from pipeline.capabilities import Capabilities, lora_weights
from pipeline.sampling.stream_batch import StreamBatch
from pipeline.settings import Controls

SIZE = 64


class FakeStylizer:
    """Paints each frame's mean colour over the whole picture, red and blue swapped unless `bypass`.

    What it imagines is as light as the seed says. A prompt of "fail" raises; `gate` (an Event) holds every call up
    until it is set; `calls` keeps the controls, `imagined` those without a picture. In a stream batch every step is a
    call. `recorded` keeps what shapes were recorded for, `swept` how often memory was freed.
    """

    device = "fake"
    capabilities = Capabilities(SIZE, SIZE, loras={"ink": 0.55})
    takes_i420 = runs_ahead = False

    def __init__(self, engine_s: float = 0.0, max_batch: int = 1):
        self.spec = SimpleNamespace(width=SIZE, height=SIZE)
        self.engine_s, self.max_batch = engine_s, max_batch
        self.scales: tuple[float, ...] = (1.0,)
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[tuple[Controls, ...]] = []
        self.imagined: list[Controls] = []
        self.recorded: list[Controls] = []
        self.swept = 0

    def record(self, controls: Controls, report) -> None:
        self.recorded.append(controls)

    def record_next(self) -> bool:
        return False

    def free_memory(self) -> None:
        self.swept += 1

    def stands_at(self, controls: Controls) -> bool:
        """Whether the last call was for the same weights."""
        last = self.calls[-1][0] if self.calls else Controls()
        return lora_weights(self.capabilities, last) == lora_weights(self.capabilities, controls)

    def shape_key(self, controls: Controls):
        return controls.steps, controls.bypass

    def __call__(self, frames: np.ndarray, controls, mask: np.ndarray | None = None) -> np.ndarray:
        self._work(controls)
        return self._painted(frames, controls)

    def stream_batch(self) -> StreamBatch:
        return StreamBatch(self)

    def begin(self, frames: np.ndarray, controls: Controls, mask=None, live=False) -> SimpleNamespace:
        assert not live
        key = (self.shape_key(controls), mask is None)
        return SimpleNamespace(key=key, steps_left=controls.steps, frames=frames, controls=controls)

    def advance(self, flight: Sequence[SimpleNamespace]) -> list[SimpleNamespace]:
        self._work([one.controls for one in flight])
        return [SimpleNamespace(**{**vars(one), "steps_left": one.steps_left - 1}) for one in flight]

    def finish(self, done: SimpleNamespace) -> np.ndarray:
        return self._painted(done.frames, [done.controls])

    def _painted(self, frames: np.ndarray, controls: Sequence[Controls]) -> np.ndarray:
        means = frames.mean(axis=(1, 2)).round().astype(np.uint8)
        painted = np.stack([m if one.bypass else m[::-1] for m, one in zip(means, controls, strict=True)])
        return np.broadcast_to(painted[:, None, None, :], (len(frames), SIZE, SIZE, 3)).copy()

    def imagine(self, controls: Controls, count: int = 1) -> np.ndarray:
        self.imagined.append(controls)
        self._work([controls])
        return np.stack([np.full((SIZE, SIZE, 3), controls.seed + i, np.uint8) for i in range(count)])

    def _work(self, controls: Sequence[Controls]) -> None:
        self.gate.wait(20)
        self.calls.append(tuple(controls))
        if self.engine_s:
            time.sleep(self.engine_s)
        if any(one.prompt == "fail" for one in controls):
            raise RuntimeError("The paint ran out.")


def solid(red: int, green: int, blue: int, size: int = 48) -> np.ndarray:
    """uint8 [size, size, 3] of one colour."""
    return np.full((size, size, 3), (red, green, blue), np.uint8)
