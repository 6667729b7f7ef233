"""How old is a frame when it is shown? The real engine thread, mailboxes and scheduler; an engine that only sleeps.

    python -m benchmarks.frame_age [--seconds 20] [--json FILE]

A publisher leaves 30 frames a second. The bound: 1.2 engine times plus one frame interval, however slow the engine.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.simulation import simulate
from pipeline import Controls, ModelSpec
from pipeline.capabilities import Capabilities
from pipeline.runtime.transfers import Pending
from pipeline.sampling.stream_batch import StreamBatch
from stream.engine.room import EngineRoom
from stream.streams import Streams

FPS_IN = 30.0
ENGINE_MS = (10, 33, 66, 100, 300)
WARM_UP_S = 1.0
FIRST_CALL_S = 0.5  # of a SleepingCard


class SleepingStylizer:
    """Takes `engine_s` a batch and returns what it got."""

    spec = ModelSpec("nothing", width=256, height=256)
    capabilities = Capabilities(256, 256)
    device, max_batch, scales = "cpu", 1, (1.0,)
    takes_i420 = runs_ahead = False

    def __init__(self, engine_s: float):
        self.engine_s = engine_s

    def record(self, controls: Controls, report) -> None:
        pass

    def record_next(self) -> bool:
        return False

    def free_memory(self) -> None:
        pass

    def shape_key(self, controls: Controls) -> int:
        return controls.steps

    def __call__(self, frames: np.ndarray, controls) -> np.ndarray:
        time.sleep(self.engine_s)
        return frames

    def stream_batch(self) -> StreamBatch:
        return StreamBatch(self)  # stays empty: it takes frames of two steps or more


class SleepingCard(SleepingStylizer):
    """The same beside its caller, as a GPU works: batches wait for each other, and calls for nothing. The first call of
    each size takes long."""

    takes_i420 = runs_ahead = True

    def __init__(self, engine_s: float):
        super().__init__(engine_s)
        self._free_s = 0.0
        self._known: set[int] = set()

    def live(self, frames: np.ndarray, controls, wait: bool = True):
        engine_s = self.engine_s if len(frames) in self._known else FIRST_CALL_S
        self._known.add(len(frames))
        ends_s = self._free_s = max(self._free_s, time.monotonic()) + engine_s
        planes = np.zeros((len(frames), frames.shape[1] * 3 // 2, frames.shape[2]), np.uint8)

        def pictures() -> tuple[np.ndarray, np.ndarray]:
            time.sleep(max(0.0, ends_s - time.monotonic()))
            return frames, planes

        return pictures() if wait else Pending(lambda: time.monotonic() >= ends_s, pictures)


class Publisher:
    kind = "benchmark"


def measure(engine_s: float, seconds: float) -> dict:
    """One stream for `seconds` through the running thread."""
    room = EngineRoom(lambda report: SleepingStylizer(engine_s))
    stream = Streams(room).get("benchmark")
    ages_s: list[float] = []
    started_s = time.monotonic()

    def show(picture) -> None:
        if time.monotonic() - started_s > WARM_UP_S:
            ages_s.append(time.monotonic() - picture.arrived_s)

    stream.watch(show)
    room.start()
    room.wait_settled(10)
    publication, _ = stream.publish(Publisher())
    frame = np.zeros((256, 256, 3), np.uint8)
    started_s = time.monotonic()
    number, pause = 0, threading.Event()
    while time.monotonic() - started_s < seconds + WARM_UP_S:
        publication.put(frame)
        number += 1
        pause.wait(max(0.0, started_s + number / FPS_IN - time.monotonic()))
    room.close()
    counters = stream.snapshot()
    in_flight = counters["frames_in"] - counters["frames_out"] - counters["frames_dropped"]
    simulated = [shown.age_s for shown in simulate(engine_s, fps_in=FPS_IN, duration_s=seconds).shown]
    bound_ms = 1000 * (1.2 * engine_s + 1 / FPS_IN)
    return {
        "engine ms": round(1000 * engine_s),
        "in": counters["frames_in"],
        "out": counters["frames_out"],
        "dropped": counters["frames_dropped"],
        "in flight": in_flight,
        "age p50 ms": 1000 * report.percentile(ages_s, 50),
        "age p95 ms": 1000 * report.percentile(ages_s, 95),
        "age max ms": 1000 * max(ages_s),
        "simulated max ms": 1000 * max(simulated),
        "bound ms": bound_ms,
        "within": "yes" if 1000 * max(ages_s) <= bound_ms else "no",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [measure(engine_ms / 1000, options.seconds) for engine_ms in ENGINE_MS]
    about = {**report.machine("cpu"), "fps in": FPS_IN, "seconds": options.seconds}
    report.publish("Frame age at the output, 30 fps in", about, rows, options.json)


if __name__ == "__main__":
    main()
