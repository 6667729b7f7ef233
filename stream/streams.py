"""A Stream: one publisher, any number of viewers, its Controls, its statistics; and the bounded register of all."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from masks import Mask
from pipeline.settings import Controls
from stream.engine.frames import Frame, Picture, Sound
from stream.engine.mailbox import Mailbox
from stream.engine.runner import EngineRunner
from stream.engine.statistics import Statistics

from .lag import Lag
from .metrics import Metrics
from .network import Network
from .publications import Publication, Publisher

log = logging.getLogger(__name__)

NAME = re.compile(r"[a-z0-9-]{1,64}")
MAX_NAMES = 256
MAX_IDLE_PICTURES = 16  # idle streams beyond these lose their last picture: at 512x512 each holds 0.8 MB

Sink = Callable[[Picture], object]
SoundSink = Callable[[Sound], object]


class BadStreamName(ValueError):
    """The name breaks the rule."""


class NoFreeStream(RuntimeError):
    """Every name that is kept is in use."""


class Recorder(Protocol):
    """What records a stream, as far as the stream tells of it."""

    def state(self) -> dict[str, Any]: ...


class Stream:
    """Frames go in through a Publication, pictures come out to sinks. Safe to use from any thread."""

    def __init__(self, name: str, controls: Controls, engine: EngineRunner, metrics: Metrics):
        self.name = name
        self.mailbox: Mailbox[Frame] = Mailbox()
        self.waiting_since_s = 0.0
        self.quality = 0  # rungs below what was asked: steps, then size; set by the engine
        self.scale = 1.0  # of the width and height at which it is painted; set by the engine
        self.fault: str | None = None  # why its last frame failed, set by the engine
        self.controls = controls
        self.mask: Mask | None = None
        self.publication: Publication | None = None
        self.last_picture: Picture | None = None
        self.recording: Recorder | None = None  # that runs or ran last, set by whoever records
        self.last_used_s = time.monotonic()
        self.lag = Lag()
        self.network = Network(name, metrics)
        self._statistics = Statistics()
        self._sinks: tuple[Sink, ...] = ()
        self._uncounted: tuple[Sink, ...] = ()  # of the sinks, those that are no viewers
        self._sound_sinks: tuple[SoundSink, ...] = ()
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._lock = threading.Lock()
        self._engine, self._metrics = engine, metrics

    # -- publisher ---------------------------------------------------------------------------------------------------

    @property
    def painted_size(self) -> tuple[int, int] | None:
        """(width, height) of what the model paints; None until it is loaded."""
        width, x, height = self._engine.status().get("size", "").partition("x")
        return (int(width), int(height)) if x else None

    def check_served(self) -> None:
        """Raises EngineFailed when nothing that is published will be painted."""
        self._engine.check_serves()

    def publish(self, publisher: Publisher, *, gives_way: bool = False) -> tuple[Publication, Publication | None]:
        """Start publishing, with counters at zero. The newest publisher wins, so a reloaded page is back at once.

        gives_way: while nobody watches, the stream may be forgotten for another one's sake.
        Returns its publication and the one it replaced, if any: the caller calls its close_publisher.
        """
        with self._lock:
            replaced, self.publication = self.publication, Publication(self, publisher, gives_way)
            self._statistics = self.publication.statistics
            self.last_used_s = time.monotonic()
        self._metrics.expect(self.name)
        self.network.begin()
        if (stale := self.mailbox.clear()) is not None:
            self.drop(stale)
        return self.publication, replaced

    def put(self, frame: Frame, publication: Publication) -> bool:
        """What Publication.put does."""
        with self._lock:
            if publication is not self.publication:
                return False
            if self.mailbox.peek() is None:
                self.waiting_since_s = frame.arrived_s
            frame.statistics.count_in(frame.arrived_s)
            replaced = self.mailbox.put(frame)
        self._metrics.count(self.name, "in")
        if replaced is not None:
            self.drop(replaced)
        self._engine.wake()
        return True

    def skip(self, publication: Publication) -> None:
        """What Publication.skip does."""
        with self._lock:
            if publication is not self.publication:
                return
            publication.statistics.count_in(time.monotonic())
            publication.statistics.count_dropped()
        self._metrics.count(self.name, "in")
        self._metrics.count(self.name, "dropped")

    def end(self, publication: Publication) -> None:
        """What Publication.end does."""
        with self._lock:
            is_current = publication is self.publication
            if is_current:
                self.publication = None
            self.last_used_s = time.monotonic()
        if is_current:
            self.network.end()

    def put_sound(self, sound: Sound, publication: Publication) -> bool:
        """What Publication.put_sound does."""
        with self._lock:
            if publication is not self.publication:
                return False
            self._sound_sinks = tuple(sink for sink in self._sound_sinks if self._takes(sink, sound))
        return True

    # -- engine -------------------------------------------------------------------------------------------------

    def show(
        self,
        frame: Frame,
        rgb: np.ndarray,
        engine_s: float | None,
        controls: Controls | None = None,
        planes: np.ndarray | None = None,
    ) -> None:
        """Hand a finished picture to all viewers.

        engine_s: what it took to paint; None for one that is shown once more, for a frame that was skipped. controls:
        what made it, the stream's own if None. planes: its I420, where there is one.
        """
        now_s = time.monotonic()
        picture = Picture(rgb, frame.arrived_s, frame.captured_s, now_s, controls or self.controls, planes)
        with self._lock:
            is_current = frame.statistics is self._statistics
            if is_current:
                self.last_picture = picture
                self.lag.shown(frame.captured_s, now_s)
                self._sinks = tuple(sink for sink in self._sinks if self._takes(sink, picture))
        if not is_current:  # its publisher was replaced while the engine worked: nobody wants this picture any more
            self.drop(frame)
            return
        self._metrics.count(self.name, "out")
        if engine_s is None:
            self._metrics.count(self.name, "skipped")
        self._metrics.observe(now_s - frame.arrived_s, engine_s)
        # The last thing: a frame that could not be handed on is dropped by the engine, and counted once.
        frame.statistics.count_out(now_s, now_s - frame.arrived_s, engine_s)

    def _takes(self, sink: Callable[[Any], object], item: Picture | Sound) -> bool:
        try:
            sink(item)
        except Exception:
            log.exception("A viewer of stream %s failed and is let go.", self.name)
            return False
        return True

    def drop(self, frame: Frame) -> None:
        """Count a frame that came in and will not be painted: every drop but `skip`'s goes through here."""
        frame.statistics.count_dropped()
        self._metrics.count(self.name, "dropped")

    # -- viewers -----------------------------------------------------------------------------------------------------

    def watch(self, sink: Sink, *, is_viewer: bool = True) -> Callable[[], None]:
        """Call `sink` with every picture, from the engine thread; the last one, if there is one, comes at once. Returns
        what ends it. is_viewer: counted as one.

        Pictures are handed over with the stream locked, so that none is overtaken by an older one: a sink must not
        block and not call the stream (a Mailbox's or Outbox's `put`).
        """
        with self._lock:
            if self.last_picture is not None:
                sink(self.last_picture)
            self._sinks = (*self._sinks, sink)
            if not is_viewer:
                self._uncounted = (*self._uncounted, sink)
        return lambda: self._unwatch(sink)

    def _unwatch(self, sink: Sink) -> None:
        with self._lock:
            self._sinks = tuple(other for other in self._sinks if other is not sink)
            self._uncounted = tuple(other for other in self._uncounted if other is not sink)
            self.last_used_s = time.monotonic()

    def listen(self, sink: SoundSink) -> Callable[[], None]:
        """Call `sink` with the publisher's sound as it comes, from the publisher's thread and under the rules of
        `watch`. Returns what ends it."""
        with self._lock:
            self._sound_sinks = (*self._sound_sinks, sink)
        return lambda: self._unlisten(sink)

    def _unlisten(self, sink: SoundSink) -> None:
        with self._lock:
            self._sound_sinks = tuple(other for other in self._sound_sinks if other is not sink)

    @property
    def viewers(self) -> int:
        return sum(sink not in self._uncounted for sink in self._sinks)

    # -- controls ----------------------------------------------------------------------------------------------------

    def set_controls(self, controls: Controls) -> None:
        """Last value wins, from the next frame on. LoRAs that the loaded model does not have are left out."""
        with self._lock:
            self.controls = self._engine.fitted(controls)
            self.last_used_s = time.monotonic()
        self._tell()

    def set_mask(self, mask: Mask | None) -> None:
        """What is repainted from the next frame on; None for all."""
        with self._lock:
            self.mask = mask
            self.last_used_s = time.monotonic()
        self._tell()

    def fit_controls(self) -> None:
        """The model is known now: leave out of the controls what it does not have."""
        with self._lock:
            before, self.controls = self.controls, self._engine.fitted(self.controls)
        if self.controls is not before:
            self._tell()

    def _tell(self) -> None:
        if (publication := self.publication) is not None:
            publication.on_change()
        for listener in self._listeners:
            listener()

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after every change of the controls; returns the unsubscriber. Meanwhile the stream stays."""
        with self._lock:
            self._listeners = (*self._listeners, listener)
        return lambda: self._unsubscribe(listener)

    def _unsubscribe(self, listener: Callable[[], None]) -> None:
        with self._lock:
            self._listeners = tuple(other for other in self._listeners if other is not listener)
            self.last_used_s = time.monotonic()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Within, the stream is not evicted."""
        leave = self.subscribe(lambda: None)
        try:
            yield
        finally:
            leave()

    # -- what it tells -----------------------------------------------------------------------------------------------

    @property
    def in_use(self) -> bool:
        return self.publication is not None or bool(self._sinks)

    def unused_s(self) -> float:
        """For how long nobody has watched it or changed anything of it."""
        return 0.0 if self._sinks else time.monotonic() - self.last_used_s

    @property
    def evictable(self) -> bool:
        return not self.in_use and not self._listeners

    @property
    def gives_way(self) -> bool:
        """It is published, but for nobody, and by somebody who need not be there."""
        publication = self.publication
        return publication is not None and publication.gives_way and not self._sinks and not self._listeners

    def snapshot(self) -> dict[str, Any]:
        """Who publishes, viewers, statistics: the answer of GET /api/streams/{stream}."""
        picture, publication = self.last_picture, self.publication
        recording = self.recording.state() if self.recording is not None else None
        is_recording = recording is not None and recording["state"] == "recording"
        height, width = picture.rgb.shape[:2] if picture is not None else (0, 0)
        return {
            "stream": self.name,
            "publishing": publication is not None,
            "publisher": publication.publisher.kind if publication is not None else None,
            **self._statistics.snapshot(time.monotonic()),
            "width": width,
            "height": height,
            "steps": max(1, self.controls.steps - self.quality),
            "steps_asked": self.controls.steps,
            "viewers": self.viewers,
            "network": self.network.snapshot(),
            "quality": self.quality,
            "scale": self.scale,
            "detail": self.fault or "",
            "recording": recording if is_recording else None,
            "last_recording": None if is_recording else recording,
        }


