"""An engine that paints in another thread or process: what is submitted is plain data, and it serves all the same."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import fields
from functools import cache, partial

import numpy as np
import pytest
from av import VideoFrame

from masks import Mask
from pipeline import PRESETS, load
from pipeline.batch import Batch, Pending, Pictures
from pipeline.settings import Controls
from tests.stream.fakes import FakeStylizer, solid

from .harness import PATIENCE_S, TakesI420, wait_for


def test_all_that_is_submitted_survives_being_pickled(house):
    class Pickles(TakesI420):
        """Paints from the copy."""

        submitted: tuple[Batch, ...] = ()

        def submit(self, batch):
            copy = pickle.loads(pickle.dumps(batch))
            assert type(copy) is Batch
            for field in fields(Batch):
                assert np.array_equal(getattr(copy, field.name), getattr(batch, field.name)), field.name
            self.submitted += (copy,)
            return super().submit(copy)

    one = house(Pickles(max_batch=4))
    feeds = {name: one.open(name) for name in ("webcam", "camera", "masked", "words", "many")}
    feeds["masked"][0].set_mask(Mask(np.full((8, 8), 255, np.uint8)))
    feeds["many"][0].set_controls(Controls(lora_weights={"ink": 0.5}, guidance=2.0, reuse=2))
    webcam = VideoFrame.from_ndarray(solid(200, 100, 50), format="rgb24").reformat(format="yuv420p")
    sources = {"webcam": webcam, "masked": webcam, "words": None}
    one.occupy()
    for name, (_, publication, _) in feeds.items():
        publication.put(sources.get(name, solid(200, 100, 50)))
    one.stylizer.gate.set()
    for stream, _, shown in feeds.values():
        assert shown.take(PATIENCE_S) is not None, stream.fault
    assert {name for batch in one.stylizer.submitted for name in batch.streams} == {*feeds, "occupant"}


def test_what_is_known_of_a_model_survives_being_pickled():
    model = load(PRESETS["mini"], device="cpu", compile=False).capabilities
    assert pickle.loads(pickle.dumps(model)) == model


@cache
def painter() -> FakeStylizer:
    return FakeStylizer()


def paint(batch: Batch) -> Pictures:
    return painter().paint(batch)


class Elsewhere(FakeStylizer):
    """Has its batches painted by a pool of one worker."""

    runs_ahead = True

    def __init__(self, pool: Executor):
        super().__init__(max_batch=4)
        self.pool = pool

    def depth(self, controls):
        return 1

    def submit(self, batch):
        future = self.pool.submit(paint, batch)
        return Pending(future.done, future.result)


def test_a_fault_that_is_told_with_the_pictures_harms_no_other_of_the_batch(house):
    with ThreadPoolExecutor(1) as workers:
        one = house(Elsewhere(workers), budget_s=60.0)
        feeds = [one.open(name) for name in "abc"]
        feeds[0][0].set_controls(Controls(prompt="fail"))
        for level in range(10, 60, 10):
            for _, publication, _ in feeds:
                publication.put(solid(level, 0, 0))
            for stream, _, shown in feeds[1:]:
                assert shown.take(PATIENCE_S) is not None, stream.fault
            wait_for(lambda: feeds[0][0].fault == "The paint ran out.")
        assert [one.settle(stream)["frames_out"] for stream, _, _ in feeds] == [0, 5, 5]
        assert [one.settle(stream)["frames_dropped"] for stream, _, _ in feeds] == [5, 0, 0]
        one.engine.close()


def test_what_is_remembered_of_a_stream_goes_with_it(house):
    forgotten = []

    class Remembers(FakeStylizer):
        def forget(self, streams=None):
            forgotten.append(streams)
            super().forget(streams)

    one = house(Remembers())
    stream, publication, shown = one.open("a")
    publication.put(solid(1, 2, 3))
    assert shown.take(PATIENCE_S) is not None
    one.engine.detach(stream)
    wait_for(lambda: ("a",) in forgotten)


@pytest.mark.parametrize(
    "pool", [ThreadPoolExecutor, partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("spawn"))]
)
def test_an_engine_in_another_thread_or_process_serves_streams(house, pool):
    with pool(1) as workers:
        one = house(Elsewhere(workers), budget_s=60.0)  # on a busy machine a process takes a while to start
        feeds = [one.open(name) for name in "abc"]
        feeds[1][0].set_mask(Mask(np.concatenate([np.zeros((8, 4)), np.full((8, 4), 255)], 1).astype(np.uint8)))
        for level in range(10, 60, 10):
            for _, publication, _ in feeds:
                publication.put(solid(level, 0, 0))
            for _, _, shown in feeds:
                assert shown.take(6 * PATIENCE_S).rgb[0, -1, 2] == level
        assert tuple(feeds[1][0].last_picture.rgb[0, 0]) == (50, 0, 0), "outside the mask the source stays"
        faulty, publication, _ = feeds[2]
        faulty.set_controls(Controls(prompt="fail"))
        publication.put(solid(1, 0, 0))
        wait_for(lambda: faulty.fault == "The paint ran out.")
        assert [one.settle(stream)["frames_out"] for stream, _, _ in feeds] == [5, 5, 5]
        if isinstance(workers, ProcessPoolExecutor):
            assert workers.submit(os.getpid).result() != os.getpid()
        one.engine.close()
