"""The choice of encoded frames to decode: what stands between a receiver's packets and its decoder.

A publisher that outruns the decoder must add neither latency nor memory, and sound waits for nothing.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from aiortc.jitterbuffer import JitterFrame
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import RtpPacket
from aiortc.utils import uint32_add

from .receiving.bitstream import Malformed, coded_size, is_keyframe, macroblocks

MAX_WAIT_S = 0.25  # a burst is decoded in less; what waits longer waits for a decoder that cannot keep up
KEYFRAME_WITHIN_S = 2.0  # a sender that sends none by then does not listen: smeared pictures are better than none
MAX_IN_DECODER = 256
MAX_MACROBLOCKS = 36_864  # 4096x2304 pixels, H.264's level 5.1 (table A-1): decoders take 12 bytes for each, 116 MB
MISORDER = 48_000  # samples by which an overtaken packet may come late; one that is farther behind begins a new count


class PacketBuffer(Protocol):
    """What puts encoded frames together from a track's packets, in the place of aiortc's JitterBuffer."""

    def add(self, packet: RtpPacket, data: bytes) -> tuple[bool, JitterFrame | None]:
        """data: the packet's, as the codec's payload format has it. Returns whether to ask the sender for a keyframe
        (PLI, RFC 4585), and the frame that is complete now."""


class SoundBuffer:
    """An Opus packet is a frame by itself, so each goes on when it comes; one that was overtaken is dropped, like one
    that was lost. aiortc's buffer holds sound back by four packets (80 ms), and by sixteen (320 ms) behind a gap."""

    def __init__(self):
        self._newest: int | None = None

    def add(self, packet: RtpPacket, data: bytes) -> tuple[bool, JitterFrame | None]:
        is_late = self._newest is not None and uint32_add(self._newest, -packet.timestamp) < MISORDER
        if is_late or not data:
            return False, None
        self._newest = packet.timestamp
        return False, JitterFrame(data, packet.timestamp)


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
        self.ask_for_keyframe = ask_for_keyframe
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

    def _put(self, item: tuple[RTCRtpCodecParameters, JitterFrame] | None) -> None:
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
                self.ask_for_keyframe()
                return
            self._keyframe_until_s = 0.0
            self._arrivals.append((encoded.timestamp, now_s))
        self.queue.append((now_s, item))

    def _get(self) -> tuple[RTCRtpCodecParameters, JitterFrame] | None:
        return self.queue.popleft()[1]
