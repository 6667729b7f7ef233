"""Capture times: the timestamps of a publisher's picture and sound, each of its own clock, on our clock."""

from __future__ import annotations

from collections.abc import Callable

REANCHOR_S = 2.0  # a sender's clock that differs by more from ours has jumped
EXPLAINED_S = 0.1  # by which capturing and encoding two tracks may differ; reports that say more are wrong
SLACK = 2e-4  # seconds a second by which a sender's clock may run slower than ours: crystals differ by less


def unknown() -> None:
    """Of a sender that does not tell its wall clock."""


class MediaClock:
    """One track's timestamps on our clock, which is time.monotonic's.

    Each arrival shows how far the two clocks are apart, plus what it took to get here. The least of them holds, so the
    network's jitter does not move the times, and it may grow by SLACK, so that they follow a clock that runs slowly.

    wall_origin_s: the sender's wall clock at this track's zero, by its sender reports; None while there are none.
    leader: the clock of the track that this one is shown with. Arrivals do not tell how much longer one of them took
    to capture and to encode; once the sender's reports of both have come, they decide, within EXPLAINED_S.
    """

    def __init__(self, wall_origin_s: Callable[[], float | None] = unknown, leader: MediaClock | None = None):
        self.wall_origin_s, self._leader = wall_origin_s, leader
        self.origin_s: float | None = None  # our clock at this track's zero
        self._arrived_s = 0.0

    def captured_s(self, media_s: float, arrived_s: float) -> float:
        """What was stamped with media_s and came in at arrived_s."""
        arrival_s = arrived_s - media_s
        if self.origin_s is None or abs(self.origin_s - arrival_s) > REANCHOR_S:
            self.origin_s = arrival_s
        else:
            slack_s = SLACK * max(0.0, arrived_s - self._arrived_s)
            self.origin_s = min(self.origin_s + slack_s, arrival_s)
        self._arrived_s = arrived_s
        reported_s = self._reported_s()
        if reported_s is not None and abs(reported_s - arrival_s) < REANCHOR_S:
            return min(max(reported_s, self.origin_s - EXPLAINED_S), self.origin_s + EXPLAINED_S) + media_s
        return self.origin_s + media_s

    def _reported_s(self) -> float | None:
        """Our clock at this track's zero as the sender's reports relate it to the leader's."""
        if self._leader is None or self._leader.origin_s is None:
            return None
        own_s, leaders_s = self.wall_origin_s(), self._leader.wall_origin_s()
        return None if own_s is None or leaders_s is None else self._leader.origin_s + own_s - leaders_s
