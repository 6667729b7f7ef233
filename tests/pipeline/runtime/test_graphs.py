"""Graphs: what is captured and when, how much of it is kept, and what happens where capture fails."""

from __future__ import annotations

import weakref
from contextlib import contextmanager, nullcontext
from unittest.mock import MagicMock

import pytest
import torch

from pipeline.errors import CaptureFailed
from pipeline.runtime import graphs as graphs_module
from pipeline.runtime.graphs import MOST_GRAPHS, MOST_SEEN, OFTEN, Graphs, capture_on_cuda
from tests.pipeline.recorders import replayed


def captured(graphs, given):
    """Graphs that have captured what is given: it ran once as it is."""
    graphs(given)
    assert graphs.capture_next(1)
    return graphs


def test_what_is_captured_runs_on_memory_laid_out_as_a_copy_of_what_was_met():
    """Pixels are views, recipes of one stream are expanded: code may be made for their strides."""
    seen = []
    given = (torch.zeros(2, 8, 8, 3).permute(0, 3, 1, 2)[:, :, 1:5], torch.zeros(1, 3).expand(2, 3))
    graphs = captured(Graphs(lambda order: seen.append(order) or order[0] + 1, replayed), given)
    for ours, expected in zip(seen[-1], given, strict=True):
        assert ours.stride() == torch.empty_like(expected).stride()
    assert torch.equal(graphs((given[0] + 3, given[1])), torch.full((2, 3, 4, 8), 4.0))


def test_graphs_are_bounded_and_the_oldest_goes():
    captured = []

    def capture(work):
        captured.append(work)
        return replayed(work)

    graphs = Graphs(lambda order: order[0] + 1, capture)
    for size in range(1, MOST_GRAPHS + 2):
        graphs((torch.zeros(size),))
        assert graphs.capture_next(1)
        graphs((torch.zeros(size),))
    assert graphs.captured == MOST_GRAPHS
    for size in (MOST_GRAPHS + 1, 1):  # the first one's has made room: it runs as it is
        assert torch.equal(graphs((torch.zeros(size),)), torch.ones(size))
    assert graphs.waiting(1) == 1
    assert graphs.capture_next(1)
    assert len(captured) == MOST_GRAPHS + 2


def test_what_was_not_replayed_yet_makes_no_room():
    graphs = Graphs(lambda order: order[0] + 1, replayed)
    for size in range(1, MOST_GRAPHS + 4):
        for _ in range(MOST_GRAPHS + 4 - size):  # the smaller, the more often
            graphs((torch.zeros(size),))
    while graphs.capture_next(1, makes_room=False):
        pass
    assert (graphs.captured, graphs.waiting(1)) == (MOST_GRAPHS, 3)
    assert not graphs.capture_next(1), "nor when the device idles"
    graphs((torch.zeros(7),))
    assert not graphs.capture_next(1, makes_room=False)
    assert graphs.capture_next(1)
    graphs((torch.zeros(7),))
    assert (graphs.captured, graphs.waiting(1)) == (MOST_GRAPHS, 3), "the one that was replayed has gone"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_capture_that_runs_out_of_memory_leaves_none_behind(error, monkeypatch):
    left, freed = [], []

    def capture(work):
        half_done = torch.zeros(9)
        left.append(weakref.ref(half_done))
        raise error("it is no use")

    monkeypatch.setattr(graphs_module, "free_memory", lambda device: freed.append((str(device), left[-1]())))
    graphs = Graphs(lambda order: order[0] + 1, capture)
    graphs((torch.zeros(2),))
    assert graphs.capture_next(1)
    assert freed == ([("cpu", None)] if error is torch.OutOfMemoryError else [])


def test_word_of_shapes_is_bounded_and_takes_none_of_their_memory():
    graphs, refs = Graphs(lambda order: order[0] + 1, replayed), []
    for size in range(1, MOST_SEEN + 10):
        tensor = torch.zeros(size)
        refs.append(weakref.ref(tensor))
        graphs((tensor,))
    del tensor
    assert graphs.waiting(1) == MOST_SEEN
    assert not any(ref() is not None for ref in refs)


