"""Trees of tensors: taken apart, put together again, joined."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from pipeline.trees import joined, leaves, rebuilt, structure


@dataclass(frozen=True)
class Node:
    here: torch.Tensor
    more: Any


def tree(first: int, rows: int = 1, name: str = "a"):
    x = torch.full((rows, 2), first)
    return Node(x, (x + 1, None, MappingProxyType({name: x + 2}), Node(x + 3, ())))


def values(tree):
    return [int(leaf[0, 0]) for leaf in leaves(tree)]


def test_leaves_come_in_order_and_go_back_to_their_places():
    assert values(tree(0)) == [0, 1, 2, 3]
    again = rebuilt(tree(0), (leaf + 10 for leaf in leaves(tree(0))))
    assert values(again) == [10, 11, 12, 13]
    assert structure(again) != structure(tree(0, rows=2))
    assert isinstance(again, Node)
    assert again.more[1] is None


def test_a_structure_is_what_is_where_and_not_what_it_holds():
    assert structure(tree(0)) == structure(tree(5))
    others = [tree(0, rows=2), tree(0, name="b"), Node(torch.zeros(1, 2), tree(0).more), Node(tree(0).here, ())]
    assert all(structure(other) != structure(tree(0)) for other in others)


def test_trees_are_joined_along_the_batch():
    both = joined([tree(0), tree(10, rows=2)])
    assert both.here[:, 0].tolist() == [0, 10, 10]
    assert both.more[3].here[:, 0].tolist() == [3, 13, 13]
    assert both.more[1] is None
