"""A network that loses, delays, reorders and doubles packets as a seeded plan says, between real peers on loopback.

`with Relay(server_url, up=Plan(...)) as relay`: whoever posts to relay.url as it would to the server is answered with a
candidate of the relay's, and its own candidates are left out, so that all media go through the relay. What it does to
them is decided by `Link`, which knows no socket and no clock: the same packets at the same times meet the same fate.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import ClientSession, web

_HOP = {"host", "origin", "content-length", "transfer-encoding", "connection", "content-encoding"}


@dataclass(frozen=True)
class Plan:
    """What happens to the packets of one direction. Shares are of packets, 0 to 1; times are in seconds.

    loss: of media and of their reports. burst: how many are lost in a row on average (1: each by itself). one_way_s:
    what every packet takes. late: what share comes late_s later than that. doubled: what share comes twice. Only
    between from_s and until_s, counted from Relay.turn_to, but for one_way_s. lose: sequence numbers, counted from the
    first video packet after that, that are lost, and retransmissions: how many of what is sent again are lost too.
    """

    loss: float = 0.0
    burst: float = 1.0
    one_way_s: float = 0.0
    late: float = 0.0
    late_s: float = 0.0
    doubled: float = 0.0
    from_s: float = 0.0
    until_s: float = float("inf")
    lose: tuple[int, ...] = ()
    retransmissions: int = 0
    seed: int = 0


@dataclass
class Link:
    """One direction. kinds: payload type -> "video", "rtx", "audio", as the answer says it."""

    plan: Plan = Plan()
    kinds: dict[int, str] = field(default_factory=dict)
    began_s: float = 0.0
    lost: int = 0
    carried: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _is_in_burst: bool = False
    _videos: int = 0
    _retransmissions_to_lose: int = 0

    def turn_to(self, plan: Plan, now_s: float) -> None:
        self.plan, self.began_s, self._random = plan, now_s, random.Random(plan.seed)
        self._is_in_burst, self._videos, self._retransmissions_to_lose = False, 0, plan.retransmissions

    def carry(self, packet: bytes, now_s: float) -> list[float]:
        """When copies of the packet arrive; none if it is lost. Only media are lost or come late: what sets up and
        keeps the connection takes its time, but comes."""
        plan, at_s = self.plan, now_s + self.plan.one_way_s
        if len(packet) < 2 or not 128 <= packet[0] < 192:
            return [at_s]
        self.carried += 1
        kind = "report" if 192 <= packet[1] < 224 else self.kinds.get(packet[1] & 0x7F, "")
        draws = [self._random.random() for _ in range(4)]  # as many for every packet, whatever becomes of it
        if not plan.from_s <= now_s - self.began_s < plan.until_s:
            return [at_s]
        if self._is_lost(kind, draws[0]):
            self.lost += 1
            return []
        if draws[1] < plan.late:
            at_s += plan.late_s
        return [at_s, at_s] if draws[2] < plan.doubled else [at_s]

    def _is_lost(self, kind: str, draw: float) -> bool:
        plan = self.plan
        if kind == "video":
            self._videos += 1
            if self._videos - 1 in plan.lose:
                return True
        if kind == "rtx" and plan.lose and self._videos > min(plan.lose) and self._retransmissions_to_lose:
            self._retransmissions_to_lose -= 1
            return True
        if not plan.loss:
            return False
        if plan.burst <= 1:
            return draw < plan.loss
        if self._is_in_burst:  # Gilbert's model: a burst ends so that it is as long as that on average
            self._is_in_burst = draw >= 1 / plan.burst
        else:
            self._is_in_burst = draw < plan.loss / (plan.burst * (1 - plan.loss))
        return self._is_in_burst


class _Side(asyncio.DatagramProtocol):
    """A socket of the relay's; what comes in goes to `take`."""

    def __init__(self, take: Callable[[bytes, tuple], None]):
        self._take = take
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple) -> None:
        self._take(data, address)

    def error_received(self, error: Exception) -> None:
        """A peer that has gone."""


