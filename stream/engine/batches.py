"""One batch: what is known of its frames, and how the engine is asked for their pictures."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from masks import Mask, pasted
from pipeline.capabilities import Capabilities, lora_weights, paints, uses_cfg
from pipeline.settings import Controls, ModelSpec

from . import scheduler, similarity
from .flight import StreamBatch
from .frames import Frame, Picture
from .mailbox import Mailbox

Report = Callable[[str, float | None], None]
Weights = tuple[tuple[str, float], ...] | None  # LoRA and weight, by name


class Stylizer(Protocol):
    """What the engine room asks of pipeline.Stylizer. The engine thread alone calls it: others ask the capabilities."""

    spec: ModelSpec
    device: Any
    capabilities: Capabilities
    max_batch: int
    takes_i420: bool  # `live` is for frames as they came; where it is False, nobody calls that
    runs_ahead: bool  # calls without `wait` return before the pictures are there; where it is False, nobody makes any
    scales: tuple[float, ...]

    def record(self, controls: Controls, report: Report) -> None: ...

    def record_next(self) -> bool: ...

    def free_memory(self) -> None: ...

    def stands_at(self, controls: Controls) -> bool: ...

    def shape_key(self, controls: Controls) -> Hashable: ...

    def __call__(
        self, frames: np.ndarray, controls: Sequence[Controls], mask: np.ndarray | None = None, scale: float = 1.0
    ) -> np.ndarray: ...

    def live(self, frames: np.ndarray, controls: Sequence[Controls], scale: float = 1.0, wait: bool = True) -> Any: ...

    def remembering(
        self,
        frames: np.ndarray,
        controls: Sequence[Controls],
        memories: Sequence[Any],
        mask: np.ndarray | None = None,
        live: bool = False,
        scale: float = 1.0,
        wait: bool = True,
    ) -> tuple[Any, Sequence[Memory]]: ...

    def imagine(self, controls: Controls, count: int = 1) -> np.ndarray: ...

    def stream_batch(self) -> StreamBatch: ...


class Memory(Protocol):
    """What Stylizer.remembering hands back; used: for how many frames the features in it have been used again."""

    used: int


class Feed(Protocol):
    """What the engine room asks of a stream (streams.Stream)."""

    name: str
    mailbox: Mailbox[Frame]
    waiting_since_s: float
    controls: Controls
    quality: int
    scale: float
    fault: str | None
    mask: Mask | None
    last_picture: Picture | None

    def show(
        self,
        frame: Frame,
        rgb: np.ndarray,
        engine_s: float | None,
        controls: Controls | None = None,
        planes: np.ndarray | None = None,
    ) -> None: ...

    def drop(self, frame: Frame) -> None: ...


class Asked(NamedTuple):
    """What a stream asked for when it last had a frame waiting."""

    when_s: float
    controls: Controls
    weights: Weights


@dataclass
class Served:
    """What the engine thread remembers of one stream."""

    quality: scheduler.Quality = field(default_factory=scheduler.Quality)
    times: scheduler.EngineTimes = field(default_factory=scheduler.EngineTimes)  # by way of working, and rung
    asked: Asked | None = None
    painted: similarity.Painted | None = None
    seen: tuple[Frame, np.ndarray] | None = None
    memory: Memory | None = None  # of its last frames, where features are reused (Stylizer.remembering)

    def times_of(self, work: Work, now_s: float) -> dict[scheduler.Rung, list[float]]:
        """By rung, of what was painted in the same way."""
        return {rung: times for (way, rung), times in self.times.recent(now_s).items() if way == work.way}

    def reduced(self, frame: Frame) -> np.ndarray:
        """As similarity.reduced, once for each frame: it is judged anew whenever another stream has been served."""
        if self.seen is None or self.seen[0] is not frame:
            self.seen = frame, similarity.reduced(frame.pixels)
        return self.seen[1]


class Work(NamedTuple):
    """What the engine runs for a frame, as far as its time depends on that. There are few of them: nothing that is
    typed or drawn is part of it.

    reuse: with `controls.reuse`, whether the deep features are made anew or used again.
    """

    rung: scheduler.Rung
    cfg: bool
    masked: bool
    live: bool
    imagined: bool
    reuse: Literal["off", "anew", "again"]

    @property
    def way(self) -> Hashable:
        """Equal for what a stream is painted by on other rungs, and with its features made anew and used again."""
        return self.cfg, self.masked, self.live, self.imagined, self.reuse == "off"


@dataclass(frozen=True)
class Job:
    """One frame of a batch. reduced: as engine.similarity has it, where its picture may stand for others. standing: the
    picture that may be shown for it once more."""

    feed: Feed
    frame: Frame
    controls: Controls
    mask: Mask | None
    work: Work
    weights: Weights
    shape_key: Hashable
    served: Served
    reduced: np.ndarray | None = None
    standing: Picture | None = None

    @property
    def circumstances(self) -> Hashable:
        """Frames that differ in this are painted differently, however alike they look."""
        return self.controls, self.work.rung, self.mask, self.frame.size, self.frame.statistics

    @property
    def smaller(self) -> dict[str, float]:
        """What an engine without smaller sizes need not know of."""
        return {} if self.work.rung.scale == 1 else {"scale": self.work.rung.scale}

    @property
    def look(self) -> Hashable:
        """Frames of equal looks can be stacked."""
        return self.frame.size, self.frame.is_i420

    def of(self, frame: Frame) -> Job:
        """The same with another frame, of which nothing is known yet."""
        return self if frame is self.frame else replace(self, frame=frame, reduced=None, standing=None)


class CannotImagine(ValueError):
    """The loaded model paints from pictures only."""


def check_imagines(model: Capabilities) -> None:
    if "control" in model.features:
        raise CannotImagine(
            "This model follows a picture's lines, so it needs one: to imagine, start with a model that has no "
            "ControlNet or adapter."
        )


def weights_of(model: Capabilities, controls: Controls) -> Weights:
    """Those that the model's LoRAs must have for a frame; None where it does not matter."""
    return tuple(sorted(lora_weights(model, controls).items())) if model.loras and paints(controls) else None


