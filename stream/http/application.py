"""The HTTP application: its routes (pages, whip, api, downloads), who may pass, and the headers of every answer."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from pipeline.settings import Controls
from stream.engine.runner import EngineRunner
from stream.recording.recordings import FOLDER, Recordings
from stream.streams import Streams
from stream.webrtc.sessions import Sessions

from . import api, downloads, pages, whip
from .access import Access, host_header, security_headers
from .errors import answer_to, error_response

MAX_BODY_BYTES = 64 * 1024  # Chrome's offers are 7 KB
MAX_SESSIONS = 32
BODY_S = 20.0  # for a whole body, however slowly it drips


def make_app(
    engine: EngineRunner,
    streams: Streams,
    *,
    defaults: Controls | None = None,
    presets: list[dict[str, Any]] | None = None,
    token: str | None = None,
    allow_origins: Collection[str] = (),
    host: str = "127.0.0.1",
    max_sessions: int = MAX_SESSIONS,
    static: Path = pages.STATIC,
    recordings: Path = FOLDER,
) -> web.Application:
    """Every route the README lists. The caller starts and closes `engine`; sessions end with the application.

    defaults: what the schema names as default values, those of `streams` if None. host: the address it will listen on.
    recordings: the folder for films, made when the first one is recorded.
    """
    access = Access(host=host, token=token, allow_origins=allow_origins)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_guard(access)])
    app[api.ENGINE] = engine
    app[api.PRESETS] = presets or []
    app[api.DEFAULTS] = defaults or streams.defaults
    app[api.SOCKETS] = set()
    app[whip.STREAMS] = streams
    app[whip.SESSIONS] = sessions = Sessions(max_sessions, lambda: engine.size)
    app[downloads.RECORDINGS] = Recordings(recordings)
    app.add_routes([*whip.routes(), *api.routes(), *downloads.routes(), *pages.routes(static)])

    async def end_sessions(app: web.Application) -> None:
        await sessions.close_all()

    app.cleanup_ctx.append(api.dismiss_publishers)
    app.on_shutdown.append(api.close_sockets)
    app.on_shutdown.append(end_sessions)
    app.on_shutdown.append(downloads.finish_recordings)

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        host = host_header(request)
        response.headers.update(security_headers(host) if access.knows_host(host) else {})
        response.headers.update(access.cors_headers(request.headers.get("Origin"), host))
        response.headers.setdefault("Cache-Control", "no-cache" if request.path.startswith("/static/") else "no-store")

    app.on_response_prepare.append(add_headers)
    return app


def _guard(access: Access) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn away who may not pass; turn whatever goes wrong into an answer."""
        if (refusal := access.refusal(request)) is not None:
            headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
            return error_response(refusal.status, refusal.reason, headers)
        try:
            if request.method not in ("GET", "HEAD"):  # whose handlers read none
                await _take_body(request)
            return await handler(request)
        except Exception as error:
            return answer_to(error, request)

    return guard


async def _take_body(request: web.Request) -> None:
    """Read it, for the handler; aiohttp refuses what is too large. Raises HTTPRequestTimeout."""
    try:
        async with asyncio.timeout(BODY_S):
            await request.read()
    except TimeoutError as error:
        sentence = f"The body did not come whole within {BODY_S:g} seconds."
        raise web.HTTPRequestTimeout(text=sentence, headers={"Connection": "close"}) from error
