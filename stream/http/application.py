"""The HTTP application: pages, WHIP and WHEP, the API, and one shape for every error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from pipeline.settings import Controls
from stream.descriptors import OutOfDescriptors, none_left
from stream.engine.batches import CannotImagine
from stream.engine.room import EngineFailed, EngineRoom
from stream.recording.recordings import (
    FOLDER,
    AlreadyRecording,
    CannotRecord,
    NoRecording,
    Recordings,
    StillRecording,
    TooManyRecordings,
)
from stream.streams import BadStreamName, NoFreeStream, Streams
from stream.webrtc.sdp import BadSdp
from stream.webrtc.sessions import NoCommonCodec, Sessions, TooManySessions

from . import api, downloads, whip
from .access import Access, host_header, security_headers
from .files import File, file

log = logging.getLogger(__name__)

STATIC = Path(__file__).resolve().parents[2] / "static"
MAX_BODY_BYTES = 64 * 1024  # Chrome's offers are 7 KB
MAX_SESSIONS = 32
RETRY_AFTER_S = 5
BODY_S = 20.0  # for a whole body, however slowly it drips

STATUS_OF = {
    BadStreamName: 400,
    BadSdp: 400,
    NoCommonCodec: 406,
    NoFreeStream: 503,
    OutOfDescriptors: 503,
    TooManySessions: 503,
    api.TooManyListeners: 503,
    EngineFailed: 503,
    NoRecording: 404,
    CannotImagine: 409,
    AlreadyRecording: 409,
    StillRecording: 409,
    CannotRecord: 500,
    TooManyRecordings: 503,
}


def make_app(
    engine_room: EngineRoom,
    streams: Streams,
    *,
    defaults: Controls | None = None,
    presets: list[dict[str, Any]] | None = None,
    token: str | None = None,
    allow_origins: Collection[str] = (),
    host: str = "127.0.0.1",
    max_sessions: int = MAX_SESSIONS,
    static: Path = STATIC,
    recordings: Path = FOLDER,
) -> web.Application:
    """Every route the README lists. The caller starts and closes `engine_room`; sessions end with the application.

    defaults: what the schema names as default values, those of `streams` if None. host: the address it will listen on.
    recordings: the folder for films, made when the first one is recorded.
    """
    access = Access(host=host, token=token, allow_origins=allow_origins)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_guard(access)])
    app[api.ENGINE_ROOM] = engine_room
    app[api.PRESETS] = presets or []
    app[api.DEFAULTS] = defaults or streams.defaults
    app[api.SOCKETS] = set()
    app[whip.STREAMS] = streams
    app[whip.SESSIONS] = sessions = Sessions(max_sessions)
    app[downloads.RECORDINGS] = Recordings(recordings)
    app.add_routes([*whip.routes(), *api.routes(), *downloads.routes(), *_pages(static)])

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


def _guard(access: Access):
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn away who may not pass; turn whatever goes wrong into {"error": one sentence}."""
        if (refusal := access.refusal(request)) is not None:
            headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
            return _error(refusal.status, refusal.reason, headers)
        try:
            if request.method not in ("GET", "HEAD"):  # whose handlers read none
                await _take_body(request)
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            kept = {name: error.headers[name] for name in ("Allow", "Connection", "Upgrade") if name in error.headers}
            if error.status == 405 and request.method == "OPTIONS":  # every route may be asked what it allows
                return web.Response(status=204, headers=kept)
            return _error(error.status, _sentence(error, request), kept)
        except api.BadControl as error:
            return _error(422, str(error), field=error.field)
        except tuple(STATUS_OF) as error:
            return _refused(error)
        except web.RequestPayloadError:
            return _error(400, "The body cannot be read: its framing or its compression is malformed.")
        except ConnectionResetError:
            raise  # the client is gone, nobody reads an answer
        except Exception as error:
            if none_left(error):
                return _refused(OutOfDescriptors())
            log.exception("%s %s failed.", request.method, request.path)
            return _error(500, "The server made a mistake; its log says more.")

    return guard


async def _take_body(request: web.Request) -> None:
    """Read it, for the handler; aiohttp refuses what is too large. Raises HTTPRequestTimeout."""
    try:
        async with asyncio.timeout(BODY_S):
            await request.read()
    except TimeoutError as error:
        sentence = f"The body did not come whole within {BODY_S:g} seconds."
        raise web.HTTPRequestTimeout(text=sentence, headers={"Connection": "close"}) from error


def _refused(error: Exception) -> web.Response:
    status = STATUS_OF[type(error)]
    return _error(status, str(error), {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {})


def _sentence(error: web.HTTPException, request: web.Request) -> str:
    """aiohttp's own errors say only "404: Not Found"; ours carry their sentence."""
    if error.text and not error.text.startswith(f"{error.status}: "):
        return " ".join(error.text.split())
    return {
        404: f"There is nothing at {request.path[:100]}.",
        405: f"{request.method} is not possible at {request.path[:100]}.",
    }.get(error.status, f"{error.reason}.")


def _error(status: int, sentence: str, headers: dict[str, str] | None = None, field: str | None = None) -> web.Response:
    named = {} if field is None else {"field": field}
    return web.json_response({"error": sentence, **named}, status=status, headers=headers)


def _pages(static: Path) -> list[web.AbstractRouteDef]:
    async def studio(request: web.Request) -> File:
        return await file(static / "index.html")

    async def view(request: web.Request) -> File:
        request.app[whip.STREAMS].find(request.match_info["stream"])  # refuses a bad name
        return await file(static / "view.html")

    async def asset(request: web.Request) -> File:
        return await file(_inside(static, request.match_info["path"]))

    return [web.get("/", studio), web.get("/view/{stream}", view), web.get("/static/{path:.+}", asset)]


def _inside(folder: Path, name: str) -> Path:
    """The file of that name; 404 for what does not exist or lies elsewhere."""
    try:
        path = (folder / name).resolve()
        if path.is_relative_to(folder.resolve()) and path.is_file():
            return path
    except (OSError, ValueError):  # no file can have that name: it is too long, or holds a NUL
        pass
    raise web.HTTPNotFound
