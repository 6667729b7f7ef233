"""The one inference thread of a device: it loads the model, then carries out what the scheduler decides."""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, Protocol

from exits import ENGINE_THREAD
from pipeline import capabilities
from pipeline.capabilities import Capabilities, paints
from pipeline.errors import CaptureFailed, is_out_of_memory
from pipeline.settings import Controls

from . import scheduler, similarity
from .batches import (
    Asked,
    Feed,
    Job,
    Painted,
    Report,
    Served,
    Stylizer,
    Work,
    check_imagines,
    may_follow,
    painted,
    pasted_in,
    weights_of,
    work_done,
    work_of,
)
from .flight import Flight
from .frames import Frame
from .status import Status, sentence
from .turns import WANTED_S, Turns

log = logging.getLogger(__name__)

DEFAULT_BUDGET_S = 1.0
LOOK_EVERY_S = 0.001  # whether the engine is done
STOPPING_S = 20.0  # is waited for a compilation that nobody wants any more
IDLE_S = 1.0  # without a frame, before the engine does what would hold frames up
MOST_RECORDED = 4  # shapes at once, while frames wait
DWELL_CHANGE = 0.2  # of the dwell that the status told last: it is told again from there on,
TELL_EVERY_S = 1.0  # and so often: in between it may come and go with every batch

Swap = Callable[[], None]
Compile = Callable[[Stylizer, Report, Callable[[Swap], None]], None]


class Load(Protocol):
    def __call__(self, report: Report, **graphs: bool) -> Stylizer:
        """graphs=False: without CUDA graphs."""


class Replaced(RuntimeError):
    """What is being compiled for is not the engine any more."""


class EngineFailed(RuntimeError):
    """The engine does not paint any more; the sentence says why."""


@dataclass(frozen=True)
class Launched:
    """A batch that the engine is at. since_s: from when on it had nothing else to do. rewrites: LoRA weights are
    written for it first."""

    batch: Sequence[Job]
    work: Work
    painted: Painted
    since_s: float
    rewrites: bool


def with_steps(controls: Controls, steps: int) -> Controls:
    return controls if steps == controls.steps else controls.model_copy(update={"steps": steps})


