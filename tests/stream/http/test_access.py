"""Who is let in: Host, Origin, token; and what other origins and browsers are told."""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import quote, urlsplit

import aiohttp
import pytest

from stream.http.access import Access, host_name, security_headers
from tests.stream.peers import Publisher, Viewer, until

FRIEND, STRANGER = "https://friend.example", "https://stranger.example"


@pytest.mark.parametrize(
    "host", ["stranger.example", "stranger.example:80", "127.0.0.1.stranger.example", "[::2]", "0.0.0.0"]
)
async def test_foreign_host_headers_are_refused(server, host):
    for path in ("/", "/api/status", "/whip/one", "/healthz"):
        async with server.http.get(server.url + path, headers={"Host": host}) as response:
            assert response.status == 403
            assert "host name" in (await response.json())["error"]


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:9", "[::1]:8080", "LOCALHOST"])
async def test_loopback_names_are_known(server, host):
    async with server.http.get(server.url + "/api/status", headers={"Host": host}) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    "origin", [STRANGER, "null", "http://127.0.0.1:1", "file://", "http://[", "https://127.0.0.1.x"]
)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/status"), ("PATCH", "/api/streams/a/controls"), ("POST", "/whip/a")]
)
async def test_other_origins_are_refused(server, origin, method, path):
    async with server.http.request(method, server.url + path, headers={"Origin": origin}) as response:
        assert response.status == 403
        assert "--allow-origin" in (await response.json())["error"]
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_a_strangers_websocket_is_refused(server):
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await server.http.ws_connect(f"{server.url}/api/streams/a/events", headers={"Origin": STRANGER})
    assert refused.value.status == 403


async def test_our_own_pages_are_let_in(server):
    async with server.http.get(server.url + "/api/status", headers={"Origin": server.url}) as response:
        assert response.status == 200


async def test_an_allowed_origin_gets_what_whip_and_whep_ask(start_server):
    server = await start_server(allow_origins=[FRIEND])
    asked = {"Origin": FRIEND, "Access-Control-Request-Method": "PATCH"}
    for path in ("/whip/one", "/whep/one/some-session", "/api/streams/one/controls", "/api/status"):
        async with server.http.options(server.url + path, headers=asked) as response:
            assert response.status in (200, 204)
            assert response.headers["Access-Control-Allow-Origin"] == FRIEND
            assert {"PATCH", "DELETE", "POST"} <= set(response.headers["Access-Control-Allow-Methods"].split(", "))
            allowed = response.headers["Access-Control-Allow-Headers"].lower()
            assert all(name in allowed for name in ("content-type", "authorization", "if-match"))
    async with aiohttp.ClientSession(headers={"Origin": FRIEND}) as http, Publisher(http, f"{server.url}/whip/one"):
        await until(lambda: server.streams.get("one").last_picture is not None)
    async with server.http.get(server.url + "/nothing", headers={"Origin": FRIEND}) as response:
        exposed = set(response.headers["Access-Control-Expose-Headers"].split(", "))
        assert {"Location", "ETag", "Link"} <= exposed
    async with server.http.options(server.url + "/whip/one", headers={"Origin": STRANGER}) as response:
        assert response.status == 403


@pytest.mark.parametrize(
    "given", [f"{FRIEND}/", "HTTPS://Friend.Example", f"{FRIEND}:443", "https://FRIEND.example:443/"]
)
async def test_an_origin_may_be_written_as_people_do(start_server, given):
    server = await start_server(allow_origins=[given])
    async with server.http.get(server.url + "/api/status", headers={"Origin": FRIEND}) as response:
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == FRIEND


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("http://[::1]:8081/", "http://[::1]:8081"),
        ("https://straße.example", "https://xn--strae-oqa.example"),
        ("https://my_studio.lan.", "https://my_studio.lan."),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]"),
        ("http://[2001:DB8:0:0:1:0:0:1]:80", "http://[2001:db8::1:0:0:1]"),
        ("http://[::ffff:127.0.0.1]", "http://[::ffff:7f00:1]"),
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("http://Studio.lan:3000", "http://studio.lan:3000"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("null", "null"),
        ("*", STRANGER),
    ],
)
def test_other_forms_of_an_origin(given, sent):
    assert Access(allow_origins=[given]).knows_origin(sent, "127.0.0.1:8080")


@pytest.mark.parametrize(
    "given",
    [
        "",
        " ",
        "friend.example",
        "localhost:3000",
        "//friend.example",
        "https://",
        "https:friend.example",
        "https://*.x",
        "https://[::1]x",
        "https://[::1",
        "https://[::1%eth0]",
        "https://[v1.x]",
        "https://[127.0.0.1]",
        "https://a\norg",
        "https://a\torg",
        "https://a b",
        "https://a..org",
        "https://xn--\N{SNOWMAN}",
        "https://a:port",
    ],
)
def test_what_no_browser_sends_is_no_origin(given):
    with pytest.raises(ValueError, match=r"--allow-origin.*https://example\.org"):
        Access(allow_origins=[given])


