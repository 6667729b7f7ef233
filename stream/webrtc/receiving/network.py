"""What the network did to a publisher's packets, as the one who receives them counts it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReceiverStatistics:
    """Counters since the publisher's start, and the latest round trip; None where it is not known."""

    packets_received: int
    packets_lost: int
    nacks: int
    plis: int
    freezes: int
    round_trip_ms: float | None
    layers_ignored: int
