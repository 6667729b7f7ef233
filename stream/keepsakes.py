"""The routes of what a user takes along: a snapshot of the picture, a recording of the stream, the films so far."""

from __future__ import annotations

import asyncio
import time
from pathlib import PurePath

from aiohttp import web

from . import snapshots
from .api import ENGINE_ROOM
from .files import File, file
from .recordings import Recordings
from .signalling import STREAMS
from .streams import Stream

RECORDINGS = web.AppKey("recordings", Recordings)


def routes() -> list[web.RouteDef]:
    return [
        web.get("/api/streams/{stream}/snapshot", snapshot),
        web.get("/api/streams/{stream}/recording", recording),
        web.post("/api/streams/{stream}/recording", start_recording),
        web.delete("/api/streams/{stream}/recording", stop_recording),
        web.get("/api/recordings", recordings),
        web.get("/api/recordings/{file}", film),
    ]


async def snapshot(request: web.Request) -> web.Response:
    """The newest picture, with all that made it inside."""
    found = _find(request)
    picture = found.last_picture if found is not None else None
    if picture is None:
        raise web.HTTPNotFound(text=f"Stream {request.match_info['stream']} has no picture yet.")
    status = request.app[ENGINE_ROOM].status()
    model = PurePath(status["model"])
    # A picture is shown around: where the model lies on this machine is nobody's business.
    named = model.name if model.is_absolute() else status["model"]
    settings = snapshots.settings_of(picture.rgb, picture.controls, found.name, named, status["device"])
    png = await asyncio.to_thread(snapshots.write, picture.rgb, settings)
    name = f"{found.name}-{time.strftime('%Y%m%d-%H%M%S')}.png"
    return web.Response(body=png, content_type="image/png", headers=_attached(name))


async def recording(request: web.Request) -> web.Response:
    """The recording that runs or, when none does, how the last one ended."""
    found = _find(request)
    if found is None or found.recording is None:
        raise web.HTTPNotFound(text=f"Stream {request.match_info['stream']} has not been recorded.")
    return web.json_response(found.recording.state())


async def start_recording(request: web.Request) -> web.Response:
    stream = request.app[STREAMS].get(request.match_info["stream"])
    with stream.kept():  # until the recording itself holds it
        state = await asyncio.to_thread(request.app[RECORDINGS].start, stream)
    return web.json_response(state, status=201)


async def stop_recording(request: web.Request) -> web.Response:
    found = _find(request)
    if found is None:
        raise web.HTTPNotFound(text=f"Stream {request.match_info['stream']} is not being recorded.")
    return web.json_response(await asyncio.to_thread(request.app[RECORDINGS].stop, found))


async def recordings(request: web.Request) -> web.Response:
    return web.json_response(await asyncio.to_thread(request.app[RECORDINGS].listed))


async def film(request: web.Request) -> File:
    """The film as a download; ranges are answered, so that it can be watched from any place."""
    path = await asyncio.to_thread(request.app[RECORDINGS].find, request.match_info["file"])
    return await file(path, headers={"Content-Type": "video/mp4", **_attached(path.name)})


async def finish_recordings(app: web.Application) -> None:
    """The server ends: what is being recorded becomes whole films."""
    await asyncio.to_thread(app[RECORDINGS].close)


def _find(request: web.Request) -> Stream | None:
    return request.app[STREAMS].find(request.match_info["stream"])


def _attached(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}
