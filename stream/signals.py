"""The end of a command that runs until it is interrupted: a signal, or a model that does not load."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable

from exits import EXIT_BAD_INPUT, EXIT_DONE, EXIT_INTERRUPTED
from stream.engine.runner import EngineRunner


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
    engine: EngineRunner, end: asyncio.Future[int], say: Callable[[str], None] = lambda text: print(text, flush=True)
) -> int:
    """Run the engine until `end` has a code or its model turns out not to load; `say` once frames flow.

    An engine that fails later ends nothing: people can read why.
    """
    loop = asyncio.get_running_loop()
    announced = False

    def look() -> None:
        nonlocal announced
        status = engine.status()
        if engine.failure is not None:
            finish(end, EXIT_BAD_INPUT)
        elif status["state"] == "ready" and not announced:
            announced = True
            say(f"ready: {status['model']} on {status['device']}, {status['size']}")

    def on_status() -> None:
        loop.call_soon_threadsafe(look)

    engine.subscribe(on_status)
    engine.start()
    code = await end
    if engine.failure is not None:
        print(engine.status()["detail"], file=sys.stderr)
    return code
