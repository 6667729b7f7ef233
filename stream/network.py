"""What the network does to a stream, as is told: on the publisher's way here, and on the viewers' ways from here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from stream.engine.statistics import WINDOW_S

from .metrics import ROLES, Metrics

SAMPLE_S = 0.5  # how often counters are to be read

PUBLISHER, VIEWERS = ROLES


class Reception(Protocol):
    """What a publisher's receiver counts, from the publisher's start."""

    @property
    def packets_received(self) -> int: ...
    @property
    def packets_lost(self) -> int: ...
    @property
    def nacks(self) -> int: ...
    @property
    def plis(self) -> int: ...
    @property
    def freezes(self) -> int: ...
    @property
    def round_trip_ms(self) -> float | None: ...
    @property
    def layers_ignored(self) -> int: ...


@dataclass(frozen=True)
class SenderStatistics:
    """What one viewer's sender counts, from the viewer's start: packets that were expected there, those of them lost,
    NACKs and PLIs; what the encoder is told."""

    packets_expected: int
    packets_lost: int
    nacks: int
    plis: int
    round_trip_ms: float | None
    bitrate_bps: int


class LossWindow:
    """The share of packets lost in the last 5 s, from counters that are read now and then."""

    def __init__(self) -> None:
        self._read: deque[tuple[float, int, int]] = deque()

    def add(self, now_s: float, expected: int, lost: int) -> None:
        """expected: packets that should have come, those lost among them."""
        self._read.append((now_s, expected, lost))
        while len(self._read) > 2 and self._read[1][0] <= now_s - WINDOW_S:
            self._read.popleft()

    @property
    def loss(self) -> float | None:
        """0 to 1; None where nothing was expected."""
        if not self._read:
            return None
        (_, expected, lost), (_, expected_now, lost_now) = self._read[0], self._read[-1]
        expected, lost = expected_now - expected, lost_now - lost
        return round(min(1.0, max(0, lost) / expected), 4) if expected > 0 else None


@dataclass
class _Viewer:
    window: LossWindow
    newest: SenderStatistics
    nacks: int = 0  # of before the publisher's start
    plis: int = 0


class Network:
    """One stream's. Written by the event loop; what is told is replaced whole, so any thread may read it.

    Of the viewers the one is told who has it worst; requests are those of all of them.
    """

    def __init__(self, stream: str, metrics: Metrics):
        self._stream, self._metrics = stream, metrics
        self._publisher_window = LossWindow()
        self._publisher_before = (0, 0, 0)
        self._viewers: dict[str, _Viewer] = {}
        self._gone = (0, 0)  # NACKs and PLIs of viewers that left, since the publisher's start
        self._told: dict[str, Any] = {role: None for role in ROLES}

    def begin(self) -> None:
        """A publisher starts: counters are at zero."""
        self._publisher_window, self._publisher_before, self._gone = LossWindow(), (0, 0, 0), (0, 0)
        for viewer in list(self._viewers.values()):
            viewer.nacks, viewer.plis = viewer.newest.nacks, viewer.newest.plis
        self._told = {PUBLISHER: None, VIEWERS: self._of_viewers()}
        self._metrics.set_round_trip(self._stream, PUBLISHER, None)

    def end(self) -> None:
        """The publisher is gone."""
        self._tell(PUBLISHER, None)
        self._metrics.set_round_trip(self._stream, PUBLISHER, None)

    def received(self, now_s: float, counted: Reception) -> None:
        """What the publisher's receiver counts by now."""
        self._publisher_window.add(now_s, counted.packets_received + counted.packets_lost, counted.packets_lost)
        counters = (counted.packets_lost, counted.nacks, counted.plis)
        self._count(PUBLISHER, self._publisher_before, counters, counted.round_trip_ms)
        self._publisher_before = counters
        told = {
            "packets_received": counted.packets_received,
            "packets_lost": counted.packets_lost,
            "loss": self._publisher_window.loss,
            "nacks": counted.nacks,
            "plis": counted.plis,
            "freezes": counted.freezes,
            "round_trip_ms": counted.round_trip_ms,
            "layers_ignored": counted.layers_ignored,
        }
        self._tell(PUBLISHER, told)

    def sent(self, viewer: str, now_s: float, counted: SenderStatistics) -> None:
        """What the sender of one viewer, by its id, counts by now."""
        known = self._viewers.get(viewer)
        if known is None:
            known = self._viewers[viewer] = _Viewer(LossWindow(), SenderStatistics(0, 0, 0, 0, None, 0))
        before, known.newest = known.newest, counted
        known.window.add(now_s, counted.packets_expected, counted.packets_lost)
        lost, lost_before = counted.packets_lost, before.packets_lost
        told = self._of_viewers()
        round_trip_ms = told["round_trip_ms"] if told else None
        counters = (lost, counted.nacks, counted.plis)
        self._count(VIEWERS, (lost_before, before.nacks, before.plis), counters, round_trip_ms)
        self._tell(VIEWERS, told)

    def left(self, viewer: str) -> None:
        """That viewer is gone; harmless for one that was never heard of."""
        known = self._viewers.pop(viewer, None)
        if known is not None:
            nacks, plis = self._gone
            self._gone = (nacks + known.newest.nacks - known.nacks, plis + known.newest.plis - known.plis)
            self._tell(VIEWERS, self._of_viewers())
            if not self._viewers:
                self._metrics.set_round_trip(self._stream, VIEWERS, None)

    def snapshot(self) -> dict[str, Any]:
        """What the API calls network: {"publisher", "viewers"}, each None where there is none of it."""
        return self._told

    def _of_viewers(self) -> dict[str, Any] | None:
        viewers = list(self._viewers.values())
        if not viewers:
            return None
        return {
            "loss": _worst(max, (viewer.window.loss for viewer in viewers)),
            "nacks": self._gone[0] + sum(viewer.newest.nacks - viewer.nacks for viewer in viewers),
            "plis": self._gone[1] + sum(viewer.newest.plis - viewer.plis for viewer in viewers),
            "round_trip_ms": _worst(max, (viewer.newest.round_trip_ms for viewer in viewers)),
            "bitrate_bps": min(viewer.newest.bitrate_bps for viewer in viewers),
        }

    def _tell(self, role: str, told: dict[str, Any] | None) -> None:
        self._told = {**self._told, role: told}

    def _count(self, role: str, before: tuple[int, ...], now: tuple[int, ...], round_trip_ms: float | None) -> None:
        lost, nacks, plis = (max(0, new - old) for old, new in zip(before, now, strict=True))
        self._metrics.count_network(self._stream, role, lost=lost, nacks=nacks, plis=plis)
        self._metrics.set_round_trip(self._stream, role, None if round_trip_ms is None else round_trip_ms / 1000)


def _worst(pick: Callable[..., float], values: Any) -> float | None:
    return pick((value for value in values if value is not None), default=None)
