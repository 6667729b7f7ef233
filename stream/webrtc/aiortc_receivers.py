"""Every private name of aiortc's receivers that we touch; aiortc_compat.py says what for, and what to do at an upgrade.

Each function changes one receiver, before it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiortc import (
    RTCRtpReceiver,
)
from aiortc.codecs import is_rtx
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtp import AnyRtcpPacket, RtcpByePacket, RtcpSrPacket, RtpPacket

from .decoding import EncodedQueue, PacketBuffer
from .receiving.intake import VideoIntake
from .receiving.jitter_buffer import EncodedFrame, read_payload
from .reports import SenderReports

_NO_CODEC = -1  # a payload type that no codec has


class _Depayloaded:
    """A PacketBuffer as aiortc calls it: a packet carries what its codec's payload format left of it.

    Recheck: RTCRtpReceiver sets RtpPacket._data before it calls JitterBuffer.add, and calls nothing else of the buffer.
    """

    def __init__(self, buffer: PacketBuffer):
        self._buffer = buffer

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        inside: Any = packet
        return self._buffer.add(packet, inside._data)


def set_packet_buffer(receiver: RTCRtpReceiver, buffer: PacketBuffer) -> None:
    """Put a buffer of ours in the place of aiortc's jitter buffer; before the receiver starts, which it does once its
    peer is connected.

    Recheck: RTCRtpReceiver.__jitter_buffer is made in __init__ and kept.
    """
    inside: Any = receiver
    inside._RTCRtpReceiver__jitter_buffer = _Depayloaded(buffer)


def bound_queue(receiver: RTCRtpReceiver) -> EncodedQueue:
    """Put an EncodedQueue between the jitter buffer and the decoder; before the receiver starts.

    aiortc's own has no bound, and closing waits on the event loop until all of it is decoded.

    Recheck: RTCRtpReceiver.__decoder_queue is handed to the thread when that starts, takes (codec, JitterFrame), and
    None at the end; with __decoder_error set a keyframe is asked for with the next packet (PLI, RFC 4585).
    """
    inside: Any = receiver
    if inside._RTCRtpReceiver__decoder_thread is not None:
        raise RuntimeError("The receiver's decoder has started: its queue cannot be replaced any more.")
    bounded = EncodedQueue(ask_for_keyframe=inside._RTCRtpReceiver__decoder_error.set)
    inside._RTCRtpReceiver__decoder_queue = bounded
    return bounded


def sender_reports(
    receiver: RTCRtpReceiver, clock_hz: int, ssrc: Callable[[], int | None] = lambda: None
) -> SenderReports:
    """What the receiver's sender reports tell, from now on; aiortc itself does not pass them on.

    ssrc: whose reports count, where there are several.

    Recheck: RTCRtpReceiver._handle_rtcp_packet gets every report; __timestamp_mapper turns RTP timestamps into pts, of
    which `_last` is the newest timestamp and `_origin` that of pts 0.
    """
    inside: Any = receiver
    mapper, handle = inside._RTCRtpReceiver__timestamp_mapper, inside._handle_rtcp_packet
    reports = SenderReports(clock_hz, lambda: None if mapper._last is None else (mapper._last, mapper._origin))

    async def read_and_handle(packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpSrPacket) and ssrc() in (None, packet.ssrc):
            reports.add(packet.sender_info, packet.ssrc)
        await handle(packet)

    inside._handle_rtcp_packet = read_and_handle
    return reports


# -- a receiver of video ---------------------------------------------------------------------------------------------


class _VideoSeams:
    """What stands in the place of a receiver's NACK generator, its jitter buffer, and the event of decoding errors.

    Recheck: RTCRtpReceiver gives each packet, RTX unwrapped, to __nack_generator.add, sets RtpPacket._data, calls
    __jitter_buffer.add, and sends a PLI where __decoder_error.is_set(); the decoder thread sets that.
    """

    def __init__(self, take_in: Callable[[RtpPacket], None], on_error: Callable[[], None]):
        self._take_in, self.set = take_in, on_error

    def add(self, packet: RtpPacket) -> Any:
        if hasattr(packet, "_data"):  # it is the jitter buffer that is called
            return False, None
        self._take_in(packet)
        return False

    def is_set(self) -> bool:
        return False


def take_video(receiver: RTCRtpReceiver, sent_again: Mapping[int, int], intake: VideoIntake) -> None:
    """Let an intake of ours decide what becomes of a receiver's packets; before it starts. Estimating the bitrate,
    receiver reports and unwrapping RTX stay aiortc's.

    sent_again: SSRC of RTX -> SSRC of what it is of: aiortc reads that from an offer only where there are two SSRCs.

    Recheck: RTCRtpReceiver._handle_rtp_packet gets every packet, and leaves one of an unknown payload type once its
    bitrate is estimated; it unwraps RTX by __rtx_ssrc and __codecs. The decoder thread gets __decoder_error when it
    starts; __decoder_thread is None again once the receiver has stopped. __timestamp_mapper.map makes pts,
    __decoder_queue takes (codec, JitterFrame). _handle_rtcp_packet ends the track on BYE.
    """
    inside: Any = receiver
    codecs_of = inside._RTCRtpReceiver__codecs
    rtx_ssrc = inside._RTCRtpReceiver__rtx_ssrc
    mapper = inside._RTCRtpReceiver__timestamp_mapper
    handle_rtp, handle_rtcp = inside._handle_rtp_packet, inside._handle_rtcp_packet
    is_again = False

    def take_in(packet: RtpPacket) -> None:
        codec, marker = codecs_of[packet.payload_type].name, bool(packet.marker)
        about = (packet.sequence_number, packet.timestamp, marker, codec, packet.payload_type)
        intake.take_in(*about, read_payload(codec, packet.payload), is_again=is_again)

    async def receive(packet: RtpPacket, arrival_time_ms: int) -> None:
        nonlocal is_again
        codec = codecs_of.get(packet.payload_type)
        if codec is not None:
            is_again = is_rtx(codec)
            if is_again:
                first = int.from_bytes(packet.payload[:2])
                ssrc = intake.retransmitted(rtx_ssrc.get(packet.ssrc), first)
                is_taken = ssrc is not None and ssrc == intake.layers.current
                if is_taken:
                    rtx_ssrc[packet.ssrc] = ssrc
            else:
                is_taken = intake.takes(packet.ssrc, codec.name, read_payload(codec.name, packet.payload))
            if not is_taken:
                packet.payload_type = _NO_CODEC
        await handle_rtp(packet, arrival_time_ms=arrival_time_ms)
        await intake.answer()

    async def take_report(packet: AnyRtcpPacket) -> None:
        if not isinstance(packet, RtcpByePacket) or intake.ends_with(packet.sources):
            await handle_rtcp(packet)

    def decode(frame: EncodedFrame) -> None:
        if inside._RTCRtpReceiver__decoder_thread is not None:
            encoded = JitterFrame(frame.data, mapper.map(frame.timestamp))
            inside._RTCRtpReceiver__decoder_queue.put((codecs_of[frame.payload_type], encoded))

    seams = _VideoSeams(take_in, intake.want_keyframe)
    inside._RTCRtpReceiver__nack_generator = inside._RTCRtpReceiver__jitter_buffer = seams
    inside._RTCRtpReceiver__decoder_error = seams
    rtx_ssrc.update(sent_again)
    intake.decode, intake.nack, intake.pli = decode, inside._send_rtcp_nack, inside._send_rtcp_pli
    intake.is_open = lambda: inside._RTCRtpReceiver__decoder_thread is not None
    inside._handle_rtp_packet, inside._handle_rtcp_packet = receive, take_report
