"""What ends a command besides a signal: a model that does not load; an engine that fails later does not."""

from __future__ import annotations

import asyncio

from stream.engine import scheduler
from stream.engine.runner import EngineRunner
from stream.signals import finish, until_told

from .fakes import FakeStylizer
from .peers import until


async def test_a_model_that_never_loads_ends_the_run(capsys):
    def load(report):
        raise FileNotFoundError("There are no weights here.")

    end = asyncio.get_running_loop().create_future()
    assert await asyncio.wait_for(until_told(EngineRunner(load), end), 60) == 2
    assert capsys.readouterr().err == "There are no weights here.\n"


async def test_an_engine_that_fails_later_leaves_the_server_up_so_that_people_can_read_why(monkeypatch, capsys):
    engine, end, said = EngineRunner(lambda report: FakeStylizer()), asyncio.get_running_loop().create_future(), []
    running = asyncio.create_task(until_told(engine, end, said.append))
    await until(lambda: said)
    monkeypatch.setattr(scheduler, "plan", lambda *args: 1 / 0)
    await until(lambda: engine.wake() or engine.status()["state"] == "failed")
    await asyncio.sleep(0)  # what the change of the status has asked of this loop
    await asyncio.sleep(0)
    assert not running.done()
    finish(end, 0)
    assert await running == 0
    assert capsys.readouterr().err == ""
    engine.close()