@pytest.mark.parametrize(
    "host", ["127.1", "0x7f.1", "2130706433", "127.0.0.01", "1.2.3.256", "a.1", "１２７.1", "127.1."]
)
def test_a_number_that_browsers_write_otherwise_is_refused(host):
    with pytest.raises(ValueError, match=r"--allow-origin.*http://127\.0\.0\.1") as refused:
        Access(allow_origins=[f"http://{host}"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("extra", ["/page", "/?query", "/#place"])
def test_more_than_an_origin_is_refused(extra):
    with pytest.raises(ValueError, match="alone"):
        Access(allow_origins=[FRIEND + extra])


@pytest.mark.parametrize("token", ["", " ", "\n", " s3cret", "s3cret\n", "s3\x00cret", "s3\ncret"])
async def test_a_token_that_would_guard_nothing_is_refused(start_server, token):
    with pytest.raises(ValueError, match="--token"):
        await start_server(token=token)


async def test_a_request_without_a_host_is_refused_at_once(server, monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("The resolver was asked."))
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(server.url).port)
    writer.write(b"GET /api/status HTTP/1.0\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.0 403 ")
    writer.close()


async def test_the_token_guards_everything_but_the_pages(start_server):
    server = await start_server(token="s3cret")
    guarded = ["/api/status", "/api/streams", "/api/schema", "/api/streams/one/controls", "/metrics", "/whip/one"]
    for path in guarded:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            async with server.http.get(server.url + path, headers=headers) as response:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"] == "Bearer"
                assert "token" in (await response.json())["error"]
        async with server.http.get(server.url + path + "?token=wr%C3%B6ng") as response:
            assert response.status == 401
        for url, headers in ((path, {"Authorization": "Bearer s3cret"}), (path + "?token=s3cret", {})):
            async with server.http.get(server.url + url, headers=headers) as response:
                assert response.status < 300
    for path in ("/", "/view/one", "/static/index.html", "/healthz"):
        async with server.http.get(server.url + path) as response:
            assert response.status == 200
    async with server.http.ws_connect(f"{server.url}/api/streams/one/events?token=s3cret") as socket:
        assert (await socket.receive_json(timeout=10))["type"] == "status"


async def test_video_flows_with_the_token(start_server):
    server = await start_server(token="s3cret")
    async with (
        aiohttp.ClientSession(headers={"Authorization": "Bearer s3cret"}) as http,
        Publisher(http, f"{server.url}/whip/one"),
        Viewer(http, f"{server.url}/whep/one") as viewer,
    ):
        await viewer.next_frame()


async def test_beyond_loopback_any_host_name_is_known_to_those_with_the_token(start_server):
    server = await start_server(host="0.0.0.0", token="s3cret")
    headers = {"Host": "studio.lan:8080", "Authorization": "Bearer s3cret"}
    async with server.http.get(server.url + "/api/status", headers=headers) as response:
        assert response.status == 200
    async with server.http.get(server.url + "/api/status", headers={"Host": "studio.lan:8080"}) as response:
        assert response.status == 401


def test_the_bound_address_is_known_without_a_token_others_are_not():
    access = Access(host="192.168.1.5")
    assert access.knows_host("192.168.1.5:8080")
    assert not access.knows_host("192.168.1.6:8080")
    assert host_name("[::1") is None


def test_a_host_header_writes_nothing_else_into_the_policy():
    policy = security_headers("studio.lan; script-src *")["Content-Security-Policy"]
    assert "connect-src 'self';" in policy
    assert "studio.lan" not in policy
    assert "ws://[::1]:8080 " in security_headers("[::1]:8080")["Content-Security-Policy"]


async def test_who_gave_the_token_in_the_address_finds_it_in_the_location(start_server):
    server = await start_server(token="s3c+ret &/ü")
    token = quote("s3c+ret &/ü", safe="")
    async with aiohttp.ClientSession() as http:
        publisher = Publisher(http, f"{server.url}/whip/one?token={token}")
        async with publisher:
            assert publisher.location.endswith(f"?token={token}")
        # Leaving the session sent the DELETE to the Location.
        async with http.delete(server.url + publisher.location.partition("?")[0]) as response:
            assert response.status == 401
    assert len(server.sessions) == 0


async def test_pages_come_with_headers_that_keep_them_safe(server):
    for path, cache in (("/", "no-store"), ("/view/one", "no-store"), ("/static/index.html", "no-cache")):
        async with server.http.get(server.url + path) as response:
            assert response.status == 200
            assert response.content_type == "text/html"
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'self'" in policy
            assert "script-src 'self'" in policy
            assert "'unsafe-inline'" not in policy
            assert f"connect-src 'self' ws://{server.url[7:]} wss://{server.url[7:]};" in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert response.headers["Cache-Control"] == cache
