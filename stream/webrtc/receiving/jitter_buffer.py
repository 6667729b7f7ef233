"""A track's packets in, whole encoded frames out: in order, each once, never half.

It has no clock. A frame leaves as soon as it is complete and what it builds on has left; or, if that is missing, as
soon as it is a complete keyframe, which needs nothing: then all that is older is let go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aiortc.codecs.h264 import H264PayloadDescriptor
from aiortc.codecs.vpx import VpxPayloadDescriptor

from .bitstream import is_keyframe

MAX_PACKETS = 4096  # that wait for one which is missing: two seconds of 20 Mbit/s
MAX_BYTES = 16 << 20
_UNIT = b"\x00\x00\x00\x01"  # in front of a NAL unit whose beginning is in this packet
_IDR, _SPS, _AUD = 5, 7, 9  # NAL unit types; the last two only the beginning of a frame has (H.264, 7.4.1.2.3)
_SLICES = range(1, 6)  # NAL unit types of a picture's own data


@dataclass(frozen=True, slots=True)
class Payload:
    """What one packet carries. data: as the decoder wants it; empty for padding alone. begins: certainly a frame's
    first; begins_key: and that of a keyframe, or a slice of H264's keyframe begins in it; is_key: only keyframes have
    it. is_broken: it cannot be read, so the frame that it belongs to cannot either."""

    data: bytes
    begins: bool = False
    begins_key: bool = False
    is_key: bool = False
    is_broken: bool = False


def read_payload(codec: str, payload: bytes) -> Payload:
    """Of VP8 (RFC 7741) or H264 (RFC 6184), by the codec's name."""
    if not payload or (codec.upper() == "H264" and _says_nothing(payload)):
        return Payload(b"")
    try:
        if codec.upper() == "VP8":
            vp8, data = VpxPayloadDescriptor.parse(payload)
            begins = bool(vp8.partition_start) and vp8.partition_id == 0
            key = begins and is_keyframe(codec, data)
            return Payload(data, begins, key, key)
        _, data = H264PayloadDescriptor.parse(payload)
    except ValueError:
        return Payload(b"", is_broken=True)
    if data[:4] != _UNIT:  # the middle of a NAL unit
        return Payload(data)
    kinds = [unit[0] & 0x1F for unit in data.split(_UNIT)[1:] if unit]
    begins = kinds[:1] == [_AUD] or _SPS in kinds
    return Payload(data, begins, _SPS in kinds or _IDR in kinds, _IDR in kinds)


def _says_nothing(payload: bytes) -> bool:
    """A NAL unit of no type that is in use, or the end of a sequence, which is one byte."""
    return payload[0] & 0x1F in (0, 30, 31) or (len(payload) == 1 and payload[0] & 0x1F < 24)


@dataclass(frozen=True, slots=True)
class Packet:
    """number: its sequence number, counted on where those go round. payload_type: of the codec."""

    number: int
    timestamp: int
    marker: bool
    codec: str
    payload_type: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """numbers: of its first and its last packet. follows: nothing was let go between the one before and it."""

    data: bytes
    timestamp: int
    codec: str
    payload_type: int
    is_key: bool
    numbers: tuple[int, int]
    follows: bool = True


