"""The queue in front of the decoder, on a clock that exists only here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from stream.webrtc import decoding
from stream.webrtc.decoding import KEYFRAME_WITHIN_S, MAX_WAIT_S, EncodedQueue

VP8, H264, OPUS = (SimpleNamespace(name=name) for name in ("VP8", "H264", "opus"))
KEY, DELTA = b"\x10\x00", b"\x11\x00"


class Clock:
    now_s = 100.0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(decoding, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


class Counted(EncodedQueue):
    def __init__(self):
        self.skipped = self.asked = 0
        super().__init__(self.ask, self.skip)

    def ask(self):
        self.asked += 1

    def skip(self):
        self.skipped += 1

    def come(self, timestamp, data=DELTA, codec=VP8):
        self.put((codec, SimpleNamespace(data=data, timestamp=timestamp)))

    def waiting(self):
        return [item and item[1].timestamp for _, item in self.queue]


def test_while_the_decoder_keeps_up_everything_passes_in_order(clock):
    encoded = Counted()
    for timestamp in range(50):  # a burst: many at once are no backlog
        encoded.come(timestamp)
    assert [encoded.get()[1].timestamp for _ in range(50)] == list(range(50))
    assert (encoded.skipped, encoded.asked) == (0, 0)


def test_behind_a_backlog_only_a_keyframe_is_let_in_again(clock):
    encoded = Counted()
    encoded.come(1, KEY)
    encoded.come(2)
    clock.now_s += MAX_WAIT_S + 0.01
    encoded.come(3)
    encoded.come(4)
    assert (encoded.waiting(), encoded.skipped, encoded.asked) == ([], 4, 2)
    encoded.come(5, KEY)
    encoded.come(6)
    assert (encoded.waiting(), encoded.skipped) == ([5, 6], 4)


def test_a_sender_that_sends_no_keyframe_is_shown_all_the_same_after_a_while(clock):
    encoded = Counted()
    encoded.come(1, KEY)
    clock.now_s += MAX_WAIT_S + 0.01
    encoded.come(2)
    clock.now_s += KEYFRAME_WITHIN_S
    encoded.come(3)
    assert encoded.waiting() == [3]


def test_sound_needs_no_keyframe(clock):
    encoded = Counted()
    encoded.come(1, codec=OPUS)
    clock.now_s += MAX_WAIT_S + 0.01
    encoded.come(2, codec=OPUS)
    assert (encoded.waiting(), encoded.asked) == ([2], 0)


def test_the_end_goes_before_all_that_wait(clock):
    encoded = Counted()
    encoded.come(1, KEY)
    clock.now_s += 10 * MAX_WAIT_S
    encoded.put(None)
    assert encoded.get() is None
    assert encoded.empty()


def test_arrival_times_are_found_by_timestamp_whatever_was_not_decoded(clock):
    encoded = Counted()
    for timestamp in (10, 20, 30, 40):
        encoded.come(timestamp)
        clock.now_s += 1
        encoded.get()
    assert encoded.arrived_s(None) is None
    assert encoded.arrived_s(20) == 101.0
    assert encoded.arrived_s(25) is None
    assert encoded.arrived_s(40) == 103.0
    assert encoded.arrived_s(50) is None


def vp8_keyframe(width: int, height: int) -> bytes:
    """As much of one as tells its size (RFC 6386, 9.1)."""
    return b"\x10\x00\x00\x9d\x01\x2a" + width.to_bytes(2, "little") + height.to_bytes(2, "little")


def test_empty_frames_go_no_further(clock):
    """To FFmpeg they are the end of the stream."""
    encoded = Counted()
    for timestamp, data in enumerate((KEY, b"", DELTA)):
        encoded.come(timestamp, data)
    assert (encoded.waiting(), encoded.skipped) == ([0, 2], 0)


def test_frames_that_are_too_large_are_not_decoded_nor_what_builds_on_them(clock):
    encoded, refused = Counted(), []
    encoded.on_oversize = lambda width, height: refused.append((width, height))
    come = [vp8_keyframe(4096, 2160), DELTA, vp8_keyframe(8192, 8192), DELTA, DELTA, vp8_keyframe(2304, 4096), DELTA]
    for timestamp, data in enumerate(come):
        encoded.come(timestamp, data)
    assert encoded.waiting() == [0, 1, 5, 6]
    assert refused == [(8192, 8192)] * 3
    assert encoded.asked == 0


def test_malformed_frames_are_skipped_and_the_next_are_decoded(clock):
    encoded = Counted()
    encoded.come(0, b"\x00\x00\x01\x67\x42\x00\x1f" + bytes(40) + b"\xff" * 9, H264)
    encoded.come(1, b"\x00\x00\x01\x65" + bytes(9), H264)
    assert (encoded.waiting(), encoded.skipped) == ([1], 1)
