"""The serving loop of the engine thread: look who waits, plan, submit a batch, collect the oldest one, show it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pipeline.batch import Pending, Pictures
from pipeline.capabilities import paints
from pipeline.errors import is_out_of_memory
from pipeline.settings import Controls

from . import scheduler, similarity
from .batches import Request, Workload, may_follow, requested, submitted
from .engine import Engine
from .feeds import Feed, Feeds, FeedState
from .frames import Frame
from .status import sentence
from .turns import WANTED_S, Turns

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.001  # whether the engine is done
IDLE_S = 1.0  # without a frame, before the engine does what would hold frames up


@dataclass(frozen=True)
class Launched:
    """A batch that the engine is at. behind: how many later ones it was told to expect meanwhile. at_s: when it was
    submitted. rewrites: LoRA weights are written for it first."""

    batch: Sequence[Request]
    pending: Pending[Pictures]
    behind: int
    at_s: float
    rewrites: bool

    @property
    def workload(self) -> Workload:
        workload, kind = self.batch[0].workload, self.pending.kind
        return workload if kind is None else workload._replace(kind=kind)


class ServingLoop:
    """Serves streams with one engine, until `closing` is set.

    work: set when there may be something to do. tell_dwell(now_s, seconds): is told for how long LoRA weights dwell.
    Only `call_soon` is for any thread.
    """

    def __init__(
        self,
        engine: Engine,
        feeds: Feeds,
        budget_s: float,
        work: threading.Event,
        closing: threading.Event,
        tell_dwell: Callable[[float, float], None],
    ):
        self.engine, self.feeds, self.budget_s = engine, feeds, budget_s
        self._work, self._closing, self._tell_dwell = work, closing, tell_dwell
        self.callbacks: deque[Callable[[], None]] = deque()  # between two batches
        self.under_way: deque[Launched] = deque()  # the oldest first
        self.turns = Turns(budget_s)
        self._in_hand: dict[int, tuple[Feed, Frame]] = {}  # neither in their slots nor shown, by id
        self._launch_s = 0.0  # what it took to submit the last batch
        self._free_s = -math.inf  # when the engine was done with the last batch that was collected
        self._was_deep = False  # the last batch found as many under way as may be
        self._forget_times()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call it in the engine thread, between two batches."""
        self.callbacks.append(callback)
        self._work.set()

    def asked(self, within_s: float) -> list[Controls]:
        """What streams asked for that had a frame waiting not long ago."""
        return [one.controls for one in self.feeds.asked(time.monotonic(), within_s)]

    def run(self) -> None:
        self.engine.forget()
        idle_s: float | None = IDLE_S
        while not self._closing.is_set():
            if not self._work.is_set():
                self.turns.idle()
            if self._work.wait(idle_s):
                self._work.clear()
                while not self._closing.is_set() and self._serve_one_batch():
                    pass
                idle_s = IDLE_S
                continue
            self._tell_dwell(time.monotonic(), 0.0)
            if not self.engine.capture_next():
                idle_s = None
        self.collect_all()

    def abandon(self, error: BaseException) -> None:
        """What broke the loop off is told of where frames were in hand; they are dropped."""
        self.under_way.clear()
        for feed, frame in list(self._in_hand.values()):
            self._blame(feed, frame, error)

    def start_over(self) -> None:
        """The engine is another: nothing is known of it."""
        self.turns.forget()
        self.feeds.start_over()
        self._forget_times()

    def _forget_times(self) -> None:
        """Of batches, by workload and then size; of batches among as many as may be under way, by workload."""
        self.batch_times: defaultdict[Workload, scheduler.EngineTimes] = defaultdict(scheduler.EngineTimes)
        self._deep_times = scheduler.EngineTimes()

    # -- look who waits, and plan ------------------------------------------------------------------------------------

    def _serve_one_batch(self) -> bool:
        """Carry out one plan; False when nobody waits, and there is nothing to wait for."""
        while self.callbacks:
            self.callbacks.popleft()()
        self._wait_to_follow()
        now_s = time.monotonic()
        requests = self._who_waits(now_s)
        line = [request.waiting(now_s) for request in requests.values()]
        plan = scheduler.plan(now_s, line, self.budget_s, self.engine.max_batch, self._dwell(now_s))
        for feed in plan.expired:
            self._expire(requests[feed])
        chosen = [requests[feed] for feed in plan.batch]
        behind = self._behind(now_s, chosen)
        if self.under_way and not self._fits(chosen, behind):
            self._collect()  # who waits is not to overtake what is under way, nor to wait for more of it
            return True
        for feed in plan.standing:
            self._show_again(requests[feed])
        # A frame that replaced the planned one in this instant is newer, so better, even if its size is another.
        together = plan.batch[: self._batch_size(now_s, chosen)]
        batch = [requests[feed].of(frame) for feed in together if (frame := self._take(feed)) is not None]
        for _, alike in groupby(sorted(batch, key=lambda one: one.look), key=lambda one: one.look):
            self._launch(list(alike), behind)
        again_s = None if batch or self.under_way else plan.again_s
        if again_s is not None and self._work.wait(max(0.0, again_s - time.monotonic())):
            self._work.clear()
        return bool(requests) or bool(self.under_way)

    def _wait_to_follow(self) -> None:
        """Until an engine that runs ahead is to be given more. What is there sooner than was expected is handed on at
        once."""
        if not self.under_way or self._is_behind:
            return
        launched = self.under_way[0]
        times = self.batch_times[launched.workload].of(len(launched.batch), time.monotonic())
        at_s = scheduler.follow_at_s(self._since_s(launched), times, self._launch_s)
        while at_s is not None and not launched.pending.is_there():
            if (left_s := at_s - time.monotonic()) <= 0 or self._closing.wait(min(left_s, LOOK_EVERY_S)):
                return
        self._collect()

    def _who_waits(self, now_s: float) -> dict[Feed, Request]:
        served = self.feeds.served
        waiting = [feed for feed in served if feed.mailbox.peek() is not None]
        if not self._is_behind and not all(map(may_follow, waiting)):
            self.collect_all()
        requests = {feed: self._requested(feed, served[feed], now_s) for feed in waiting}
        return {feed: request for feed, request in requests.items() if request is not None}

    def _requested(self, feed: Feed, state: FeedState, now_s: float) -> Request | None:
        """None when its frame is gone or its controls are at fault."""
        frame = feed.mailbox.peek()
        if frame is None:
            return None
        try:
            return requested(self.engine, feed, frame, state, now_s, self.budget_s)
        except Exception as error:
            self.collect_all()  # what is older is told of first
            if (faulty := self._take(feed)) is not None:
                self._blame(feed, faulty, error)
            else:  # its publisher let go of it meanwhile; a fault that lasts is told with the next one
                log.debug("A frame of stream %s failed, and is gone.", feed.name, exc_info=True)
            return None

    def _dwell(self, now_s: float) -> scheduler.Dwell | None:
        dwell = self.turns.dwell(now_s, {one.weights for one in self.feeds.asked(now_s, WANTED_S) if one.weights})
        self._tell_dwell(now_s, self.turns.dwell_s)
        return dwell

    @property
    def _is_behind(self) -> bool:
        return bool(self.under_way) and self.under_way[0].behind > 0

    def _behind(self, now_s: float, chosen: Sequence[Request]) -> int:
        """For how many later batches the pictures of this one wait. Streams that wait for each other share batches
        instead: that costs them no latency."""
        if len(chosen) != 1 or chosen[0].frame.is_imagined:
            return 0
        depth, workload = self.engine.depth(chosen[0].controls), chosen[0].workload
        if depth > self.engine.max_batch:  # as many frames share what it does
            return 0
        alone_s, together_s = self.batch_times[workload].of(1, now_s), self._deep_times.of(workload, now_s)
        gains = scheduler.gains_behind(self._is_behind, depth, alone_s, together_s, self.budget_s)
        return depth - 1 if gains else 0

    def _fits(self, chosen: Sequence[Request], behind: int) -> bool:
        """May these be submitted while others are under way?"""
        if not chosen or bool(behind) is not self._is_behind:
            return False
        first, last = chosen[0], self.under_way[-1].batch[0]
        return not behind or (first.feed is last.feed and first.shape_key == last.shape_key)

    def _batch_size(self, now_s: float, chosen: Sequence[Request]) -> int:
        if not chosen:
            return 0
        times = self.batch_times[chosen[0].workload].recent(now_s)
        return scheduler.batch_size(len(chosen), self.engine.max_batch, times, self.budget_s)

    # -- submit ------------------------------------------------------------------------------------------------------

    def _launch(self, batch: Sequence[Request], behind: int = 0) -> bool:
        """Submit a batch and collect what need not stay under way any more; False where it could not be submitted."""
        started_s = time.monotonic()
        rewrites = batch[0].weights is not None and not self.engine.stands_at(batch[0].controls)
        self.turns.begin(started_s, batch[0].weights, rewrites)
        try:
            pending = submitted(self.engine, batch, behind)
        except Exception as error:
            self._not_launched(batch, behind, error)
            return False
        self._launch_s = time.monotonic() - started_s
        self.under_way.append(Launched(batch, pending, behind, started_s, rewrites))
        follows_another, self._was_deep = self._was_deep, 0 < behind < len(self.under_way)
        stay = behind or int(self.engine.runs_ahead)
        while len(self.under_way) > stay or (behind and self.under_way and self.under_way[0].pending.is_there()):
            ended_s = self._collect()
            # Only a batch behind another that was collected begins with nothing left to wait for.
            if self._was_deep and follows_another and ended_s is not None:
                self._deep_times.add(ended_s, batch[0].workload, ended_s - started_s)
            follows_another = False
        return True

    def _not_launched(self, batch: Sequence[Request], behind: int, error: Exception) -> None:
        if behind:
            self._fall_back([*self._let_go(), *batch], error)
            return
        self.collect_all()
        self._find_fault(batch, error)

    def _find_fault(self, batch: Sequence[Request], error: Exception) -> None:
        """Whose it is that a batch failed: the others get their pictures. If it is nobody's, so many are too many."""
        self.turns.forget()
        self._recover(error)
        if len(batch) == 1:
            self._blame(batch[0].feed, batch[0].frame, error)
            return
        painted = [self._painted_alone(request) for request in batch]
        if (all(painted) or is_out_of_memory(error)) and paints(batch[0].controls):
            self.batch_times[batch[0].workload].add(time.monotonic(), len(batch), math.inf)

    def _painted_alone(self, request: Request) -> bool:
        self._launch([request])
        self.collect_all()
        return request.feed.fault is None

    def _let_go(self) -> list[Request]:
        """Those under way, of whom the engine knows no more."""
        requests = [request for launched in self.under_way for request in launched.batch]
        self.under_way.clear()
        self.engine.forget()
        return requests

    def _fall_back(self, requests: Sequence[Request], error: Exception) -> None:
        """They failed under way together, and are painted one by one."""
        self.turns.forget()
        self._recover(error)
        log.warning("Frames under way together failed, they are painted one by one: %s", sentence(error))
        self._deep_times.add(time.monotonic(), requests[0].workload, math.inf)
        for request in requests:
            self._launch([request])

    def _recover(self, error: BaseException) -> None:
        """From a call that failed: what it has left behind is freed."""
        if is_out_of_memory(error):
            cause: BaseException | None = error
            while cause is not None:  # their tracebacks hold what the try had made already
                cause.__traceback__, cause = None, cause.__cause__ or cause.__context__
            self.engine.free_memory()

    # -- collect, and show -------------------------------------------------------------------------------------------

    def collect_all(self) -> None:
        while self.under_way:
            self._collect()

    def _collect(self) -> float | None:
        """Wait for the oldest batch and hand it on; when it was there, None where it failed."""
        launched = self.under_way.popleft()
        batch, behind = launched.batch, launched.behind
        try:
            pictures = launched.pending()
        except Exception as error:
            del launched  # before memory is freed: it holds on to some
            self._free_s = time.monotonic()
            self._failed(batch, behind, error)
            return None
        ended_s = time.monotonic()
        engine_s = ended_s - self._since_s(launched)
        self._free_s = ended_s
        self.turns.ended(ended_s, launched.rewrites)
        workload = launched.workload._replace(kind=pictures.kind)
        if not behind and paints(batch[0].controls):
            self._measure(launched, workload, ended_s, engine_s)
        for number, request in enumerate(batch):
            self._hand_on(request, pictures, number, engine_s)
        return ended_s

    def _failed(self, batch: Sequence[Request], behind: int, error: Exception) -> None:
        if behind:
            self._fall_back([*batch, *self._let_go()], error)
        else:
            self._find_fault(batch, error)

    def _measure(self, launched: Launched, workload: Workload, ended_s: float, engine_s: float) -> None:
        times, size = self.batch_times[workload], len(launched.batch)
        if launched.rewrites:  # once for as long as the weights dwell: that is no trait of the workload
            self.turns.measured(ended_s, engine_s, times.of(size, ended_s))
            return
        times.add(ended_s, size, engine_s)
        for request in launched.batch:
            if (state := self.feeds.served.get(request.feed)) is not None:
                state.times.add(ended_s, (workload.way, workload.rung), engine_s)

    def _hand_on(self, request: Request, pictures: Pictures, number: int, engine_s: float) -> None:
        """Show its picture, which is the stream's last one from now on. Frames of a publisher who was replaced
        meanwhile are not shown, and no frame of the next has their circumstances."""
        feed, thumbnail = request.feed, request.thumbnail
        feed.fault = None
        if (state := self.feeds.served.get(feed)) is not None:
            state.kind = pictures.kind
            last = None if thumbnail is None else similarity.Painted(time.monotonic(), request.circumstances, thumbnail)
            state.painted = last
        rgb = _alone(pictures.rgb, number)
        i420 = None if pictures.i420 is None else _alone(pictures.i420, number)
        self._show(feed, request.frame, rgb, engine_s, request.controls, i420)

    def _since_s(self, launched: Launched) -> float:
        """From when on the engine was at it: by itself, once it had nothing else to do."""
        return launched.at_s if launched.behind else max(launched.at_s, self._free_s)

    def _show_again(self, request: Request) -> None:
        """The last picture, for a frame that looks like the one it was painted from."""
        last = request.standing
        assert last is not None, "the scheduler has found one standing"
        if (alike := self._take(request.feed, lambda frame: frame is request.frame)) is not None:
            self._show(request.feed, alike, last.rgb, None, last.controls, last.i420)

    def _take(self, feed: Feed, matches: Callable[[Frame], bool] = lambda frame: True) -> Frame | None:
        """A stream's waiting frame, which is in hand from now on: until it is shown or dropped."""
        if (frame := feed.mailbox.take_if(matches)) is not None:
            self._in_hand[id(frame)] = feed, frame
        return frame

    def _show(
        self,
        feed: Feed,
        frame: Frame,
        rgb: np.ndarray,
        engine_s: float | None,
        controls: Controls,
        i420: np.ndarray | None,
    ) -> None:
        feed.show(frame, rgb, engine_s, controls, i420)
        del self._in_hand[id(frame)]

    def _expire(self, request: Request) -> None:
        """A newer frame may have come in since: only the one that was judged is thrown away."""
        if (late := request.feed.mailbox.clear(lambda frame: frame is request.frame)) is not None:
            request.feed.drop(late)

    def _blame(self, feed: Feed, frame: Frame, error: BaseException) -> None:
        """Tell what went wrong where its stream is told of; log it once, not with every frame."""
        reason = sentence(error)
        if feed.fault != reason:
            log.error("A frame of stream %s failed: %s", feed.name, reason, exc_info=log.isEnabledFor(logging.DEBUG))
        feed.fault = reason
        del self._in_hand[id(frame)]
        feed.drop(frame)


def _alone(pictures: np.ndarray, number: int) -> np.ndarray:
    """One of them, which does not hold the others."""
    return pictures[number] if len(pictures) == 1 else pictures[number].copy()