def work_of(
    stylizer: Stylizer, frame: Frame, controls: Controls, mask: Mask | None, memory: Memory | None, rung: scheduler.Rung
) -> Work:
    """As far as it is known beforehand: features that may be used again will be, as long as little moves."""
    may_reuse = memory is not None and memory.used < controls.reuse
    return Work(
        rung,
        uses_cfg(stylizer.capabilities, controls),
        masked=mask is not None,
        live=mask is None and stylizer.takes_i420 and not frame.is_imagined,
        imagined=frame.is_imagined,
        reuse="off" if not controls.reuse else "again" if may_reuse else "anew",
    )


def work_done(batch: Sequence[Job]) -> Work:
    """What is run for a batch that was given to the engine."""
    work, memory = batch[0].work, batch[0].served.memory
    if work.reuse == "off" or memory is None:
        return work
    return work._replace(reuse="again" if memory.used else "anew")


def may_follow(feed: Feed) -> bool:
    """May its frame be given to the engine while that is still at the one before?

    What is compared with the last picture, or pasted into it on this side, is done one after the other.
    """
    frame = feed.mailbox.peek()
    return feed.mask is None and feed.controls.skip_similar == 0 and frame is not None and not frame.is_imagined


@dataclass(frozen=True)
class Painted:
    """What the engine makes of a batch. is_there: does not wait. wait: for its pictures, uint8 [height, width, 3], each
    with its I420 where there is one."""

    is_there: Callable[[], bool]
    wait: Callable[[], Sequence[tuple[np.ndarray, np.ndarray | None]]]


def painted(stylizer: Stylizer, batch: Sequence[Job]) -> Painted:
    """Gives the engine jobs with equal shape keys."""
    if batch[0].work.live:
        frames = np.stack([job.frame.as_it_came() for job in batch])
        pending = _stylized(stylizer, batch, frames, live=True)
        if stylizer.runs_ahead:
            return Painted(pending.is_there, lambda: list(zip(*pending(), strict=True)))
        pictures = list(zip(*pending, strict=True))
    else:
        pictures = [(rgb, None) for rgb in _in_rgb(stylizer, batch)]
    return Painted(lambda: True, lambda: pictures)


def _in_rgb(stylizer: Stylizer, batch: Sequence[Job]) -> Sequence[np.ndarray]:
    controls, mask = [job.controls for job in batch], batch[0].mask
    if all(job.frame.is_imagined for job in batch):
        check_imagines(stylizer.capabilities)
        return [stylizer.imagine(each)[0] for each in controls]
    frames = np.stack([job.frame.rgb() for job in batch])
    if mask is None:
        return _stylized(stylizer, batch, frames)
    fitted = mask.fitted(stylizer.spec.width, stylizer.spec.height)
    paintings = _stylized(stylizer, batch, frames, mask=np.repeat(fitted[None], len(frames), 0))
    return pasted_in(stylizer, frames, controls, paintings, fitted)


def pasted_in(
    stylizer: Stylizer,
    frames: np.ndarray,
    controls: Sequence[Controls],
    paintings: Sequence[np.ndarray],
    fitted: np.ndarray,
) -> list[np.ndarray]:
    """The paintings inside the mask, their sources outside."""
    sources = stylizer(frames, [each.model_copy(update={"bypass": True}) for each in controls])
    return [pasted(source, picture, fitted) for source, picture in zip(sources, paintings, strict=True)]


def _stylized(
    stylizer: Stylizer, batch: Sequence[Job], frames: np.ndarray, mask: np.ndarray | None = None, live: bool = False
) -> Any:
    """The pictures; of a `live` call to an engine that runs ahead a Pending (pipeline.runtime.transfers)."""
    controls = [job.controls for job in batch]
    options = {**batch[0].smaller, **({"wait": False} if live and stylizer.runs_ahead else {})}
    if not controls[0].reuse:
        if live:
            return stylizer.live(frames, controls, **options)
        return stylizer(frames, controls, **({} if mask is None else {"mask": mask}), **options)
    memories = [job.served.memory for job in batch]
    pictures, memories = stylizer.remembering(frames, controls, memories, mask, live, **options)
    for job, memory in zip(batch, memories, strict=True):
        job.served.memory = memory
    return pictures
