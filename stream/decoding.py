"""What aiortc's receivers do otherwise: with reports.py the only place that uses private names of aiortc.

aiortc 1.16 puts every encoded frame into RTCRtpReceiver.__decoder_queue, which has no bound, and closing waits on the
event loop until all of it is decoded. A publisher that outruns the decoder would add latency and memory without end.

Its jitter buffer holds sound back by four packets (80 ms), and by sixteen (320 ms) behind one that was lost. And it
closes on a sender that answers no consent checks.
"""

from __future__ import annotations

import queue
import re
import time
from collections import deque
from collections.abc import Callable

from aiortc import RTCRtpReceiver
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtp import RtpPacket
from aiortc.utils import uint32_add

MAX_WAIT_S = 0.25  # a burst is decoded in less; what waits longer waits for a decoder that cannot keep up
KEYFRAME_WITHIN_S = 2.0  # a sender that sends none by then does not listen: smeared pictures are better than none
MAX_IN_DECODER = 256
MISORDER = 48_000  # samples by which an overtaken packet may come late; one that is farther behind begins a new count

_H264_IDR = re.compile(rb"\x00\x00\x01[\x05\x25\x45\x65]")  # start code, NAL unit type 5 (H.264, table 7-1)


class EncodedQueue(queue.Queue):
    """Encoded frames (codec, JitterFrame) on their way to the decoder thread; None ends it, ahead of all that wait.

    Once the oldest has waited for MAX_WAIT_S, everything is skipped up to the next keyframe, since what lies between
    cannot be decoded without what was skipped. on_skip is called for every frame that is; ask_for_keyframe too.
    """

    def __init__(self, ask_for_keyframe: Callable[[], None], on_skip: Callable[[], None] = lambda: None):
        super().__init__()
        self.on_skip = on_skip
        self._ask_for_keyframe = ask_for_keyframe
        self._arrivals: deque[tuple[int, float]] = deque(maxlen=MAX_IN_DECODER)
        self._keyframe_until_s = 0.0  # until then only a keyframe is let in

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


def is_keyframe(codec: str, data: bytes) -> bool:
    """Can it be decoded by itself? Of VP8 (RFC 6386, 9.1) and H264; true for sound."""
    if codec.upper() == "VP8":
        return bool(data) and not data[0] & 1
    if codec.upper() == "H264":
        return _H264_IDR.search(data) is not None
    return True


def bound_queue(receiver: RTCRtpReceiver) -> EncodedQueue:
    """Give the receiver an EncodedQueue; before it starts, which it does once its peer is connected."""
    if receiver._RTCRtpReceiver__decoder_thread is not None:
        raise RuntimeError("The receiver's decoder has started: its queue cannot be replaced any more.")
    # What the decoder sets when it fails: with the next packet a keyframe is asked for (PLI, RFC 4585).
    error = receiver._RTCRtpReceiver__decoder_error
    bounded = EncodedQueue(ask_for_keyframe=error.set)
    receiver._RTCRtpReceiver__decoder_queue = bounded
    return bounded


def keep_while_sending(receiver: RTCRtpReceiver) -> None:
    """No consent checks (RFC 7675) of who sends to us: FFmpeg's WHIP client (8.1) answers none, and lost us after 30 s.

    They guard others from being flooded, and we hardly send to a publisher. One that is gone sends nothing, which
    drain_video notices sooner.
    """
    receiver.transport.transport._connection.query_consent = _no_checks


async def _no_checks() -> None:
    pass


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
