"""What aiortc's receivers do otherwise: with reports.py the only place that uses private names of aiortc and aioice.

aiortc 1.16 puts every encoded frame into RTCRtpReceiver.__decoder_queue, which has no bound, and closing waits on the
event loop until all of it is decoded. A publisher that outruns the decoder would add latency and memory without end.

Its jitter buffer holds sound back by four packets (80 ms), and by sixteen (320 ms) behind one that was lost. And it
closes on a sender that answers no consent checks.
"""

from __future__ import annotations

import asyncio
import queue
import random
import time
from collections import deque
from collections.abc import Callable

from aioice import Connection, ice, stun
from aioice.ice import CandidatePair
from aiortc import RTCDtlsTransport, RTCPeerConnection, RTCRtpReceiver, codecs
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtp import RtpPacket
from aiortc.utils import uint32_add

from .bitstream import Malformed, coded_size, is_keyframe, macroblocks

MAX_WAIT_S = 0.25  # a burst is decoded in less; what waits longer waits for a decoder that cannot keep up
KEYFRAME_WITHIN_S = 2.0  # a sender that sends none by then does not listen: smeared pictures are better than none
MAX_IN_DECODER = 256
MAX_MACROBLOCKS = 36_864  # 4096x2304 pixels, H.264's level 5.1 (table A-1): decoders take 12 bytes for each, 116 MB
MISORDER = 48_000  # samples by which an overtaken packet may come late; one that is farther behind begins a new count

# Our answers say so of VP8 (RFC 7741, 6.1). Those of H264 name level 3.1, and senders may exceed it.
for _codec in codecs.CODECS["video"]:
    if _codec.mimeType == "video/VP8":
        _codec.parameters["max-fs"] = MAX_MACROBLOCKS


class EncodedQueue(queue.Queue):
    """Encoded frames (codec, JitterFrame) on their way to the decoder thread; None ends it, ahead of all that wait.

    Once the oldest has waited for MAX_WAIT_S, everything is skipped up to the next keyframe, since what lies between
    cannot be decoded without what was skipped. on_skip is called for every frame that is; ask_for_keyframe too.

    Frames of more than MAX_MACROBLOCKS are not decoded, nor those that build on them: on_oversize(width, height) is
    called for each. Nor are malformed ones, and empty ones, after which FFmpeg's decoders would take nothing any more.
    """

    def __init__(self, ask_for_keyframe: Callable[[], None], on_skip: Callable[[], None] = lambda: None):
        super().__init__()
        self.on_skip = on_skip
        self.on_oversize: Callable[[int, int], None] = lambda width, height: None
        self._ask_for_keyframe = ask_for_keyframe
        self._arrivals: deque[tuple[int, float]] = deque(maxlen=MAX_IN_DECODER)
        self._keyframe_until_s = 0.0  # until then only a keyframe is let in
        self._size = (0, 0)  # of the frames that come in

    def arrived_s(self, pts: int | None) -> float | None:
        """When the encoded frame of that timestamp came in, on time.monotonic's clock. Ask for each once, in order."""
        while pts is not None and self._arrivals and self._arrivals[0][0] <= pts:
            timestamp, arrived_s = self._arrivals.popleft()
            if timestamp == pts:
                return arrived_s
        return None

    # queue.Queue's own hooks: called with its lock held.

    def _put(self, item) -> None:
        now_s = time.monotonic()
        if item is None:
            self.queue.clear()
        else:
            codec, encoded = item
            if not encoded.data:
                return
            try:
                self._size = coded_size(codec.name, encoded.data) or self._size
            except Malformed:
                self.on_skip()
                return
            if macroblocks(*self._size) > MAX_MACROBLOCKS:
                self.on_oversize(*self._size)
                return
            if self.queue and now_s - self.queue[0][0] > MAX_WAIT_S:
                for _ in self.queue:
                    self.on_skip()
                self.queue.clear()
                self._keyframe_until_s = now_s + KEYFRAME_WITHIN_S
            if now_s < self._keyframe_until_s and not is_keyframe(codec.name, encoded.data):
                self.on_skip()
                self._ask_for_keyframe()
                return
            self._keyframe_until_s = 0.0
            self._arrivals.append((encoded.timestamp, now_s))
        self.queue.append((now_s, item))

    def _get(self):
        return self.queue.popleft()[1]


def bound_queue(receiver: RTCRtpReceiver) -> EncodedQueue:
    """Give the receiver an EncodedQueue; before it starts, which it does once its peer is connected."""
    if receiver._RTCRtpReceiver__decoder_thread is not None:
        raise RuntimeError("The receiver's decoder has started: its queue cannot be replaced any more.")
    # What the decoder sets when it fails: with the next packet a keyframe is asked for (PLI, RFC 4585).
    error = receiver._RTCRtpReceiver__decoder_error
    bounded = EncodedQueue(ask_for_keyframe=error.set)
    receiver._RTCRtpReceiver__decoder_queue = bounded
    return bounded


def tell_failure(peer: RTCPeerConnection, on_failure: Callable[[Exception], None]) -> None:
    """Call on_failure when connecting raises, which aiortc does in a task that nobody looks after; before the answer.

    What an offer says of a section is used only then, and a peer that is closed meanwhile raises, too.
    """
    connect = peer._RTCPeerConnection__connect

    async def connect_and_tell() -> None:
        try:
            await connect()
        except Exception as error:
            on_failure(error)

    peer._RTCPeerConnection__connect = connect_and_tell


def take_media_for_consent(transport: RTCDtlsTransport) -> None:
    """Let whatever a publisher sends pass for an answer to our consent checks (RFC 7675); before it is connected.

    FFmpeg's WHIP client (8.1) answers none, and lost us after 30 s. One that sends nothing and answers nothing for as
    long is gone: its connection fails.
    """
    connection = transport.transport._connection
    connection.query_consent = lambda: _query_consent(connection, lambda: transport._RTCDtlsTransport__rx_packets)


async def _query_consent(connection: Connection, received: Callable[[], int]) -> None:
    """aioice's own, but that it fails only where nothing has been received either."""
    failures = 0
    while failures < ice.CONSENT_FAILURES:
        before = received()
        await asyncio.sleep(ice.CONSENT_INTERVAL * random.uniform(0.8, 1.2))
        answered = all([await _answers(connection, pair) for pair in connection._nominated.values()])
        failures = 0 if answered or received() > before else failures + 1
    connection._query_consent_task = None  # close() waits for it
    await connection.close()


async def _answers(connection: Connection, pair: CandidatePair) -> bool:
    request = connection.build_request(pair, nominate=False)
    password = connection.remote_password.encode()
    try:
        await pair.protocol.request(request, pair.remote_addr, integrity_key=password, retransmissions=0)
    except stun.TransactionError:
        return False
    return True


class SoundBuffer:
    """In the jitter buffer's place for sound. An Opus packet is a frame by itself, so each goes on when it comes; one
    that was overtaken is dropped, like one that was lost."""

    def __init__(self):
        self._newest: int | None = None

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        """(False, since sound has no keyframe to ask for, and what is to be decoded)."""
        is_late = self._newest is not None and uint32_add(self._newest, -packet.timestamp) < MISORDER
        if is_late or not packet._data:
            return False, None
        self._newest = packet.timestamp
        return False, JitterFrame(packet._data, packet.timestamp)


def let_through(receiver: RTCRtpReceiver) -> None:
    """Give a receiver of sound a SoundBuffer; before it starts."""
    receiver._RTCRtpReceiver__jitter_buffer = SoundBuffer()
