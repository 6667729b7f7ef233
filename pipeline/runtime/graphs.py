"""Replay instead of launch: one CUDA graph for a whole batch, from uint8 pixels to uint8 pictures, or for a part of it.

Launching the thousand kernels of a frame from Python takes longer than a GPU needs for them. A graph is captured once
for each shape of its argument, on buffers that stay where they are; then a frame is a few copies into these buffers and
one launch. Whatever a viewer turns live (prompt, strength, seed, guidance, LoRA weights) is the contents of tensors, so
it captures nothing anew.

Capturing waits for the device and empties PyTorch's caches (torch.cuda.graph), which would hold up every stream. So no
call captures: it replays what is captured, or runs as it is and leaves word of its shape. Capturing has its own
moments: at the start, after a change of the engine, when the device idles (Stylizer.capture, capture_next).
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
GraphCapture = Callable[[Callable[[], Any]], Replay]
WARM_UP = 2  # runs before a capture: kernels are chosen, and libraries warm up, on the stream that captures
OFTEN = 4  # runs after which a shape has come to stay: while a camera finds its size, others pass
MOST_GRAPHS = 32  # of a function; the one that was not used for longest makes room, if it was used at all
MOST_SEEN = 64  # shapes that ran and are not captured, of which word is kept

_broken: list[torch.cuda.CUDAGraph] = []


def capture_on_cuda(work: Callable[[], Any], stream: torch.cuda.Stream, pool: Any) -> Replay:
    """Capture `work` on the stream's device. Nothing is computed until the first replay.

    Raises CaptureFailed where the capture breaks off; what `work` raises before it has begun; and OutOfMemoryError,
    which PyTorch's allocator raises by itself: that capture has then been ended in order.
    """
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device meanwhile: compiled code is being loaded, another stream's prompt encoded.
    capture = torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local")
    try:
        with torch.cuda.stream(stream), capture:  # which, where it fails, stays on its stream
            out = work()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _end(graph, stream.device, pool)
        raise CaptureFailed(f"Capturing a CUDA graph broke off: {first_line(error)}.") from error
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
    the engine is loaded anew and captures no more, and only a new process is certain.
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
class SeenShape:
    """A tree that ran and is not captured. blank: without its tensors' contents, so that it takes no memory.
    refused: it cannot be captured."""

    blank: Any
    layouts: tuple[Layout, ...]
    runs: int = 0
    refused: bool = False

    @classmethod
    def like(cls, tree: Any) -> SeenShape:
        copies = map(torch.empty_like, leaves(tree))
        layouts = tuple(Layout(each.shape, each.stride(), each.dtype, each.device) for each in copies)
        return cls(rebuilt(tree, (tensor.new_empty(0) for tensor in leaves(tree))), layouts)

    def tree(self) -> Any:
        """One of the same structure, of zeros."""
        return rebuilt(self.blank, (layout.zeros() for layout in self.layouts))


class Graphs:
    """paint(tree), replayed for every structure of `tree` that is captured; both it and the result are trees: nested
    dataclasses, tuples, mappings, tensors.

    capture(work) -> Replay. Results are the caller's own. One thread calls it.
    """

    def __init__(self, paint: TreeFunction, capture: GraphCapture):
        self._paint, self._capture = paint, capture
        self._captured: OrderedDict[Hashable, CapturedGraph] = OrderedDict()
        self._seen: OrderedDict[Hashable, SeenShape] = OrderedDict()

    @property
    def captured(self) -> int:
        """How many structures are."""
        return len(self._captured)

    @torch.inference_mode()
    def __call__(self, tree: Any) -> Any:
        key = structure(tree)
        if (capture := self._captured.get(key)) is not None:
            self._captured.move_to_end(key)
            return capture(tree)
        result = self._paint(tree)
        self._see(key, tree)
        return result

    def _see(self, key: Hashable, tree: Any) -> None:
        seen = self._seen.pop(key, None) or SeenShape.like(tree)
        seen.runs += 1
        self._seen[key] = seen
        if len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)

    def waiting(self, least_runs: int = OFTEN) -> int:
        """How many structures ran so often and could be captured."""
        return sum(seen.runs >= least_runs and not seen.refused for seen in self._seen.values())

    @torch.inference_mode()
    def capture_next(self, least_runs: int = OFTEN, makes_room: bool = True) -> bool:
        """Capture the structure that ran most often, of those that did so often; False when there is none, or no room.

        makes_room: may another that was replayed be let go for it? What cannot be captured goes on without, with a
        warning in the log. Raises CaptureFailed.
        """
        if not self.waiting(least_runs):
            return False
        oldest = None
        if len(self._captured) >= MOST_GRAPHS:
            oldest = next((key for key, capture in self._captured.items() if capture.replayed), None)
            if oldest is None or not makes_room:
                return False
        key = max(self._seen, key=lambda key: (not self._seen[key].refused, self._seen[key].runs))
        seen = self._seen[key]
        try:
            self._captured[key] = CapturedGraph(self._paint, seen.tree(), self._capture)
        except CaptureFailed:
            raise
        except RuntimeError as error:
            seen.refused, no_memory = True, is_out_of_memory(error)
            log.warning(
                "This work cannot be captured as a CUDA graph, it goes on without: %s", str(error)
            )  # not itself
        else:
            del self._seen[key]
            if oldest is not None:
                del self._captured[oldest]
            return True
        if no_memory:  # now that the error is gone, which holds what was made until then
            for device in {layout.device for layout in seen.layouts}:
                free_memory(device)
        return True


class CapturedGraph:
    """Work on buffers of its own: the tensors of `tree`."""

    def __init__(self, paint: TreeFunction, tree: Any, capture: GraphCapture):
        self._buffers = list(leaves(tree))
        self._given: Sequence[Tensor | None] = [None] * len(self._buffers)
        self.replayed = False
        self._replay, self._out = capture(lambda: paint(tree))

    def __call__(self, tree: Any) -> Any:
        given = list(leaves(tree))
        for buffer, new, last in zip(self._buffers, given, self._given, strict=True):
            if new is not last:  # a conditioning's tensors stay the same until a control changes
                buffer.copy_(new, non_blocking=True)
        self._given, self.replayed = given, True
        self._replay()
        return rebuilt(self._out, (tensor.clone() for tensor in leaves(self._out)))


def capture_in_one_pool(device: torch.device) -> GraphCapture:
    """Graphs that never run at the same time share their memory."""
    stream, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
    return lambda work: capture_on_cuda(work, stream, pool)
