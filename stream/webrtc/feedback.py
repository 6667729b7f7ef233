"""What a viewer's RTCP feedback leads to: packets sent again, keyframes, another bitrate, and what can be told of it.

Decisions alone, on the clock that they are given; aiortc_senders.py has a sender act on them.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable

from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    AnyRtcpPacket,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRtpfbPacket,
    unpack_remb_fci,
)

from stream.network import SenderStatistics

from .bitrates import BitrateEstimate, EncoderBitrate

HISTORY = 1024  # packets that can be sent again: 1.3 s at 8.4 Mbit/s, 0.9 at 12; it divides 2**16, as numbers go round
MAX_RESENDS = 8  # of one packet
MIN_RESEND_S = 0.01
RESEND_SHARE, RESEND_BURST_S = 0.5, 0.5  # of the bitrate in the long run; so long a time's bits at once
KEYFRAME_S = 0.3
LATE_KEYFRAME_S = 1.0  # one that was not seen to leave by then is asked for anew

MAX_REPORTS = 16  # sender reports that may still be answered
ROUND_TRIP_SHARE = 0.15  # of a new measurement in the average
MAX_ROUND_TRIP_S = 10.0  # what is longer is a receiver's mistake
MAX_STEP = 2**16  # packets between two reports; a receiver that counts more counts anew


def numbers_lost(packet: AnyRtcpPacket) -> list[int]:
    """The sequence numbers that a NACK asks for (RFC 4585, 6.2.1)."""
    return packet.lost if isinstance(packet, RtcpRtpfbPacket) and packet.fmt == RTCP_RTPFB_NACK else []


def asks_for_keyframe(packet: AnyRtcpPacket) -> bool:
    return isinstance(packet, RtcpPsfbPacket) and packet.fmt in (RTCP_PSFB_PLI, RTCP_PSFB_FIR)


def remb_bps(packet: AnyRtcpPacket, ssrc: int) -> int | None:
    """What a receiver says it can take of a source (draft-alvestrand-rmcat-remb-03)."""
    if not isinstance(packet, RtcpPsfbPacket) or packet.fmt != RTCP_PSFB_APP:
        return None
    try:
        bps, sources = unpack_remb_fci(packet.fci)
    except (ValueError, struct.error):  # another application's, or cut off
        return None
    return bps if ssrc in sources else None


class Retransmissions:
    """Which of the packets asked for (NACK, RFC 4585) are sent again: not while the last one may still be under way,
    not for ever, and in the long run half as many bits as are sent anew: lost packets may mean too many of them."""

    def __init__(self) -> None:
        self._sent: OrderedDict[int, tuple[float, int]] = OrderedDict()  # number -> (when last, how often)
        self._credit_bits: float | None = None
        self._credited_s = 0.0

    def allow(self, now_s: float, sequence_number: int, size: int, bps: int, round_trip_s: float | None) -> bool:
        """Whether to send a packet of that many bytes again, which is then taken for done."""
        last_s, times = self._sent.get(sequence_number, (-1e9, 0))
        apart_s = max(MIN_RESEND_S, (round_trip_s or 0.0) / 2)
        if now_s - last_s > MAX_ROUND_TRIP_S:
            times = 0  # numbers go round
        if now_s - last_s < apart_s or times >= MAX_RESENDS:
            return False
        most = bps * RESEND_BURST_S
        earned = RESEND_SHARE * bps * (now_s - self._credited_s)
        self._credit_bits = most if self._credit_bits is None else min(most, self._credit_bits + earned)
        self._credited_s = now_s
        if self._credit_bits < 8 * size:
            return False
        self._credit_bits -= 8 * size
        self._sent[sequence_number] = (now_s, times + 1)
        self._sent.move_to_end(sequence_number)
        if len(self._sent) > HISTORY:
            self._sent.popitem(last=False)
        return True


class KeyframeRequests:
    """When to answer who asks for a keyframe (PLI, RFC 4585; FIR, RFC 5104): at once, every KEYFRAME_S at the most."""

    def __init__(self) -> None:
        self._made_s = -KEYFRAME_S
        self._asked_s: float | None = None  # since the last one

    def ask(self, now_s: float) -> float | None:
        """In how long to look whether one `is_due`; None where that will be done anyway."""
        if self._asked_s is not None and now_s - self._asked_s < LATE_KEYFRAME_S:
            return None
        self._asked_s = now_s
        return max(0.0, self._made_s + KEYFRAME_S - now_s)

    @property
    def is_due(self) -> bool:
        """Whether somebody still waits."""
        return self._asked_s is not None

    def made(self, now_s: float) -> None:
        """A keyframe leaves, for whatever reason."""
        self._made_s, self._asked_s = now_s, None


class ReceiverReports:
    """What a receiver's reports (RFC 3550, 6.4) tell: packets it expected, those of them lost, the round trip."""

    def __init__(self) -> None:
        self.expected = self.lost = 0
        self.round_trip_s: float | None = None
        self._sent_s: OrderedDict[int, float | None] = OrderedDict()  # a report's LSR -> when it was sent
        self._before: tuple[int, int] | None = None  # highest sequence number, packets lost

    def sent(self, now_s: float, lsr: int) -> None:
        """A sender report left, of which receivers give this back."""
        # One that says what another said cannot be told from it.
        self._sent_s[lsr] = None if lsr in self._sent_s else now_s
        if len(self._sent_s) > MAX_REPORTS:
            self._sent_s.popitem(last=False)

    def add(self, now_s: float, report: RtcpReceiverInfo) -> tuple[int, int]:
        """-> (packets expected, packets lost) since the report before."""
        self._measure(now_s, report.lsr, report.dlsr / 65536)
        before, self._before = self._before, (report.highest_sequence, report.packets_lost)
        if before is None:
            return 0, 0
        expected = report.highest_sequence - before[0]
        if not 0 <= expected <= MAX_STEP:
            return 0, 0
        lost = min(expected, max(0, report.packets_lost - before[1]))  # copies make it fall
        self.expected, self.lost = self.expected + expected, self.lost + lost
        return expected, lost

    def _measure(self, now_s: float, lsr: int, delay_s: float) -> None:
        sent_s = self._sent_s.get(lsr)
        if sent_s is None:
            return
        round_trip_s = now_s - sent_s - delay_s
        if not 0 <= round_trip_s <= MAX_ROUND_TRIP_S:
            return
        if self.round_trip_s is None:
            self.round_trip_s = round_trip_s
        self.round_trip_s += ROUND_TRIP_SHARE * (round_trip_s - self.round_trip_s)


