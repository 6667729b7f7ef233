"""`python -m tests.stream.serve_fake`: the server with the fake engine in a process of its own; prints its port."""

from __future__ import annotations

import asyncio

from aiohttp import web

from stream.engine.runner import EngineRunner
from stream.http import listening
from stream.http.application import make_app
from stream.streams import Streams

from .fakes import FakeStylizer


async def main() -> None:
    engine = EngineRunner(lambda report: FakeStylizer(), model="fake")
    engine.start()
    runner = web.AppRunner(make_app(engine, Streams(engine)))
    await runner.setup()
    sockets = listening.bind("127.0.0.1", 0)
    async with listening.accepting(runner.server, sockets):
        print(sockets[0].getsockname()[1], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
