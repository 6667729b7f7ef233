"""Ranges of a film (RFC 9110, section 14.2): one is answered, what a server may or must ignore is ignored. And what
becomes of a film whose reader leaves."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urlsplit

import pytest

from stream.http.connections import Stage
from tests.stream.peers import until

FILM = bytes(range(256)) * 8
NAME = "two-20260101-120000.mp4"


@pytest.fixture
async def film(start_server, tmp_path):
    """film(method, **headers) -> (status, body, headers)."""
    (tmp_path / NAME).write_bytes(FILM)
    server = await start_server(recordings=tmp_path)

    async def ask(method="GET", **headers):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with server.http.request(method, f"{server.url}/api/recordings/{NAME}", headers=sent) as response:
            return response.status, await response.read(), response.headers

    return ask


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("bytes=4-7", FILM[4:8]),
        ("bytes=2000-", FILM[2000:]),
        ("bytes=-5", FILM[-5:]),
        ("Bytes=0-0", FILM[:1]),
        ("bytes=2000-999999", FILM[2000:]),
    ],
)
async def test_one_range_is_sent(film, asked, sent):
    status, body, headers = await film(Range=asked)
    assert (status, body) == (206, sent)
    assert headers["Content-Range"].endswith(f"/{len(FILM)}")


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-1,4-5",
        "bytes=0-1, -5",
        "bytes=-5,999999-",
        "seconds=1-2",
        "bytes=7-4",
        "bytes=-",
        "bytes=x-y",
        "bytes=1-2-3",
        "nonsense",
        "bytes=" + "9" * 5000 + "-",
    ],
)
async def test_what_is_not_one_range_gets_the_whole_film(film, asked):
    for name in ("Range", "range"):
        status, body, headers = await film(**{name: asked})
        assert (status, body) == (200, FILM)
        assert "Content-Range" not in headers
        assert headers["Accept-Ranges"] == "bytes"


async def test_the_other_headers_still_count_beside_several_ranges(film):
    _, _, headers = await film()
    status, body, headers = await film(Range="bytes=0-1,4-5", If_None_Match=headers["ETag"])
    assert (status, body) == (304, b"")
    assert headers["X-Content-Type-Options"] == "nosniff"


async def test_a_range_of_another_method_than_get_is_ignored(film):
    status, _, headers = await film("HEAD", Range="bytes=4-7")
    assert (status, headers["Content-Length"]) == (200, str(len(FILM)))


async def test_a_range_behind_the_end_is_refused(film):
    status, _, headers = await film(Range="bytes=999999-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(FILM)}")


@pytest.mark.parametrize("asked", ["bytes=-0", "bytes=-000"])
async def test_the_last_no_bytes_are_refused(film, asked):
    status, _, headers = await film(Range=asked)
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(FILM)}")


@pytest.mark.parametrize("name", ["ETag", "Last-Modified"])
async def test_a_download_goes_on_where_the_film_is_the_same(film, name):
    _, _, headers = await film()
    status, body, _ = await film(Range="bytes=4-7", If_Range=headers[name])
    assert (status, body) == (206, FILM[4:8])


@pytest.mark.parametrize(
    "validator",
    ['"x"', "W/{ETag}", "nonsense", "é", "", "*", "Sat, 01 Jan 2000 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"],
)
async def test_a_download_of_another_film_begins_anew(film, validator):
    _, _, headers = await film()
    status, body, _ = await film(Range="bytes=4-7", If_Range=validator.format_map(headers))
    assert (status, body) == (200, FILM)


@pytest.mark.parametrize("name", ["If_Modified_Since", "If_Unmodified_Since"])
@pytest.mark.parametrize("date", ["Wed, 21 Oct 99999999999999999999 07:28:00 GMT", "nonsense", "é", "9" * 5000])
async def test_what_is_no_date_is_ignored(film, caplog, name, date):
    status, body, _ = await film(**{name: date})
    assert (status, body) == (200, FILM)
    assert caplog.records == []


ASK = f"GET /api/recordings/{NAME} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


@pytest.fixture(params=[32 * 2**20, 64 * 2**10], ids=["long", "short"])
async def unread(start_server, tmp_path, request):
    """(server, the transport of a client that has asked for a film many times and reads nothing)."""
    (tmp_path / NAME).write_bytes(bytes(request.param))
    server = await start_server(recordings=tmp_path)
    _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(server.url).port)
    writer.transport.pause_reading()
    writer.write(ASK * 200)
    await until(lambda: any(one.stage is Stage.ANSWER for one in server.runner.server.connections))
    yield server, writer.transport
    writer.transport.abort()


async def test_a_client_that_leaves_in_the_middle_of_a_film_is_no_mistake(unread, caplog):
    server, client = unread
    client.abort()
    await until(lambda: not server.runner.server.connections and not at_work())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_client_that_is_let_go_in_the_middle_of_a_film_leaves_nothing_behind(unread, caplog):
    server, _ = unread
    (connection,) = server.runner.server.connections
    connection.cut()
    await until(lambda: not at_work())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def at_work() -> list[asyncio.Task]:
    """What aiohttp still does for a connection."""
    return [task for task in asyncio.all_tasks() if "RequestHandler" in repr(task.get_coro())]
