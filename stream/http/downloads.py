"""The routes of what a user takes along: a snapshot of the picture, a recording of the stream, the films so far."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any, TypeVar

from aiohttp import web

from stream.recording import snapshots
from stream.recording.recordings import Recordings
from stream.streams import Stream

from .api import ENGINE
from .files import File, file
from .whip import STREAMS

log = logging.getLogger(__name__)

Result = TypeVar("Result")

RECORDINGS = web.AppKey("recordings", Recordings)

FINISH_S = 60.0  # how long a server that ends waits for its films; what is not whole then plays up to its last fragment
_DISK = ThreadPoolExecutor(4, "disk")  # not the loop's own: aiortc encodes in that, and a disk may take its time


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
    if found is None or (picture := found.last_picture) is None:
        raise web.HTTPNotFound(text=f"Stream {request.match_info['stream']} has no picture yet.")
    status = request.app[ENGINE].status()
    model = PurePath(status["model"])
    # A picture is shown around: where the model lies on this machine is nobody's business.
    named = model.name if model.is_absolute() else status["model"]
    settings = snapshots.settings_of(picture.rgb, picture.controls, found.name, named, status["device"])
    png = await _apart(snapshots.write, picture.rgb, settings)
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
        state = await _apart(request.app[RECORDINGS].start, stream)
    return web.json_response(state, status=201)


async def stop_recording(request: web.Request) -> web.Response:
    found = _find(request)
    if found is None:
        raise web.HTTPNotFound(text=f"Stream {request.match_info['stream']} is not being recorded.")
    ended = await _apart(request.app[RECORDINGS].stop, found)
    await asyncio.wrap_future(ended.over)
    return web.json_response(ended.state())


async def recordings(request: web.Request) -> web.Response:
    return web.json_response(await _apart(request.app[RECORDINGS].listed))


async def film(request: web.Request) -> File:
    """The film as a download; ranges are answered, so that it can be watched from any place."""
    path = await _apart(request.app[RECORDINGS].find, request.match_info["file"])
    return await file(path, headers={"Content-Type": "video/mp4", **_attached(path.name)})


async def finish_recordings(app: web.Application) -> None:
    """The server ends: what is being recorded becomes whole films."""
    ending = await _apart(app[RECORDINGS].close)
    if ending:
        await asyncio.wait([asyncio.wrap_future(each.over) for each in ending], timeout=FINISH_S)
    for recording in ending:
        if not recording.over.done():
            log.error("The recording %s could not be finished within %g s.", recording.stem, FINISH_S)


async def _apart(work: Callable[..., Result], *arguments: Any) -> Result:
    """What work returns, which waits for the disk."""
    return await asyncio.get_running_loop().run_in_executor(_DISK, work, *arguments)


def _find(request: web.Request) -> Stream | None:
    return request.app[STREAMS].find(request.match_info["stream"])


def _attached(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}
