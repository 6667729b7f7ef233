"""The life of an engine, and what everyone may ask of it.

One thread loads the model and then serves (stream.engine.loop); where that breaks down, it is started again.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from exits import ENGINE_THREAD
from pipeline import capabilities
from pipeline.batch import Report
from pipeline.capabilities import Capabilities
from pipeline.errors import CaptureFailed
from pipeline.settings import Controls

from . import scheduler
from .batches import check_imagines
from .compiling import Compilation, Compile
from .engine import Engine
from .feeds import Feed, Feeds
from .loop import ServingLoop
from .status import Status, sentence
from .turns import DwellTold

log = logging.getLogger(__name__)

DEFAULT_BUDGET_S = 1.0
STOPPING_S = 20.0  # is waited for a compilation that nobody wants any more


class Load(Protocol):
    def __call__(self, report: Report, **graphs: bool) -> Engine:
        """graphs=False: without CUDA graphs."""


class EngineFailed(RuntimeError):
    """The engine does not paint any more; the sentence says why."""


class EngineRunner:
    """Serves any number of streams with one engine.

    load(report) -> Engine runs in the engine thread; once more, with graphs=False, where a capture broke off.
    compile(engine, report, put_in), if given, runs in a thread of its own once frames flow. What it compiled it hands
    over by put_in(swap), which returns at once: the engine thread calls swap() between two batches. report(detail,
    progress 0..1 or None) may be called from both; it raises Replaced in a compilation that nobody waits for any more.
    Until the model is ready, frames wait in their slots, newest wins.

    An engine that breaks down is started again, as often as scheduler.may_restart allows: what it had in hand is
    dropped. After that the state is "failed" for good.

    model, device: what the status says until the loaded model knows better; size: of the pictures, until then.
    budget_s: frames that are older when their turn comes are dropped, and streams whose engine time exceeds it get
    fewer steps, then smaller pictures. controls: what streams start with: the engine is made ready for these.
    """

    def __init__(
        self,
        load: Load,
        compile: Compile | None = None,
        *,
        model: str = "",
        device: str = "",
        size: tuple[int, int] = (512, 512),
        budget_s: float = DEFAULT_BUDGET_S,
        controls: Controls | None = None,
    ):
        self.budget_s = budget_s
        self.failure: BaseException | None = None  # why loading failed
        self._load, self._compile, self._size = load, compile, size
        self._controls = Controls() if controls is None else controls
        self._capabilities: Capabilities | None = None  # of the model, once it is loaded; for any thread
        self._lock = threading.Lock()
        self._status = Status(model, device)
        self._stopped: str | None = None  # why an engine that was ready paints no more
        self._feeds = Feeds()
        # For the engine thread alone.
        self._loop: ServingLoop | None = None  # while an engine is loaded
        self._compilation: Compilation | None = None
        self._graphs: dict[str, bool] = {}
        self._but = ""  # what the status says behind "Ready"
        self._work = threading.Event()
        self._settled = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=ENGINE_THREAD, daemon=True)

    # -- for everyone ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Finish the batch in hand and stop.

        A load or a compilation in progress is not waited for, nor told of any more: it ends with the process.
        """
        self._status.dismiss()
        self._closing.set()
        self._work.set()
        if self._thread.is_alive() and self._settled.is_set():
            self._thread.join(timeout_s)

    def status(self) -> dict[str, Any]:
        """The answer of GET /api/status."""
        return self._status.read()

    def tell(self, **facts: Any) -> None:
        """What others have to say in the status, under names of their own."""
        self._status.change(**facts)

    def wait_settled(self, timeout_s: float | None = None) -> bool:
        """Block until the model is ready or has failed; True when it is ready."""
        self._settled.wait(timeout_s)
        return self._status.read()["state"] == "ready"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the pictures: the loaded model's, until then what it is asked for."""
        return self._size if (model := self._capabilities) is None else (model.width, model.height)

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after every change of the status, from whatever thread made it; returns the unsubscriber."""
        return self._status.subscribe(listener)

    def check(self, controls: Controls) -> None:
        """Raises ValueError(one sentence) when the loaded model cannot do what the controls ask."""
        if (model := self._capabilities) is not None:
            capabilities.check(model, controls)

    def check_imagines(self) -> None:
        """Raises CannotImagine when the loaded model does not paint without a picture."""
        if (model := self._capabilities) is not None:
            check_imagines(model)

    def check_serves(self) -> None:
        """Raises EngineFailed when no frame will be painted any more."""
        status = self._status.read()
        if status["state"] == "failed":
            raise EngineFailed(status["detail"])

    def remarks(self, controls: Controls) -> dict[str, str]:
        """control -> a sentence, for each that has no effect with the loaded model; {} until it is loaded."""
        if (model := self._capabilities) is None:
            return {}
        status = self._status.read()
        said = capabilities.remarks(model, controls, compiled=status["compiled"] == "yes")
        if dwell_s := status.get("lora_dwell_s"):
            said["lora_weights"] = f"Streams want several weights: they are painted in turns of {dwell_s:.2g} s."
        return said

    def fitted(self, controls: Controls) -> Controls:
        """The controls without the LoRAs that the loaded model does not have; as they are until it is loaded."""
        return controls if (model := self._capabilities) is None else capabilities.fitted(model, controls)

    def attach(self, feed: Feed) -> None:
        with self._lock:
            self._feeds.attach(feed)
            feed.fault = self._stopped

    def detach(self, feed: Feed) -> None:
        self._feeds.detach(feed)
        if (loop := self._loop) is not None:
            loop.call_soon(partial(loop.engine.forget, (feed.name,)))

    def wake(self) -> None:
        """A frame lies in some slot."""
        self._work.set()
        if self._stopped is not None:
            _drop_waiting(self._feeds.served)

    # -- the engine thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Whatever happens, the status says what has become of the engine."""
        restarts_s: list[float] = []
        while not self._closing.is_set():
            try:
                if self._loop is None:
                    self._loop = self._loaded()
                self._loop.run()
            except BaseException as error:  # a SystemExit, too: it would end this thread, and nobody would hear of it
                try:
                    goes_on = self._goes_on(error, restarts_s)
                except BaseException as another:
                    self._fail(another)
                    return
                if not goes_on:
                    return

    def _loaded(self) -> ServingLoop:
        if self._graphs:
            gc.collect()  # of the engine before
        engine = self._load(self._status.report, **self._graphs)
        engine.capture(self._controls, self._status.report)
        model = self._capabilities = engine.capabilities
        tell_dwell = DwellTold(lambda dwell_s: self._status.change(lora_dwell_s=dwell_s))
        loop = ServingLoop(engine, self._feeds, self.budget_s, self._work, self._closing, tell_dwell)
        self._status.change(
            state="ready",
            device=str(engine.device),
            detail=f"Ready{self._but or '.'}",
            progress=None,
            size=f"{model.width}x{model.height}",
            features=sorted(model.features),
            loras=list(model.loras),
            lora_weights=dict(model.loras),
            lora_dwell_s=0.0,
        )
        self._settled.set()
        self._work.set()  # for what has waited meanwhile
        if self._compile is not None:
            before = self._compilation
            self._compilation = Compilation(self._compile, loop, self._status, self._controls, self._but, before)
        return loop

    def _goes_on(self, error: BaseException, restarts_s: list[float]) -> bool:
        """After what broke the engine off: start over, with a fresh state, or fail for good."""
        if self._loop is not None:
            self._loop.abandon(error)
        if isinstance(error, CaptureFailed) and not self._graphs:
            self._let_go_for_one_without_graphs(sentence(error))
            return True
        if self._loop is not None and scheduler.may_restart(now_s := time.monotonic(), restarts_s):
            log.error("The engine broke down and is started again.", exc_info=error)
            restarts_s.append(now_s)
            self._loop.start_over()
            detail = f"Ready; the engine was started again after it broke down: {sentence(error)}{self._but}"
            self._status.change(detail=detail)
            self._work.set()
            return True
        self._fail(error)
        return False

    def _let_go_for_one_without_graphs(self, reason: str) -> None:
        log.error("The engine is loaded anew, without CUDA graphs: %s", reason)
        self._graphs, self._loop = {"graphs": False}, None
        self._but = f"; it goes on without CUDA graphs: {reason}"
        self._settled.clear()
        self._feeds.start_over()
        detail = f"Loading anew: the engine goes on without CUDA graphs: {reason}"
        if self._compilation is not None:
            self._compilation.give_up()  # before the status changes, or it would go on to tell of itself
        self._status.change(state="loading", compiled="no", detail=detail, progress=None)
        if self._compilation is not None:
            self._compilation.join(STOPPING_S)  # it holds on to the engine, too

    def _fail(self, error: BaseException) -> None:
        """No frame is painted any more."""
        detail, feeds = sentence(error), []
        if self._capabilities is None:
            log.debug("Loading failed.", exc_info=error)
            self.failure = error
        else:
            log.error("The engine stopped.", exc_info=error)
            what = "does not load again" if self._loop is None else "broke down too often"
            detail = f"The engine {what} ({detail.rstrip('.')}): start the server again."
            with self._lock:
                self._stopped, feeds = detail, list(self._feeds.served)
        self._loop = None
        if self._compilation is not None:
            self._compilation.give_up()
        self._status.change(state="failed", detail=detail, progress=None, compiled="no")
        self._settled.set()
        for feed in feeds:
            feed.fault = detail
        _drop_waiting(feeds)


def _drop_waiting(feeds: Iterable[Feed]) -> None:
    """Nobody will paint these frames."""
    for feed in feeds:
        if (waiting := feed.mailbox.clear()) is not None:
            feed.drop(waiting)
