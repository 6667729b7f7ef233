"""A publisher and a network that exist only on a made-up clock: what a VideoReceiver is tested with."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

from stream.webrtc.receiving.jitter_buffer import EncodedFrame, read_payload
from stream.webrtc.receiving.receiver import Actions, VideoReceiver

CLOCK_HZ = 90_000
UNIT = b"\x00\x00\x00\x01"


def vp8(number: int, key: bool, packets: int) -> tuple[list[bytes], bytes]:
    """(payloads, what the decoder gets) of a frame that carries its number (RFC 7741)."""
    data = bytes([0x10 if key else 0x11, 0, 0]) + (b"\x9d\x01\x2a\x80\x02\xe0\x01" if key else b"")
    parts = [data + number.to_bytes(4, "big"), *(bytes([at, number & 0xFF]) * 3 for at in range(1, packets))]
    descriptors = [bytes([0x90 if at == 0 else 0x80, 0x80, at & 0x7F]) for at in range(packets)]
    return [before + part for before, part in zip(descriptors, parts, strict=True)], b"".join(parts)


def h264(number: int, key: bool, packets: int) -> tuple[list[bytes], bytes]:
    """A slice in fragments, in front of it the parameter sets of a keyframe, aggregated (RFC 6184)."""
    payloads, whole = [], b""
    if key:
        sps, pps = b"\x67\x42\xc0\x1f\x95\xa0\x50\x05\xb9", b"\x68\xce\x3c\x80"
        payloads.append(b"\x18" + b"".join(len(one).to_bytes(2, "big") + one for one in (sps, pps)))
        whole += UNIT + sps + UNIT + pps
    said = bytes(number >> shift & 0x7F | 0x80 for shift in (14, 7, 0))  # no start code is in it
    header, body = 0x65 if key else 0x41, b"\x88" + said + bytes([number & 0x7F | 0x80]) * packets
    whole += UNIT + bytes([header]) + body
    if packets == 1:
        return [*payloads, bytes([header]) + body], whole
    cut = [len(body) * at // packets for at in range(packets + 1)]
    for at in range(packets):
        bits = (0x80 if at == 0 else 0) | (0x40 if at == packets - 1 else 0)
        payloads.append(bytes([header & 0xE0 | 28, bits | header & 0x1F]) + body[cut[at] : cut[at + 1]])
    return payloads, whole


@dataclass
class Sender:
    """Sends frames when asked to; answers NACKs from its history (as RTX where it has that), and PLIs by a keyframe."""

    codec: str = "VP8"
    sequence: int = 0
    timestamp: int = 0
    fps: float = 30.0
    marks: bool = True
    listens: bool = True
    has_rtx: bool = True
    payload_type: int = 96
    frames: list[tuple[bytes, bool]] = field(default_factory=list)
    wants_key: bool = True
    history: dict[int, tuple] = field(default_factory=dict)

    def next_frame(self, packets: int) -> list[tuple]:
        key, self.wants_key = self.wants_key, False
        number = len(self.frames)
        payloads, whole = (vp8 if self.codec == "VP8" else h264)(number, key, packets)
        self.frames.append((whole, key))
        sent = []
        for at, payload in enumerate(payloads):
            sent.append(self._packet(self.marks and at == len(payloads) - 1, payload))
        self.timestamp = (self.timestamp + round(CLOCK_HZ / self.fps)) & 0xFFFFFFFF
        return sent

    def padding(self) -> tuple:
        """Of no content, with the timestamp of the frame before (RFC 3550, 5.1)."""
        back = (self.timestamp - round(CLOCK_HZ / self.fps)) & 0xFFFFFFFF
        packet = (self.sequence, back, False, self.codec, self.payload_type, read_payload(self.codec, b""), False)
        self.sequence = (self.sequence + 1) & 0xFFFF
        return packet

    def answer(self, outcome: Actions) -> list[tuple]:
        if outcome.pli and self.listens:
            self.wants_key = True
        again = [self.history[number] for number in outcome.nacks if number in self.history]
        return [(*packet[:6], self.has_rtx) for packet in again]

    def _packet(self, marker: bool, payload: bytes) -> tuple:
        about = (self.sequence, self.timestamp, marker, self.codec, self.payload_type)
        packet = (*about, read_payload(self.codec, payload), False)
        self.history[self.sequence] = packet
        self.history.pop((self.sequence - 1000) & 0xFFFF, None)
        self.sequence = (self.sequence + 1) & 0xFFFF
        return packet


@dataclass
class Network:
    """Shares are of packets each way, times in seconds; all of it may be changed while it runs."""

    loss: float = 0.0
    one_way_s: float = 0.005
    jitter_s: float = 0.0
    doubled: float = 0.0
    seed: int = 0

    def __post_init__(self):
        self.dice = random.Random(self.seed)

    def arrivals_s(self, now_s: float) -> list[float]:
        if self.dice.random() < self.loss:
            return []
        copies = 2 if self.dice.random() < self.doubled else 1
        return [now_s + self.one_way_s + self.dice.random() * self.jitter_s for _ in range(copies)]


class Run:
    """A sender, a network and a receiver; `until(s)` lets time pass. left: (when, frame) of all that came out."""

    def __init__(self, sender: Sender, network: Network, packets: int = 3):
        self.sender, self.network, self.packets = sender, network, packets
        self.receiver = VideoReceiver()
        self.now_s = 100.0
        self.began_s = self.now_s
        self.left: list[tuple[float, EncodedFrame]] = []
        self.sent_s: list[float] = []
        self.drops = set()  # numbers of packets, counted from the first, that are lost whatever the network does
        self.plis: list[float] = []
        self._count = 0
        self._events: list[tuple[float, int, str, object]] = []
        self._order = 0
        self._frame_s = self.now_s

    def until(self, seconds: float) -> None:
        ends_s = self.began_s + seconds
        while True:
            due_s = self.receiver.due_s()
            next_s = self._events[0][0] if self._events else float("inf")
            at_s = min(next_s, self._frame_s, float("inf") if due_s is None else max(due_s, self.now_s))
            if at_s > ends_s:
                self.now_s = ends_s
                return
            self.now_s = at_s
            if at_s == self._frame_s:
                self._frame_s += 1 / self.sender.fps
                self.sent_s.append(at_s)
                for packet in self.sender.next_frame(self.packets):
                    self._count += 1
                    if self._count - 1 not in self.drops:
                        self._up(packet)
            elif at_s == next_s:
                _, _, kind, what = heapq.heappop(self._events)
                if kind == "packet":
                    self._take(self.receiver.receive(*what[:6], at_s, what[6]))
                else:
                    for packet in self.sender.answer(what):
                        self._up(packet)
            else:
                self._take(self.receiver.tick(at_s))

    def _up(self, packet: tuple) -> None:
        for at_s in self.network.arrivals_s(self.now_s):
            self._later(at_s, "packet", packet)

    def _take(self, outcome: Actions) -> None:
        self.left += [(self.now_s, frame) for frame in outcome.frames]
        if outcome.pli:
            self.plis.append(self.now_s)
        for part in (Actions(nacks=outcome.nacks), Actions(pli=outcome.pli)):
            if part != Actions():
                for at_s in self.network.arrivals_s(self.now_s):
                    self._later(at_s, "answer", part)

    def _later(self, at_s: float, kind: str, what: object) -> None:
        self._order += 1
        heapq.heappush(self._events, (at_s, self._order, kind, what))

    # -- what came of it

    def numbers(self) -> list[int]:
        """Of the frames that came out, in that order; a frame that was not sent like that raises ValueError."""
        known = {whole: number for number, (whole, _) in enumerate(self.sender.frames)}
        return [known[frame.data] if frame.data in known else known_error(frame) for _, frame in self.left]

    def ages_s(self) -> list[float]:
        return [at_s - self.sent_s[number] for (at_s, _), number in zip(self.left, self.numbers(), strict=True)]

    def check(self, smeared: bool = False) -> None:
        """In order, never half, never twice; each a keyframe or right behind the one before it, unless smeared."""
        numbers = self.numbers()
        assert numbers == sorted(set(numbers))
        for before, number in zip([-1, *numbers], numbers, strict=False):
            key = self.sender.frames[number][1]
            assert self.left[numbers.index(number)][1].is_key == key
            assert smeared or key or number == before + 1, (before, number)


def known_error(frame: EncodedFrame) -> int:
    raise ValueError(f"no such frame was sent: {frame}")
