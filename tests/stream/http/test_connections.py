"""Connections that never finish, that idle, that are too many, and that do not speak HTTP."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import json
import logging
import random
import socket
import ssl
from types import SimpleNamespace
from urllib.parse import urlsplit

import aiohttp
import aioice.ice
import pytest

from stream.descriptors import MAX_CONNECTIONS, connection_limit
from stream.http import connections, listening
from stream.http.connections import Stage, first_to_go, overdue
from tests.stream.peers import Publisher, Viewer, until

HALF_A_HEAD = b"GET /api/status HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
HALF_A_BODY = b"PATCH /api/streams/a/controls HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 40\r\n\r\n{"
TOKEN = "s3cret-of-the-house"


@pytest.fixture
async def knock():
    """knock(server, data) -> (reader, writer) of a connection of its own."""
    writers = []

    async def opened(server, data=b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(server.url).port)
        writers.append(writer)
        writer.write(data)
        await writer.drain()
        return reader, writer

    yield opened
    for writer in writers:
        writer.close()


async def all_of(reader) -> bytes:
    """What comes until the connection is closed, in order or not."""
    try:
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionResetError:
        return b""


async def status_of(server, path="/healthz") -> int:
    """Asked by a client that has no connection yet."""
    async with aiohttp.ClientSession() as http, http.get(server.url + path) as response:
        return response.status


def parsed(answer: bytes) -> tuple[int, dict]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


async def test_half_a_head_and_silence_are_closed(server, knock, monkeypatch):
    monkeypatch.setitem(connections.PATIENCE_S, Stage.HEAD, 0.0)
    for data in (b"", HALF_A_HEAD):
        reader, _ = await knock(server, data)
        assert await all_of(reader) == b""


async def test_a_head_that_drips_is_closed_too(server, knock, monkeypatch):
    monkeypatch.setitem(connections.PATIENCE_S, Stage.HEAD, 1.0)
    reader, writer = await knock(server, HALF_A_HEAD)
    ended = asyncio.create_task(all_of(reader))
    while not ended.done():
        writer.write(b"x")
        await asyncio.sleep(0.05)
    assert await ended == b""


async def test_an_idle_connection_is_closed_after_its_answer(server, knock, monkeypatch):
    monkeypatch.setitem(connections.PATIENCE_S, Stage.IDLE, 0.0)
    reader, _ = await knock(server, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert (await all_of(reader)).endswith(b'{"serving": true}')


async def test_a_body_that_does_not_come_ends_with_408(server, knock, monkeypatch):
    monkeypatch.setattr("stream.http.application.BODY_S", 0.1)
    monkeypatch.setattr(connections, "LINGER_S", 0.1)
    for method, path in (("PATCH", "/api/streams/a/controls"), ("POST", "/whip/a"), ("PUT", "/api/streams/a/mask")):
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 40\r\n\r\n"
        reader, _ = await knock(server, head.encode() + b"{")
        answer = await all_of(reader)
        status, body = parsed(answer)
        assert (status, list(body)) == (408, ["error"])
        assert b"connection: close" in answer.lower()


async def test_nothing_that_is_at_work_is_overdue(server, monkeypatch):
    """Event sockets, sessions, and requests that the engine keeps waiting."""
    monkeypatch.setattr(connections, "PATIENCE_S", {Stage.HEAD: 1.0, Stage.IDLE: 0.0})
    async with (
        server.http.ws_connect(f"{server.url}/api/streams/one/events") as socket,
        Publisher(server.http, f"{server.url}/whip/one"),
        Viewer(server.http, f"{server.url}/whep/one") as viewer,
    ):
        await viewer.next_frame()
        for _ in range(10):
            assert (await socket.receive_json(timeout=30))["type"] in ("status", "controls", "stats")
        await viewer.next_frame()


@pytest.mark.parametrize("data", [b"", HALF_A_HEAD, HALF_A_BODY], ids=["nothing", "head", "body"])
async def test_when_all_are_taken_the_oldest_unfinished_request_goes(start_server, knock, data):
    server = await start_server(max_connections=4)
    async with server.http.ws_connect(f"{server.url}/api/streams/one/events") as socket:
        halves = [(await knock(server, data))[0] for _ in range(3)]
        assert await status_of(server) == 200
        assert await all_of(halves[0]) == b""
        assert not halves[2].at_eof()
        for _ in range(20):
            await knock(server, data)
        assert await status_of(server) == 200
        for _ in range(10):
            await socket.receive_json(timeout=30)


async def test_when_all_are_at_work_the_next_waits_for_one_to_end(start_server):
    server = await start_server(max_connections=2)
    listeners = [await server.http.ws_connect(f"{server.url}/api/streams/one/events") for _ in range(2)]
    asked = asyncio.create_task(status_of(server))
    for _ in range(10):
        await listeners[0].receive_json(timeout=30)
    assert not asked.done()
    await listeners[1].close()
    assert await asyncio.wait_for(asked, 60) == 200
    await listeners[0].close()


async def test_a_client_that_reads_no_answer_is_let_go(start_server, knock, monkeypatch):
    """An orderly end would wait for it for ever."""
    monkeypatch.setitem(connections.PATIENCE_S, Stage.IDLE, 0.0)
    server = await start_server()
    ask = b"GET /api/schema HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    _, writer = await knock(server)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    writer.transport.pause_reading()
    writer.write(ask * 20)
    await until(lambda: not server.runner.server.connections)


TOLD = pytest.param("STALLED_S", marks=pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="the system is mute"))


@pytest.mark.parametrize("limit", ["ANSWER_S", TOLD])
async def test_who_takes_no_answer_locks_nobody_out(start_server, knock, monkeypatch, tmp_path, limit):
    for name in ("ANSWER_S", "STALLED_S"):
        monkeypatch.setattr(connections, name, 0.0 if name == limit else float("inf"))
    (tmp_path / "two-20260101-120000.mp4").write_bytes(bytes(32 * 2**20))
    server = await start_server(max_connections=3, recordings=tmp_path)
    ask = b"GET /api/recordings/two-20260101-120000.mp4 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    for _ in range(3):
        _, writer = await knock(server)
        writer.transport.pause_reading()
        writer.write(ask)
    await until(lambda: server.runner.server.requests_count == 3)
    assert await asyncio.wait_for(status_of(server), 60) == 200


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="the system does not tell")
async def test_who_reads_slowly_stays_and_who_reads_nothing_goes(start_server, knock, monkeypatch, tmp_path):
    (tmp_path / "two-20260101-120000.mp4").write_bytes(bytes(32 * 2**20))
    server = await start_server(max_connections=2, recordings=tmp_path)
    for _ in range(2):
        reader, writer = await knock(server)
        writer.transport.pause_reading()
        writer.write(b"GET /api/recordings/two-20260101-120000.mp4 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    await until(lambda: all(one.stage is Stage.ANSWER for one in server.runner.server.connections))
    two = list(server.runner.server.connections)
    before_s = asyncio.get_running_loop().time()
    writer.transport.resume_reading()
    while all(one.taken_s < before_s + listening.LOOK_EVERY_S for one in two):
        assert await asyncio.wait_for(reader.read(2**16), 30)
        await asyncio.sleep(0.01)
    slow, stuck = sorted(two, key=lambda one: one.taken_s, reverse=True)
    monkeypatch.setattr(connections, "STALLED_S", (slow.taken_s - stuck.taken_s) / 2)
    assert first_to_go(two, slow.taken_s) is stuck


async def test_where_no_descriptor_is_left_the_oldest_go_and_it_is_said_once(start_server, knock, monkeypatch, caplog):
    monkeypatch.setattr(listening, "GRACE_S", 0.0)
    server = await start_server()
    halves = [(await knock(server, HALF_A_HEAD))[0] for _ in range(20)]
    loop = asyncio.get_running_loop()
    accept, fails = loop.sock_accept, iter([True, True])

    async def sock_accept(listener):
        if next(fails, False):
            raise OSError(errno.EMFILE, "Too many open files")
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", sock_accept)
    assert await status_of(server) == 200
    assert await status_of(server) == 200
    assert await all_of(halves[0]) == b""
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 2
    assert all("descriptor" in line for line in said)


def test_who_has_waited_too_long():
    def made(stage, since_s):
        return SimpleNamespace(stage=stage, since_s=since_s)

    waiting = [
        made(Stage.HEAD, 0),
        made(Stage.HEAD, 95),
        made(Stage.IDLE, 0),
        made(Stage.IDLE, 40),
        made(Stage.WORK, 0),
    ]
    assert overdue(waiting, now_s=100.0) == [waiting[0], waiting[2]]


def test_who_goes_first_when_it_is_crowded():
    def made(since_s, may_go, stage=Stage.WORK, taken_s=float("inf")):
        return SimpleNamespace(since_s=since_s, may_go=may_go, stage=stage, taken_s=taken_s)

    answered, at_work, waiting = made(1.0, False, Stage.ANSWER), made(0.0, False), [made(3.0, True), made(2.0, True)]
    now_s = 1.0 + connections.ANSWER_S
    assert first_to_go([answered, at_work, *waiting], now_s) is waiting[1]
    assert first_to_go([answered, at_work], now_s) is answered
    assert first_to_go([answered, at_work], now_s - 1.0) is None
    assert first_to_go([], now_s) is None
    stalled = [
        made(1.5, False, Stage.ANSWER, taken_s) for taken_s in (now_s - connections.STALLED_S, now_s - 30, now_s)
    ]
    assert first_to_go([at_work, *stalled], now_s) is stalled[1]
    assert first_to_go([at_work, stalled[0], stalled[2]], now_s) is stalled[0]
    assert first_to_go([at_work, stalled[2]], now_s) is None
    assert first_to_go([*stalled, *waiting], now_s) is waiting[1]


@pytest.mark.parametrize(
    ("descriptors", "most"), [(-1, MAX_CONNECTIONS), (10**6, MAX_CONNECTIONS), (1024, 768), (256, 128), (1, 1)]
)
def test_connections_leave_room_for_the_rest(descriptors, most):
    assert connection_limit(descriptors) == most


NO_HTTP = {
    "bytes": b"\x00\x01\x02\xff\xfe\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "method": b"G\xc3T /?token=" + TOKEN.encode() + b" HTTP/1.1\r\n\r\n",
    "version": b"GET /?token=" + TOKEN.encode() + b" HTTP/9.9.9\r\n\r\n",
    "header": b"GET /?token=" + TOKEN.encode() + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nbroken header\r\n\r\n",
    "bearer": b"GET / HTTP/1.1\r\nAuthorization: Bearer " + TOKEN.encode() + b"\x00\r\n\r\n",
    "long": b"GET /?token=" + TOKEN.encode() * 5000 + b" HTTP/1.1\r\n\r\n",
    "length": b"POST /whip/a?token=" + TOKEN.encode() + b" HTTP/1.1\r\nContent-Length: -4\r\n\r\n",
    "framing": b"POST /whip/a HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
    "no utf-8": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nExpect: caf\xe9\r\n\r\n",
    "key": b"GET /api/streams/a/events HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbX\xfesZSBub25jZQ==\r\n\r\n",
    "address": b"GET http://[:/?token=" + TOKEN.encode() + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
}


@pytest.mark.parametrize("data", NO_HTTP.values(), ids=NO_HTTP)
async def test_what_is_no_http_takes_one_line_without_the_token(start_server, knock, caplog, data):
    caplog.set_level(logging.DEBUG)
    server = await start_server(token=TOKEN)
    reader, _ = await knock(server, data)
    status, body = parsed(await all_of(reader))
    assert (status, list(body)) == (400, ["error"])
    assert_one_line(caplog, body["error"])


async def test_an_expectation_that_nobody_knows_is_refused_as_all_else(server, knock):
    reader, _ = await knock(server, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nExpect: miracles\r\n\r\n")
    status, body = parsed(await all_of(reader))
    assert (status, list(body)) == (417, ["error"])


async def test_a_damaged_request_never_makes_the_server_stumble(start_server, knock, caplog):
    server = await start_server(token=TOKEN)
    dice, given = random.Random(7), f"?token={TOKEN} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
    good = [
        b"GET /static/index.html" + given + b"Range: bytes=0-1,4-5\r\nIf-Range: x\r\nIf-None-Match: *\r\n\r\n",
        b"PATCH /api/streams/a/controls" + given + b'Content-Length: 12\r\nExpect: 100-continue\r\n\r\n{"steps": 2}',
        b"POST /whip/a" + given + b"Transfer-Encoding: chunked\r\n\r\n2\r\nv=\r\n0\r\n\r\n",
        b"GET /api/streams/a/events" + given + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ]
    bad = [b"", b"\r\n", b"\xff", b"\0", b": ", b"9" * 30, b"["]
    statuses = collections.Counter()
    for _ in range(300):
        data = bytearray(dice.choice(good))
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(data))
            data[place : place + dice.randint(0, 2)] = dice.choice(bad)
        reader, writer = await knock(server, bytes(data) + b"\r\n\r\n")
        with contextlib.suppress(TimeoutError, ConnectionResetError):  # some still wait for their body
            statuses[(await asyncio.wait_for(reader.read(12), 0.5))[9:]] += 1
        writer.close()
    assert {b"200", b"400"} <= set(statuses)
    assert not any(status.startswith(b"5") for status in statuses), statuses
    assert TOKEN not in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_tls_hello_is_told_apart(start_server, caplog):
    caplog.set_level(logging.DEBUG)
    server = await start_server(token=TOKEN)
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection("127.0.0.1", urlsplit(server.url).port, ssl=context)
    await until(lambda: any("https" in record.getMessage() for record in caplog.records))
    assert_one_line(caplog, "https")


def assert_one_line(caplog, word: str) -> None:
    ours = [record for record in caplog.records if record.name.startswith(("stream", "aiohttp", "asyncio"))]
    loud = [record for record in ours if record.levelno >= logging.INFO]
    assert len(loud) == 1
    assert word in loud[0].getMessage()
    assert loud[0].exc_info is None
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"Content-Encoding: deflate\r\nContent-Length: 8\r\n\r\nnonsense",
        b"Content-Encoding: gzip\r\nContent-Length: 8\r\n\r\nnonsense",
    ],
)
async def test_a_body_that_cannot_be_unpacked_is_400(server, knock, caplog, body):
    reader, _ = await knock(server, b"PATCH /api/streams/a/controls HTTP/1.1\r\nHost: 127.0.0.1\r\n" + body)
    status, said = parsed(await all_of(reader))
    assert (status, list(said)) == (400, ["error"])
    assert "Traceback" not in caplog.text


async def test_a_client_that_leaves_in_the_middle_of_a_body_takes_no_line(server, knock, caplog):
    _, writer = await knock(server, HALF_A_BODY)
    await until(lambda: server.runner.server.requests_count == 1)
    writer.transport.abort()
    await until(lambda: not server.runner.server.connections)
    assert await status_of(server) == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("place", ["the addresses", "the sockets"])
async def test_a_session_without_a_descriptor_left_is_503(server, monkeypatch, number, place):
    def none(*_args, **_kwargs):
        raise OSError(number, "Too many open files")

    async with answered(server, lambda: lack(monkeypatch, place, none)) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) > 0
        assert "try again" in (await response.json())["error"]
    monkeypatch.undo()
    async with answered(server) as response:
        assert response.status == 201


def lack(monkeypatch, place, none) -> None:
    if place == "the addresses":
        monkeypatch.setattr(aioice.ice, "get_host_addresses", none)
    else:
        monkeypatch.setattr(asyncio.get_running_loop(), "create_datagram_endpoint", none)


@contextlib.asynccontextmanager
async def answered(server, before=lambda: None):
    """What the server says to a good offer, which is made `before` things go wrong."""
    publisher = Publisher(server.http, f"{server.url}/whip/a")
    offer = await publisher.offer()
    before()
    async with server.http.post(publisher.url, data=offer, headers={"Content-Type": "application/sdp"}) as response:
        yield response
    await publisher.peer.close()


@pytest.fixture
def last_descriptor():
    """last_descriptor(): from now on this process can open nothing; what is open stays."""
    resource = pytest.importorskip("resource", reason="no such limit there")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_requests_without_a_descriptor_left_are_503(start_server, tmp_path, last_descriptor, caplog):
    (tmp_path / "two-20260101-120000.mp4").write_bytes(b"a film")
    server = await start_server(recordings=tmp_path)
    publisher = Publisher(server.http, f"{server.url}/whip/a")
    offer = {"data": await publisher.offer(), "headers": {"Content-Type": "application/sdp"}}
    asked = [("GET", "/", {}), ("GET", "/view/a", {}), ("GET", "/static/index.html", {}), ("POST", "/whip/a", offer)]
    asked += [
        ("GET", "/api/recordings", {}),
        ("POST", "/api/streams/a/recording", {}),
        ("GET", "/api/recordings/two-20260101-120000.mp4", {}),
    ]
    assert (await server.get("/api/status"))[0] == 200  # the connection that is used from now on
    last_descriptor()
    for method, path, more in asked:
        async with server.http.request(method, server.url + path, **more) as response:
            assert response.status == 503, path
            assert int(response.headers["Retry-After"]) > 0
            assert "try again" in (await response.json())["error"]
    assert (await server.get("/api/status"))[0] == 200
    assert "Traceback" not in caplog.text
    await publisher.peer.close()
