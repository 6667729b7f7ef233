"""The camera command: a camera goes in, a virtual camera comes out, a line in the terminal tells how it goes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable

from exits import EXIT_BAD_INPUT
from pipeline.settings import Controls
from sources import CameraError, Source
from stream.engine.runner import Compile, EngineRunner, Load
from stream.signals import end_of_signals, finish, until_told
from stream.streams import Stream, Streams

from .capture import Capture
from .status_line import StatusLine, status_text, undisturbed
from .virtual_camera import VirtualCamera, VirtualCameraError

STREAM = "camera"
STATUS_EVERY_S = 0.25


class CameraPublisher:
    """Publishes the stream."""

    kind = "camera"


def run_camera(
    load: Load,
    compile: Compile | None,
    *,
    model: str,
    device: str,
    defaults: Controls,
    size: tuple[int, int],
    open_source: Callable[[], Source],
    virtual_camera: str,
    budget_s: float = 1.0,
) -> int:
    """Run until interrupted; returns the exit code.

    See EngineRunner for load and compile, Capture for open_source, VirtualCamera for the device. size: (width, height)
    of the pictures.
    """
    engine = EngineRunner(load, compile, model=model, device=device, budget_s=budget_s, controls=defaults)
    try:
        return asyncio.run(_run_camera(engine, defaults, size, open_source, virtual_camera))
    except (CameraError, VirtualCameraError) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT


async def _run_camera(
    engine: EngineRunner,
    defaults: Controls,
    size: tuple[int, int],
    open_source: Callable[[], Source],
    virtual_camera: str,
) -> int:
    end = end_of_signals()
    with contextlib.ExitStack() as opened:  # closed in reverse: engine, virtual camera, camera
        if sys.platform == "linux" and sys.stderr.isatty():
            opened.enter_context(undisturbed())
        stream = Streams(engine, defaults).get(STREAM)
        capture = Capture(open_source, stream.publish(CameraPublisher())[0])
        opened.callback(capture.close)
        output = VirtualCamera(*size, capture.rate_hz, virtual_camera)
        opened.callback(output.close)
        if output.device == capture.address:
            raise CameraError(f"{output.device} would show its own picture: choose another --camera.")
        stream.watch(output.put)
        opened.callback(engine.close)
        line = StatusLine()
        line.say(f"{capture.name} -> virtual camera {output.device}, {size[0]}x{size[1]}. Ctrl+C ends it.")
        output.start()
        capture.start()
        telling = asyncio.create_task(_tell(line, engine, stream, capture, output, end))

        def untold(_: asyncio.Future) -> None:  # before until_told says why
            telling.cancel()
            line.end()

        end.add_done_callback(untold)
        try:
            return await until_told(engine, end, line.say)
        finally:
            end.cancel()


async def _tell(
    line: StatusLine, engine: EngineRunner, stream: Stream, capture: Capture, output: VirtualCamera, end: asyncio.Future
) -> None:
    """Keep the line current; ends the run with a virtual camera that stopped."""
    while True:
        if output.fault is not None:
            finish(end, EXIT_BAD_INPUT)
        line.show(status_text(engine.status(), stream.snapshot(), capture.trouble), time.monotonic())
        await asyncio.sleep(STATUS_EVERY_S)
