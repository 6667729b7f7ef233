"""RTCP sender reports (RFC 3550, 6.4.1): which wall time timestamps stand for, a publisher's and ours.

By them a receiver relates picture and sound to each other.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

from aiortc.clock import current_ntp_time
from aiortc.rtp import RtcpSenderInfo
from aiortc.utils import uint32_add

MAX_REPORTS = 9  # that a sender's clock is judged by

_wall_s = current_ntp_time() / 2**32 - time.monotonic()  # one for all: between two tracks only the difference matters


def ntp_time(moment_s: float) -> int:
    """Of a moment on time.monotonic's clock, in NTP's 64 bits."""
    return round((_wall_s + moment_s) * 2**32)


class SenderReports:
    """What a track's reports tell of its sender's clock.

    counted: (newest, origin), the RTP timestamps of the newest frame and of pts 0, the origin counted on where
    timestamps went round; None before the first frame.
    """

    def __init__(self, clock_hz: int, counted: Callable[[], tuple[int, int] | None]):
        self._clock_hz, self._counted = clock_hz, counted
        self._ssrc = 0
        self._reports: deque[tuple[float, int]] = deque(maxlen=MAX_REPORTS)  # (wall clock in seconds, RTP timestamp)

    def add(self, info: RtcpSenderInfo, ssrc: int = 0) -> None:
        """ssrc: whose it is; those of another one count from then on."""
        if ssrc != self._ssrc:
            self._ssrc = ssrc
            self._reports.clear()
        report = (info.ntp_timestamp / 2**32, info.rtp_timestamp)
        is_old = bool(self._reports) and self._reports[-1] == report
        if report[0] and not is_old:  # a sender without a wall clock, or without anything sent, says 0
            self._reports.append(report)

    def wall_origin_s(self) -> float | None:
        """The sender's wall clock, in NTP's seconds, when the receiver's frames have a pts of 0; None if it is unknown.

        The middle one of the latest reports: some senders name a time that is a few ms off.
        """
        counted = self._counted()
        if counted is None or not self._reports:
            return None
        newest, origin = counted
        # A timestamp has 32 bits and goes round; the origin counts on. The report is the one nearest to the newest.
        return statistics.median_low(
            wall_s - (newest - origin + uint32_add(timestamp - newest, 2**31) - 2**31) / self._clock_hz
            for wall_s, timestamp in self._reports
        )
