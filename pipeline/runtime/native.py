"""Compiled code called by its C interface: on a CPU other threads go on while it computes.

PyTorch's own loader holds the interpreter lock for the length of a call, which on a CPU is the length of a frame: the
network's threads would stand still, and every picture come out later. ctypes lets go of the lock. The functions are
those of torch/csrc/inductor/aoti_runtime/interface.h, a C interface made for programs other than the compiler's own.
"""

from __future__ import annotations

import ctypes
import zipfile
from collections.abc import Mapping, Sequence
from ctypes import byref, c_bool, c_char_p, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.argtypes, _new_capsule.restype = (c_void_p, c_char_p, c_void_p), ctypes.py_object
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.argtypes, _pointer_of.restype = (ctypes.py_object, c_char_p), c_void_p


class _Entry(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("handle", c_void_p))


def extract(package: Path, library: Path) -> bool:
    """Writes the shared library of a .pt2 package; False where it has none that runs without PyTorch's loader, which
    also calls, from a list in JSON, the operators that have no C interface."""
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        libraries = [name for name in names if name.endswith(".so")]
        lists = [name for name in names if name.endswith(".json") and not name.endswith("_metadata.json")]
        if len(libraries) != 1 or lists:
            return False
        library.write_bytes(archive.read(libraries[0]))
    return True


class CompiledLibrary:
    """Code for a CPU with one output, on weights that stay the caller's: name -> tensor, whose contents may change.

    One thread at a time calls it. Raises OSError, KeyError or RuntimeError where it does not load or run.
    """

    def __init__(self, file: Path, weights: Mapping[str, Tensor]):
        self._functions = ctypes.CDLL(str(file))
        self._functions.AOTInductorGetLastError.restype = c_char_p
        self._container = c_void_p()
        self._call("CreateWithDevice", byref(self._container), c_size_t(1), c_char_p(b"cpu"), None)
        names = self._names()
        self._weights = [weights[name] for name in names.values()]
        pointers = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(self._weights)
        entries = (_Entry * len(names))(
            *(_Entry(name, _pointer_of(pointer, None)) for name, pointer in zip(names, pointers, strict=True))
        )
        arguments = (entries, c_size_t(len(names)), c_bool(False), c_bool(True))
        self._call("UpdateUserManagedConstantBufferPairs", self._container, *arguments)
        torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(pointers)  # it took handles of its own

    def _names(self) -> dict[bytes, str]:
        """Its name for a weight -> the module's."""
        count, name, module_name = c_size_t(), c_char_p(), c_char_p()
        self._call("GetNumConstants", self._container, byref(count))
        names: dict[bytes, str] = {}
        for index in range(count.value):
            self._call("GetConstantName", self._container, c_size_t(index), byref(name))
            self._call("GetConstantOriginalFQN", self._container, c_size_t(index), byref(module_name))
            assert name.value is not None
            assert module_name.value is not None
            names[name.value] = module_name.value.decode()
        return names

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        pointers = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(inputs))  # it becomes their owner
        handles = (c_void_p * len(pointers))(*(_pointer_of(pointer, None) for pointer in pointers))
        out = (c_void_p * 1)()
        self._call("RunSingleThreaded", self._container, handles, c_size_t(len(pointers)), out, c_size_t(1), None, None)
        return torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs([_new_capsule(out[0], None, None)])

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._functions, f"AOTInductorModelContainer{name}")(*arguments) != 0:
            said = (self._functions.AOTInductorGetLastError() or b"").decode(errors="replace")
            raise RuntimeError(f"Compiled code failed in {name}: {said or 'it gave no reason'}")
