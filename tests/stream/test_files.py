"""Ranges of a film (RFC 9110, section 14.2): one is answered, what a server may or must ignore is ignored."""

from __future__ import annotations

import pytest

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
