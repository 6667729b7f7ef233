"""A stream's waiting frame with all that decides how it is painted, and the batches that are made of such requests."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from masks import Mask, pasted
from pipeline import capabilities
from pipeline.batch import Batch, Pending, Pictures
from pipeline.capabilities import Capabilities, lora_weights, paints, uses_cfg
from pipeline.settings import Controls

from . import scheduler, similarity
from .engine import Engine
from .feeds import Asked, Feed, FeedState, Weights
from .frames import Frame, Picture


class Workload(NamedTuple):
    """What the engine runs for a frame, as far as its time depends on that. There are few of them: nothing that is
    typed or drawn is part of it.

    i420: the frame goes in as it came, and I420 comes out. kind: of the stream's last pictures, as the engine told it.
    """

    rung: scheduler.Rung
    cfg: bool
    masked: bool
    i420: bool
    imagined: bool
    kind: Hashable = None

    @property
    def way(self) -> Hashable:
        """Equal for what a stream is painted by on other rungs, and in all kinds that are told."""
        return self.cfg, self.masked, self.i420, self.imagined, self.kind is None


@dataclass(frozen=True)
class Request:
    """A frame that is to be painted.

    thumbnail: as engine.similarity has it, where its picture may stand for others. standing: the picture that may be
    shown for it once more.
    """

    feed: Feed
    frame: Frame
    controls: Controls
    mask: Mask | None
    workload: Workload
    weights: Weights
    shape_key: Hashable
    thumbnail: np.ndarray | None = None
    standing: Picture | None = None

    @property
    def circumstances(self) -> Hashable:
        """Frames that differ in this are painted differently, however alike they look."""
        return self.controls, self.workload.rung, self.mask, self.frame.size, self.frame.statistics

    @property
    def look(self) -> tuple[tuple[int, int], bool]:
        """Frames of equal looks can be stacked."""
        return self.frame.size, self.frame.is_i420

    def of(self, frame: Frame) -> Request:
        """The same with another frame, of which nothing is known yet."""
        return self if frame is self.frame else replace(self, frame=frame, thumbnail=None, standing=None)

    def waiting(self, now_s: float) -> scheduler.Waiting[Feed]:
        """As the scheduler sees it."""
        return scheduler.Waiting(
            self.feed,
            # What is to be imagined does not age: no newer frame follows by itself.
            now_s if self.frame.is_imagined else self.frame.arrived_s,
            self.feed.waiting_since_s,
            (self.shape_key, self.feed.name if self.feed.fault else None),  # what failed last spoils no batch of others
            stands=self.standing is not None,
            weights=self.weights,
        )


def may_follow(feed: Feed) -> bool:
    """May its frame be given to the engine while that is still at the one before?

    What is compared with the last picture, or pasted into it on this side, is done one after the other.
    """
    frame = feed.mailbox.peek()
    return feed.mask is None and feed.controls.skip_similar == 0 and frame is not None and not frame.is_imagined


def requested(engine: Engine, feed: Feed, frame: Frame, state: FeedState, now_s: float, budget_s: float) -> Request:
    """What the stream asks for now, at the quality that fits the budget. Raises what is wrong with its controls."""
    controls, mask = feed.controls, feed.mask  # streams with a mask are painted alone
    rungs = scheduler.ladder(controls.steps, engine.scales)
    workload = Workload(
        rungs[0],
        uses_cfg(engine.capabilities, controls),
        masked=mask is not None,
        i420=mask is None and engine.takes_i420 and not frame.is_imagined,
        imagined=frame.is_imagined,
        kind=state.kind,
    )
    # A picture that stays gets all of its steps.
    state.quality = (
        scheduler.Quality()
        if frame.is_imagined
        else scheduler.next_quality(now_s, state.quality, rungs, state.times_of(workload.way, now_s), budget_s)
    )
    rung = state.quality.rung or rungs[0]
    feed.quality, feed.scale = rungs.index(rung), rung.scale
    controls = controls if rung.steps == controls.steps else controls.model_copy(update={"steps": rung.steps})
    painted = capabilities.from_text(controls) if frame.is_imagined else controls
    shape_key = capabilities.shape_key(engine.capabilities, painted)
    weights = _weights(engine.capabilities, controls)
    state.asked = Asked(now_s, controls, weights)
    key = (shape_key, rung.scale, (frame.size, frame.is_i420), id(mask) if mask else 0)
    request = Request(feed, frame, controls, mask, workload._replace(rung=rung), weights, key)
    return _compared(request, state, now_s) if controls.skip_similar > 0 else request


def _weights(model: Capabilities, controls: Controls) -> Weights:
    """Those that the model's LoRAs must have for a frame."""
    return tuple(sorted(lora_weights(model, controls).items())) if model.loras and paints(controls) else None


def _compared(request: Request, state: FeedState, now_s: float) -> Request:
    """Told whether the stream's last picture may be shown for it. A source that passes through is always shown."""
    if request.frame.is_imagined or not paints(request.controls):
        return request
    thumbnail = state.thumbnail(request.frame)
    limit = request.controls.skip_similar
    stands = similarity.stands(now_s, state.painted, request.circumstances, thumbnail, limit)
    return replace(request, thumbnail=thumbnail, standing=request.feed.last_picture if stands else None)


class CannotImagine(ValueError):
    """The loaded model paints from pictures only."""


def check_imagines(model: Capabilities) -> None:
    if "control" in model.features:
        raise CannotImagine(
            "This model follows a picture's lines, so it needs one: to imagine, start with a model that has no "
            "ControlNet or adapter."
        )


def batch_of(model: Capabilities, requests: Sequence[Request], behind: int = 0) -> Batch:
    """Requests of equal shape keys and looks as the engine is given them. Raises CannotImagine."""
    first = requests[0]
    frames = mask = None
    if first.frame.is_imagined:
        check_imagines(model)
    else:
        came = first.workload.i420
        frames = np.stack([one.frame.as_it_came() if came else one.frame.rgb() for one in requests])
        if first.mask is not None:
            mask = np.repeat(first.mask.fitted(model.width, model.height)[None], len(frames), 0)
    return Batch(
        frames,
        tuple(one.controls for one in requests),
        mask,
        scale=first.workload.rung.scale,
        streams=tuple(one.feed.name for one in requests),
        behind=behind,
        i420=first.workload.i420,
    )


def submitted(engine: Engine, requests: Sequence[Request], behind: int = 0) -> Pending[Pictures]:
    """Outside of a mask the source stays, as the engine scales it."""
    batch = batch_of(engine.capabilities, requests, behind)
    pending = engine.submit(batch)
    if batch.mask is None:
        return pending
    mask = batch.mask
    as_they_are = tuple(one.model_copy(update={"bypass": True}) for one in batch.controls)
    sources = engine.submit(Batch(batch.frames, as_they_are))
    return replace(
        pending.then(lambda pictures: _pasted(pictures, sources(), mask)),
        is_there=lambda: pending.is_there() and sources.is_there(),
    )


def _pasted(pictures: Pictures, sources: Pictures, mask: np.ndarray) -> Pictures:
    rgb = np.stack([pasted(*one) for one in zip(sources.rgb, pictures.rgb, mask, strict=True)])
    return Pictures(rgb, kind=pictures.kind)
