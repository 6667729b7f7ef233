"""An engine with its streams, in one process and without a network; engines that behave as others do."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import cv2
import numpy as np

from pipeline.batch import Pending, Pictures
from pipeline.capabilities import paints
from stream.engine.i420 import to_i420
from stream.engine.mailbox import Mailbox
from stream.engine.runner import EngineRunner
from stream.streams import Streams
from tests.stream.fakes import FakeStylizer, solid

PATIENCE_S = 10.0


class Source:
    kind = "test"


class Harness:
    """An engine, its streams, and shorthands."""

    def __init__(self, stylizer=None, *, load=None, **options):
        self.stylizer = stylizer or FakeStylizer()
        self.engine = EngineRunner(load or (lambda report: self.stylizer), model="fake", **options)
        self.streams = Streams(self.engine)
        self.engine.start()

    def open(self, name):
        stream, shown = self.streams.get(name), Mailbox()
        stream.watch(shown.put)
        return stream, stream.publish(Source())[0], shown

    def occupy(self):
        """Hold the engine up with a frame of another stream: what is put now lies in the slots until the gate opens."""
        stream, publication, _ = self.open("occupant")
        self.stylizer.gate.clear()
        publication.put(solid(1, 1, 1))
        wait_for(lambda: stream.mailbox.peek() is None)

    def settle(self, stream):
        """Wait until nothing of the stream is in flight."""
        wait_for(lambda: in_flight(stream) == 0)
        return stream.snapshot()


def in_flight(stream):
    stats = stream.snapshot()
    return stats["frames_in"] - stats["frames_out"] - stats["frames_dropped"]


def wait_for(condition):
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.005)


def accounts(stream):
    stats = stream.snapshot()
    assert stats["frames_in"] == stats["frames_out"] + stats["frames_dropped"] + stats["in_flight"]
    return stats


def works(one):
    """What was measured: by what was run, the numbers of batches of one frame."""
    now_s = time.monotonic()
    return {work: len(times.of(1, now_s)) for work, times in one.engine._loop.batch_times.items() if times.of(1, now_s)}


def hold(one, stream, publication, red):
    """Stop the engine with this frame in hand."""
    one.stylizer.gate.clear()
    publication.put(solid(red, 0, 0))
    wait_for(lambda: stream.mailbox.peek() is None)


class TakesI420(FakeStylizer):
    """Like the real one on CUDA; `came` keeps the shapes of frames."""

    takes_i420 = True

    def __init__(self, **options):
        super().__init__(**options)
        self.came = []

    def painted(self, batch):
        if batch.frames is None or batch.mask is not None:
            return super().painted(batch)
        if paints(batch.controls[0]):
            self.came.append(batch.frames.shape)
        rgb = super().painted(replace(batch, frames=in_rgb(batch.frames))).rgb
        return Pictures(rgb, np.stack([to_i420(one) for one in rgb]))


def in_rgb(frames):
    return frames if frames.ndim == 4 else np.stack([cv2.cvtColor(one, cv2.COLOR_YUV2RGB_I420) for one in frames])


class AheadStylizer(TakesI420):
    """Like the real one on CUDA, too: `submit` returns at once, and its pictures are there when `ready` is set.

    `told` keeps what was launched and what was waited for, by prompt.
    """

    runs_ahead = True

    def __init__(self, **options):
        super().__init__(**options)
        self.told: list[str] = []
        self.ready = threading.Event()
        self.ready.set()
        self.fails = ""

    def submit(self, batch):
        name = " and ".join(one.prompt for one in batch.controls)
        self.told.append(f"launched {name}")
        pictures = self.paint(batch)

        def when_ready():
            self.told.append(f"waiting for {name}")
            self.ready.wait(PATIENCE_S)
            if name == self.fails:
                raise RuntimeError("The card was lost.")
            return pictures

        return Pending(self.ready.is_set, when_ready)


class TheEnd(SystemExit):
    pass


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""