class JitterBuffer:
    """`add` every packet, then `take` what can leave.

    A frame ends with the marker bit, or where the next packet has another timestamp. Some senders set the bit on every
    packet: once one of them is seen to go on behind it, only timestamps count.
    """

    def __init__(self) -> None:
        self._packets: dict[int, Packet] = {}
        self._other_end: dict[int, int] = {}  # of packets side by side with no frame's end between: first <-> last
        self._has_whole = False  # a frame may be complete behind what is missing
        self._bytes = 0
        self._next: int | None = None  # number of the packet that the next frame in order begins with
        self._floor = 0  # what has a lower number has left, or has been let go
        self._checked = -1  # the frame in order ends with no packet before this one
        self._present = 0  # from _next on all packets are there up to this number, which is not
        self._last: Packet | None = None  # of the frame that left last
        self._keyframe: int | None = None  # where the newest complete one begins, while something older is missing
        self._parameters = b""  # sets that came as a frame of their own
        self._follows = False
        self.trusts_markers = True

    @property
    def first_missing(self) -> int | None:
        """Number of the packet that the next frame waits for, or would wait for; None before a keyframe has begun."""
        return None if self._next is None else self._present

    def add(self, packet: Packet) -> bool:
        """False where it comes twice, or too late to be of use."""
        number = packet.number
        if number in self._packets or number < self._floor:
            return False
        if len(self._packets) >= MAX_PACKETS or self._bytes >= MAX_BYTES:
            self.restart()
        self._packets[number] = packet
        self._bytes += len(packet.payload.data)
        around = self._join(number)
        payload = packet.payload
        if self._next is None and payload.begins and payload.begins_key:
            self._skip_to(number)
        elif self._next is not None:
            self._walk()
        if self.trusts_markers and self._is_marker_a_lie(packet):
            self._distrust_markers()
        elif self._next is None or number > self._present:
            self._note_frames(number, *around)
        return True

    def take(self) -> list[EncodedFrame]:
        """All that can leave now."""
        frames: list[EncodedFrame] = []
        while True:
            end = self._end_of_next()
            if end is not None:
                assert self._next is not None
                frames += self._leave(self._next, end)
            elif self._keyframe is not None and (self._next is None or self._keyframe > self._next):
                self._skip_to(self._keyframe)
            else:
                return frames

    def take_smeared(self) -> bool:
        """Give up what the next frame builds on, and go on behind it: `take` then returns what can be decoded only
        with faults. False where nothing complete is there."""
        if not self._has_whole:
            return False
        for first, _ in self._whole_frames():
            if self._next is None or first > self._present:
                self._skip_to(first)
                return True
        self._has_whole = False
        return False

    def restart(self) -> None:
        """Forget all packets, and wait for a keyframe."""
        self._packets.clear()
        self._other_end.clear()
        self._has_whole, self._follows, self.trusts_markers = False, False, True
        self._bytes = 0
        self._checked = -1
        self._next, self._last, self._keyframe, self._parameters = None, None, None, b""

    # -- the frame that is due

    def _walk(self) -> None:
        while self._present in self._packets:
            self._present += 1

    def _end_of_next(self) -> int | None:
        """Number of the last packet of the frame in order, where that is complete."""
        if self._next is None:
            return None
        while (padding := self._packets.get(self._next)) and not (padding.payload.data or padding.payload.is_broken):
            self._drop(self._next)  # padding between frames
            self._next = self._floor = self._next + 1
            self._present = max(self._present, self._next)
            self._walk()
        for number in range(max(self._checked, self._next), self._present):
            self._checked = number
            if self._ends(number):
                return number
        return None

    def _leave(self, first: int, end: int) -> list[EncodedFrame]:
        packets = [self._drop(number) for number in range(first, end + 1)]
        self._next = self._floor = end + 1
        self._last = packets[-1]
        self._present = max(self._present, self._next)
        self._walk()
        if self._keyframe is not None and self._keyframe < self._next:
            self._keyframe = None
        data, head = b"".join(packet.payload.data for packet in packets), packets[0]
        if _is_broken(packets):
            self._next = None  # what follows builds on it
            self._note_all_frames()
            return []
        if head.codec.upper() == "H264":
            data, self._parameters = self._parameters + data, b""
            if not _has_slices(data):
                self._parameters = data[-(1 << 16) :]
                return []
        key = is_keyframe(head.codec, data)
        follows, self._follows = self._follows, True
        return [EncodedFrame(data, head.timestamp, head.codec, head.payload_type, key, (first, end), follows)]

    def _skip_to(self, number: int) -> None:
        for older in sorted(older for older in self._packets if older < number):
            self._drop(older)
        self._last, self._follows = None, False
        self._next = self._present = self._floor = number
        self._checked, self._keyframe, self._parameters = -1, None, b""
        self._walk()

    def _drop(self, number: int) -> Packet:
        """The first of all."""
        last = self._other_end.pop(number)
        if last > number:
            self._other_end[number + 1], self._other_end[last] = last, number + 1
        packet = self._packets.pop(number)
        self._bytes -= len(packet.payload.data)
        return packet

    # -- frames anywhere

    def _ends(self, number: int) -> bool:
        """The packet is there, and a frame's last one."""
        packet, after = self._packets[number], self._packets.get(number + 1)
        if packet.marker and self.trusts_markers:
            return True
        return after is not None and after.timestamp != packet.timestamp

    def _begins(self, number: int) -> bool:
        """The packet is there, and a frame's first one for certain."""
        packet, before = self._packets[number], self._packets.get(number - 1)
        if before is None and self._last is not None and self._last.number == number - 1:
            before = self._last
        if before is not None:
            return before.timestamp != packet.timestamp or (before.marker and self.trusts_markers)
        return packet.payload.begins

    def _join(self, number: int) -> tuple[int, int]:
        """A new packet's (first, last) of those side by side with no frame's end between."""
        first = last = number
        if number - 1 in self._packets and not self._ends(number - 1):
            first = self._other_end[number - 1]
        if number + 1 in self._packets and not self._ends(number):
            last = self._other_end[number + 1]
        self._other_end[first], self._other_end[last] = last, first
        return first, last

    def _whole_frames(self) -> Iterator[tuple[int, int]]:
        """(first, last) of all complete ones, in order."""
        first: int | None = None
        for number in sorted(self._packets):
            if self._begins(number):
                first = number
            elif number - 1 not in self._packets:
                first = None
            if first is not None and self._ends(number):
                yield first, number
                first = None

    def _note_frames(self, number: int, first: int, last: int) -> None:
        """A packet came behind a gap: it may complete a frame, or show where one beside it begins or ends."""
        frames = [(first, last)]
        if number == first and first - 1 in self._packets:
            frames.append((self._other_end[first - 1], first - 1))
        if number == last and last + 1 in self._packets:
            frames.append((last + 1, self._other_end[last + 1]))
        for begin, end in frames:
            if self._begins(begin) and self._ends(end):
                self._note_frame(begin, end)

    def _note_all_frames(self) -> None:
        for first, last in list(self._whole_frames()):
            self._note_frame(first, last)

    def _note_frame(self, first: int, last: int) -> None:
        self._has_whole = True
        if self._keyframe is not None and first <= self._keyframe:
            return
        packets = [self._packets[number] for number in range(first, last + 1)]
        if any(packet.payload.is_key for packet in packets) and not _is_broken(packets):
            self._keyframe = first

    def _is_marker_a_lie(self, packet: Packet) -> bool:
        before = self._packets.get(packet.number - 1)
        if before is None and self._last is not None and self._last.number == packet.number - 1:
            before = self._last
        for one, other in ((before, packet), (packet, self._packets.get(packet.number + 1))):
            if one is None or other is None or not one.marker or one.timestamp != other.timestamp:
                continue
            if one.payload.data and other.payload.data and not other.payload.begins:
                return True
        return False

    def _distrust_markers(self) -> None:
        self.trusts_markers = False
        self._other_end.clear()
        first: int | None = None
        for number in sorted(self._packets):
            first = number if first is None else first
            if number + 1 not in self._packets or self._ends(number):
                self._other_end[first], self._other_end[number] = number, first
                first = None
        self._note_all_frames()


def _is_broken(frame: list[Packet]) -> bool:
    """Or the beginning is not there, which VP8 tells."""
    lacks_beginning = frame[0].codec.upper() == "VP8" and not frame[0].payload.begins
    return lacks_beginning or any(packet.payload.is_broken for packet in frame)


def _has_slices(data: bytes) -> bool:
    return any(unit and unit[0] & 0x1F in _SLICES for unit in data.split(b"\x00\x00\x01")[1:])
