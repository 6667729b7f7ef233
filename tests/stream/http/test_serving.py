"""One run of the server in a process of its own: what it prints, and how it ends on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
import time
from urllib.parse import urlsplit

import aiohttp
import pytest

from stream.http import serving
from tests.paths import ROOT
from tests.stream.peers import Publisher, Viewer, until

TOKEN = "s3cret"
SCRIPT = f"""
import atexit, logging, os, sys, threading
from pipeline.settings import Controls
import exits
from stream import logs
from stream.http.serving import serve
from tests.stream.fakes import FakeStylizer

logging.basicConfig(handlers=[logs.StderrHandler()], level=logging.WARNING)
if "few-descriptors" in sys.argv:
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
if "loads-for-ever" in sys.argv:
    atexit.register(os.abort)  # as torch's threads may, when Python is taken apart while they load

def load(report):
    if "loads-for-ever" in sys.argv:
        threading.Event().wait()
    return FakeStylizer()

exits.leave(serve(load, None, model="fake", device="cpu", defaults=Controls(), presets=[],
                  give_memory_back=lambda: None, host="127.0.0.1", port=0, token={TOKEN!r}))
"""


@pytest.fixture
async def run():
    """run(*arguments) -> (process, its address), once it listens."""
    processes = []

    async def start(*arguments):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SCRIPT, *arguments),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        listening = re.fullmatch(r"LCMirror listening on (http://127\.0\.0\.1:\d+)\n", line)
        assert listening, line
        return process, listening[1]

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def assert_ends(process, number, code):
    printed, complained = await ended(process, number)
    assert (process.returncode, complained) == (code, "")
    assert TOKEN not in printed
    return printed


async def ended(process, number):
    """What it printed, and what it complained of."""
    process.send_signal(number)
    printed, complained = await asyncio.wait_for(process.communicate(), 15)
    return printed.decode(), complained.decode()


ENDINGS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
@ENDINGS
async def test_it_ends_at_once_while_the_model_loads(run, number, code):
    process, _ = await run("loads-for-ever")
    assert "?token=" in await assert_ends(process, number, code)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
@ENDINGS
async def test_it_ends_at_once_with_sessions_and_listeners_open(run, number, code):
    process, url = await run()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        publisher = await Publisher(http, f"{url}/whip/one", audio=True).__aenter__()
        viewer = await Viewer(http, f"{url}/whep/one").__aenter__()
        socket = await http.ws_connect(f"{url}/api/streams/one/events")  # never reads: answers no goodbye
        await viewer.next_frame()
        assert "ready: fake on fake, 64x64\n" in await assert_ends(process, number, code)
        await publisher.peer.close()
        await viewer.peer.close()
        await socket.close()


@contextlib.asynccontextmanager
async def flood(url, count):
    """`count` connections at once that never finish what they ask."""
    address = urlsplit(url)
    writers = []
    try:
        for _ in range(count):
            _, writer = await asyncio.open_connection(address.hostname, address.port)
            writers.append(writer)
            writer.write(f"GET /api/status?token={TOKEN} HTTP/1.1\r\nHost: {address.netloc}\r\nX-Slow: ".encode())
        yield
    finally:
        for writer in writers:
            writer.close()


async def ask(url):
    """The status, for a client that has no connection yet."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/healthz") as response:
        return response.status


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
async def test_half_open_requests_lock_nobody_out(run):
    process, url = await run("few-descriptors")
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http,
        Publisher(http, f"{url}/whip/one"),
        Viewer(http, f"{url}/whep/one") as viewer,
        http.ws_connect(f"{url}/api/streams/one/events") as socket,
        flood(url, 300),
    ):
        assert await asyncio.wait_for(ask(url), 60) == 200
        await viewer.next_frame()
        for _ in range(10):
            await socket.receive_json(timeout=60)
        async with Viewer(http, f"{url}/whep/one") as another:  # there are descriptors for its sockets
            await another.next_frame()
    _, complained = await ended(process, signal.SIGTERM)
    assert len(complained.splitlines()) < 10, complained
    assert "All 128 connections are taken" in complained
    assert "times more" in complained
    assert TOKEN not in complained


@pytest.mark.prove
@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
async def test_others_are_answered_within_five_seconds(run):
    process, url = await run("few-descriptors")
    slowest_s = 0.0
    async with flood(url, 900):
        for _ in range(10):
            async with flood(url, 50):
                asked_s = time.monotonic()
                assert await ask(url) == 200
                slowest_s = max(slowest_s, time.monotonic() - asked_s)
    _, complained = await ended(process, signal.SIGTERM)
    print(f"slowest answer {slowest_s:.3f} s, {len(complained)} bytes of log")
    assert slowest_s < 5, slowest_s
    assert len(complained) < 10_000


async def test_what_sessions_leave_behind_is_given_back_to_the_system(server, monkeypatch):
    given = []
    monkeypatch.setattr(serving, "GIVE_BACK_EVERY_S", 0.01)
    giving = asyncio.create_task(serving._give_memory_back(server.sessions, lambda: given.append(True)))
    try:
        await asyncio.sleep(0.1)
        assert not given
        async with Publisher(server.http, f"{server.url}/whip/one"):
            pass
        await until(lambda: given)
    finally:
        giving.cancel()
