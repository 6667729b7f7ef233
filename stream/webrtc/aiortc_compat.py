"""Every private name of aiortc 1.16 and aioice 0.13 that we touch, and every constant of theirs that we change.

`apply` changes what holds for the whole process; each other function what belongs to one receiver, sender, transport
or peer. What these changes decide lies in files that know no private name: decoding.py, reports.py, sound.py.

At an upgrade of either package: run tests/stream, and read again what each "Recheck" below names.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from aioice import Connection, ice, stun
from aiortc import RTCDtlsTransport, RTCPeerConnection, RTCRtpReceiver, RTCRtpSender, codecs
from aiortc.codecs import h264, is_rtx, vpx
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpsender import RTCEncodedFrame
from aiortc.rtp import AnyRtcpPacket, RtcpByePacket, RtcpSrPacket, RtpPacket

from .decoding import MAX_MACROBLOCKS, EncodedQueue, PacketBuffer
from .receiving.intake import VideoIntake
from .receiving.jitter_buffer import EncodedFrame, read_payload
from .reports import SenderReports, ntp_time
from .sound import BITRATE_BPS, MusicEncoder

_NO_CODEC = -1  # a payload type that no codec has

# -- the process -----------------------------------------------------------------------------------------------------

_host_addresses = ice.get_host_addresses


@functools.cache
def apply() -> None:
    """Change what aiortc and aioice hold once for the process: call it before the first peer is made.

    Our answers offer VP8 up to MAX_MACROBLOCKS (RFC 7741, 6.1; those of H264 name level 3.1, and senders may exceed
    it), and of sound Opus alone, in stereo (RFC 7587, 6.1), which is encoded as music.

    Recheck: `codecs.CODECS` is what answers are made of, `codecs.get_encoder` finds OpusEncoder in its own module, and
    `ice.Connection` finds get_host_addresses in its own.
    """
    for codec in codecs.CODECS["video"]:
        if codec.mimeType == "video/VP8":
            codec.parameters["max-fs"] = MAX_MACROBLOCKS
    opus = [codec for codec in codecs.CODECS["audio"] if codec.mimeType == "audio/opus"]
    opus[0].parameters.update({"stereo": 1, "sprop-stereo": 1, "maxaveragebitrate": BITRATE_BPS})
    codecs.CODECS["audio"] = opus
    codecs.OpusEncoder = MusicEncoder  # type: ignore[misc]  # a class is no variable to mypy
    ice.get_host_addresses = _addresses_or_loopback


def _addresses_or_loopback(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    """aioice offers no loopback address, so a laptop without any network would have nothing to connect by."""
    return _host_addresses(use_ipv4, use_ipv6) or ["127.0.0.1"]


def set_bitrates(floor_bps: int, ceiling_bps: int) -> None:
    """What every encoder of video is made with from now on: the receiver's estimate (REMB) moves it between the two.

    Recheck: both modules read these constants whenever an encoder is made or told a bitrate.
    """
    vpx.MIN_BITRATE = h264.MIN_BITRATE = floor_bps
    vpx.DEFAULT_BITRATE = vpx.MAX_BITRATE = h264.DEFAULT_BITRATE = h264.MAX_BITRATE = ceiling_bps


# -- a receiver ------------------------------------------------------------------------------------------------------


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


# -- a sender --------------------------------------------------------------------------------------------------------


def tell_moments(sender: RTCRtpSender, moment_s: Callable[[], float]) -> None:
    """Have a sender's reports name the moment that its newest frame is of, on time.monotonic's clock; aiortc's name the
    time at which they are sent. How long a picture takes differs from one to the next, and receivers would take that
    for what it is late by.

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
        await send(packets)

    inside._next_encoded_frame, inside._send_rtcp = encode_and_note, send_noted


# -- a peer and its transport ----------------------------------------------------------------------------------------


def tell_failure(peer: RTCPeerConnection, on_failure: Callable[[Exception], None]) -> None:
    """Call on_failure when connecting raises, which aiortc does in a task that nobody looks after; before the answer.

    What an offer says of a section is used only then, and a peer that is closed meanwhile raises, too.

    Recheck: setLocalDescription and setRemoteDescription make tasks of RTCPeerConnection.__connect().
    """
    inside: Any = peer
    connect = inside._RTCPeerConnection__connect

    async def connect_and_tell() -> None:
        try:
            await connect()
        except Exception as error:
            on_failure(error)

    inside._RTCPeerConnection__connect = connect_and_tell


def take_media_for_consent(
    transport: RTCDtlsTransport, on_round_trip: Callable[[float], None] = lambda seconds: None
) -> None:
    """Let whatever a publisher sends pass for an answer to our consent checks (RFC 7675); before it is connected.

    FFmpeg's WHIP client (8.1) answers none, and lost us after 30 s. One that sends nothing and answers nothing for as
    long is gone: its connection fails. on_round_trip: called with the seconds that an answer took.

    Recheck: RTCDtlsTransport.__rx_packets counts media too, RTCIceTransport._connection is aioice's Connection, which
    makes a task of its query_consent() once it is connected.
    """
    inside: Any = transport
    connection = inside.transport._connection
    connection.query_consent = lambda: _query_consent(
        connection, lambda: inside._RTCDtlsTransport__rx_packets, on_round_trip
    )


async def _query_consent(
    connection: Connection, received: Callable[[], int], on_round_trip: Callable[[float], None]
) -> None:
    """aioice's own, but that it fails only where nothing has been received either.

    Recheck: it against aioice's, and that close() waits for _query_consent_task.
    """
    failures = 0
    while failures < ice.CONSENT_FAILURES:
        before = received()
        await asyncio.sleep(ice.CONSENT_INTERVAL * random.uniform(0.8, 1.2))
        answered = all([await _answers(connection, pair, on_round_trip) for pair in connection._nominated.values()])
        failures = 0 if answered or received() > before else failures + 1
    connection._query_consent_task = None
    await connection.close()


async def _answers(connection: Connection, pair: ice.CandidatePair, on_round_trip: Callable[[float], None]) -> bool:
    assert connection.remote_password is not None  # it is connected
    request = connection.build_request(pair, nominate=False)
    password = connection.remote_password.encode()
    asked_s = time.monotonic()
    try:
        await pair.protocol.request(request, pair.remote_addr, integrity_key=password, retransmissions=0)
    except stun.TransactionError:
        return False
    on_round_trip(time.monotonic() - asked_s)
    return True
