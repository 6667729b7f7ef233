"""Two checkouts compared: what is told of given hashes and figures, and that its scripts are Python."""

from __future__ import annotations

import ast
from pathlib import Path

from benchmarks import checkouts


def test_what_differs_or_is_on_one_side_only_is_told():
    before, after = {"same": "1", "other": "2", "gone": "3"}, {"same": "1", "other": "4", "new": "5"}
    assert checkouts.differing(before, before) == []
    assert checkouts.differing(before, after) == [
        {"case": "gone", "before": "3", "after": None},
        {"case": "new", "before": None, "after": "5"},
        {"case": "other", "before": "2", "after": "4"},
    ]


def test_checkouts_take_turns_at_going_first():
    asked, taken = [], iter([1.0, 2.0, 4.0, 3.0])

    def measure(checkout: Path) -> dict[str, float]:
        asked.append(checkout.name)
        return {"ms": next(taken)}

    (row,) = checkouts.in_turns(measure, [Path("before"), Path("after")], 2)
    assert asked == ["before", "after", "after", "before"]
    assert row == {
        "figure": "ms", "before": 2.0, "after": 3.0, "ratio": 1.5, "spread before": 3.0, "spread after": 2.0,
    }  # fmt: skip


def test_what_both_run_is_python():
    for script in (checkouts.ENGINE, checkouts.PICTURES):
        ast.parse(script)
