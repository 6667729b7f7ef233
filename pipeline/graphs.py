"""Replay instead of launch: one CUDA graph for a whole batch, from uint8 pixels to uint8 pictures, or for a part of it.

Launching the thousand kernels of a frame from Python takes longer than a GPU needs for them. A graph is recorded once
for each shape of order, on buffers that stay where they are; then a frame is a few copies into these buffers and one
launch. Whatever a viewer turns live (prompt, strength, seed, guidance, LoRA weights) is the contents of tensors, so it
records nothing anew.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

log = logging.getLogger(__name__)

Way = Callable[[Any], Any]  # of a tree of tensors
Replay = tuple[Callable[[], object], Any]  # what runs it again, and where the result, tensors, then lies
Record = Callable[[Callable[[], Any]], Replay]
FIRST_RUNS = 2  # run as they are: kernels are chosen and libraries warm up, and a passing shape is not worth a graph
MOST_GRAPHS = 16  # the one that was not used for longest makes room


def record_on_cuda(work: Callable[[], Any], stream: torch.cuda.Stream, pool: Any = None) -> Replay:
    """Record `work` on the stream's device. Nothing is computed until the first replay."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device meanwhile: compiled code is being loaded, another stream's prompt encoded.
    recording = torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local")
    with torch.cuda.stream(stream), recording:  # which, where it fails, stays on its stream
        out = work()
    return graph.replay, out


class NeverWaiting(TorchDispatchMode):
    """Within, an operation that would wait for the device raises RuntimeError: one that looks at a value, or moves a
    tensor between host and device."""

    LOOKS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})
    INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)
    COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, kind = kwargs or {}, func.overloadpacket
        if kind in self.INDEXING:
            looks = any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
        else:
            looks = not self.LOOKS.isdisjoint(func.tags)
        if looks:
            raise RuntimeError(f"{func} looks at a value")
        if kind in self.COPIES:
            places = {one.device.type for one in args if isinstance(one, Tensor)}
            if len(places | {(kwargs.get("device") or args[0].device).type}) > 1:
                raise RuntimeError(f"{func} moves a tensor between host and device")
        if func.namespace == "aten" and func._can_decompose():
            with self:  # in inference mode an operation comes here before the ones it is made of
                return func.decompose(*args, **kwargs)
        return func(*args, **kwargs)


def unless_it_waits(record: Record) -> Record:
    """For work that is not ours: run it once, and record only what never waits. A capture that the driver breaks off at
    a wait leaves PyTorch's allocator as if it still went on, so it must not come to that."""

    def watched(work: Callable[[], Any]) -> Replay:
        with NeverWaiting():
            work()
        return record(work)

    return watched


class Graphs:
    """paint(order), recorded for every structure of `order`; both it and the result are trees: nested dataclasses,
    tuples, mappings, tensors.

    record(work) -> Replay. Results are the caller's own. One thread calls it.
    """

    def __init__(self, paint: Way, record: Record):
        self._paint, self._record = paint, record
        self._known: OrderedDict[Hashable, int | Recording] = OrderedDict()

    @torch.inference_mode()
    def __call__(self, order: Any) -> Any:
        key = structure(order)
        known = self._known.pop(key, 0)
        if isinstance(known, int):
            known = self._next(known, order)
        self._known[key] = known
        if len(self._known) > MOST_GRAPHS:
            self._known.popitem(last=False)
        return known(order) if isinstance(known, Recording) else self._paint(order)

    def _next(self, runs: int, order: Any) -> int | Recording:
        if runs != FIRST_RUNS:
            return runs + 1
        try:
            return Recording(self._paint, order, self._record)
        except RuntimeError as error:
            log.warning("This work cannot be recorded as a CUDA graph, it goes on without: %s", error)
            return runs + 1  # past the number that is tried at


class Recording:
    """Work on buffers of its own."""

    def __init__(self, paint: Way, order: Any, record: Record):
        self._given = list(leaves(order))
        self._buffers = [tensor.clone() for tensor in self._given]
        fixed = rebuilt(order, iter(self._buffers))
        self._replay, self._out = record(lambda: paint(fixed))

    def __call__(self, order: Any) -> Any:
        given = list(leaves(order))
        for buffer, new, last in zip(self._buffers, given, self._given, strict=True):
            if new is not last:  # a recipe's tensors stay the same until a control changes
                buffer.copy_(new, non_blocking=True)
        self._given = given
        self._replay()
        return rebuilt(self._out, (tensor.clone() for tensor in leaves(self._out)))


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested dataclasses, tuples and mappings, in order."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for child in _children(tree):
            yield from leaves(child)


def structure(tree: Any) -> Hashable:
    """Equal for two trees that one recording can serve: what is where, and each tensor's shape and dtype."""
    if isinstance(tree, Tensor):
        return (tree.shape, tree.dtype)
    names = tuple(tree) if isinstance(tree, Mapping) else type(tree)
    return (names, tuple(structure(child) for child in _children(tree)))


def rebuilt(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The same tree with other tensors, given in the order of `leaves`."""
    if isinstance(tree, Tensor):
        return next(tensors)
    children = [rebuilt(child, tensors) for child in _children(tree)]
    if isinstance(tree, tuple):
        return tuple(children)
    if isinstance(tree, Mapping):
        return dict(zip(tree, children, strict=True))
    return tree if tree is None else type(tree)(*children)


def _children(tree: Any) -> list[Any]:
    if tree is None:
        return []
    if isinstance(tree, tuple):
        return list(tree)
    if isinstance(tree, Mapping):
        return list(tree.values())
    return [getattr(tree, field.name) for field in dataclasses.fields(tree)]


def record_in_one_pool(device: torch.device) -> Record:
    """Graphs that never run at the same time share their memory."""
    stream, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
    return lambda work: record_on_cuda(work, stream, pool)
