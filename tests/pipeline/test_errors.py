"""Kinds of failure are known without torch."""

from __future__ import annotations

import pytest
import torch

from pipeline import errors


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_by_its_kind(error, is_one):
    assert errors.is_out_of_memory(error) == is_one
