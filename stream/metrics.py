"""Prometheus metrics: a registry per application, and series that go when their stream goes."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)
KINDS = ("in", "out", "dropped", "skipped")


class Metrics:
    """The counters that /metrics serves. Any thread may count."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self._frames = Counter(
            "lcmirror_frames",
            "Frames that came in, went out or were dropped; those skipped went out with the picture painted before.",
            ["stream", "kind"],
            registry=self.registry,
        )
        self._series: dict[str, dict[str, Counter]] = {}
        self._latency = Histogram(
            "lcmirror_latency_seconds",
            "From a frame's arrival to its picture's hand-over to the encoders.",
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._engine = Histogram(
            "lcmirror_engine_seconds",
            "Engine time of the batch that a frame was part of, counted for every painted frame that went out.",
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._streams = Gauge("lcmirror_streams", "Streams that have a publisher.", registry=self.registry)
        self._viewers = Gauge("lcmirror_viewers", "Viewers of all streams.", registry=self.registry)

    def gauge(self, streams: Callable[[], float], viewers: Callable[[], float]) -> None:
        """Read both gauges at every scrape."""
        self._streams.set_function(streams)
        self._viewers.set_function(viewers)

    def expect(self, stream: str) -> None:
        """Make the stream's series, at zero: rates are of no use on a series that appears with its first event."""
        self._series[stream] = {kind: self._frames.labels(stream, kind) for kind in KINDS}

    def count(self, stream: str, kind: str) -> None:
        """Nothing for a stream that was forgotten meanwhile: the engine may still have a frame of it."""
        if (series := self._series.get(stream)) is not None:
            series[kind].inc()

    def observe(self, latency_s: float, engine_s: float | None) -> None:
        """engine_s: None for a frame that was not painted."""
        self._latency.observe(latency_s)
        if engine_s is not None:
            self._engine.observe(engine_s)

    def forget(self, stream: str) -> None:
        for kind in self._series.pop(stream, {}):
            self._frames.remove(stream, kind)

    def text(self) -> bytes:
        return generate_latest(self.registry)
