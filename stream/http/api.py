"""The JSON routes: status, presets, the schema of the controls, streams and their controls, live events, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import WSCloseCode, web
from pydantic import ValidationError

from masks import BadMask, read_mask
from pipeline.settings import Controls
from stream.engine.runner import EngineFailed, EngineRunner
from stream.imagine import ImaginePublisher, imagine_publication, remarks
from stream.streams import Stream

from .whip import STREAMS

ENGINE = web.AppKey("engine", EngineRunner)
PRESETS = web.AppKey("presets", list)
DEFAULTS = web.AppKey("defaults", Controls)
SOCKETS = web.AppKey("sockets", set)

STATS_EVERY_S = 0.25
MAX_SOCKETS = 64
MASK_READER = ThreadPoolExecutor(1, "masks")  # one at a time: a small PNG can be much while it is read
GOODBYE_S = 1.0  # how long a listener may take to answer that its socket closes


class BadControl(ValueError):
    """A change of controls that cannot be; `field` names the control where one is at fault."""

    def __init__(self, reason: str, field: str | None = None):
        super().__init__(reason)
        self.field = field


class TooManyListeners(RuntimeError):
    """The limit of event sockets is reached."""


def routes() -> list[web.RouteDef]:
    return [
        web.get("/healthz", healthz),
        web.get("/metrics", metrics),
        web.get("/api/status", status),
        web.get("/api/presets", presets),
        web.get("/api/schema", schema),
        web.get("/api/streams", streams),
        web.get("/api/streams/{stream}", stream),
        web.get("/api/streams/{stream}/controls", controls),
        web.patch("/api/streams/{stream}/controls", change_controls),
        web.put("/api/streams/{stream}/mask", set_mask),
        web.delete("/api/streams/{stream}/mask", clear_mask),
        web.put("/api/streams/{stream}/imagine", imagine),
        web.delete("/api/streams/{stream}/imagine", stop_imagining),
        web.get("/api/streams/{stream}/events", events),
    ]


async def healthz(request: web.Request) -> web.Response:
    """503 once no frame will be painted any more."""
    try:
        request.app[ENGINE].check_serves()
    except EngineFailed as error:
        return web.json_response({"serving": False, "error": str(error)}, status=503)
    return web.json_response({"serving": True})


async def metrics(request: web.Request) -> web.Response:
    body = request.app[STREAMS].metrics.text()
    return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def status(request: web.Request) -> web.Response:
    return web.json_response(request.app[ENGINE].status())


async def presets(request: web.Request) -> web.Response:
    return web.json_response(request.app[PRESETS])


async def schema(request: web.Request) -> web.Response:
    """The schema of Controls, its defaults being those the server was started with."""
    described = Controls.model_json_schema()
    for name, value in request.app[ENGINE].fitted(request.app[DEFAULTS]).model_dump().items():
        described["properties"][name]["default"] = value
    return web.json_response(described)


async def streams(request: web.Request) -> web.Response:
    return web.json_response([kept.snapshot() for kept in request.app[STREAMS].all() if kept.in_use])


async def stream(request: web.Request) -> web.Response:
    name = request.match_info["stream"]
    found = request.app[STREAMS].find(name)
    if found is None or not found.in_use:
        raise web.HTTPNotFound(text=f"Nobody publishes or watches a stream named {name}.")
    return web.json_response(found.snapshot())


async def controls(request: web.Request) -> web.Response:
    found = request.app[STREAMS].find(request.match_info["stream"])
    return web.json_response((found.controls if found else request.app[STREAMS].defaults).model_dump())


async def change_controls(request: web.Request) -> web.Response:
    changes = await _json_object(request)
    found = request.app[STREAMS].find(request.match_info["stream"])
    before = found.controls if found else request.app[STREAMS].defaults
    try:
        changed = before.merged(changes)
        request.app[ENGINE].check(changed)
    except ValidationError as error:
        raise explained(error) from error
    except ValueError as error:
        name = str(error).partition(":")[0]  # of "steps: this model's schedule holds 4."
        raise BadControl(str(error), name if name in Controls.model_fields else None) from error
    request.app[STREAMS].get(request.match_info["stream"]).set_controls(changed)
    return web.json_response(changed.model_dump())


async def set_mask(request: web.Request) -> web.Response:
    """A PNG, white or opaque where to repaint; the rest of the picture stays the source's."""
    body = await request.read()
    try:
        size = _painted_size(request.app[ENGINE])
        mask = await asyncio.get_running_loop().run_in_executor(MASK_READER, read_mask, body, size)
    except BadMask as error:
        raise web.HTTPUnprocessableEntity(text=str(error)) from error
    request.app[STREAMS].get(request.match_info["stream"]).set_mask(mask)
    return web.Response(status=204)


def _painted_size(engine: EngineRunner) -> tuple[int, int] | None:
    """(width, height) of what the model paints; None until it is loaded."""
    width, x, height = engine.status().get("size", "").partition("x")
    return (int(width), int(height)) if x else None


