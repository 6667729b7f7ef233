"""Stand-ins for the engine: they have the Stylizer's shape, and faults and pace that a test can set."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from pipeline.batch import Batch, Pending, Pictures, there
from pipeline.capabilities import Capabilities, lora_weights, paints, shape_key
from pipeline.settings import Controls

SIZE = 64


class Flying:
    """A batch that is at several steps behind others. pictures: once it has taken all of them."""

    def __init__(self, batch: Batch):
        self.batch, self.steps_left = batch, batch.controls[0].steps
        self.pictures: Pictures | None = None
        self.error: BaseException | None = None


class FakeStylizer:
    """Paints each frame's mean colour over the whole picture, red and blue swapped unless `bypass`.

    What it imagines is as light as the seed says. A prompt of "fail" raises; `gate` (an Event) holds every call up
    until it is set; `calls` keeps the controls, `imagined` those without a picture. Of batches with `behind` every step
    is a call. `captured` keeps what shapes were captured for, `swept` how often memory was freed. Others override
    `paint`, which paints a batch by itself.
    """

    device = "fake"
    capabilities = Capabilities(SIZE, SIZE, loras={"ink": 0.55})
    takes_i420 = runs_ahead = False

    def __init__(self, engine_s: float = 0.0, max_batch: int = 1):
        self.engine_s, self.max_batch = engine_s, max_batch
        self.scales: tuple[float, ...] = (1.0,)
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[tuple[Controls, ...]] = []
        self.imagined: list[Controls] = []
        self.captured: list[Controls] = []
        self.swept = 0
        self.flight: list[Flying] = []

    def capture(self, controls: Controls, report) -> None:
        self.captured.append(controls)

    def capture_next(self) -> bool:
        return False

    def free_memory(self) -> None:
        self.swept += 1

    def stands_at(self, controls: Controls) -> bool:
        """Whether the last call was for the same weights."""
        last = self.calls[-1][0] if self.calls else Controls()
        return lora_weights(self.capabilities, last) == lora_weights(self.capabilities, controls)

    def depth(self, controls: Controls) -> int:
        return controls.steps if paints(controls) and not controls.reuse else 1

    def forget(self, streams=None) -> None:
        if streams is None:
            self.flight = []

    def submit(self, batch: Batch) -> Pending[Pictures]:
        passes_through = batch.frames is not None and not paints(batch.controls[0])
        if self.flight and not passes_through and (not batch.behind or _key(self.flight[0].batch) != _key(batch)):
            self._finish()
        if not batch.behind:
            return there(self.paint(batch))
        flying = Flying(batch)
        self.flight.append(flying)
        self.step()
        return Pending(lambda: flying.pictures is not None, lambda: self._result(flying))

    def paint(self, batch: Batch) -> Pictures:
        if batch.frames is None:
            self.imagined.extend(batch.controls)
        self.work(batch.controls)
        return self.painted(batch)

    def step(self) -> None:
        """All under way at once."""
        try:
            self.work([one.batch.controls[0] for one in self.flight])
        except BaseException as error:
            for one in self.flight:
                one.error = error
            self.flight = []
            raise
        for one in self.flight:
            one.steps_left -= 1
        if not self.flight[0].steps_left:
            done = self.flight.pop(0)
            done.pictures = self.painted(done.batch)

    def _finish(self) -> None:
        while self.flight:
            self.step()

    def _result(self, flying: Flying) -> Pictures:
        while flying.pictures is None and flying.error is None:
            self.step()
        if flying.error is not None:
            raise flying.error
        return flying.pictures

    def painted(self, batch: Batch) -> Pictures:
        if batch.frames is None:
            return Pictures(np.stack([np.full((SIZE, SIZE, 3), one.seed, np.uint8) for one in batch.controls]))
        means = batch.frames.mean(axis=(1, 2)).round().astype(np.uint8)
        colours = np.stack([m if one.bypass else m[::-1] for m, one in zip(means, batch.controls, strict=True)])
        return Pictures(np.broadcast_to(colours[:, None, None, :], (len(means), SIZE, SIZE, 3)).copy())

    def work(self, controls: Sequence[Controls]) -> None:
        self.gate.wait(20)
        self.calls.append(tuple(controls))
        if self.engine_s:
            time.sleep(self.engine_s)
        if any(one.prompt == "fail" for one in controls):
            raise RuntimeError("The paint ran out.")


def _key(batch: Batch) -> tuple:
    return batch.streams, shape_key(FakeStylizer.capabilities, batch.controls[0]), batch.mask is None


def solid(red: int, green: int, blue: int, size: int = 48) -> np.ndarray:
    """uint8 [size, size, 3] of one colour."""
    return np.full((size, size, 3), (red, green, blue), np.uint8)
