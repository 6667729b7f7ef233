"""Replay instead of launch: one CUDA graph for a whole batch, from uint8 pixels to uint8 pictures, or for a part of it.

Launching the thousand kernels of a frame from Python takes longer than a GPU needs for them. A graph is recorded once
for each shape of order, on buffers that stay where they are; then a frame is a few copies into these buffers and one
launch. Whatever a viewer turns live (prompt, strength, seed, guidance, LoRA weights) is the contents of tensors, so it
records nothing anew.

Recording waits for the device and empties PyTorch's caches (torch.cuda.graph), which would hold up every stream. So no
call records: it replays what is recorded, or runs as it is and leaves word of its shape. Recording has its own moments:
at the start, after a change of the engine, when the device idles (Stylizer.record, record_next).
"""

from __future__ import annotations

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.errors import CaptureFailed, first_line, is_out_of_memory
from pipeline.trees import TreeFunction, leaves, rebuilt, structure

from .devices import free_memory

log = logging.getLogger(__name__)

Replay = tuple[Callable[[], object], Any]  # what runs it again, and where the result, tensors, then lies
Record = Callable[[Callable[[], Any]], Replay]
WARM_UP = 2  # runs before a recording: kernels are chosen, and libraries warm up, on the stream that records
OFTEN = 4  # runs after which a shape has come to stay: while a camera finds its size, others pass
MOST_GRAPHS = 32  # of a way; the one that was not used for longest makes room, if it was used at all
MOST_MET = 64  # shapes that ran and are not recorded, of which word is kept

_broken: list[torch.cuda.CUDAGraph] = []


def record_on_cuda(work: Callable[[], Any], stream: torch.cuda.Stream, pool: Any) -> Replay:
    """Record `work` on the stream's device. Nothing is computed until the first replay.

    Raises CaptureFailed where the capture breaks off; what `work` raises before it has begun; and OutOfMemoryError,
    which PyTorch's allocator raises by itself: that capture has then been ended in order.
    """
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device meanwhile: compiled code is being loaded, another stream's prompt encoded.
    recording = torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local")
    try:
        with torch.cuda.stream(stream), recording:  # which, where it fails, stays on its stream
            out = work()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _end(graph, stream.device, pool)
        raise CaptureFailed(f"Recording a CUDA graph broke off: {first_line(error)}.") from error
    return graph.replay, out


