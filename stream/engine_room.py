"""The one inference thread of a device: it loads the model, then carries out what the scheduler decides."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.settings import Controls

from . import scheduler, similarity
from .batches import (
    Feed,
    Job,
    Painted,
    Served,
    Stylizer,
    check_imagines,
    is_live,
    may_follow,
    painted,
    paints,
    pasted_in,
)
from .flight import Flight
from .frames import Frame
from .status import Status, sentence

log = logging.getLogger(__name__)

DEFAULT_BUDGET_S = 1.0
LOOK_EVERY_S = 0.001  # whether the engine is done

Report = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Launched:
    """A batch that the engine is at. since_s: from when on it had nothing else to do."""

    batch: Sequence[Job]
    painted: Painted
    since_s: float


def with_steps(controls: Controls, steps: int) -> Controls:
    return controls if steps == controls.steps else controls.model_copy(update={"steps": steps})


class EngineRoom:
    """Serves any number of streams with one Stylizer.

    load(report) -> Stylizer runs in the engine thread. compile(stylizer, report), if given, runs in a thread of its
    own once frames flow and swaps what it compiled inside the stylizer. report(detail, progress 0..1 or None) may be
    called from both. Until the model is ready, frames wait in their slots, newest wins.

    model, device: what the status says until the loaded model knows better. budget_s: frames that are older when their
    turn comes are dropped, and streams whose engine time exceeds it get fewer steps, then smaller pictures.
    """

    def __init__(
        self,
        load: Callable[[Report], Stylizer],
        compile: Callable[[Stylizer, Report], None] | None = None,
        *,
        model: str = "",
        device: str = "",
        budget_s: float = DEFAULT_BUDGET_S,
    ):
        self.budget_s = budget_s
        self.failure: Exception | None = None  # why loading failed
        self._load, self._compile = load, compile
        self._stylizer: Stylizer | None = None
        self._flight: Flight  # made when the stylizer is loaded, and for the engine thread alone
        self._launched: Launched | None = None  # and this, too
        self._launch_s = 0.0
        self._lock = threading.Lock()
        self._status = Status(model, device)
        self._served: dict[Feed, Served] = {}
        self._batch_times: defaultdict[scheduler.Rung, scheduler.EngineTimes] = defaultdict(scheduler.EngineTimes)
        self._shared_times = scheduler.EngineTimes()  # of calls with as many frames in flight as there are steps
        self._work = threading.Event()
        self._settled = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

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

    def wait_settled(self, timeout_s: float | None = None) -> bool:
        """Block until the model is ready or has failed; True when it is ready."""
        self._settled.wait(timeout_s)
        return self._status.read()["state"] == "ready"

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after every change of the status, from whatever thread made it; returns the unsubscriber."""
        return self._status.subscribe(listener)

    def check(self, controls: Controls) -> None:
        """Raises ValueError(one sentence) when the loaded model cannot do what the controls ask."""
        if self._stylizer is not None:
            self._stylizer.check(controls)

    def check_imagines(self) -> None:
        """Raises CannotImagine when the loaded model does not paint without a picture."""
        if self._stylizer is not None:
            check_imagines(self._stylizer)

    def remarks(self, controls: Controls) -> dict[str, str]:
        """control -> a sentence, for each that has no effect with the loaded model; {} until it is loaded."""
        return {} if self._stylizer is None else self._stylizer.remarks(controls)

    def fitted(self, controls: Controls) -> Controls:
        """The controls without the LoRAs that the loaded model does not have; as they are until it is loaded."""
        if self._stylizer is None:
            return controls
        known = {name: weight for name, weight in controls.lora_weights.items() if name in self._stylizer.loras}
        return controls if known == controls.lora_weights else controls.model_copy(update={"lora_weights": known})

    def attach(self, feed: Feed) -> None:
        with self._lock:
            self._served = {**self._served, feed: Served()}

    def detach(self, feed: Feed) -> None:
        with self._lock:
            self._served = {other: served for other, served in self._served.items() if other is not feed}

    def wake(self) -> None:
        """A frame lies in some slot."""
        self._work.set()

    # -- the engine thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._stylizer = stylizer = self._load(self._status.report)
        except Exception as error:
            log.debug("Loading failed.", exc_info=True)
            self.failure = error
            self._status.change(state="failed", detail=sentence(error), progress=None)
            self._settled.set()
            return
        self._status.change(
            state="ready",
            device=str(stylizer.device),
            detail="Ready.",
            progress=None,
            size=f"{stylizer.spec.width}x{stylizer.spec.height}",
            features=sorted(stylizer.features),
            loras=list(stylizer.loras),
            lora_weights={lora.name: lora.weight for lora in stylizer.spec.loras},
        )
        self._settled.set()
        self._flight = Flight(stylizer.stream_batch())
        if self._compile is not None:
            threading.Thread(target=self._run_compile, args=(self._compile,), name="compile", daemon=True).start()
        while not self._closing.is_set():
            self._work.wait()
            self._work.clear()
            while not self._closing.is_set() and self._serve_one_batch(stylizer):
                pass
        self._collect()

    def _serve_one_batch(self, stylizer: Stylizer) -> bool:
        """Carry out one plan; False when nobody waits, and there is nothing to wait for."""
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
                job.shape_key,
                stands=job.standing is not None,
            )
            for feed, job in jobs.items()
        ]
        plan = scheduler.plan(now_s, line, self.budget_s, stylizer.max_batch)
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
            if (alike := feed.mailbox.take_if(lambda frame, judged=jobs[feed].frame: frame is judged)) is not None:
                last = jobs[feed].standing
                feed.show(alike, last.rgb, None, last.controls, last.i420)
        # A frame that replaced the planned one in this instant is newer, so better, even if its size is another.
        together = plan.batch[: self._batch_size(now_s, chosen, stylizer.max_batch)]
        batch = [jobs[feed].of(frame) for feed in together if (frame := feed.mailbox.take()) is not None]
        if batch and shares_steps:
            self._advance(stylizer, batch[0])
        elif batch:
            self._stylize(stylizer, batch)
        else:
            self._collect()
        return bool(waiting) or self._launched is not None

    def _shares_steps(self, now_s: float, chosen: Sequence[Job], largest: int) -> bool:
        """Streams that wait for each other share batches of whole frames instead: that costs them no latency. Where
        features are reused, a frame needs those of the one before."""
        if len(chosen) != 1 or chosen[0].frame.is_imagined or not paints(chosen[0].controls):
            return False
        if chosen[0].controls.reuse:
            return False
        steps = chosen[0].controls.steps
        alone_s = self._batch_times[chosen[0].rung].recent(now_s).get(1, ())
        shared_s = self._shared_times.recent(now_s).get(steps, ())
        return steps <= largest and scheduler.shares_steps(bool(self._flight), steps, alone_s, shared_s, self.budget_s)

    def _joins(self, job: Job) -> bool:
        first = self._flight.jobs[0]
        return job.feed is first.feed and job.shape_key == first.shape_key

    def _batch_size(self, now_s: float, jobs: Sequence[Job], largest: int) -> int:
        if not jobs:
            return 0
        times = self._batch_times[jobs[0].rung].recent(now_s)
        return scheduler.batch_size(len(jobs), largest, times, self.budget_s)

    def _next_job(self, stylizer: Stylizer, feed: Feed, state: Served, now_s: float) -> Job | None:
        """What the stream asks for now; None when its frame is gone or its controls are at fault."""
        frame = feed.mailbox.peek()
        if frame is None:
            return None
        controls = feed.controls
        rungs = scheduler.ladder(controls.steps, stylizer.scales)
        # A picture that stays gets all of its steps.
        state.quality = (
            scheduler.Quality()
            if frame.is_imagined
            else scheduler.next_quality(now_s, state.quality, rungs, state.times.recent(now_s), self.budget_s)
        )
        rung = state.quality.rung or rungs[0]
        feed.quality, feed.scale = rungs.index(rung), rung.scale
        if not controls.reuse:
            state.memory = None
        controls = with_steps(controls, rung.steps)
        try:
            mask = feed.mask  # streams with a mask are painted alone
            look = (frame.size, frame.is_i420)
            key = (stylizer.shape_key(controls), rung.scale, look, id(mask) if mask else 0)
            job = Job(feed, frame, controls, mask, rung, key, state)
            return self._compared(job, state, now_s) if controls.skip_similar > 0 else job
        except Exception as error:
            self._collect()  # what is older is told of first
            if (faulty := feed.mailbox.take()) is not None:
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
        times = self._batch_times[launched.batch[0].rung].recent(time.monotonic()).get(len(launched.batch), ())
        at_s = scheduler.follow_at_s(launched.since_s, times, self._launch_s)
        while at_s is not None and not launched.painted.is_there():
            if (left_s := at_s - time.monotonic()) <= 0 or self._closing.wait(min(left_s, LOOK_EVERY_S)):
                return
        self._collect()

    def _stylize(self, stylizer: Stylizer, batch: Sequence[Job]) -> None:
        """Launch a batch, and hand on the one before it, which the engine may be at until now."""
        started_s = time.monotonic()
        try:
            coming = painted(stylizer, batch)
        except Exception as error:
            self._collect()
            if len(batch) > 1:  # find out whose fault it is, or that the sizes differ: the others get their pictures
                for job in batch:
                    self._stylize(stylizer, [job])
            else:
                self._blame(batch[0].feed, batch[0].frame, error)
            return
        self._launch_s = time.monotonic() - started_s
        last_ended_s = self._collect()
        self._launched = Launched(batch, coming, started_s if last_ended_s is None else last_ended_s)
        if not stylizer.runs_ahead:
            self._collect()

    def _collect(self) -> float | None:
        """Wait for what the engine is at and hand it on; when it was there, None where there was nothing."""
        launched, self._launched = self._launched, None
        if launched is None:
            return None
        batch = launched.batch
        try:
            pictures = list(zip(batch, launched.painted.wait(), strict=True))
        except Exception as error:
            for job in batch:
                self._blame(job.feed, job.frame, error)
            return time.monotonic()
        ended_s = time.monotonic()
        engine_s = ended_s - launched.since_s
        if paints(batch[0].controls):
            self._batch_times[batch[0].rung].add(ended_s, len(batch), engine_s)
        for job, (rgb, planes) in pictures:
            job.feed.fault = None
            self._remember(job, engine_s)
            job.feed.show(job.frame, rgb, engine_s, job.controls, planes)
        return ended_s

    def _advance(self, stylizer: Stylizer, job: Job | None = None) -> None:
        """Take what is in flight one step on, together with a new job if there is one."""
        self._collect()
        flight, width, height = self._flight, stylizer.spec.width, stylizer.spec.height
        jobs = [*flight.jobs, *([job] if job else [])]
        steps = jobs[0].controls.steps
        try:
            begins = {}
            if job is not None:
                live = is_live(stylizer, job)
                frames = (job.frame.as_it_came() if live else job.frame.rgb())[None]
                mask = job.mask.fitted(width, height)[None] if job.mask else None
                begins = {"job": job, "frames": frames, "controls": job.controls, "mask": mask, "live": live}
            landed = flight.advance(steps, **begins)
            if landed is not None:
                done, pictures, engine_s = landed
                (rgb,), (planes,) = pictures if is_live(stylizer, done) else (pictures, [None])
                if done.mask is not None:
                    frames, fitted = done.frame.rgb()[None], done.mask.fitted(width, height)
                    (rgb,) = pasted_in(stylizer, frames, [done.controls], [rgb], fitted)
        except Exception as error:
            log.warning("Frames in flight together failed, they are painted one by one: %s", sentence(error))
            self._shared_times.add(time.monotonic(), steps, math.inf)
            self._flight = Flight(stylizer.stream_batch())
            for each in jobs:
                self._stylize(stylizer, [each])
            return
        if flight.call_s is not None:
            self._shared_times.add(time.monotonic(), steps, flight.call_s)
        if landed is not None:
            done.feed.fault = None
            self._keep_for_similar(done)
            done.feed.show(done.frame, rgb, engine_s, done.controls, planes)

    def _remember(self, job: Job, engine_s: float) -> None:
        state = self._served.get(job.feed)
        if state is not None and paints(job.controls):
            state.times.add(time.monotonic(), job.rung, engine_s)
        self._keep_for_similar(job)

    def _keep_for_similar(self, job: Job) -> None:
        """The stream's last picture is this one's from now on; frames of a publisher who was replaced meanwhile are not
        shown, and no frame of the next has their circumstances."""
        if (state := self._served.get(job.feed)) is not None:
            painted = similarity.Painted(time.monotonic(), job.circumstances, job.reduced)
            state.painted = None if job.reduced is None else painted

    def _start_over(self) -> None:
        """The engine is another: what its forerunner painted may not stand, nor count for what it took to."""
        with self._lock:
            self._served = {feed: Served() for feed in self._served}
        self._batch_times, self._shared_times = defaultdict(scheduler.EngineTimes), scheduler.EngineTimes()

    def _blame(self, feed: Feed, frame: Frame, error: Exception) -> None:
        """Tell what went wrong where its stream is told of; log it once, not with every frame."""
        reason = sentence(error)
        if feed.fault != reason:
            log.error("A frame of stream %s failed: %s", feed.name, reason, exc_info=log.isEnabledFor(logging.DEBUG))
        feed.fault = reason
        feed.drop(frame)

    # -- the compile thread ------------------------------------------------------------------------------------------

    def _run_compile(self, compile: Callable[[Stylizer, Report], None]) -> None:
        self._status.change(compiled="compiling")
        try:
            compile(self._stylizer, self._status.report)
        except Exception as error:
            log.warning("Compiling failed, going on uncompiled: %s", sentence(error))
            log.debug("Compiling failed.", exc_info=True)
            self._status.change(
                compiled="no", detail=f"Ready, uncompiled: compiling failed ({sentence(error)})", progress=None
            )
        else:
            self._start_over()
            self._status.change(compiled="yes", detail="Ready.", progress=None)
