"""Prometheus metrics: a registry per application, and series that go when their stream goes."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)
KINDS = ("in", "out", "dropped", "skipped")
ROLES = ("publisher", "viewers")
NETWORK = {
    "packets_lost": "Packets that were lost on their way, whether or not they came when they were sent again.",
    "nacks": "Times that the receiver asked for lost packets once more.",
    "plis": "Keyframes that the receiver asked for.",
}


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
        self._network = {
            name: Counter(f"lcmirror_{name}", told, ["stream", "role"], registry=self.registry)
            for name, told in NETWORK.items()
        }
        self._round_trip = Gauge(
            "lcmirror_round_trip_seconds",
            "Of the network: the publisher's, and of the viewers' the longest.",
            ["stream", "role"],
            registry=self.registry,
        )
        self._round_trips: set[tuple[str, str]] = set()
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
        for counter in self._network.values():
            for role in ROLES:
                counter.labels(stream, role)

    def count(self, stream: str, kind: str) -> None:
        """Nothing for a stream that was forgotten meanwhile: the engine may still have a frame of it."""
        if (series := self._series.get(stream)) is not None:
            series[kind].inc()

    def count_network(self, stream: str, role: str, *, lost: int, nacks: int, plis: int) -> None:
        """What happened since it was counted last; nothing for a stream that is not expected."""
        if stream in self._series:
            for name, count in (("packets_lost", lost), ("nacks", nacks), ("plis", plis)):
                self._network[name].labels(stream, role).inc(count)

    def set_round_trip(self, stream: str, role: str, seconds: float | None) -> None:
        """None: it is not known any more."""
        if seconds is not None and stream in self._series:
            self._round_trip.labels(stream, role).set(seconds)
            self._round_trips.add((stream, role))
        elif (stream, role) in self._round_trips:
            self._round_trips.remove((stream, role))
            self._round_trip.remove(stream, role)

    def observe(self, latency_s: float, engine_s: float | None) -> None:
        """engine_s: None for a frame that was not painted."""
        self._latency.observe(latency_s)
        if engine_s is not None:
            self._engine.observe(engine_s)

    def forget(self, stream: str) -> None:
        for role in ROLES:
            self.set_round_trip(stream, role, None)
            if stream in self._series:
                for counter in self._network.values():
                    counter.remove(stream, role)
        for kind in self._series.pop(stream, {}):
            self._frames.remove(stream, kind)

    def text(self) -> bytes:
        return generate_latest(self.registry)