class Streams:
    """Every stream by its name. When there are too many, names that nobody uses are forgotten, longest unused first,
    and then those that are imagined for nobody."""

    def __init__(self, engine: EngineRunner, defaults: Controls | None = None, *, max_names: int = MAX_NAMES):
        self.defaults = Controls() if defaults is None else defaults
        self.metrics = Metrics()
        self._engine, self._max_names = engine, max_names
        self._streams: dict[str, Stream] = {}
        self._lock = threading.Lock()
        engine.subscribe(self._on_status)
        self.metrics.gauge(
            streams=lambda: sum(stream.publication is not None for stream in self.all()),
            viewers=lambda: sum(stream.viewers for stream in self.all()),
        )

    def find(self, name: str) -> Stream | None:
        """The stream of that name if one is kept. Raises BadStreamName."""
        _check_name(name)
        return self._streams.get(name)

    def get(self, name: str) -> Stream:
        """The stream of that name, made if need be; on the event loop. Raises BadStreamName, NoFreeStream."""
        _check_name(name)
        with self._lock:
            if name not in self._streams:
                self._make_room()
                self._streams[name] = stream = Stream(name, self.defaults, self._engine, self.metrics)
                self._engine.attach(stream)
            return self._streams[name]

    def all(self) -> list[Stream]:
        return list(self._streams.values())

    def dismiss_publishers(self) -> None:
        """Ask every publisher to let go, in the thread that they were made in (the event loop's)."""
        for stream in self.all():
            if (publication := stream.publication) is not None:
                publication.close_publisher()

    def _on_status(self) -> None:
        """Controls may be older than the model: what it cannot do must not make every later change and frame fail."""
        if self._engine.status()["state"] != "ready":
            return
        with self._lock:
            asked, self.defaults = self.defaults, self._engine.fitted(self.defaults)
        if unknown := sorted(asked.lora_weights.keys() - self.defaults.lora_weights):
            log.warning("The model has no LoRA named %s: its weight is left out.", unknown[0])
        for stream in self.all():
            stream.fit_controls()

    def _make_room(self) -> None:
        longest_unused_first = sorted(self._streams.values(), key=lambda stream: stream.last_used_s)
        idle = [stream for stream in longest_unused_first if stream.evictable]
        for stream in idle[: max(0, len(idle) - MAX_IDLE_PICTURES)]:
            stream.last_picture = stream.mask = None
        if len(self._streams) < self._max_names:
            return
        evicted = next(iter([*idle, *(stream for stream in longest_unused_first if stream.gives_way)]), None)
        if evicted is None:
            raise NoFreeStream(f"All {self._max_names} streams are in use; try again later.")
        del self._streams[evicted.name]
        if evicted.publication is not None:
            evicted.publication.close_publisher()
        self._engine.detach(evicted)
        self.metrics.forget(evicted.name)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise BadStreamName("A stream's name is 1 to 64 characters of a-z, 0-9 and '-'.")
