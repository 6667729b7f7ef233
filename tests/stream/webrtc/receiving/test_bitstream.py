"""What encoded frames tell of themselves, held against real encoders."""

from __future__ import annotations

import av
import numpy as np
import pytest
from aiortc.codecs import depayload, get_capabilities, get_encoder
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from av import VideoFrame

from stream.webrtc.receiving.bitstream import Malformed, coded_size, is_keyframe, macroblocks
from stream.webrtc.tracks import TIME_BASE


@pytest.mark.parametrize("name", ["VP8", "H264"])
def test_keyframes_and_sizes_of_real_encoders_are_recognised(name):
    capability = next(c for c in get_capabilities("video").codecs if c.name == name)
    codec = RTCRtpCodecParameters(capability.mimeType, capability.clockRate, payloadType=100)
    encoder, seen = get_encoder(codec), []
    for number, forced in enumerate([False, False, False, True, False]):
        frame = VideoFrame.from_ndarray(np.full((64, 96, 3), number * 40, np.uint8), format="rgb24")
        frame.pts, frame.time_base = number * 3000, TIME_BASE
        payloads, _ = encoder.encode(frame, force_keyframe=forced)
        data = b"".join(depayload(codec, payload) for payload in payloads)
        seen.append((is_keyframe(name, data), coded_size(name, data)))
    assert [is_key for is_key, _ in seen] == [True, False, False, True, False]
    assert [size for is_key, size in seen if is_key] == [(96, 64)] * 2
    assert seen[1][1] is None


def encoded(width: int, height: int, pixels: str = "yuv420p", profile: str | None = None, **options: str) -> bytes:
    """A picture as x264 sends it."""
    codec = av.CodecContext.create("libx264", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = width, height, pixels, TIME_BASE
    codec.options = {"preset": "ultrafast", "tune": "zerolatency", **options}
    if profile is not None:
        codec.profile = profile
    frame = VideoFrame(width, height, pixels)
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((1920, 1088), {"profile": "Baseline"}),
        ((16, 16), {"profile": "High"}),
        ((176, 160), {"profile": "High", "x264-params": "cqm=jvt:interlaced=1"}),
        ((64, 48), {"pixels": "yuv444p", "x264-params": "cqm4i=" + ",".join(str(9 + n) for n in range(16))}),
        ((64, 48), {"pixels": "yuv422p", "x264-params": "ref=4:bframes=2"}),
        ((4112, 2320), {"profile": "Baseline"}),
    ],
)
def test_the_size_of_h264_is_read_whatever_stands_before_it(size, options):
    assert coded_size("H264", encoded(*size, **options)) == size


def test_sizes_that_are_no_multiple_of_sixteen_are_told_as_coded():
    assert coded_size("H264", encoded(100, 50)) == (112, 64)
    assert macroblocks(100, 50) == macroblocks(112, 64) == 28


def test_of_several_parameter_sets_the_largest_counts():
    assert coded_size("H264", encoded(640, 480) + encoded(64, 48)) == (640, 480)


NOTHING = [b"", b"\x00", b"\x00\x00\x01", b"\x00\x00\x01\x67", b"\x00\x00\x01\x67" + bytes(60)]


@pytest.mark.parametrize("name", ["VP8", "H264", "opus"])
@pytest.mark.parametrize("data", NOTHING, ids=len)
def test_what_cannot_be_read_tells_no_size(name, data):
    assert coded_size(name, data) is None


def test_a_parameter_set_that_is_cut_anywhere_raises_nothing():
    whole = encoded(176, 160, profile="High", **{"x264-params": "cqm=jvt"})
    for end in range(60):
        coded_size("H264", whole[:end])


def bits(*fields: str) -> bytes:
    """A sequence parameter set of these bits, behind a start code."""
    text = "".join(fields)
    text += "0" * (-len(text) % 8)
    unit, zeros = bytearray(), 0
    for byte in int(text, 2).to_bytes(len(text) // 8):
        if zeros == 2 and byte <= 3:  # emulation prevention (7.4.1)
            unit.append(3)
            zeros = 0
        unit.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return b"\x00\x00\x01\x67" + bytes(unit)


def golomb(number: int) -> str:
    coded = f"{number + 1:b}"
    return "0" * (len(coded) - 1) + coded


BASELINE = f"{66:08b}{0:08b}{31:08b}{golomb(0)}{golomb(0)}"  # profile, constraints, level, id, log2_max_frame_num
HOSTILE = {
    "a width of 16,000 bits": bits(BASELINE, golomb(2), golomb(1), "0", golomb(1 << 8000), golomb(1)),
    "an endless cycle": bits(BASELINE, golomb(1), "0", golomb(0), golomb(0), golomb(1 << 30), "1" * 30_000),
    "hundreds of sets": b"".join(
        bits(BASELINE, golomb(2), golomb(1), "0", golomb(n), golomb(1), "1") for n in range(300)
    ),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_what_breaks_the_bounds_of_h264_is_malformed(data):
    with pytest.raises(Malformed):
        coded_size("H264", data)


def test_a_set_within_the_bounds_is_read_bit_by_bit():
    cycle = [golomb(255), *[golomb((1 << 32) - 2)] * 255]
    assert coded_size("H264", bits(BASELINE, golomb(2), golomb(1), "0", golomb(39), golomb(29), "1")) == (640, 480)
    of_a_cycle = bits(BASELINE, golomb(1), "0", golomb(0), golomb(0), *cycle, golomb(1), "0", golomb(3), golomb(1), "0")
    assert coded_size("H264", of_a_cycle) == (64, 64)
