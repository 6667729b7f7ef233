"""Engines that are closed when a test ends."""

from __future__ import annotations

import pytest

from stream.engine import scheduler
from tests.stream.fakes import FakeStylizer

from .harness import Harness


@pytest.fixture
def house():
    harness = []

    def build(*args, **options):
        harness.append(Harness(*args, **options))
        return harness[-1]

    yield build
    for one in harness:
        one.stylizer.gate.set()
        one.engine.close()


@pytest.fixture
def sharing(house, monkeypatch):
    """A house whose streams' frames share calls whenever they may; tests/stream/test_scheduler.py has the choice."""
    monkeypatch.setattr(scheduler, "gains_behind", lambda *args: True)
    return house(FakeStylizer(max_batch=4))
