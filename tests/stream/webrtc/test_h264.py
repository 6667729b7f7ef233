"""H264's levels and formats, and what its encoder makes of pictures: packets that a depayloader puts together again."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from aiortc.codecs.h264 import H264Decoder, h264_depayload
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.webrtc.h264_encoder import MAX_PAYLOAD, AgreedH264Encoder, nal_units, payloads
from stream.webrtc.negotiation.h264 import LEVELS, NotTaken, fitted, level_for, level_of, read, sent_level
from stream.webrtc.receiving.bitstream import is_keyframe, macroblocks

SIDES = st.integers(2, 512).map(lambda eighth: 8 * eighth)  # as --size takes them, up to 4096
# A unit's type is one that packets carry by themselves; neither its bytes nor their ends look like a start code.
UNITS = st.lists(
    st.tuples(st.integers(1, 23), st.integers(0, 3), st.binary(min_size=1, max_size=5 * MAX_PAYLOAD)).map(
        lambda parts: bytes([parts[1] << 5 | parts[0]]) + parts[2].replace(b"\x00", b"\x01")
    ),
    min_size=1,
    max_size=8,
)


@given(UNITS, st.booleans(), st.lists(st.sampled_from([b"\x00\x00\x01", b"\x00\x00\x00\x01"]), min_size=8, max_size=8))
def test_units_are_found_and_packets_put_together_again(units, is_single, codes):
    stream = b"".join(code + unit for code, unit in zip(codes, units, strict=False))
    assert nal_units(stream) == units
    sent = payloads(units, is_single)
    assert b"".join(map(h264_depayload, sent)) == b"".join(b"\x00\x00\x00\x01" + unit for unit in units)
    if is_single:
        assert sent == units
    else:
        assert max(map(len, sent)) <= MAX_PAYLOAD


@given(SIDES, SIDES, st.sampled_from(LEVELS))
def test_pictures_are_made_to_fit_a_level_in_their_own_shape(width, height, level):
    across, down = fitted(level, width, height)
    assert level.fits(across, down)
    assert across <= width
    assert down <= height + 1
    assert across % 2 == down % 2 == 0
    if level.fits(width, height):
        assert (across, down) == (width, height)
    elif min(across, down) >= 128:
        assert abs(across / down / (width / height) - 1) < 0.02
        assert macroblocks(across, down) > 0.75 * level.macroblocks or max(across, down) ** 2 > 1000 * level.macroblocks


@given(SIDES, SIDES)
def test_the_level_for_a_size_is_the_lowest_that_fits(width, height):
    level = level_for(width, height)
    assert level.idc >= 31
    assert level.fits(width, height) or level is LEVELS[-1]
    for lower in LEVELS:
        if 31 <= lower.idc < level.idc:
            assert not lower.fits(width, height) or lower.macroblocks_per_s < 30 * macroblocks(width, height)
    assert sent_level(level, width, height) is level


@pytest.mark.parametrize(
    ("size", "idc"),
    [((512, 512), 31), ((1280, 720), 31), ((1024, 1024), 32), ((1920, 1080), 40), ((4096, 2304), 52), ((8192, 64), 51)],
)
def test_levels_of_usual_sizes(size, idc):
    assert level_for(*size).idc == idc


@given(
    st.dictionaries(st.sampled_from(["profile-level-id", "packetization-mode", "level-asymmetry-allowed"]), st.text())
)
def test_any_parameters_are_read_or_named(parameters):
    try:
        found = read(parameters)
    except NotTaken:
        return
    assert read(found.answered(None)).level == found.level
    assert found.answered((64, 64)).keys() == parameters.keys()


def test_levels_between_are_the_next_lower():
    named = {"42e00b": 11, "42f00b": 10, "42e00a": 10, "42e001": 10, "42e021": 32, "42e0ff": 52, "42e03c": 52}
    assert {name: level_of(name).idc for name in named} == named


def noise(width: int, height: int, seed: int) -> av.VideoFrame:
    """Which no encoder makes small."""
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")
    frame.pts, frame.time_base = seed * 1500, Fraction(1, 90_000)
    return frame


@pytest.mark.parametrize("mode", ["0", "1"])
def test_what_is_encoded_is_decoded_at_any_frame_rate(mode):
    """60 a second, which is more than the encoder reckons with."""
    parameters = {"packetization-mode": mode, "profile-level-id": "42e01f"}
    encoder, decoder = (
        AgreedH264Encoder(RTCRtpCodecParameters("video/H264", 90_000, parameters=parameters)),
        H264Decoder(),
    )
    encoder.target_bitrate = 3_000_000
    decoded, keyframes = [], []
    for seed in range(30):
        sent, timestamp = encoder.encode(noise(320, 240, seed), force_keyframe=seed == 20)
        assert timestamp == seed * 1500
        assert max(map(len, sent)) <= MAX_PAYLOAD
        kinds = {payload[0] & 0x1F for payload in sent}
        assert not kinds & {24, 25, 26, 27, 29}
        assert (28 in kinds) <= (mode == "1")
        data = b"".join(map(h264_depayload, sent))
        keyframes += [seed] if is_keyframe("H264", data) else []
        decoded += decoder.decode(JitterFrame(data, timestamp))
    assert keyframes == [0, 20]
    assert [frame.pts for frame in decoded] == [seed * 1500 for seed in range(len(decoded))]
    assert len(decoded) >= 29


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 10**9))
def test_the_bitrate_stays_within_the_level(bps):
    encoder = AgreedH264Encoder(RTCRtpCodecParameters("video/H264", 90_000, parameters={"profile-level-id": "42e014"}))
    encoder.target_bitrate = bps
    assert 0 < encoder.target_bitrate <= 2_000_000
