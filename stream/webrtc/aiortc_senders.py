"""Every private name of aiortc's senders that we touch; aiortc_compat.py says what for, and what to do at an upgrade.

Each function changes one sender.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from aiortc import (
    RTCRtpSender,
    codecs,
)
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpsender import RTCEncodedFrame
from aiortc.rtp import AnyRtcpPacket, RtcpRrPacket, RtcpSrPacket

from .feedback import HISTORY, SenderFeedback, asks_for_keyframe, numbers_lost, remb_bps
from .receiving.bitstream import is_keyframe
from .reports import ntp_time

KEYFRAME_IN = 4  # packets a keyframe shows itself: of H264 parameter sets and remarks may come first


def tell_moments(
    sender: RTCRtpSender, moment_s: Callable[[], float], reported: Callable[[float, int], None] = lambda *report: None
) -> None:
    """Have a sender's reports name the moment that its newest frame is of, on time.monotonic's clock; aiortc's name the
    time at which they are sent. How long a picture takes differs from one to the next, and receivers would take that
    for what it is late by. reported: called with each report's time of sending, and with what answers to it name it by
    (LSR; RFC 3550, 6.4.1).

    Recheck: RTCRtpSender._next_encoded_frame returns what is sent next, _send_rtcp gets every report.
    """
    inside: Any = sender
    encode, send = inside._next_encoded_frame, inside._send_rtcp
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
                packet.sender_info.ntp_timestamp = ntp_time(told_s)
                reported(time.monotonic(), packet.sender_info.ntp_timestamp >> 16 & 0xFFFFFFFF)
        await send(packets)

    inside._next_encoded_frame, inside._send_rtcp = encode_and_note, send_noted


def follow_feedback(sender: RTCRtpSender, feedback: SenderFeedback, send_now: Callable[[], None]) -> None:
    """Have a video sender do what the feedback decides; before it starts. send_now: have the next frame come at once.

    aiortc itself sends again whatever is asked for, makes a keyframe with whatever frame comes next, and knows of
    bitrate what REMB says.

    Recheck: RTCRtpSender._handle_rtcp_packet gets every report; _retransmit sends again what __rtp_history holds under
    its number; _send_keyframe marks the next frame; __encoder is made with the first frame, takes target_bitrate, and
    makes itself anew, beginning with a keyframe, for a bitrate that is 10 % off.
    """
    inside: Any = sender
    handle, encode, loop = inside._handle_rtcp_packet, inside._next_encoded_frame, asyncio.get_running_loop()

    def make_keyframe() -> None:
        if feedback.keyframes.is_due:
            inside._send_keyframe()
            send_now()

    async def heed(packet: AnyRtcpPacket) -> None:
        now_s = time.monotonic()
        feedback.nacks += bool(numbers_lost(packet))
        if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == inside._ssrc:
                    feedback.report(now_s, report)
            await handle(packet)  # for its own statistics
        for number in numbers_lost(packet):
            kept = inside._RTCRtpSender__rtp_history.get(number % HISTORY)
            if kept is None or kept.sequence_number != number:
                continue
            if feedback.resends(now_s, number, len(kept.payload)):
                await inside._retransmit(number)
        if asks_for_keyframe(packet) and (wait_s := feedback.keyframe_in_s(now_s)) is not None:
            loop.call_later(wait_s, make_keyframe)
        if (bps := remb_bps(packet, inside._ssrc)) is not None:
            feedback.limit(now_s, bps)

    async def encode_as_told(codec: RTCRtpCodecParameters) -> RTCEncodedFrame | None:
        encoder = inside._RTCRtpSender__encoder
        if encoder is not None:
            encoder.target_bitrate = feedback.bitrate_bps(time.monotonic())
        encoded = await encode(codec)
        if encoded is not None:
            begin = b"".join(codecs.depayload(codec, payload) for payload in encoded.payloads[:KEYFRAME_IN])
            if is_keyframe(codec.name, begin):
                feedback.keyframes.made(time.monotonic())
                inside._RTCRtpSender__rtp_history.clear()  # what came before it is not needed any more
        return encoded

    inside._handle_rtcp_packet, inside._next_encoded_frame = heed, encode_as_told
