"""A real server on loopback with a fake engine behind it."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp
import pytest
from aiohttp import web

from stream.engine.runner import EngineRunner
from stream.http import listening, whip
from stream.http.application import make_app
from stream.streams import Streams
from stream.webrtc.sessions import Sessions

from .fakes import FakeStylizer


@dataclass
class Server:
    url: str
    http: aiohttp.ClientSession
    engine: EngineRunner
    streams: Streams
    sessions: Sessions
    runner: web.AppRunner
    stylizer: FakeStylizer

    async def get(self, path: str):
        async with self.http.get(self.url + path) as response:
            return response.status, await response.json()

    async def patch(self, path: str, **json_body):
        async with self.http.patch(self.url + path, json=json_body) as response:
            return response.status, await response.json()

    async def stats(self, name: str) -> dict:
        status, body = await self.get(f"/api/streams/{name}")
        assert status == 200, body
        return body


@pytest.fixture
async def start_server():
    """start_server(stylizer=..., **options of make_app) -> Server; any number of them in a test."""
    cleanups = []

    async def start(stylizer: FakeStylizer | None = None, *, load=None, wait=True, room_options=None, **options):
        max_connections = options.pop("max_connections", None)
        stylizer = stylizer or FakeStylizer()
        engine = EngineRunner(load or (lambda report: stylizer), model="fake", **(room_options or {}))
        streams = Streams(engine, options.pop("stream_defaults", None), max_names=options.pop("max_names", 256))
        app = make_app(engine, streams, **options)
        runner = web.AppRunner(app, shutdown_timeout=2)
        await runner.setup()
        sockets = listening.bind("127.0.0.1", 0)
        door = listening.accepting(runner.server, sockets, limit=max_connections)
        await door.__aenter__()
        engine.start()
        if wait:
            engine.wait_settled(10)
        http = aiohttp.ClientSession()
        port = sockets[0].getsockname()[1]
        cleanups.append((http, door, runner, engine))
        return Server(f"http://127.0.0.1:{port}", http, engine, streams, app[whip.SESSIONS], runner, stylizer)

    yield start
    for http, door, runner, engine in reversed(cleanups):
        await http.close()
        await door.__aexit__(None, None, None)
        await runner.cleanup()
        engine.close()


@pytest.fixture
async def server(start_server) -> Server:
    return await start_server()