def test_a_shape_that_fails_is_not_captured():
    def paint(order):
        raise torch.OutOfMemoryError("out of memory")

    graphs = Graphs(paint, lambda work: pytest.fail("was begun"))
    for _ in range(OFTEN):
        with pytest.raises(torch.OutOfMemoryError):
            graphs((torch.zeros(2),))
    assert not graphs.capture_next()


def test_what_cannot_be_captured_goes_on_without_and_says_so_once(caplog):
    def refuse(work):
        raise RuntimeError("max looks at a value")

    graphs = Graphs(lambda order: order[0] + 1, refuse)
    for _ in range(OFTEN + 3):
        assert graphs((torch.zeros(2),)).tolist() == [1, 1]
        graphs.capture_next()
    assert [capture.message for capture in caplog.records] == [
        "This work cannot be captured as a CUDA graph, it goes on without: max looks at a value"
    ]


def test_a_capture_that_breaks_off_is_no_such_case():
    def broken(work):
        raise CaptureFailed("Capturing a CUDA graph broke off: operation not permitted.")

    graphs = Graphs(lambda order: order[0] + 1, broken)
    graphs((torch.zeros(2),))
    with pytest.raises(CaptureFailed):
        graphs.capture_next(1)


class Capturing:
    """torch.cuda, as far as a capture goes. fails: (where, with what): in the work, where it begins or ends."""

    def __init__(self, monkeypatch, fails=None, allocator_goes_on=True):
        self.told, self.fails, self.capturing = [], dict([fails] if fails else []), False
        self.stream = MagicMock(device=torch.device("cuda", 1))
        for name, fake in {"CUDAGraph": MagicMock, "graph": self.graph, "stream": nullcontext}.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.cuda, "current_stream", MagicMock())

        def end(*where):
            self.told.append(("end", *where))
            if not allocator_goes_on:
                raise RuntimeError("endAllocatePool: not currently capture to mempool_id")

        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
        release = lambda *where: self.told.append(("release", *where))  # noqa: E731
        monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        assert (stream, capture_error_mode) == (self.stream, "thread_local")
        self.at("begin")
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False
            self.at("end")

    def at(self, where):
        if where in self.fails:
            raise self.fails[where]

    def work(self):
        if self.capturing:
            self.at("work")
        return torch.zeros(2)


NOT_PERMITTED = torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")
ENDED = [("end", 1, (0, 7)), ("release", 1, (0, 7))]


@pytest.mark.parametrize("where", ["begin", "work", "end"])
def test_a_capture_that_breaks_off_is_ended_in_the_allocator_and_told(where, monkeypatch):
    cuda = Capturing(monkeypatch, (where, NOT_PERMITTED))
    with pytest.raises(CaptureFailed, match="operation not permitted"):
        capture_on_cuda(cuda.work, cuda.stream, (0, 7))
    assert cuda.told == ENDED


def test_an_allocator_that_ended_the_capture_itself_keeps_its_count(monkeypatch):
    cuda = Capturing(monkeypatch, ("end", NOT_PERMITTED), allocator_goes_on=False)
    with pytest.raises(CaptureFailed):
        capture_on_cuda(cuda.work, cuda.stream, (0, 7))
    assert cuda.told == ENDED[:1]


@pytest.mark.parametrize("where", [None, "work"])
def test_too_little_memory_breaks_no_capture_off(where, monkeypatch):
    cuda = Capturing(monkeypatch, where and (where, torch.OutOfMemoryError("CUDA out of memory")))
    if where is None:
        capture_on_cuda(cuda.work, cuda.stream, (0, 7))
    else:
        with pytest.raises(torch.OutOfMemoryError):
            capture_on_cuda(cuda.work, cuda.stream, (0, 7))
    assert cuda.told == []
