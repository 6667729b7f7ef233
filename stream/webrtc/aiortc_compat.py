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

from .bitstream import Malformed, coded_size
from .decoding import MAX_MACROBLOCKS, EncodedQueue, PacketBuffer
from .jitter_buffer import EncodedFrame, Payload, read_payload
from .layers import Layers
from .network import ReceiverStatistics
from .receiver import Outcome, VideoReceiver
from .reports import SenderReports, ntp_time
from .sound import BITRATE_BPS, MusicEncoder

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
            reports.add(packet.sender_info)
        await handle(packet)

    inside._handle_rtcp_packet = read_and_handle
    return reports


# -- a receiver of video ---------------------------------------------------------------------------------------------

_NO_CODEC = -1  # a payload type that no codec has: aiortc counts such a packet for its estimate of the bitrate alone


class VideoIntake:
    """Puts a VideoReceiver and Layers of ours into aiortc's receiver, in the place of its jitter buffer and of its
    NACKs; before that starts. Bitrate estimation, receiver reports and the unwrapping of RTX stay aiortc's.

    retransmissions: SSRC of what is sent again -> SSRC of what it is of, as the offer says it: aiortc reads this only
    where there are two SSRCs. on_layer: called where another SSRC is taken.

    Recheck: RTCRtpReceiver._handle_rtp_packet gets every packet, and leaves those of unknown payload types once they
    are estimated. It unwraps RTX by __rtx_ssrc and __codecs, gives each packet to __nack_generator.add, then calls
    __jitter_buffer.add, and sends a PLI where __decoder_error.is_set(), which the decoder thread sets; the thread gets
    that when it starts. __timestamp_mapper.map makes pts, __decoder_queue takes (codec, JitterFrame), __decoder_thread
    is None once the receiver has stopped. _send_rtcp_nack and _send_rtcp_pli send; _handle_rtcp_packet ends the track
    on BYE.
    """

    def __init__(
        self,
        receiver: RTCRtpReceiver,
        layers: Layers,
        retransmissions: Mapping[int, int],
        on_layer: Callable[[], None] = lambda: None,
    ):
        inside: Any = receiver
        self._inside, self.layers, self._on_layer = inside, layers, on_layer
        self.video = VideoReceiver()
        self.heard_s: float | None = None  # when the last packet came, on time.monotonic's clock
        self._outcome = Outcome()
        self._is_again = self._wants_keyframe = False
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task] = set()
        self._handle_rtp, self._handle_rtcp = inside._handle_rtp_packet, inside._handle_rtcp_packet
        inside._RTCRtpReceiver__rtx_ssrc.update(retransmissions)
        inside._RTCRtpReceiver__nack_generator = inside._RTCRtpReceiver__jitter_buffer = self._Seams(self)
        inside._RTCRtpReceiver__decoder_error = self._Seams(self)
        inside._handle_rtp_packet, inside._handle_rtcp_packet = self._receive, self._take_report

    class _Seams:
        """What aiortc calls: of the NACK generator, of the jitter buffer, and of the event of the decoder's errors."""

        def __init__(self, intake: VideoIntake):
            self._intake = intake

        def add(self, packet: RtpPacket) -> Any:
            if hasattr(packet, "_data"):  # for the jitter buffer
                return False, None
            self._intake._take_in(packet)
            return False

        def set(self) -> None:
            self._intake._wants_keyframe = True

        def is_set(self) -> bool:
            return False

    def statistics(self) -> ReceiverStatistics:
        return self.video.statistics(self.layers.ignored)

    def ask_for_keyframe(self) -> None:
        self._wants_keyframe = True

    async def _receive(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        self.heard_s = now_s = time.monotonic()
        codec = self._inside._RTCRtpReceiver__codecs.get(packet.payload_type)
        if codec is not None and not self._takes(packet, codec, now_s):
            packet.payload_type = _NO_CODEC
        if self._wants_keyframe:
            self._wants_keyframe = False
            self.video.want_keyframe(now_s)
        await self._handle_rtp(packet, arrival_time_ms=arrival_time_ms)
        outcome, self._outcome = self._outcome, Outcome()
        await self._send(outcome)
        if (ssrc := self.layers.ask(now_s)) is not None:
            await self._inside._send_rtcp_pli(ssrc)
        self._wind_up()

    def _takes(self, packet: RtpPacket, codec: RTCRtpCodecParameters, now_s: float) -> bool:
        self._is_again = is_rtx(codec)
        if self._is_again:
            known = self._inside._RTCRtpReceiver__rtx_ssrc
            if packet.ssrc not in known and len(packet.payload) > 2 and self.layers.current is not None:
                if self.video.is_asked_for(int.from_bytes(packet.payload[:2])):  # the offer did not say whose it is
                    known[packet.ssrc] = self.layers.current
            return known.get(packet.ssrc) == self.layers.current
        payload, size = read_payload(codec.name, packet.payload), None
        if payload.begins_key:
            try:
                size = coded_size(codec.name, payload.data)
            except Malformed:
                size = None
        before = self.layers.current
        is_taken = self.layers.take(packet.ssrc, payload.begins_key, size, now_s)
        if before not in (None, self.layers.current):
            self.video.restart()
            self._on_layer()
        return is_taken

    def _take_in(self, packet: RtpPacket) -> None:
        codec = self._inside._RTCRtpReceiver__codecs[packet.payload_type]
        outcome = self.video.receive(
            packet.sequence_number,
            packet.timestamp,
            bool(packet.marker),
            codec.name,
            packet.payload_type,
            read_payload(codec.name, packet.payload),
            time.monotonic(),
            self._is_again,
        )
        self._decode(outcome.frames)
        self._outcome = outcome

    def _decode(self, frames: list[EncodedFrame]) -> None:
        inside = self._inside
        for frame in frames:
            if inside._RTCRtpReceiver__decoder_thread:
                timestamp = inside._RTCRtpReceiver__timestamp_mapper.map(frame.timestamp)
                codec = inside._RTCRtpReceiver__codecs[frame.payload_type]
                inside._RTCRtpReceiver__decoder_queue.put((codec, JitterFrame(frame.data, timestamp)))

    async def _send(self, outcome: Outcome) -> None:
        if self.layers.current is not None:
            if outcome.nacks:
                await self._inside._send_rtcp_nack(self.layers.current, outcome.nacks)
            if outcome.pli:
                await self._inside._send_rtcp_pli(self.layers.current)

    def _wind_up(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self.video.due_s()
        if due_s is not None and self._inside._RTCRtpReceiver__decoder_thread:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, due_s - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        outcome = self.video.tick(time.monotonic())
        self._decode(outcome.frames)
        if outcome.nacks or outcome.pli:
            task = asyncio.ensure_future(self._send(outcome))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        self._wind_up()

    async def _take_report(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpByePacket) and not self.layers.ends_with(packet.sources, time.monotonic()):
            return
        await self._handle_rtcp(packet)


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


def take_media_for_consent(transport: RTCDtlsTransport) -> None:
    """Let whatever a publisher sends pass for an answer to our consent checks (RFC 7675); before it is connected.

    FFmpeg's WHIP client (8.1) answers none, and lost us after 30 s. One that sends nothing and answers nothing for as
    long is gone: its connection fails.

    Recheck: RTCDtlsTransport.__rx_packets counts media too, RTCIceTransport._connection is aioice's Connection, which
    makes a task of its query_consent() once it is connected.
    """
    inside: Any = transport
    connection = inside.transport._connection
    connection.query_consent = lambda: _query_consent(connection, lambda: inside._RTCDtlsTransport__rx_packets)


async def _query_consent(connection: Connection, received: Callable[[], int]) -> None:
    """aioice's own, but that it fails only where nothing has been received either.

    Recheck: it against aioice's, and that close() waits for _query_consent_task.
    """
    failures = 0
    while failures < ice.CONSENT_FAILURES:
        before = received()
        await asyncio.sleep(ice.CONSENT_INTERVAL * random.uniform(0.8, 1.2))
        answered = all([await _answers(connection, pair) for pair in connection._nominated.values()])
        failures = 0 if answered or received() > before else failures + 1
    connection._query_consent_task = None
    await connection.close()


async def _answers(connection: Connection, pair: ice.CandidatePair) -> bool:
    assert connection.remote_password is not None  # it is connected
    request = connection.build_request(pair, nominate=False)
    password = connection.remote_password.encode()
    try:
        await pair.protocol.request(request, pair.remote_addr, integrity_key=password, retransmissions=0)
    except stun.TransactionError:
        return False
    return True
