"""Engine rooms that are closed when a test ends."""

from __future__ import annotations

import pytest

from stream.engine import scheduler
from tests.stream.fakes import FakeStylizer

from .houses import House


@pytest.fixture
def house():
    houses = []

    def build(*args, **options):
        houses.append(House(*args, **options))
        return houses[-1]

    yield build
    for one in houses:
        one.stylizer.gate.set()
        one.room.close()


@pytest.fixture
def sharing(house, monkeypatch):
    """A house whose streams' frames share calls whenever they may; tests/stream/test_scheduler.py has the choice."""
    monkeypatch.setattr(scheduler, "gains_behind", lambda *args: True)
    return house(FakeStylizer(max_batch=4))
