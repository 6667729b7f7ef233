"""Captures without a card, for tests: of torch.fx, and of nothing at all."""

from __future__ import annotations

from torch.fx.experimental.proxy_tensor import make_fx

from pipeline.trees import leaves, rebuilt


class Recorder:
    """Records by torch.fx, counts how often. Like a CUDA graph that keeps the operations of one run, and knows nothing
    of Python."""

    def __init__(self):
        self.count = 0

    def __call__(self, work):
        self.count += 1
        trees = []
        operations = make_fx(lambda: list(leaves(trees.append(work()) or trees[0])))()
        out = operations()
        return (lambda: [kept.copy_(new) for kept, new in zip(out, operations(), strict=True)]), rebuilt(
            trees[0], iter(out)
        )


def replayed(work):
    """Like a capture, but run again: for tests of what is captured, not of how."""
    out = work()
    return (lambda: [kept.copy_(new) for kept, new in zip(leaves(out), leaves(work()), strict=True)]), out
