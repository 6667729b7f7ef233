"""What sender reports tell, of publishers' clocks and of ours."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from aiortc.rtp import RtcpSenderInfo, RtcpSrPacket

from stream.webrtc import reports
from stream.webrtc.aiortc_receivers import sender_reports
from stream.webrtc.aiortc_senders import tell_moments

HZ = 90_000


class Receiver:
    """As much of aiortc's as is used."""

    def __init__(self):
        self._RTCRtpReceiver__timestamp_mapper = SimpleNamespace(_last=None, _origin=None)
        self.handled = []

    async def _handle_rtcp_packet(self, packet):
        self.handled.append(packet)

    def count(self, origin: int, last: int) -> None:
        mapper = self._RTCRtpReceiver__timestamp_mapper
        mapper._origin, mapper._last = origin, last


def report(wall_s: float, timestamp: int, packets: int = 1) -> RtcpSrPacket:
    info = RtcpSenderInfo(round(wall_s * 2**32), timestamp % 2**32, packets, 0)
    return RtcpSrPacket(ssrc=1, sender_info=info)


async def test_the_wall_clock_at_zero_is_told_as_soon_as_both_are_known():
    receiver = Receiver()
    told = sender_reports(receiver, HZ)
    await receiver._handle_rtcp_packet(report(0.0, 5000))  # a sender without a clock
    receiver.count(5000, 5000 + 2 * HZ)
    assert told.wall_origin_s() is None
    await receiver._handle_rtcp_packet(report(1000.0, 5000 + HZ))
    assert told.wall_origin_s() == pytest.approx(999.0)
    assert len(receiver.handled) == 2  # aiortc still gets to see them


async def test_one_report_that_is_off_moves_nothing():
    receiver = Receiver()
    told = sender_reports(receiver, HZ)
    receiver.count(0, HZ)
    for second, error_s in enumerate((0.0, 0.001, 0.5, -0.001, 0.0)):
        await receiver._handle_rtcp_packet(report(1000.0 + second + error_s, second * HZ))
    assert told.wall_origin_s() == pytest.approx(1000.0, abs=0.002)


async def test_timestamps_that_go_round_are_followed():
    receiver = Receiver()
    told = sender_reports(receiver, HZ)
    first = 2**32 - HZ
    receiver.count(first, first + HZ // 2)
    await receiver._handle_rtcp_packet(report(1002.0, first + 2 * HZ))  # a report may be ahead of what has arrived
    assert told.wall_origin_s() == pytest.approx(1000.0)
    receiver.count(first - 2**32, HZ)  # aiortc's own counting, once it has gone round
    assert told.wall_origin_s() == pytest.approx(1000.0)


async def test_our_reports_tell_the_moment_of_the_newest_frame_whatever_it_took():
    sent, track = [], SimpleNamespace(moment_s=0.0)

    class Sender:
        async def _next_encoded_frame(self, codec):
            return codec

        async def _send_rtcp(self, packets):
            sent.append(packets[0].sender_info.ntp_timestamp / 2**32)

    sender = Sender()
    tell_moments(sender, lambda: track.moment_s)
    await sender._send_rtcp([report(0.0, 0, packets=0)])  # nothing is sent yet
    for track.moment_s, encoded in ((50.0, "a frame"), (60.0, None)):  # one that gave nothing to send
        await sender._next_encoded_frame(encoded)
    await sender._send_rtcp([report(3e9, 0)])
    assert sent == [0.0, pytest.approx(reports._wall_s + 50.0)]
