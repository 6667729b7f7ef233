"""One run of the server: listen at once, load behind it, say when frames flow, end cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from exits import EXIT_BAD_INPUT
from pipeline.settings import Controls
from stream.engine.runner import Compile, EngineRunner, Load
from stream.local.virtual_camera import VirtualCamera, VirtualCameraError
from stream.recording.recordings import FOLDER
from stream.signals import end_of_signals, until_told
from stream.streams import Streams
from stream.webrtc.sessions import Sessions

from . import listening, whip
from .application import make_app

GIVE_BACK_EVERY_S = 60.0


def serve(
    load: Load,
    compile: Compile | None,
    *,
    model: str,
    device: str,
    defaults: Controls,
    presets: list[dict[str, Any]],
    give_memory_back: Callable[[], object],
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
    """Serve until interrupted; returns the exit code. See EngineRunner for load and compile, make_app for the rest.

    give_memory_back: called in a thread, once a minute where a session has ended since: an encoder goes with a viewer.
    size: (width, height) of the pictures. virtual_camera: a device that is fed with those of `from_stream`.
    """
    engine = EngineRunner(load, compile, model=model, device=device, size=size, budget_s=budget_s, controls=defaults)
    streams = Streams(engine, defaults)
    app = make_app(
        engine,
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
            assert from_stream is not None  # the two go together
            streams.get(from_stream).watch(output.put)
            output.start(lambda fault: engine.tell(virtual_camera=fault))
            notes.append(f"Virtual camera {output.device} shows stream {from_stream}.")
        return asyncio.run(_serve(app, engine, host, port, notes, give_memory_back))


async def _give_memory_back(sessions: Sessions, give_memory_back: Callable[[], object]) -> None:
    ended = sessions.ended
    while True:
        await asyncio.sleep(GIVE_BACK_EVERY_S)
        if sessions.ended != ended:
            ended = sessions.ended
            await asyncio.to_thread(give_memory_back)


async def _serve(
    app: web.Application,
    engine: EngineRunner,
    host: str,
    port: int,
    notes: Sequence[str],
    give_memory_back: Callable[[], object],
) -> int:
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
        assert runner.server is not None  # it is set up
        async with listening.accepting(runner.server, sockets):
            shown_host = f"[{host}]" if ":" in host else host
            print(f"LCMirror listening on http://{shown_host}:{sockets[0].getsockname()[1]}", flush=True)
            for note in notes:
                print(note, flush=True)
            giving = asyncio.create_task(_give_memory_back(app[whip.SESSIONS], give_memory_back))
            try:
                return await until_told(engine, end)
            finally:
                giving.cancel()
    finally:
        await runner.cleanup()
        await asyncio.to_thread(engine.close)
