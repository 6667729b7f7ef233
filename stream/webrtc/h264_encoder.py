"""Pictures as H264 for one viewer: of the level and in the packetization mode that were agreed on.

aiortc's own encoder says level 3.1 of whatever it encodes, and fragments and aggregates for everybody.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

from aiortc.codecs import h264
from aiortc.codecs.base import Encoder
from aiortc.mediastreams import VIDEO_TIME_BASE, convert_timebase
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from av import Packet, VideoFrame
from av.frame import Frame
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from .negotiation.h264 import CONSTRAINED, FRAMES_PER_S, fitted, level_of, sent_level

MAX_PAYLOAD = 1300  # bytes
MAX_SLICE = 1200  # x264 keeps to it but for a few bytes: a slice that must not be fragmented fits a packet
BITRATE_STEP = 0.1  # a change of so much of the bitrate is worth an encoder of its own, which begins with a keyframe
_START_CODE = b"\x00\x00\x01"
_FU_A, _BEGINS, _ENDS = 28, 0x80, 0x40  # RFC 6184, 5.8


class AgreedH264Encoder(Encoder):
    """Pictures are made smaller where the agreed level is too low for them (H.264, table A-1).

    target_bitrate: in bits per second, between aiortc's bounds for H264 and no more than the level has.
    """

    def __init__(self, agreed: RTCRtpCodecParameters):
        self._agreed = level_of(str(agreed.parameters.get("profile-level-id", CONSTRAINED)))
        self._is_single = str(agreed.parameters.get("packetization-mode", 0)) == "0"
        self._codec: VideoCodecContext | None = None
        self._made_for = (0, 0, 0)  # width, height, bits per second
        self.target_bitrate = h264.DEFAULT_BITRATE

    @property
    def target_bitrate(self) -> int:
        return self._bps

    @target_bitrate.setter
    def target_bitrate(self, bps: int) -> None:
        self._bps = min(max(h264.MIN_BITRATE, bps), h264.MAX_BITRATE, self._agreed.bps)

    def encode(self, frame: Frame, force_keyframe: bool = False) -> tuple[list[bytes], int]:
        """The payloads of its packets, and its RTP timestamp."""
        assert isinstance(frame, VideoFrame)
        assert frame.pts is not None
        assert frame.time_base is not None
        timestamp = convert_timebase(frame.pts, frame.time_base, VIDEO_TIME_BASE)
        width, height = fitted(self._agreed, frame.width, frame.height)
        if (width, height) != (frame.width, frame.height):
            frame = frame.reformat(width, height)
        frame.pts, frame.time_base = timestamp, VIDEO_TIME_BASE
        # NONE: of the type that the encoder likes.
        frame.pict_type = PictureType.I if force_keyframe else PictureType.NONE
        encoded = b"".join(bytes(packet) for packet in self._codec_for(width, height).encode(frame))
        return payloads(nal_units(encoded), self._is_single), timestamp

    def pack(self, packet: Packet) -> tuple[list[bytes], int]:
        """As `encode`, of what is encoded."""
        assert packet.pts is not None
        timestamp = convert_timebase(packet.pts, packet.time_base, VIDEO_TIME_BASE)
        return payloads(nal_units(bytes(packet)), self._is_single), timestamp

    def _codec_for(self, width: int, height: int) -> VideoCodecContext:
        *size, bps = self._made_for
        if self._codec is None or size != [width, height] or abs(self._bps - bps) > BITRATE_STEP * bps:
            self._codec, self._made_for = self._new_codec(width, height), (width, height, self._bps)
        return self._codec

    def _new_codec(self, width: int, height: int) -> VideoCodecContext:
        codec = VideoCodecContext.create("libx264", "w")
        codec.width, codec.height, codec.pix_fmt = width, height, "yuv420p"
        codec.bit_rate, codec.framerate, codec.time_base = self._bps, Fraction(FRAMES_PER_S), VIDEO_TIME_BASE
        codec.profile = "Baseline"
        level = sent_level(self._agreed, width, height)
        in_slices = {"slice-max-size": str(MAX_SLICE)} if self._is_single else {}
        codec.options = {"level": str(level.idc), "tune": "zerolatency", **in_slices}
        return codec


def nal_units(data: bytes) -> list[bytes]:
    """Of a byte stream (H.264, annex B): a unit ends in no zero byte, those belong to the next one's start code."""
    return [unit for part in data.split(_START_CODE)[1:] if (unit := part.rstrip(b"\x00"))]


def payloads(units: Iterable[bytes], is_single: bool) -> list[bytes]:
    """Of RTP packets (RFC 6184): each unit by itself, or, in pieces of equal size, those that are too long for that."""
    return [
        payload for unit in units for payload in ([unit] if is_single or len(unit) <= MAX_PAYLOAD else _fragments(unit))
    ]


def _fragments(unit: bytes) -> list[bytes]:
    """FU-A (RFC 6184, 5.8): two bytes in place of the unit's first."""
    indicator, kind, rest = unit[0] & 0xE0 | _FU_A, unit[0] & 0x1F, unit[1:]
    count = math.ceil(len(rest) / (MAX_PAYLOAD - 2))
    cuts = [len(rest) * number // count for number in range(count + 1)]
    flags = [_BEGINS, *[0] * (count - 2), _ENDS]
    return [
        bytes([indicator, kind | flag]) + rest[start:end]
        for flag, start, end in zip(flags, cuts[:-1], cuts[1:], strict=True)
    ]