class _Path:
    """One session's way through the relay: a socket for the client's side and one for the server's."""

    def __init__(self, relay: Relay, server: tuple[str, int]):
        self._relay, self._server = relay, server
        self._client: tuple | None = None

    async def open(self) -> int:
        loop = asyncio.get_running_loop()
        _, self._near = await loop.create_datagram_endpoint(lambda: _Side(self._from_client), (self._server[0], 0))
        _, self._far = await loop.create_datagram_endpoint(lambda: _Side(self._from_server), (self._server[0], 0))
        return self._near.transport.get_extra_info("sockname")[1]

    def close(self) -> None:
        self._near.transport.close()
        self._far.transport.close()

    def _from_client(self, data: bytes, address: tuple) -> None:
        self._client = address
        self._relay.carry(self._relay.up, data, lambda: self._far.transport.sendto(data, self._server))

    def _from_server(self, data: bytes, address: tuple) -> None:
        if self._client is not None:
            client = self._client
            self._relay.carry(self._relay.down, data, lambda: self._near.transport.sendto(data, client))


class Relay:
    """In a thread of its own. up: to the server, down: from it."""

    def __init__(self, server_url: str, up: Plan = Plan(), down: Plan = Plan()):
        self.server_url = server_url
        self.up, self.down = Link(up), Link(down)
        self.url = ""
        self._paths: list[_Path] = []
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(10)

    def turn_to(self, up: Plan = Plan(), down: Plan = Plan()) -> None:
        """From now on."""

        def turn() -> None:
            now_s = time.monotonic()
            self.up.turn_to(up, now_s)
            self.down.turn_to(down, now_s)

        self._loop.call_soon_threadsafe(turn)

    def carry(self, link: Link, data: bytes, send: Callable[[], None]) -> None:
        now_s = time.monotonic()
        for at_s in link.carry(data, now_s):
            if at_s <= now_s:
                send()
            else:
                self._loop.call_later(at_s - now_s, self._send, send)

    def _send(self, send: Callable[[], None]) -> None:
        if not self._done.is_set():
            send()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._done = asyncio.Event()
        app = web.Application(client_max_size=1 << 20)
        app.router.add_get("/empty", self._empty)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        async with ClientSession(auto_decompress=False) as self._http:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
            self._ready.set()
            await self._done.wait()
            for path in self._paths:
                path.close()
            await runner.cleanup()

    async def _empty(self, request: web.Request) -> web.Response:
        """A page without a policy, for scripts."""
        return web.Response(text="<!doctype html>", content_type="text/html")

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.content_type == "application/sdp":
            body = without_candidates(body.decode()).encode()
        elif request.content_type == "application/trickle-ice-sdpfrag":
            return web.Response(status=204)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        if "Origin" in request.headers:
            headers["Origin"] = self.server_url
        url = self.server_url + request.raw_path
        async with self._http.request(request.method, url, data=body or None, headers=headers) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            if answer.content_type == "application/sdp":
                return web.Response(status=answer.status, body=await self._answer(await answer.text()), headers=kept)
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            return response

    async def _answer(self, sdp: str) -> bytes:
        server = next(iter(re.findall(r"^a=candidate:\S+ 1 udp \d+ ([\d.]+) (\d+) typ host", sdp, re.M)), None)
        if server is None:
            return sdp.encode()
        self.up.kinds.update(kinds(sdp))
        self.down.kinds.update(kinds(sdp))
        path = _Path(self, (server[0], int(server[1])))
        self._paths.append(path)
        port = await path.open()
        candidate = f"a=candidate:1 1 udp 2130706431 {server[0]} {port} typ host"
        head, *media = re.split("(?=^m=)", without_candidates(sdp), flags=re.M)
        media = [re.sub(r"^c=.*\r?\n", f"c=IN IP4 {server[0]}\r\n{candidate}\r\n", one, flags=re.M) for one in media]
        return "".join([head, *(re.sub(r"^m=(\w+) [1-9]\d*", rf"m=\1 {port}", one) for one in media)]).encode()


def without_candidates(sdp: str) -> str:
    return re.sub(r"^a=(candidate:|end-of-candidates).*\r?\n", "", sdp, flags=re.M)


def kinds(sdp: str) -> dict[int, str]:
    """Payload type -> "video", "rtx" or "audio"."""
    found = {}
    for section in re.split("(?=^m=)", sdp, flags=re.M)[1:]:
        kind = section[2:].split()[0]
        for number, codec in re.findall(r"^a=rtpmap:(\d+) ([\w-]+)/", section, re.M):
            found[int(number)] = "rtx" if codec.lower() == "rtx" else kind
    return found
