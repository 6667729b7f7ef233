"""What does benchmarks.engine measure, and how much of it? Light to import: `main.py bench` shares the options."""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from options import whole

STEPS, BATCHES = (1, 2, 4), (1, 2, 4, 8)
count = whole(1, 1_000_000_000)  # an option of a command line


@dataclass(frozen=True)
class Setting:
    """What a row is of."""

    steps: int = 1
    batch: int = 1
    cfg: bool = False


SETTINGS = (  # what matters most comes first: a budget may cut the rest
    Setting(steps=1),
    Setting(steps=4),
    Setting(steps=1, batch=8),
    Setting(steps=2),
    Setting(steps=1, cfg=True),
    Setting(steps=1, batch=4),
    Setting(steps=1, batch=2),
)
WITH_CONTROL = SETTINGS[:2]  # of a ControlNet beside the model without
GRID = tuple(Setting(*each) for each in itertools.product(STEPS, BATCHES, (False, True)))


@dataclass(frozen=True)
class Plan:
    """row_s: a row that would take longer has fewer calls. budget_s: no new row is begun after so long. json, picture:
    where the results go, after every row."""

    frames: int = 200
    row_s: float = 20.0
    budget_s: float = math.inf
    compile: bool | None = None
    everything: bool = False
    json: Path | None = None
    picture: Path | None = None
    started_s: float = field(default_factory=time.monotonic)

    def settings(self, *, beside: bool) -> Sequence[Setting]:
        """beside: of a model that was measured without its ControlNet before."""
        if self.everything:
            return GRID
        return WITH_CONTROL if beside else SETTINGS

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self.started_s > self.budget_s


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=count, default=200, metavar="N", help="timed calls a row")
    parser.add_argument("--row-s", type=count, default=20, metavar="S", help="a row that would take longer has fewer")
    parser.add_argument("--budget-s", type=count, default=math.inf, metavar="S", help="no new row is begun after that")
    parser.add_argument("--everything", action="store_true", help="every batch, number of steps and guidance")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="and draw them as bars, an .svg file")


def plan_from(options: argparse.Namespace) -> Plan:
    """Of the options above and --compile."""
    names = ("frames", "row_s", "budget_s", "compile", "everything", "json", "picture")
    return Plan(**{name: getattr(options, name) for name in names})