async def clear_mask(request: web.Request) -> web.Response:
    found = request.app[STREAMS].find(request.match_info["stream"])
    if found is not None:
        found.set_mask(None)
    return web.Response(status=204)


async def imagine(request: web.Request) -> web.Response:
    """Pictures from the controls alone, one whenever they change. Takes over from another publisher, as any does; 201
    when it begins, 200 where it goes on."""
    request.app[ENGINE].check_serves()
    request.app[ENGINE].check_imagines()
    stream = request.app[STREAMS].get(request.match_info["stream"])
    begins = imagine_publication(stream) is None
    if begins:
        ImaginePublisher(stream).begin()
    return web.json_response(stream.snapshot(), status=201 if begins else 200)


async def stop_imagining(request: web.Request) -> web.Response:
    found = request.app[STREAMS].find(request.match_info["stream"])
    if found is not None and (publication := imagine_publication(found)) is not None:
        publication.close_publisher()
    return web.Response(status=204)


async def events(request: web.Request) -> web.WebSocketResponse:
    """Statistics at 4 Hz; controls and status at the start and when they change, whoever changed them."""
    name, engine, sockets = request.match_info["stream"], request.app[ENGINE], request.app[SOCKETS]
    request.app[STREAMS].find(name)  # refuses a bad name
    socket = web.WebSocketResponse(heartbeat=20, max_msg_size=4096, timeout=GOODBYE_S)
    try:
        opens = bool(socket.can_prepare(request))
    except ValueError:  # aiohttp decodes the key, which should be Base64 (RFC 6455, section 4.2.1) and may be anything
        opens = False
    if not opens:
        raise web.HTTPUpgradeRequired(
            headers={"Upgrade": "websocket"}, text="Events come over a WebSocket: ask for the upgrade to one."
        )
    if len(sockets) >= MAX_SOCKETS:
        raise TooManyListeners(f"All {MAX_SOCKETS} event sockets are in use; try again in a few seconds.")
    # Only now: a new name may push another out, and a request that is refused anyway must not.
    watched = request.app[STREAMS].get(name)
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()

    def on_change() -> None:
        loop.call_soon_threadsafe(changed.set)

    # Before the handshake's await: from here on the socket counts and the stream cannot be evicted.
    sockets.add(socket)
    leave = (watched.subscribe(on_change), engine.subscribe(on_change))
    try:
        await socket.prepare(request)
        teller = asyncio.create_task(_tell(socket, watched, engine, changed))
        try:
            async for _ in socket:
                pass  # nothing is expected of the listener; reading answers pings and notices that it left
        finally:
            teller.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await teller
    finally:
        sockets.discard(socket)
        for unsubscribe in leave:
            unsubscribe()
    return socket


async def _tell(socket: web.WebSocketResponse, watched: Stream, engine: EngineRunner, changed: asyncio.Event) -> None:
    """Only differences from what was told are sent: a slow listener skips states, it does not pile them up."""
    told: dict[str, Any] = {}
    next_stats_s = loop_time = asyncio.get_running_loop().time()
    while True:
        changed.clear()
        controls = watched.controls
        masked = watched.mask is not None
        said = {**engine.remarks(controls), **remarks(watched)}
        told_of_controls = {"controls": controls.model_dump(), "remarks": said, "masked": masked}
        current = {"status": engine.status(), "controls": told_of_controls}
        for kind, state in current.items():
            if told.get(kind) != state:
                told[kind] = state
                await socket.send_json({"type": kind, **state})
        loop_time = asyncio.get_running_loop().time()
        if loop_time >= next_stats_s:
            next_stats_s = max(next_stats_s + STATS_EVERY_S, loop_time)
            await socket.send_json({"type": "stats", **watched.snapshot()})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), max(0.0, next_stats_s - asyncio.get_running_loop().time()))


async def dismiss_publishers(app: web.Application) -> AsyncIterator[None]:
    """While the application runs: with an engine that failed for good, whoever publishes is told by the end of the
    session. Viewers keep the last picture."""
    loop, engine = asyncio.get_running_loop(), app[ENGINE]

    def dismiss() -> None:
        if engine.status()["state"] == "failed":
            app[STREAMS].dismiss_publishers()

    def on_status() -> None:
        loop.call_soon_threadsafe(dismiss)

    leave = engine.subscribe(on_status)
    yield
    leave()


async def close_sockets(app: web.Application) -> None:
    open_sockets = [socket for socket in app[SOCKETS] if socket.prepared]
    await asyncio.gather(
        *(socket.close(code=WSCloseCode.GOING_AWAY, message=b"The server stops.") for socket in open_sockets)
    )


def explained(error: ValidationError) -> BadControl:
    """The first fault as one sentence that names the control."""
    fault = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in fault["loc"])
    reason = "There is no such control" if fault["type"] == "extra_forbidden" else fault["msg"].rstrip(".")
    return BadControl(f"{field[:100]}: {reason}.", field[:100])


async def _json_object(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise web.HTTPBadRequest(text="The body is not JSON.") from error
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="The body must be a JSON object of controls.")
    return body