class EngineRoom:
    """Serves any number of streams with one Stylizer.

    load(report) -> Stylizer runs in the engine thread; once more, with graphs=False, where a capture broke off.
    compile(stylizer, report, put_in), if given, runs in a thread of its own once frames flow. What it compiled it hands
    over by put_in(swap), which returns at once: the engine thread calls swap() between two batches. report(detail,
    progress 0..1 or None) may be called from both; it raises Replaced in a compilation that nobody waits for any more.
    Until the model is ready, frames wait in their slots, newest wins.

    An engine that breaks down is started again, as often as scheduler.may_restart allows: what it had in hand is
    dropped. After that the state is "failed" for good.

    model, device: what the status says until the loaded model knows better. budget_s: frames that are older when their
    turn comes are dropped, and streams whose engine time exceeds it get fewer steps, then smaller pictures. controls:
    what streams start with: the engine is made ready for these.
    """

    def __init__(
        self,
        load: Load,
        compile: Compile | None = None,
        *,
        model: str = "",
        device: str = "",
        budget_s: float = DEFAULT_BUDGET_S,
        controls: Controls | None = None,
    ):
        self.budget_s = budget_s
        self.failure: BaseException | None = None  # why loading failed
        self._load, self._compile = load, compile
        self._controls = Controls() if controls is None else controls
        self._capabilities: Capabilities | None = None  # of the model, once it is loaded; for any thread
        self._lock = threading.Lock()
        self._status = Status(model, device)
        self._stopped: str | None = None  # why an engine that was ready paints no more
        self._dwell_s = 0.0  # of LoRA weights, as the status tells it; the longest since then, and when it tells again
        self._longest_s, self._tell_s = 0.0, 0.0
        self._served: dict[Feed, Served] = {}
        # For the engine thread alone; flight and turns are made when the stylizer is loaded.
        self._stylizer: Stylizer | None = None
        self._flight: Flight | None = None
        self._turns: Turns
        self._graphs: dict[str, bool] = {}
        self._but = ""  # what the status says behind "Ready"
        self._launched: Launched | None = None
        self._launch_s = 0.0
        self._in_hand: dict[int, tuple[Feed, Frame]] = {}  # neither in their slots nor shown, by id
        self._forget_times()
        # For the compile thread, too.
        self._errands: deque[tuple[Stylizer, Callable[[], None]]] = deque()  # between two batches
        self._compiling: threading.Thread | None = None
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
        said = capabilities.remarks(model, controls, compiled=self._status.read()["compiled"] == "yes")
        if self._dwell_s:
            said["lora_weights"] = f"Streams want several weights: they are painted in turns of {self._dwell_s:.2g} s."
        return said

    def fitted(self, controls: Controls) -> Controls:
        """The controls without the LoRAs that the loaded model does not have; as they are until it is loaded."""
        return controls if (model := self._capabilities) is None else capabilities.fitted(model, controls)

    def attach(self, feed: Feed) -> None:
        with self._lock:
            self._served = {**self._served, feed: Served()}
            feed.fault = self._stopped

    def detach(self, feed: Feed) -> None:
        with self._lock:
            self._served = {other: served for other, served in self._served.items() if other is not feed}

    def wake(self) -> None:
        """A frame lies in some slot."""
        self._work.set()
        if self._stopped is not None:
            self._drop_waiting(self._served)

    # -- the engine thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Whatever happens, the status says what has become of the engine."""
        restarts_s: list[float] = []
        while not self._closing.is_set():
            try:
                self._serve()
            except BaseException as error:  # a SystemExit, too: it would end this thread, and nobody would hear of it
                try:
                    goes_on = self._goes_on(error, restarts_s)
                except BaseException as another:
                    self._fail(another)
                    return
                if not goes_on:
                    return

    def _serve(self) -> None:
        """Until the room closes."""
        stylizer = self._loaded() if self._stylizer is None else self._stylizer
        self._flight = Flight(stylizer.stream_batch())
        idle_s: float | None = IDLE_S
        while not self._closing.is_set():
            if not self._work.is_set():
                self._turns.idle()
            if self._work.wait(idle_s):
                self._work.clear()
                while not self._closing.is_set() and self._serve_one_batch(stylizer):
                    pass
                idle_s = IDLE_S
                continue
            self._tell_dwell(time.monotonic(), 0.0)
            if not stylizer.record_next():
                idle_s = None
        self._collect()

    def _loaded(self) -> Stylizer:
        if self._graphs:
            gc.collect()  # of the stylizer before
        stylizer = self._load(self._status.report, **self._graphs)
        stylizer.record(self._controls, self._status.report)
        self._stylizer, self._capabilities = stylizer, stylizer.capabilities
        self._turns = Turns(self.budget_s)
        self._status.change(
            state="ready",
            device=str(stylizer.device),
            detail=f"Ready{self._but or '.'}",
            progress=None,
            size=f"{stylizer.spec.width}x{stylizer.spec.height}",
            features=sorted(stylizer.capabilities.features),
            loras=list(stylizer.capabilities.loras),
            lora_weights=dict(stylizer.capabilities.loras),
            lora_dwell_s=self._dwell_s,
        )
        self._settled.set()
        self._work.set()  # for what has waited meanwhile
        if self._compile is not None:
            self._status.change(compiled="compiling")
            follows = partial(self._run_compile, self._compile, stylizer, self._compiling)
            self._compiling = threading.Thread(target=follows, name="compile", daemon=True)
            self._compiling.start()
        return stylizer

    def _goes_on(self, error: BaseException, restarts_s: list[float]) -> bool:
        """After what broke the engine off: start over, with a fresh state, or fail for good."""
        reason, now_s = sentence(error), time.monotonic()
        self._launched = None
        for feed, frame in list(self._in_hand.values()):
            self._blame(feed, frame, error)
        if isinstance(error, CaptureFailed) and not self._graphs:
            log.error("The engine is loaded anew, without CUDA graphs: %s", reason)
            self._graphs, self._stylizer = {"graphs": False}, None
            self._but = f"; it goes on without CUDA graphs: {reason}"
            self._settled.clear()
            self._flight = None  # it holds on to the stylizer
            self._start_over()
            detail = f"Loading anew: the engine goes on without CUDA graphs: {reason}"
            self._status.change(state="loading", compiled="no", detail=detail, progress=None)
            if self._compiling is not None:  # it holds on to the stylizer, too
                self._compiling.join(STOPPING_S)
            self._errands.clear()
            return True
        if self._stylizer is not None and scheduler.may_restart(now_s, restarts_s):
            log.error("The engine broke down and is started again.", exc_info=error)
            restarts_s.append(now_s)
            self._turns.forget()
            self._start_over()
            detail = f"Ready; the engine was started again after it broke down: {reason}{self._but}"
            self._status.change(detail=detail)
            self._work.set()
            return True
        self._fail(error)
        return False

    def _fail(self, error: BaseException) -> None:
        """No frame is painted any more."""
        detail, feeds = sentence(error), []
        if self._capabilities is None:
            log.debug("Loading failed.", exc_info=error)
            self.failure = error
        else:
            log.error("The engine stopped.", exc_info=error)
            what = "does not load again" if self._stylizer is None else "broke down too often"
            detail = f"The engine {what} ({detail.rstrip('.')}): start the server again."
            with self._lock:
                self._stopped, feeds = detail, list(self._served)
        self._stylizer = None
        self._errands.clear()
        self._status.change(state="failed", detail=detail, progress=None, compiled="no")
        self._settled.set()
        for feed in feeds:
            feed.fault = detail
        self._drop_waiting(feeds)

    def _drop_waiting(self, feeds: Iterable[Feed]) -> None:
        """Nobody will paint these frames."""
        for feed in feeds:
            if (waiting := feed.mailbox.clear()) is not None:
                feed.drop(waiting)

    def _serve_one_batch(self, stylizer: Stylizer) -> bool:
        """Carry out one plan; False when nobody waits, and there is nothing to wait for."""
        self._run_errands(stylizer)
        self._wait_to_follow()
        served = self._served
        now_s = time.monotonic()
        waiting = [feed for feed in served if feed.mailbox.peek() is not None]
        if not all(may_follow(feed) for feed in waiting):
            self._collect()
        jobs = {feed: job for feed in waiting if (job := self._next_job(stylizer, feed, served[feed], now_s))}
        line = [
            # What is to be imagined does not age: no newer frame follows by itself.
            scheduler.Waiting(
                feed,
                now_s if job.frame.is_imagined else job.frame.arrived_s,
                feed.waiting_since_s,
                (job.shape_key, feed if feed.fault else None),  # what failed last spoils no batch of others
                stands=job.standing is not None,
                weights=job.weights,
            )
            for feed, job in jobs.items()
        ]
        dwell = self._turns.dwell(now_s, {one.weights for one in self._asked(now_s, WANTED_S) if one.weights})
        self._tell_dwell(now_s, self._turns.dwell_s)
        plan = scheduler.plan(now_s, line, self.budget_s, stylizer.max_batch, dwell)
        for feed in plan.expired:
            # A newer frame may have come in since: only the one that was judged is thrown away.
            if (late := feed.mailbox.clear(lambda frame, judged=jobs[feed].frame: frame is judged)) is not None:
                feed.drop(late)
        chosen = [jobs[feed] for feed in plan.batch]
        shares_steps = self._shares_steps(now_s, chosen, stylizer.max_batch)
        if self._flight and not (shares_steps and self._joins(chosen[0])):
            self._advance(stylizer)  # who waits is not to overtake what is in flight, nor to wait for more of it
            return True
        for feed in plan.standing:
            if (alike := self._take(feed, lambda frame, judged=jobs[feed].frame: frame is judged)) is not None:
                last = jobs[feed].standing
                self._show(feed, alike, last.rgb, None, last.controls, last.i420)
        # A frame that replaced the planned one in this instant is newer, so better, even if its size is another.
        together = plan.batch[: self._batch_size(now_s, chosen, stylizer.max_batch)]
        batch = [jobs[feed].of(frame) for feed in together if (frame := self._take(feed)) is not None]
        if batch and shares_steps:
            self._advance(stylizer, batch[0])
        elif batch:
            for _, alike in groupby(sorted(batch, key=lambda job: job.look), key=lambda job: job.look):
                self._stylize(stylizer, list(alike))
        else:
            self._collect()
            if plan.again_s is not None and self._work.wait(max(0.0, plan.again_s - time.monotonic())):
                self._work.clear()
        return bool(waiting) or self._launched is not None

    def _asked(self, now_s: float, within_s: float) -> Iterator[Asked]:
        """What streams asked for that had a frame waiting not long ago."""
        for state in self._served.values():
            if state.asked is not None and now_s - state.asked.when_s <= within_s:
                yield state.asked

    def _tell_dwell(self, now_s: float, dwell_s: float) -> None:
        self._longest_s = max(self._longest_s, round(dwell_s, 3))
        if now_s < self._tell_s:
            return
        if abs(self._longest_s - self._dwell_s) > DWELL_CHANGE * self._dwell_s:
            self._dwell_s = self._longest_s
            self._status.change(lora_dwell_s=self._dwell_s)
        self._longest_s, self._tell_s = 0.0, now_s + TELL_EVERY_S

    def _take(self, feed: Feed, matches: Callable[[Frame], bool] = lambda frame: True) -> Frame | None:
        """A stream's waiting frame, which is in hand from now on: until it is shown or dropped."""
        if (frame := feed.mailbox.take_if(matches)) is not None:
            self._in_hand[id(frame)] = feed, frame
        return frame

    def _show(self, feed: Feed, frame: Frame, *picture: Any) -> None:
        """picture: what Feed.show takes for the frame."""
        feed.show(frame, *picture)
        del self._in_hand[id(frame)]

    def _shares_steps(self, now_s: float, chosen: Sequence[Job], largest: int) -> bool:
        """Streams that wait for each other share batches of whole frames instead: that costs them no latency. Where
        features are reused, a frame needs those of the one before."""
        if len(chosen) != 1 or chosen[0].frame.is_imagined or not paints(chosen[0].controls):
            return False
        if chosen[0].controls.reuse:
            return False
        steps, work = chosen[0].controls.steps, chosen[0].work
        alone_s, shared_s = self._batch_times[work].of(1, now_s), self._shared_times.of(work, now_s)
        return steps <= largest and scheduler.shares_steps(bool(self._flight), steps, alone_s, shared_s, self.budget_s)

    def _joins(self, job: Job) -> bool:
        first = self._flight.jobs[0]
        return job.feed is first.feed and job.shape_key == first.shape_key

    def _batch_size(self, now_s: float, jobs: Sequence[Job], largest: int) -> int:
        if not jobs:
            return 0
        times = self._batch_times[jobs[0].work].recent(now_s)
        return scheduler.batch_size(len(jobs), largest, times, self.budget_s)

    def _next_job(self, stylizer: Stylizer, feed: Feed, state: Served, now_s: float) -> Job | None:
        """What the stream asks for now; None when its frame is gone or its controls are at fault."""
        frame = feed.mailbox.peek()
        if frame is None:
            return None
        controls = feed.controls
        mask = feed.mask  # streams with a mask are painted alone
        rungs = scheduler.ladder(controls.steps, stylizer.scales)
        if not controls.reuse:
            state.memory = None
        work = work_of(stylizer, frame, controls, mask, state.memory, rungs[0])
        # A picture that stays gets all of its steps.
        state.quality = (
            scheduler.Quality()
            if frame.is_imagined
            else scheduler.next_quality(now_s, state.quality, rungs, state.times_of(work, now_s), self.budget_s)
        )
        rung = state.quality.rung or rungs[0]
        feed.quality, feed.scale = rungs.index(rung), rung.scale
        controls, work = with_steps(controls, rung.steps), work if rung is rungs[0] else work._replace(rung=rung)
        try:
            shape_key, weights = stylizer.shape_key(controls), weights_of(stylizer.capabilities, controls)
            state.asked = Asked(now_s, controls, weights)
            key = (shape_key, rung.scale, (frame.size, frame.is_i420), id(mask) if mask else 0)
            job = Job(feed, frame, controls, mask, work, weights, key, state)
            return self._compared(job, state, now_s) if controls.skip_similar > 0 else job
        except Exception as error:
            self._collect()  # what is older is told of first
            if (faulty := self._take(feed)) is not None:
                self._blame(feed, faulty, error)
            else:  # its publisher let go of it meanwhile; a fault that lasts is told with the next one
                log.debug("A frame of stream %s failed, and is gone.", feed.name, exc_info=True)
            return None

    def _compared(self, job: Job, state: Served, now_s: float) -> Job:
        """Told whether the stream's last picture may be shown for it. A source that passes through is always shown."""
        if job.frame.is_imagined or not paints(job.controls):
            return job
        job = replace(job, reduced=state.reduced(job.frame))
        stands = similarity.stands(now_s, state.painted, job.circumstances, job.reduced, job.controls.skip_similar)
        return replace(job, standing=job.feed.last_picture) if stands else job

    def _wait_to_follow(self) -> None:
        """Until the engine, if it is at something, is to be given more. What is there sooner than was expected is
        handed on at once."""
        if (launched := self._launched) is None:
            return
        times = self._batch_times[launched.work].of(len(launched.batch), time.monotonic())
        at_s = scheduler.follow_at_s(launched.since_s, times, self._launch_s)
        while at_s is not None and not launched.painted.is_there():
            if (left_s := at_s - time.monotonic()) <= 0 or self._closing.wait(min(left_s, LOOK_EVERY_S)):
                return
        self._collect()

    def _stylize(self, stylizer: Stylizer, batch: Sequence[Job]) -> bool:
        """Launch a batch, and hand on the one before it, which the engine may be at until now; False where it could not
        be launched."""
        started_s = time.monotonic()
        rewrites = self._begins_turn(stylizer, batch[0])
        try:
            coming = painted(stylizer, batch)
        except Exception as error:
            self._collect()
            self._turns.forget()
            self._recover(stylizer, error)
            if len(batch) > 1:
                self._one_by_one(stylizer, batch, error)
            else:
                self._blame(batch[0].feed, batch[0].frame, error)
            return False
        self._launch_s = time.monotonic() - started_s
        last_ended_s = self._collect()
        since_s = started_s if last_ended_s is None else last_ended_s
        self._launched = Launched(batch, work_done(batch), coming, since_s, rewrites)
        if not stylizer.runs_ahead:
            self._collect()
        return True

    def _begins_turn(self, stylizer: Stylizer, job: Job) -> bool:
        """Whether LoRA weights are written for a job that is about to be launched."""
        rewrites = job.weights is not None and not stylizer.stands_at(job.controls)
        self._turns.begin(time.monotonic(), job.weights, rewrites)
        return rewrites

    def _one_by_one(self, stylizer: Stylizer, batch: Sequence[Job], error: Exception) -> None:
        """Find out whose fault it is: the others get their pictures. If it is nobody's, so many are too many."""
        launched = [self._stylize(stylizer, [job]) for job in batch]
        if all(launched) or is_out_of_memory(error):
            self._failed_together(batch)

    def _failed_together(self, batch: Sequence[Job]) -> None:
        if paints(batch[0].controls):
            self._batch_times[batch[0].work].add(time.monotonic(), len(batch), math.inf)

    def _recover(self, stylizer: Stylizer, error: BaseException) -> None:
        """From a call that failed: what it has left behind is freed."""
        if is_out_of_memory(error):
            cause: BaseException | None = error
            while cause is not None:  # their tracebacks hold what the try had made already
                cause.__traceback__, cause = None, cause.__cause__ or cause.__context__
            stylizer.free_memory()

    def _collect(self) -> float | None:
        """Wait for what the engine is at and hand it on; when it was there, None where there was nothing."""
        launched, self._launched = self._launched, None
        if launched is None:
            return None
        batch, work = launched.batch, launched.work
        try:
            pictures = list(zip(batch, launched.painted.wait(), strict=True))
        except Exception as error:
            self._turns.forget()
            self._recover(self._stylizer, error)
            if len(batch) > 1:
                self._failed_together(batch)
            for job in batch:
                self._blame(job.feed, job.frame, error)
            return time.monotonic()
        ended_s = time.monotonic()
        engine_s = ended_s - launched.since_s
        self._turns.ended(ended_s, launched.rewrites)
        if len(batch) > 1:  # each a part of one array, which whoever keeps one of them would hold whole
            pictures = [(job, [None if one is None else one.copy() for one in both]) for job, both in pictures]
        if paints(batch[0].controls):
            times = self._batch_times[work]
            if launched.rewrites:  # once for as long as the weights dwell: that is no trait of the work
                self._turns.measured(ended_s, engine_s, times.of(len(batch), ended_s))
            else:
                times.add(ended_s, len(batch), engine_s)
        for job, (rgb, planes) in pictures:
            job.feed.fault = None
            if paints(job.controls) and not launched.rewrites and (state := self._served.get(job.feed)) is not None:
                state.times.add(ended_s, (work.way, work.rung), engine_s)
            self._keep_for_similar(job)
            self._show(job.feed, job.frame, rgb, engine_s, job.controls, planes)
        return ended_s

    def _advance(self, stylizer: Stylizer, job: Job | None = None) -> None:
        """Take what is in flight one step on, together with a new job if there is one."""
        self._collect()
        flight, width, height = self._flight, stylizer.spec.width, stylizer.spec.height
        jobs = [*flight.jobs, *([job] if job else [])]
        steps, work = jobs[0].controls.steps, jobs[0].work
        rewrites = self._begins_turn(stylizer, jobs[0])
        try:
            begins = {}
            if job is not None:
                live = job.work.live
                frames = (job.frame.as_it_came() if live else job.frame.rgb())[None]
                mask = job.mask.fitted(width, height)[None] if job.mask else None
                begins = {"job": job, "frames": frames, "controls": job.controls, "mask": mask, "live": live}
            landed = flight.advance(steps, **begins)
            if landed is not None:
                done, pictures, engine_s = landed
                (rgb,), (planes,) = pictures if done.work.live else (pictures, [None])
                if done.mask is not None:
                    frames, fitted = done.frame.rgb()[None], done.mask.fitted(width, height)
                    (rgb,) = pasted_in(stylizer, frames, [done.controls], [rgb], fitted)
        except Exception as error:
            self._turns.forget()
            flight = landed = None  # before memory is freed: they hold what is between two steps
            self._flight = Flight(stylizer.stream_batch())
            self._recover(stylizer, error)
            log.warning("Frames in flight together failed, they are painted one by one: %s", sentence(error))
            self._shared_times.add(time.monotonic(), work, math.inf)
            for each in jobs:
                self._stylize(stylizer, [each])
            return
        self._turns.ended(time.monotonic(), rewrites)
        if flight.call_s is not None:
            self._shared_times.add(time.monotonic(), work, flight.call_s)
        if landed is not None:
            done.feed.fault = None
            self._keep_for_similar(done)
            self._show(done.feed, done.frame, rgb, engine_s, done.controls, planes)

    def _keep_for_similar(self, job: Job) -> None:
        """The stream's last picture is this one's from now on; frames of a publisher who was replaced meanwhile are not
        shown, and no frame of the next has their circumstances."""
        if (state := self._served.get(job.feed)) is not None:
            painted = similarity.Painted(time.monotonic(), job.circumstances, job.reduced)
            state.painted = None if job.reduced is None else painted

    def _start_over(self) -> None:
        """The engine is another: what its forerunner painted may not stand, nor count for what it took to."""
        with self._lock:
            self._served = {feed: Served(asked=state.asked) for feed, state in self._served.items()}
        self._forget_times()

    def _forget_times(self) -> None:
        self._batch_times: defaultdict[Work, scheduler.EngineTimes] = defaultdict(scheduler.EngineTimes)  # by size
        self._shared_times = (
            scheduler.EngineTimes()
        )  # by Work, of calls with as many frames in flight as there are steps

    def _blame(self, feed: Feed, frame: Frame, error: BaseException) -> None:
        """Tell what went wrong where its stream is told of; log it once, not with every frame."""
        reason = sentence(error)
        if feed.fault != reason:
            log.error("A frame of stream %s failed: %s", feed.name, reason, exc_info=log.isEnabledFor(logging.DEBUG))
        feed.fault = reason
        del self._in_hand[id(frame)]
        feed.drop(frame)

    # -- compiling ---------------------------------------------------------------------------------------------------

    def _run_compile(self, compile: Compile, stylizer: Stylizer, before: threading.Thread | None) -> None:
        """In a thread of its own. before: that of a stylizer that this one replaced."""
        if before is not None:
            before.join()

        def report(detail: str, progress: float | None = None) -> None:
            if stylizer is not self._stylizer:
                raise Replaced("The engine that this is compiled for is gone.")
            self._status.report(detail, progress)

        def at_a_boundary(errand: Callable[[], None]) -> None:
            self._errands.append((stylizer, errand))
            self._work.set()

        failed: list[str | None] = []  # of each swap why, None where it did not

        def put_in(swap: Swap) -> None:
            at_a_boundary(lambda: failed.append(self._swap_in(stylizer, swap)))

        def tell(reason: str | None = None) -> None:
            if reason is None and failed and None not in failed:
                reason = f"compiled code could not be put in ({failed[0]})"
            if reason is None:
                self._status.change(compiled="yes", detail=f"Ready{self._but or '.'}", progress=None)
            else:
                self._status.change(compiled="no", detail=f"Ready, uncompiled: {reason}{self._but}", progress=None)

        try:
            compile(stylizer, report, put_in)
        except Replaced as error:
            log.debug("Compiling was given up: %s", error)
        except BaseException as error:
            log.warning("Compiling failed, going on uncompiled: %s", sentence(error))
            log.debug("Compiling failed.", exc_info=True)
            at_a_boundary(partial(tell, f"compiling failed ({sentence(error)})"))
        else:
            at_a_boundary(tell)

    def _run_errands(self, stylizer: Stylizer) -> None:
        while self._errands:
            owner, errand = self._errands.popleft()
            if owner is stylizer:
                errand()

    def _swap_in(self, stylizer: Stylizer, swap: Swap) -> str | None:
        """Once nothing is under way, and before other frames are taken. Why it failed, if it did: a swap is whole or
        nothing, so the engine then goes on as it was."""
        while self._flight:
            self._advance(stylizer)
        self._collect()
        try:
            swap()
        except BaseException as error:
            log.warning("Compiled code cannot be put in, going on without: %s", sentence(error))
            log.debug("Compiled code cannot be put in.", exc_info=True)
            return sentence(error)
        in_use = [one.controls for one in self._asked(time.monotonic(), scheduler.SAMPLE_LIFE_S)]
        shapes = {}
        for controls in filter(paints, [*in_use, self._controls]):  # there may not be room for all: in use goes first
            controls = controls.model_copy(update={"lora_weights": self._controls.lora_weights})  # no part of a shape
            shapes.setdefault(stylizer.shape_key(controls), controls)
        for controls in list(shapes.values())[:MOST_RECORDED]:
            try:
                stylizer.record(controls, lambda detail, progress=None: None)
            except CaptureFailed:
                raise
            except Exception as error:
                log.warning("What is in use is not recorded as CUDA graphs, it goes on without: %s", sentence(error))
        self._turns.forget()
        self._start_over()
        return None
