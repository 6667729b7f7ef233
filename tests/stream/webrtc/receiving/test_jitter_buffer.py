"""What a jitter buffer makes of where frames begin, and how much work its packets are."""

from __future__ import annotations

import pytest

from stream.webrtc.receiving import jitter_buffer
from stream.webrtc.receiving.jitter_buffer import JitterBuffer, Packet, read_payload
from stream.webrtc.receiving.receiver import DEAF_S, VideoReceiver

AUD, SPS, PPS = b"\x09\xf0", b"\x67\x42\xc0\x1f\x95\xa0\x50\x05\xb9", b"\x68\xce\x3c\x80"
SEI, IDR, SLICE = b"\x06\x01\x02\x03", b"\x65\x88abc", b"\x41\x88abc"
KEY, DELTA, REST = b"\x10\x00\x00\x00\x9d\x01\x2a\x80\x02\xe0\x01", b"\x10\x01\x00\x00", b"\x00" + b"\x01" * 50


def aggregated(*units: bytes) -> bytes:
    return b"\x78" + b"".join(len(unit).to_bytes(2, "big") + unit for unit in units)


# How encoders begin keyframes.
KEYFRAMES = {
    "sps first": [aggregated(SPS, PPS), IDR],
    "aud aggregated": [aggregated(AUD, SPS, PPS), IDR],
    "aud alone": [AUD, SPS, PPS, IDR],
    "aud and sei": [AUD, aggregated(SEI, SPS, PPS), IDR],
    "all aggregated": [aggregated(AUD, SPS, PPS, SEI, IDR)],
}


@pytest.fixture
def looked_at(monkeypatch):
    """Numbers of the packets that were looked at for where frames begin and end."""
    numbers: list[int] = []
    for name in ("_begins", "_ends"):
        method = getattr(JitterBuffer, name)
        monkeypatch.setattr(
            JitterBuffer, name, lambda self, number, method=method: numbers.append(number) or method(self, number)
        )
    return numbers


@pytest.mark.parametrize("payloads", KEYFRAMES.values(), ids=KEYFRAMES)
def test_a_keyframe_of_h264_comes_out_however_it_begins(payloads):
    receiver, frames, number = VideoReceiver(), [], 0
    for picture, packets in enumerate([payloads, [SLICE], [SLICE]]):
        for at, payload in enumerate(packets):
            marker = at == len(packets) - 1
            about = (number, picture * 3000, marker, "H264", 96, read_payload("H264", payload))
            frames += receiver.receive(*about, 100 + picture / 30).frames
            number += 1
    assert [frame.is_key for frame in frames] == [True, False, False]


def test_a_slice_behind_a_lost_beginning_is_no_beginning():
    buffer = JitterBuffer()
    buffer.add(Packet(7, 0, True, "H264", 96, read_payload("H264", IDR)))
    assert buffer.take() == []
    buffer.add(Packet(6, 0, False, "H264", 96, read_payload("H264", aggregated(SPS, PPS))))
    assert [frame.numbers for frame in buffer.take()] == [(6, 7)]


def test_an_endless_frame_is_not_looked_through_with_every_packet(looked_at):
    receiver = VideoReceiver()
    for number in range(3000):
        receiver.receive(number, 1, False, "VP8", 96, read_payload("VP8", REST), 100 + number * 1e-4)
    looked_at.clear()
    for number in range(3000, 3050):
        receiver.receive(number, 1, False, "VP8", 96, read_payload("VP8", REST), 101 + DEAF_S + number * 1e-4)
    assert len(looked_at) <= 50 * 10


@pytest.mark.parametrize("order", [1, -1])
def test_packets_behind_a_gap_are_looked_at_a_few_times_each(looked_at, order):
    buffer = JitterBuffer()
    numbers = range(10, 3010)[::order]
    for number in numbers:
        buffer.add(Packet(number, number // 1500, number % 1500 == 1499, "VP8", 96, read_payload("VP8", REST)))
        buffer.take_smeared()
    assert len(looked_at) <= 3000 * 12


def test_a_broken_frame_has_what_waits_behind_it_read_once(looked_at, monkeypatch):
    joined = []
    monkeypatch.setattr(jitter_buffer, "is_keyframe", lambda codec, data: joined.append(len(data)) or not data[0] & 1)
    buffer = JitterBuffer()
    begin = read_payload("VP8", KEY)
    buffer.add(Packet(0, 0, False, "VP8", 96, begin))
    for number in range(2, 1002):  # one whole frame of which nothing is a keyframe
        payload = read_payload("VP8", DELTA if number == 2 else b"\x00" + bytes(1000))
        buffer.add(Packet(number, 3000, number == 1001, "VP8", 96, payload))
    looked_at.clear()
    joined.clear()
    buffer.add(Packet(1, 0, True, "VP8", 96, read_payload("VP8", b"\x90")))  # cannot be read
    assert buffer.take() == []
    assert len(looked_at) <= 1000 * 5
    assert sum(joined) <= 2000
