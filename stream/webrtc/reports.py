"""RTCP sender reports (RFC 3550, 6.4.1): what wall time do timestamps stand for, a publisher's and ours?

By them a receiver relates picture and sound to each other. aiortc 1.16 does not pass on those it gets, and in those it
sends it puts the time of sending, so both ends use private names of aiortc here, as decoding.py does.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

from aiortc import RTCRtpReceiver, RTCRtpSender
from aiortc.clock import current_ntp_time
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpsender import RTCEncodedFrame
from aiortc.rtp import AnyRtcpPacket, RtcpSrPacket
from aiortc.utils import uint32_add

MAX_REPORTS = 9  # that a sender's clock is judged by

_wall_s = current_ntp_time() / 2**32 - time.monotonic()  # one for all: between two tracks only the difference matters


class SenderReports:
    """What a receiver's sender reports tell (RTCP SR, RFC 3550, 6.4.1): which wall time its timestamps stand for."""

    def __init__(self, receiver: RTCRtpReceiver, clock_hz: int):
        self._mapper, self._clock_hz = receiver._RTCRtpReceiver__timestamp_mapper, clock_hz
        self._reports: deque[tuple[float, int]] = deque(maxlen=MAX_REPORTS)  # (wall clock in seconds, RTP timestamp)
        self._handle = receiver._handle_rtcp_packet
        receiver._handle_rtcp_packet = self._read

    async def _read(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpSrPacket):
            report = (packet.sender_info.ntp_timestamp / 2**32, packet.sender_info.rtp_timestamp)
            is_old = bool(self._reports) and self._reports[-1] == report
            if report[0] and not is_old:  # a sender without a wall clock, or without anything sent, says 0
                self._reports.append(report)
        await self._handle(packet)

    def wall_origin_s(self) -> float | None:
        """The sender's wall clock, in NTP's seconds, when the receiver's frames have a pts of 0; None if it is unknown.

        The middle one of the latest reports: some senders name a time that is a few ms off.
        """
        newest, origin = self._mapper._last, self._mapper._origin
        if newest is None or not self._reports:
            return None
        # A timestamp has 32 bits and goes round; the mapper counts on. The report is the one nearest to its newest.
        return statistics.median_low(
            wall_s - (newest - origin + uint32_add(timestamp - newest, 2**31) - 2**31) / self._clock_hz
            for wall_s, timestamp in self._reports
        )


def tell_moments(sender: RTCRtpSender, moment_s: Callable[[], float]) -> None:
    """Have a sender's reports name the moment that its newest frame is of, on time.monotonic's clock, not when it left.

    How long a picture takes differs from one to the next, and receivers would take that for what it is late by.
    """
    encode, send = sender._next_encoded_frame, sender._send_rtcp
    told_s = 0.0

    async def encode_and_note(codec: RTCRtpCodecParameters) -> RTCEncodedFrame | None:
        nonlocal told_s
        encoded = await encode(codec)
        if encoded is not None:
            told_s = moment_s()
        return encoded

    async def send_noted(packets: list[AnyRtcpPacket]) -> None:
        for packet in packets:
            if isinstance(packet, RtcpSrPacket) and packet.sender_info.packet_count:
                packet.sender_info.ntp_timestamp = round((_wall_s + told_s) * 2**32)
        await send(packets)

    sender._next_encoded_frame, sender._send_rtcp = encode_and_note, send_noted
