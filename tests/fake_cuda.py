"""A CUDA device that computes nothing, on any machine: its tensors have shapes, dtypes and a place, and no values.

PyTorch's fake tensors raise where a tensor of the host meets one of the device, and where the host looks at a value.
What is laid over them here counts what crosses between the two.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline import stylizer
from pipeline.runtime.graphs import Replay
from pipeline.sampling.model import Components

DEVICE = torch.device("cuda")
PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "scaled_dot_product_attention")


class Traffic(TorchDispatchMode):
    """What goes on. uploads, downloads: their shapes. products: the dtypes of what was multiplied. captures: graphs.

    Raises where an operation takes tensors of both host and device (where one is a number alone, PyTorch allows it),
    and while a graph is captured, where one takes or makes a tensor of the host, which no graph holds.
    """

    def __init__(self):
        super().__init__()
        self.captures, self._capturing = 0, False
        self.count_anew()

    def count_anew(self) -> None:
        """All but the captures."""
        self.uploads: list[tuple[int, ...]] = []
        self.downloads: list[tuple[int, ...]] = []
        self.products: set[torch.dtype] = set()

    def capture(self, work: Callable[[], Any]) -> Replay:
        """In place of pipeline.runtime.graphs.capture_on_cuda."""
        self.captures, self._capturing = self.captures + 1, True
        try:
            return lambda: None, work()
        finally:
            self._capturing = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        # In inference mode operations come whole that else come in parts. Attention has such parts on a CPU alone.
        if func.namespace == "aten" and name not in PRODUCTS and func._can_decompose():
            with self:
                return func.decompose(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        given, made = _tensors((args, kwargs)), _tensors(out)
        places = {tensor.device.type for tensor in given}
        if self._capturing and (places | {tensor.device.type for tensor in made}) - {"cuda"}:
            raise AssertionError(f"{func} has to do with the host while a graph is captured.")
        if name in ("_to_copy", "copy_"):
            match given[-1].device.type, made[0].device.type:
                case "cpu", "cuda":
                    self.uploads.append(tuple(made[0].shape))
                case "cuda", "cpu":
                    self.downloads.append(tuple(made[0].shape))
        elif len(places) > 1:
            raise AssertionError(f"{func} takes tensors of host and device.")
        if name in PRODUCTS:
            self.products |= {tensor.dtype for tensor in given}
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Machine:
    """One with such a device."""

    def __init__(self):
        _select_no_device()
        self._fakes = FakeTensorMode()

    def moved(self, parts: Components, waiting: Iterable[Tensor] = ()) -> Components:
        """Components that were loaded on the CPU, on the device but for what is `waiting`."""
        known = {id(one): one for one in (parts.family, parts.schedule, *parts.tokenizers)}
        with _Moving(self._fakes, {tensor.data_ptr() for tensor in waiting}):
            return replace(copy.deepcopy(parts, known), device=DEVICE)

    @contextmanager
    def running(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traffic]:
        """What is done meanwhile is done there. Pictures that come back are black."""
        traffic, tensor_of = Traffic(), torch.tensor
        with monkeypatch.context() as here:
            for name in ("Stream", "Event", "stream", "current_stream"):
                here.setattr(torch.cuda, name, MagicMock())
            here.setattr(stylizer, "capture_in_one_pool", lambda device: traffic.capture)
            here.setattr(FakeTensor, "pin_memory", lambda self: self, raising=False)
            here.setattr(FakeTensor, "record_stream", lambda self, stream: None, raising=False)
            here.setattr(FakeTensor, "numpy", _black, raising=False)
            # In inference mode this one passes fakes by.
            here.setattr(torch, "tensor", lambda *a, device="cpu", **k: tensor_of(*a, **k).to(device))
            with self._fakes, traffic:
                yield traffic


def _black(tensor: FakeTensor) -> np.ndarray:
    return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))


def _select_no_device() -> None:
    """A build of PyTorch for CPUs lacks what selects a CUDA device. It has a stand-in that selects none, for fake
    tensors, which it puts in the place of what finds no device: so here is something that finds none."""
    if torch.backends.cuda.is_built():
        return
    (library,) = (Path(torch.__file__).parent / "lib").glob("libc10.*")
    finds_none = ctypes.CFUNCTYPE(ctypes.c_int8)(lambda: 0)
    methods = (ctypes.c_void_p * 64)(*[ctypes.cast(finds_none, ctypes.c_void_p)] * 64)
    guard = ctypes.c_void_p(ctypes.addressof(methods))
    name = "_ZN3c104impl19registerDeviceGuardENS_10DeviceTypeEPKNS0_24DeviceGuardImplInterfaceE"
    ctypes.CDLL(str(library))[name](ctypes.c_int8(1), ctypes.byref(guard))  # c10::DeviceType::CUDA
    torch._C._ensureCUDADeviceGuardSet()


class _Moving(TorchFunctionMode):
    """What is copied meanwhile comes to lie on the device. waiting: the addresses of what does not."""

    def __init__(self, fakes: FakeTensorMode, waiting: set[int]):
        super().__init__()
        self._fakes, self._waiting = fakes, waiting

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__deepcopy__ and type(args[0]) is Tensor:
            tensor, memo = args
            return memo.setdefault(id(tensor), self._twin(tensor))
        if func is torch._C.TensorBase.clone:  # of a parameter that is copied
            return self._twin(args[0])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def _twin(self, tensor: Tensor) -> Tensor:
        with self._fakes:
            twin = self._fakes.from_tensor(tensor, static_shapes=True)
            return twin if tensor.data_ptr() in self._waiting else twin.to(DEVICE)
