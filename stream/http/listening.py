"""The listening socket: accepts connections, never more than leave room for the rest, and lets the stale ones go."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Sequence

from aiohttp import web

from stream.descriptors import connection_limit, none_left

from .connections import Connection, first_to_go, following, overdue

log = logging.getLogger(__name__)

BACKLOG = 1024  # those that knock while a flood is let in
LOOK_EVERY_S = 0.5
RETRY_S = 0.1
GRACE_S = 1.0  # who came just now is about to send a request
SPARE = 16  # so many descriptors are freed when the last is gone: others than we need some, too


def bind(host: str, port: int) -> list[socket.socket]:
    """A socket on every address of that name which this machine has. Raises OSError."""
    sockets: list[socket.socket] = []
    lacking: OSError | None = None
    known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, address in dict.fromkeys((family, address) for family, *_, address in known):
        try:
            sockets.append(socket.create_server(address, family=family, backlog=BACKLOG))
            sockets[-1].setblocking(False)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # localhost is ::1, too, without IPv6
                for one in sockets:
                    one.close()
                raise
            lacking = error
    if lacking is not None and not sockets:
        raise lacking
    return sockets


@contextlib.asynccontextmanager
async def accepting(
    server: web.Server, sockets: Sequence[socket.socket], limit: int | None = None
) -> AsyncIterator[None]:
    """Serve what comes in at those sockets while the block runs; they are closed with it. limit: how many connections,
    as the process' descriptors allow if None.

    asyncio's own server accepts without a limit and, with no descriptor left, writes a million lines.
    """
    connections: set[Connection] = set()
    limit = connection_limit() if limit is None else limit
    server.request_handler = following(server.request_handler)
    tasks = [asyncio.create_task(_accept(server, one, connections, limit)) for one in sockets]
    tasks.append(asyncio.create_task(_let_stale_go(connections)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in sockets:
            one.close()


async def _accept(server: web.Server, listener: socket.socket, connections: set[Connection], limit: int) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            accepted, _ = await loop.sock_accept(listener)
        except OSError as error:
            if none_left(error):
                log.warning("No file descriptor is left for a connection: the one that has waited longest is closed.")
                for _ in range(SPARE):
                    _let_one_go(connections, GRACE_S)
            else:
                log.info("A connection could not be accepted: %s.", error.strerror)  # it ended before
            await asyncio.sleep(RETRY_S)
            continue
        try:
            while len(connections) >= limit:
                log.warning("All %d connections are taken: the one that has waited longest is closed.", limit)
                await asyncio.sleep(0 if _let_one_go(connections) else RETRY_S)
            await loop.connect_accepted_socket(lambda: Connection(server, connections), accepted)
        except OSError as error:
            accepted.close()
            log.info("A connection ended at once: %s.", error.strerror)
        except Exception:
            accepted.close()
            log.exception("A connection could not be served.")
        except BaseException:
            accepted.close()
            raise


async def _let_stale_go(connections: set[Connection]) -> None:
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        now_s = asyncio.get_running_loop().time()
        for one in connections:
            one.look(now_s)
        for one in overdue(connections, now_s):
            one.cut()


def _let_one_go(connections: set[Connection], waited_s: float = 0.0) -> bool:
    """Whether there was one that had waited so long."""
    now_s = asyncio.get_running_loop().time()
    one = first_to_go(connections, now_s)
    if one is None or now_s - one.since_s < waited_s:
        return False
    one.cut()
    return True
