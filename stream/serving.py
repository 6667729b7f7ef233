"""One run of the server: listen at once, load behind it, say when frames flow, end cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from exits import EXIT_BAD_INPUT, EXIT_DONE, EXIT_INTERRUPTED
from pipeline.runtime import environment
from pipeline.settings import Controls
from stream.engine.room import Compile, EngineRoom, Load
from stream.http import listening, whip
from stream.http.application import make_app
from stream.local.virtual_camera import VirtualCamera, VirtualCameraError
from stream.recording.recordings import FOLDER
from stream.webrtc.sessions import Sessions

from .streams import Streams

GIVE_BACK_EVERY_S = 60.0


def serve(
    load: Load,
    compile: Compile | None,
    *,
    model: str,
    device: str,
    defaults: Controls,
    presets: list[dict[str, Any]],
    host: str,
    port: int,
    token: str | None = None,
    allow_origins: Collection[str] = (),
    budget_s: float = 1.0,
    virtual_camera: str | None = None,
    from_stream: str | None = None,
    size: tuple[int, int] = (512, 512),
    recordings: Path = FOLDER,
) -> int:
    """Serve until interrupted; returns the exit code. See EngineRoom for load and compile, make_app for the rest.

    virtual_camera: a device that is fed with the pictures of `from_stream`, of that `size` (width, height).
    """
    room = EngineRoom(load, compile, model=model, device=device, budget_s=budget_s, controls=defaults)
    streams = Streams(room, defaults)
    app = make_app(
        room,
        streams,
        defaults=defaults,
        presets=presets,
        token=token,
        allow_origins=allow_origins,
        host=host,
        recordings=recordings,
    )
    notes = [] if token is None else ["Every request needs the token: add /?token=SECRET to the address."]
    with contextlib.ExitStack() as opened:
        if virtual_camera is not None:
            try:
                output = VirtualCamera(*size, device=virtual_camera)
            except VirtualCameraError as error:
                print(error, file=sys.stderr)
                return EXIT_BAD_INPUT
            opened.callback(output.close)
            streams.get(from_stream).watch(output.put)
            output.start(lambda fault: room.tell(virtual_camera=fault))
            notes.append(f"Virtual camera {output.device} shows stream {from_stream}.")
        return asyncio.run(_serve(app, room, host, port, notes))


async def _give_memory_back(sessions: Sessions) -> None:
    """Once a minute, where a session has ended since: a viewer that leaves takes an encoder along."""
    ended = sessions.ended
    while True:
        await asyncio.sleep(GIVE_BACK_EVERY_S)
        if sessions.ended != ended:
            ended = sessions.ended
            await asyncio.to_thread(environment.give_memory_back)


async def _serve(app: web.Application, room: EngineRoom, host: str, port: int, notes: Sequence[str]) -> int:
    end = end_of_signals()  # before the first line is printed: who reads it may end us at once
    runner = web.AppRunner(app, shutdown_timeout=2.0)
    await runner.setup()
    try:
        try:
            sockets = listening.bind(host, port)
        except OSError as error:
            reason = error.strerror or str(error)
            print(f"Cannot listen on {host}:{port}: {reason}. Choose another --port.", file=sys.stderr)
            return EXIT_BAD_INPUT
        async with listening.accepting(runner.server, sockets):
            shown_host = f"[{host}]" if ":" in host else host
            print(f"LCMirror listening on http://{shown_host}:{sockets[0].getsockname()[1]}", flush=True)
            for note in notes:
                print(note, flush=True)
            giving = asyncio.create_task(_give_memory_back(app[whip.SESSIONS]))
            try:
                return await until_told(room, end)
            finally:
                giving.cancel()
    finally:
        await runner.cleanup()
        await asyncio.to_thread(room.close)


def end_of_signals() -> asyncio.Future[int]:
    """The exit code, once a signal asks for it."""
    loop = asyncio.get_running_loop()
    end: asyncio.Future[int] = loop.create_future()
    for number, code in ((signal.SIGINT, EXIT_INTERRUPTED), (signal.SIGTERM, EXIT_DONE)):
        with contextlib.suppress(NotImplementedError):  # Windows: KeyboardInterrupt ends asyncio.run instead
            loop.add_signal_handler(number, finish, end, code)
    return end


def finish(end: asyncio.Future[int], code: int) -> None:
    if not end.done():
        end.set_result(code)


async def until_told(
    room: EngineRoom, end: asyncio.Future[int], say: Callable[[str], None] = lambda text: print(text, flush=True)
) -> int:
    """Run the engine until `end` has a code or its model turns out not to load; `say` once frames flow.

    An engine that fails later ends nothing: people can read why.
    """
    loop = asyncio.get_running_loop()
    announced = False

    def on_status() -> None:
        nonlocal announced
        status = room.status()
        if room.failure is not None:
            finish(end, EXIT_BAD_INPUT)
        elif status["state"] == "ready" and not announced:
            announced = True
            say(f"ready: {status['model']} on {status['device']}, {status['size']}")

    room.subscribe(lambda: loop.call_soon_threadsafe(on_status))
    room.start()
    code = await end
    if room.failure is not None:
        print(room.status()["detail"], file=sys.stderr)
    return code