class SenderFeedback:
    """All that one viewer says about the video it is sent. deserved: see BitrateEstimate."""

    def __init__(self, deserved: Callable[[], int]):
        self.reports = ReceiverReports()
        self.keyframes = KeyframeRequests()
        self.nacks = self.plis = 0  # FIRs are counted among the PLIs
        self.is_heard = False  # a report came: what can be told is worth telling
        self._deserved = deserved
        self._retransmissions = Retransmissions()
        self._estimate = BitrateEstimate(deserved)
        self._encoder = EncoderBitrate()
        self._bps = deserved()

    def report(self, now_s: float, report: RtcpReceiverInfo) -> None:
        self.is_heard = True
        packets, lost = self.reports.add(now_s, report)
        self._estimate.report(now_s, packets, lost, self.reports.round_trip_s)

    def limit(self, now_s: float, bps: int) -> None:
        """REMB."""
        self._estimate.limit(now_s, bps)

    def resends(self, now_s: float, sequence_number: int, size: int) -> bool:
        """NACK: whether to send that packet, of so many bytes, again."""
        round_trip_s = self.reports.round_trip_s
        return self._retransmissions.allow(now_s, sequence_number, size, self._bps, round_trip_s)

    def keyframe_in_s(self, now_s: float) -> float | None:
        """PLI or FIR: see KeyframeRequests."""
        self.plis += 1
        return self.keyframes.ask(now_s)

    def bitrate_bps(self, now_s: float) -> int:
        """What the next frame is to be encoded with."""
        self._bps = self._encoder.follow(now_s, self._estimate.bps(now_s), self._deserved())
        return self._bps

    def statistics(self) -> SenderStatistics:
        reports = self.reports
        round_trip_ms = None if reports.round_trip_s is None else round(1000 * reports.round_trip_s, 1)
        return SenderStatistics(reports.expected, reports.lost, self.nacks, self.plis, round_trip_ms, self._bps)
