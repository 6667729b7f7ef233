"""Trees of tensors: nested dataclasses, tuples and mappings. None is a tree without leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree")
TreeFunction = Callable[[Any], Any]  # a function from a tree to a tree
Recorded = Callable[[TreeFunction], TreeFunction]  # what makes it one that is captured and replayed


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested dataclasses, tuples and mappings, in order."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for child in _children(tree):
            yield from leaves(child)


def structure(tree: Any) -> Hashable:
    """Equal for two trees that one capture can serve: what is where, and each tensor's shape and dtype."""
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


def joined(trees: Sequence[Tree]) -> Tree:
    """Trees of equal structure as one, its tensors joined along the batch."""
    return rebuilt(trees[0], (torch.cat(column) for column in zip(*map(leaves, trees), strict=True)))