def _end(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    """End what a capture that broke off has begun, as far as PyTorch lets one.

    Read in the sources of about 2.13: where the driver refuses to end a capture, capture_end() raises before it tells
    the two caching allocators. That of the device is told here, so that it routes nothing more into the pool, which may
    go once nothing lies in it. That of pinned memory cannot be told from Python. It should only look a little longer
    with each allocation, at a function of this very graph, which therefore stays.

    Not known: 2.13 counts captures under way besides (markCaptureBegin in CUDACachingAllocator.h), which nothing in
    Python lowers. Should capture_end() raise before it does, memory that several streams have used, as every uploaded
    frame, is never given out again, and grows. Nor what else a driver leaves behind: nobody has seen it on a card. So
    the engine is loaded anew and records no more, and only a new process is certain.
    """
    _broken.append(graph)
    try:
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
    except RuntimeError as error:  # capture_end() had told it: then the pool is the graph's own affair
        log.debug("The allocator knows of no such capture: %s", error)


class Layout(NamedTuple):
    """Of one tensor, as a copy of it would lie."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def zeros(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device).zero_()


@dataclasses.dataclass
class Met:
    """An order that ran and is not recorded. blank: without its tensors' contents, so that it takes no memory.
    refused: it cannot be recorded."""

    blank: Any
    layouts: tuple[Layout, ...]
    runs: int = 0
    refused: bool = False

    @classmethod
    def like(cls, order: Any) -> Met:
        copies = map(torch.empty_like, leaves(order))
        layouts = tuple(Layout(each.shape, each.stride(), each.dtype, each.device) for each in copies)
        return cls(rebuilt(order, (tensor.new_empty(0) for tensor in leaves(order))), layouts)

    def order(self) -> Any:
        """One of the same structure, of zeros."""
        return rebuilt(self.blank, (layout.zeros() for layout in self.layouts))


class Graphs:
    """paint(order), replayed for every structure of `order` that is recorded; both it and the result are trees: nested
    dataclasses, tuples, mappings, tensors.

    record(work) -> Replay. Results are the caller's own. One thread calls it.
    """

    def __init__(self, paint: TreeFunction, record: Record):
        self._paint, self._record = paint, record
        self._recordings: OrderedDict[Hashable, RecordedGraph] = OrderedDict()
        self._met: OrderedDict[Hashable, Met] = OrderedDict()

    @property
    def recorded(self) -> int:
        """How many structures are."""
        return len(self._recordings)

    @torch.inference_mode()
    def __call__(self, order: Any) -> Any:
        key = structure(order)
        if (recording := self._recordings.get(key)) is not None:
            self._recordings.move_to_end(key)
            return recording(order)
        result = self._paint(order)
        self._meet(key, order)
        return result

    def _meet(self, key: Hashable, order: Any) -> None:
        met = self._met.pop(key, None) or Met.like(order)
        met.runs += 1
        self._met[key] = met
        if len(self._met) > MOST_MET:
            self._met.popitem(last=False)

    def waiting(self, least_runs: int = OFTEN) -> int:
        """How many structures ran so often and could be recorded."""
        return sum(met.runs >= least_runs and not met.refused for met in self._met.values())

    @torch.inference_mode()
    def record_next(self, least_runs: int = OFTEN, makes_room: bool = True) -> bool:
        """Record the structure that ran most often, of those that did so often; False when there is none, or no room.

        makes_room: may another that was replayed be let go for it? What cannot be recorded goes on without, with a
        warning in the log. Raises CaptureFailed.
        """
        if not self.waiting(least_runs):
            return False
        oldest = None
        if len(self._recordings) >= MOST_GRAPHS:
            oldest = next((key for key, recording in self._recordings.items() if recording.replayed), None)
            if oldest is None or not makes_room:
                return False
        key = max(self._met, key=lambda key: (not self._met[key].refused, self._met[key].runs))
        met = self._met[key]
        try:
            self._recordings[key] = RecordedGraph(self._paint, met.order(), self._record)
        except CaptureFailed:
            raise
        except RuntimeError as error:
            met.refused, no_memory = True, is_out_of_memory(error)
            log.warning(
                "This work cannot be recorded as a CUDA graph, it goes on without: %s", str(error)
            )  # not itself
        else:
            del self._met[key]
            if oldest is not None:
                del self._recordings[oldest]
            return True
        if no_memory:  # now that the error is gone, which holds what was made until then
            for device in {layout.device for layout in met.layouts}:
                free_memory(device)
        return True


class RecordedGraph:
    """Work on buffers of its own: the tensors of `order`."""

    def __init__(self, paint: TreeFunction, order: Any, record: Record):
        self._buffers = list(leaves(order))
        self._given: Sequence[Tensor | None] = [None] * len(self._buffers)
        self.replayed = False
        self._replay, self._out = record(lambda: paint(order))

    def __call__(self, order: Any) -> Any:
        given = list(leaves(order))
        for buffer, new, last in zip(self._buffers, given, self._given, strict=True):
            if new is not last:  # a conditioning's tensors stay the same until a control changes
                buffer.copy_(new, non_blocking=True)
        self._given, self.replayed = given, True
        self._replay()
        return rebuilt(self._out, (tensor.clone() for tensor in leaves(self._out)))


def record_in_one_pool(device: torch.device) -> Record:
    """Graphs that never run at the same time share their memory."""
    stream, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
    return lambda work: record_on_cuda(work, stream, pool)
