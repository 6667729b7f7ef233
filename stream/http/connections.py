"""The connections of the HTTP server: what each waits for, which ones have waited too long, which one goes when it is
crowded, and what one is told that does not speak HTTP."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Collection, Iterable
from enum import Enum

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, InvalidHeader, LineTooLong

from .errors import MISTAKE, error_response

log = logging.getLogger(__name__)

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

LINGER_S = 2.0  # how long the rest of a body is read that nobody wants, so that the answer is not lost in a reset


_TCP_INFO = struct.Struct("=24xI92xQ16xI")  # of Linux' tcp_info: tcpi_unacked, tcpi_bytes_acked, tcpi_notsent_bytes


class Stage(Enum):
    """What a connection waits for."""

    HEAD = "the request line and the headers"
    WORK = "us: a request is being handled, or its body is still coming"
    ANSWER = "the client, which takes our answer"
    IDLE = "the next request"
    GONE = "nothing"


# For a whole head, however slowly it drips; and how long a connection is kept for another request.
PATIENCE_S = {Stage.HEAD: 10.0, Stage.IDLE: 75.0}
# A film may take hours to go out. Only where it is crowded, what takes longer may be cut: a download can be resumed.
ANSWER_S = 60.0
STALLED_S = 1.5  # the same for who takes nothing at all meanwhile, as far as the system tells


class Connection(web.RequestHandler):
    """aiohttp's protocol, which also knows what it waits for, and since when on the loop's clock."""

    __slots__ = ("_all", "_begun", "_request", "_taken", "_wire", "since_s", "stage", "taken_s")

    def __init__(self, server: web.Server, connections: set[Connection]):
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # aiohttp's own way to say none
            lingering_time=LINGER_S,
        )
        self._all = connections
        self._begun = b""
        self._request: web.BaseRequest | None = None
        self.stage, self.since_s = Stage.HEAD, asyncio.get_running_loop().time()
        self._taken, self.taken_s = 0, self.since_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._wire = transport
        self._all.add(self)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._begun = self._begun or data[:2]
        if data and self.stage is Stage.IDLE:
            self._enter(Stage.HEAD)
        super().data_received(data)

    def begins(self, request: web.BaseRequest) -> None:
        self._request = request
        self._enter(Stage.WORK)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        self._enter(Stage.ANSWER)
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._request = None
            self._enter(Stage.IDLE)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._enter(Stage.GONE)
        self._all.discard(self)
        super().connection_lost(exc)

    def look(self, now_s: float) -> None:
        """Note whether the client has taken what it is owed since the last look; where nobody knows, it is said to."""
        owed, taken = owed_and_taken(self._wire)
        if not owed or taken != self._taken:
            self._taken, self.taken_s = taken, now_s

    @property
    def may_go(self) -> bool:
        """Nothing is lost with it: its request has not come whole, or there is none."""
        if self.stage is Stage.WORK:
            return self._request is not None and not self._request.content.is_eof()
        return self.stage in PATIENCE_S

    def cut(self) -> None:
        """Closed now: who reads nothing would hold up an orderly end for ever."""
        self._enter(Stage.GONE)
        self.force_close()
        self._wire.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP is answered as every other mistake, and takes one line of the log. Nothing of it is quoted:
        the token may stand in it."""
        if isinstance(exc, HttpProcessingError):
            status, sentence = 400, malformed(exc, self._begun)
            log.warning("A request was refused: %s", sentence)
        else:
            sentence = MISTAKE
            if not isinstance(exc, ConnectionError):  # the client is gone
                log.error("%s %s failed.", request.method, request.path, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("The answer has begun: it cannot become another.")
        return last_response(status, sentence)

    def log_exception(self, *args: object, exc_info: BaseException | None = None, **kwargs: object) -> None:
        """A body that was refused is refused once more where aiohttp reads the rest of it."""
        if not isinstance(exc_info, web.RequestPayloadError):
            super().log_exception(*args, exc_info=exc_info, **kwargs)

    def _enter(self, stage: Stage) -> None:
        if self.stage is not Stage.GONE:
            self.stage, self.since_s = stage, asyncio.get_running_loop().time()


def owed_and_taken(wire: asyncio.BaseTransport) -> tuple[bool, int]:
    """Whether the other side still has to take something that was sent, and how many bytes it has acknowledged in all;
    (False, 0) where the system does not tell."""
    try:
        told = wire.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        segments_in_flight, taken, bytes_to_send = _TCP_INFO.unpack(told)
    except (AttributeError, OSError, struct.error):  # no Linux, or an old one; closed already
        return False, 0
    return segments_in_flight + bytes_to_send > 0, taken


def malformed(error: HttpProcessingError, begun: bytes) -> str:
    """Why that is no request, in one sentence; `begun`: the first two bytes of the connection."""
    if begun == b"\x16\x03":  # a TLS record of a handshake (RFC 8446, section 5.1)
        return "Somebody speaks https to this http port: use http://, or put a TLS proxy in front."
    if isinstance(error, LineTooLong):
        return "The request line or a header is too long."
    return (
        "This is no HTTP request that can be read: its request line, a header or the framing of its body is malformed."
    )


def readable(value: str) -> bool:
    """Whether a header's value is UTF-8; aiohttp and Python's base64 stumble over what is not."""
    try:
        value.encode()
    except UnicodeEncodeError:  # other bytes come as lone surrogates
        return False
    return True


def last_response(status: int, sentence: str) -> web.Response:
    """An error with which the connection ends."""
    response = error_response(status, sentence)
    response.force_close()
    return response


def following(handle: Handle) -> Handle:
    """A server's handler that also tells the connection when a request begins, and answers what never gets to it."""

    async def handled(request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.begins(request)
        if any(not readable(value) for value in request.headers.values()):
            return connection.handle_error(request, 400, InvalidHeader(""))
        try:
            return await handle(request)
        except web.HTTPException as error:  # of aiohttp's own, for an Expect header it does not know
            return last_response(error.status, f"{error.reason}.")

    return handled


def overdue(connections: Iterable[Connection], now_s: float) -> list[Connection]:
    """Those whose patience is over."""
    return [one for one in connections if now_s - one.since_s > PATIENCE_S.get(one.stage, float("inf"))]


def first_to_go(connections: Collection[Connection], now_s: float) -> Connection | None:
    """Of those that may go, the one that has waited longest: a client in earnest sends its request at once. Only where
    there is none, who has been taking an answer for too long, the one that has taken nothing for longest."""
    may_go = [one for one in connections if one.may_go]
    if may_go:
        return min(may_go, key=lambda one: min(one.since_s, one.taken_s))
    stuck = [
        one
        for one in connections
        if one.stage is Stage.ANSWER and (now_s - one.since_s >= ANSWER_S or now_s - one.taken_s >= STALLED_S)
    ]
    return min(stuck, key=lambda one: (one.taken_s, one.since_s), default=None)
