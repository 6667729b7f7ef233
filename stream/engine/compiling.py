"""Compiling beside the frames: in a thread of its own, and what it has compiled is put in between two batches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from functools import partial

from pipeline import capabilities
from pipeline.batch import Report
from pipeline.capabilities import paints
from pipeline.errors import CaptureFailed
from pipeline.settings import Controls

from . import scheduler
from .engine import Engine
from .loop import ServingLoop
from .status import Status, sentence

log = logging.getLogger(__name__)

MOST_CAPTURED = 4  # shapes at once, while frames wait

Swap = Callable[[], None]
Compile = Callable[[Engine, Report, Callable[[Swap], None]], None]


class Replaced(RuntimeError):
    """What is being compiled for is not the engine any more."""


class Compilation:
    """One engine's, from now on. controls: what it is made ready for. but: what the status says behind "Ready". before:
    that of an engine that this one replaced, which is waited for."""

    def __init__(
        self,
        compile: Compile,
        loop: ServingLoop,
        status: Status,
        controls: Controls,
        but: str = "",
        before: Compilation | None = None,
    ):
        self._given_up = threading.Event()
        status.change(compiled="compiling")
        arguments = (compile, loop, status, controls, but, before)
        self._thread = threading.Thread(target=self._run, args=arguments, name="compile", daemon=True)
        self._thread.start()

    def give_up(self) -> None:
        """Nobody waits for it any more: its next report ends it."""
        self._given_up.set()

    def join(self, timeout_s: float | None = None) -> None:
        self._thread.join(timeout_s)

    def _run(
        self,
        compile: Compile,
        loop: ServingLoop,
        status: Status,
        controls: Controls,
        but: str,
        before: Compilation | None,
    ) -> None:
        if before is not None:
            before.join()

        def report(detail: str, progress: float | None = None) -> None:
            if self._given_up.is_set():
                raise Replaced("The engine that this is compiled for is gone.")
            status.report(detail, progress)

        failed: list[str | None] = []  # of each swap why, None where it did not

        def put_in(swap: Swap) -> None:
            loop.call_soon(lambda: failed.append(swap_in(loop, swap, controls)))

        def tell(reason: str | None = None) -> None:
            if reason is None and failed and None not in failed:
                reason = f"compiled code could not be put in ({failed[0]})"
            if reason is None:
                status.change(compiled="yes", detail=f"Ready{but or '.'}", progress=None)
            else:
                status.change(compiled="no", detail=f"Ready, uncompiled: {reason}{but}", progress=None)

        try:
            compile(loop.engine, report, put_in)
        except Replaced as error:
            log.debug("Compiling was given up: %s", error)
        except BaseException as error:
            log.warning("Compiling failed, going on uncompiled: %s", sentence(error))
            log.debug("Compiling failed.", exc_info=True)
            loop.call_soon(partial(tell, f"compiling failed ({sentence(error)})"))
        else:
            loop.call_soon(tell)


def swap_in(loop: ServingLoop, swap: Swap, controls: Controls) -> str | None:
    """In the engine thread, once nothing is under way and before other frames are taken. Why it failed, if it did: a
    swap is whole or nothing, so the engine then goes on as it was."""
    loop.collect_all()
    loop.engine.forget()
    try:
        swap()
    except BaseException as error:
        log.warning("Compiled code cannot be put in, going on without: %s", sentence(error))
        log.debug("Compiled code cannot be put in.", exc_info=True)
        return sentence(error)
    for one in _in_use(loop, controls)[:MOST_CAPTURED]:
        try:
            loop.engine.capture(one, _untold)
        except CaptureFailed:
            raise
        except Exception as error:
            log.warning("What is in use is not captured as CUDA graphs, it goes on without: %s", sentence(error))
    loop.start_over()
    return None


def _untold(detail: str, progress: float | None = None) -> None:
    """It takes a moment only."""


def _in_use(loop: ServingLoop, controls: Controls) -> list[Controls]:
    """One for each shape. There may not be room for all: what streams ask for goes first."""
    shapes: dict[Hashable, Controls] = {}
    for asked in (*loop.asked(scheduler.SAMPLE_LIFE_S), controls):
        if paints(asked):
            one = asked.model_copy(update={"lora_weights": controls.lora_weights})  # no part of a shape
            shapes.setdefault(capabilities.shape_key(loop.engine.capabilities, one), one)
    return list(shapes.values())
