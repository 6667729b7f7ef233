"""Connected components of pixels on a CUDA device; nobody waits for it, and a CUDA graph holds it.

Union-find after Playne and Hawick, "A New Algorithm for Parallel Connected-Component Labelling on GPUs" (IEEE TPDS 29,
2018): every pixel has a parent, itself or an earlier pixel of its region, and all of a region end at one root.

Within a kernel, what others may read or write at the same time is touched only by atomics and volatile loads, and any
value that a parent has had will do, however old: it is an earlier pixel of the same region. Whoever overwrites a parent
goes on to unite the old one with the new, so no connection is lost. Between kernels all is written.

Needs Triton, which comes with PyTorch for CUDA on Linux.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128  # pixels of one program, which is one warp: its loops wait for no other
_SIZES = ["count", "height", "width"]  # compiled once for all of them


def roots(marked: Tensor) -> Tensor:
    """Of each marked pixel the first in its 8-connected region, in reading order; of any other the pixel itself.

    marked: bool [..., H, W]. Returns int64 of the same shape, indices into the flattened tensor.
    """
    marked = marked.contiguous()
    pixels, parents = marked.view(torch.uint8), torch.empty_like(marked, dtype=torch.int32)
    sizes = (marked.numel(), *marked.shape[-2:])
    programs = (triton.cdiv(marked.numel(), BLOCK),)
    with torch.cuda.device_of(marked):  # where Triton launches
        _link[programs](pixels, parents, *sizes, BLOCK=BLOCK, num_warps=1)
        _flatten[programs](parents, sizes[0], BLOCK=BLOCK, num_warps=1)
        _unite[programs](pixels, parents, *sizes, BLOCK=BLOCK, num_warps=1)
        _flatten[programs](parents, sizes[0], BLOCK=BLOCK, num_warps=1)
    return parents.long()


@triton.jit
def _marked_before(pixels, at, count, height, width):
    """Are these pixels marked, and of their neighbours before them in reading order: north, west, both, north-east?"""
    here = tl.load(pixels + at, mask=at < count, other=0) != 0
    x, y = at % width, at // width % height
    below, right, left = here & (y > 0), x > 0, x < width - 1
    north = tl.load(pixels + at - width, mask=below, other=0) != 0
    west = tl.load(pixels + at - 1, mask=here & right, other=0) != 0
    north_west = tl.load(pixels + at - width - 1, mask=below & right, other=0) != 0
    north_east = tl.load(pixels + at - width + 1, mask=below & left, other=0) != 0
    return north, west, north_west, north_east


@triton.jit(do_not_specialize=_SIZES)
def _link(pixels, parents, count, height, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton reads annotations
    """Makes one of the neighbours before it each pixel's parent."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    north, west, north_west, north_east = _marked_before(pixels, at, count, height, width)
    parent = tl.where(north_east, at - width + 1, at)
    parent = tl.where(north_west, at - width - 1, parent)
    parent = tl.where(west, at - 1, parent)
    parent = tl.where(north, at - width, parent)
    tl.store(parents + at, parent, mask=at < count)


@triton.jit(do_not_specialize=_SIZES)
def _unite(pixels, parents, count, height, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton reads annotations
    """Unites what meets in a pixel and was not linked there.

    The other neighbours touch the one that was linked, except the north-eastern where north is not marked.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    north, west, north_west, north_east = _marked_before(pixels, at, count, height, width)
    meet = north_east & (west | north_west) & (north == 0)
    one = tl.load(parents + at, mask=meet, other=0, volatile=True)
    other = tl.load(parents + at - width + 1, mask=meet, other=0, volatile=True)
    while tl.max((one != other).to(tl.int32), axis=0) > 0:
        apart, late, early = one != other, tl.maximum(one, other), tl.minimum(one, other)
        before = tl.atomic_min(parents + late, early, mask=apart, sem="relaxed")
        # A root is now linked. Any other had a parent, and this one is still to be united with the earlier.
        one = tl.where(apart & (before != late), before, early)
        other = early


@triton.jit(do_not_specialize=_SIZES)
def _flatten(parents, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton reads annotations
    """Makes the root each pixel's parent. All jump at once, so a long chain takes few turns."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    parent = tl.load(parents + at, mask=at < count, other=0, volatile=True)  # the first pixel is its own parent
    beyond = tl.load(parents + parent, volatile=True)
    while tl.max((beyond != parent).to(tl.int32), axis=0) > 0:
        tl.atomic_min(parents + at, beyond, mask=beyond != parent, sem="relaxed")
        parent = beyond
        beyond = tl.load(parents + parent, volatile=True)
