"""What becomes of a publisher's video packets: which frames are complete, which packets are asked for again, and when a
keyframe is (PLI, RFC 4585). Pure: time is an argument, and what is to be sent is what comes back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from aiortc.utils import uint16_add

from .jitter_buffer import EncodedFrame, JitterBuffer, Packet, Payload
from .nack import MAX_MISSING, NackList, RoundTrip
from .network import ReceiverStatistics

PLI_EVERY_S = 0.3
JOINING_S = 0.05  # the beginning of the first keyframe may have been overtaken by the rest
TAIL_S = 0.02  # a frame that began, and whose next packet has not come by then, has lost it, unless its sender is slow
PACES = 2.5  # how many times the longest pause within its frames a sender is given
# A sender that sends no keyframe by then does not listen: smeared pictures are better than none.
DEAF_S = 2.0
GONE_S = 2.0  # a sender that nothing comes from for so long is asked for nothing
FREEZE_S = 0.2
MAX_DROPOUT = 3000  # packets; who jumps farther than that has started anew (RFC 3550, A.1)
OVERTAKEN_S = 10  # by which no packet is overtaken
SETTLING_S = 0.7  # after that the count before it is not taken up again
RESTART_WITHIN = 16  # and sends its next packets from there on


@dataclass
class Actions:
    """frames: for the decoder, in order. nacks: sequence numbers to ask for. pli: ask for a keyframe."""

    frames: list[EncodedFrame] = field(default_factory=list)
    nacks: list[int] = field(default_factory=list)
    pli: bool = False


class VideoReceiver:
    """One stream of packets (one SSRC at a time) with what was lost of it. round_trip: what is known of it by others.

    Call `receive` for every packet, `tick` when `due_s` is over, and `restart` where the packets of another SSRC begin.
    """

    def __init__(self, round_trip: RoundTrip | None = None):
        self.round_trip = round_trip or RoundTrip()
        self._buffer = JitterBuffer()
        self._nacks = NackList(self.round_trip)
        self._highest: int | None = None
        self._has_jumped = True  # the next packet tells where its count begins
        self._strange: tuple[int, tuple] | None = None  # a packet from far away, that may be the first of a new count
        self._former: deque[tuple[Packet, float]] = deque(maxlen=4)  # the newest of counts that were left, and when
        self._newest: Packet | None = None
        self._newest_s = self._pace_s = 0.0
        self._has_rtx = False
        self._marks = False  # whether the sender sets the marker bit at all
        self._blocked_s: float | None = None  # since when a packet is missing that frames wait for
        self._wanted_s: float | None = None  # since when a keyframe is, for another reason
        self._pli_s = self._ticked_s = self._heard_s = float("-inf")
        self._is_deaf = False
        self._left: EncodedFrame | None = None
        self._left_s = 0.0
        self._received = self._lost = self._nack_count = self._pli_count = self._freezes = 0

    def receive(
        self,
        sequence_number: int,
        timestamp: int,
        marker: bool,
        codec: str,
        payload_type: int,
        payload: Payload,
        now_s: float,
        is_again: bool = False,
    ) -> Actions:
        """is_again: it was sent again, and says so (RTX, RFC 4588)."""
        self._heard_s = now_s
        rest = (timestamp, marker, codec, payload_type, payload)
        if self._is_straggler(sequence_number, timestamp, now_s):
            return self.tick(now_s)
        number = self._number(sequence_number)
        if number is not None and not self._is_alien(number, timestamp, now_s):
            self._strange = None
            self._take_in(number, rest, now_s, is_again)
        elif self._strange is None or uint16_add(sequence_number, -self._strange[0]) > RESTART_WITHIN or is_again:
            if not is_again:
                self._strange = sequence_number, rest
        else:
            strange, self._strange = self._strange, None
            if self._newest is not None:
                self._former.append((self._newest, now_s))
            self.restart()
            for sequence, about in (strange, (sequence_number, rest)):
                number = self._number(sequence)
                assert number is not None
                self._take_in(number, about, now_s, False)
        return self.tick(now_s)

    def tick(self, now_s: float) -> Actions:
        """What is due by now."""
        self._ticked_s = now_s
        if self._wanted_s is not None and now_s > self._wanted_s + DEAF_S:
            self._wanted_s = None
        outcome = Actions(self._released(now_s))
        self._follow_blockade(now_s)
        if self._is_given_up(now_s) and self._buffer.take_smeared():
            self._is_deaf = True
            outcome.frames += self._released(now_s)
            self._follow_blockade(now_s)
        if self._lacks_tail(now_s):
            assert self._highest is not None
            self._nacks.guess(self._highest + 1, now_s)
        asked = self._nacks.due(now_s)
        if asked:
            self._nack_count += 1
            outcome.nacks = [number & 0xFFFF for number in asked]
        pli_s = self._pli_due_s()
        if pli_s is not None and pli_s <= now_s:
            self._pli_s, self._pli_count = now_s, self._pli_count + 1
            outcome.pli = True
        return outcome

    def due_s(self) -> float | None:
        """When `tick` has something to do, if nothing comes before; None while it has nothing."""
        tail_s = self._newest_s + self._tail_s() if self._expects_tail() else None
        smear_s = None if self._blocked_s is None else self._blocked_s + self._patience_s()
        all_s = (self._nacks.due_s(self._ticked_s), self._pli_due_s(), tail_s, smear_s)
        return min((at_s for at_s in all_s if at_s is not None and at_s > self._ticked_s), default=None)

    def want_keyframe(self, now_s: float) -> None:
        """The decoder cannot go on without one."""
        if self._wanted_s is None:
            self._wanted_s = now_s

    def restart(self) -> None:
        """What comes now belongs to another count of packets: wait for its keyframe."""
        self._buffer.restart()
        self._lost += self._nacks.forget()
        if self._highest is not None:
            self._highest = (self._highest | 0xFFFF) + 0x10000  # no number comes twice
        self._has_jumped = True
        self._newest = self._blocked_s = self._wanted_s = None

    def is_asked_for(self, sequence_number: int) -> bool:
        number = self._number(sequence_number)
        return number is not None and self._nacks.is_asked_for(number)

    def statistics(self, layers_ignored: int = 0) -> ReceiverStatistics:
        measured_s = self.round_trip.measured_s
        return ReceiverStatistics(
            self._received,
            self._lost,
            self._nack_count,
            self._pli_count,
            self._freezes,
            None if measured_s is None else round(1000 * measured_s, 1),
            layers_ignored,
        )

    # -- packets

    def _number(self, sequence_number: int) -> int | None:
        """The sequence number counted on; None for one from far away."""
        if self._highest is None or self._has_jumped:
            return sequence_number + (0x10000 if self._highest is None else (self._highest & ~0xFFFF) + 0x10000)
        apart = uint16_add(sequence_number - self._highest, 0x8000) - 0x8000
        return self._highest + apart if abs(apart) <= MAX_DROPOUT else None

    def _is_straggler(self, sequence_number: int, timestamp: int, now_s: float) -> bool:
        """It is of a count that was left: from before that, or still on its way then."""
        return any(
            now_s - left_s < (SETTLING_S if _ahead(sequence_number, newest) > 0 else OVERTAKEN_S)
            and abs(_ahead(sequence_number, newest)) <= MAX_DROPOUT
            and (newest.timestamp + 90_000 - timestamp) & 0xFFFFFFFF <= OVERTAKEN_S * 90_000
            for newest, left_s in self._former
        )

    def _is_alien(self, number: int, timestamp: int, now_s: float) -> bool:
        """Its number says that it was overtaken, and its timestamp that it was not; or its number that very much was
        lost, and its timestamp that another time has passed than did."""
        newest = self._newest
        if newest is None or newest.number <= number <= newest.number + MAX_MISSING:
            return False
        if number < newest.number:
            return (newest.timestamp - timestamp) & 0xFFFFFFFF > OVERTAKEN_S * 90_000
        within = int((now_s - self._newest_s + OVERTAKEN_S) * 90_000)
        return (timestamp - newest.timestamp + OVERTAKEN_S * 90_000) & 0xFFFFFFFF > within + OVERTAKEN_S * 90_000

    def _take_in(self, number: int, rest: tuple, now_s: float, is_again: bool) -> None:
        timestamp, marker, codec, payload_type, payload = rest
        if self._highest is None or self._has_jumped:
            self._has_jumped = False
            self._highest = number - 1
        if number > self._highest:
            self._miss(range(self._highest + 1, number), now_s)
            self._highest = number
        was_asked = self._nacks.came(number, now_s, is_again)
        packet = Packet(number, timestamp, marker, codec, payload_type, payload)
        if not self._buffer.add(packet):
            return
        self._received += 1
        self._has_rtx = self._has_rtx or is_again
        self._lost += was_asked and (is_again or not self._has_rtx)  # it may have been late and no more
        self._marks = self._marks or marker
        if number == self._highest:
            newest = self._newest
            if newest is not None and (newest.number, newest.timestamp) == (number - 1, timestamp):
                self._pace_s = max(now_s - self._newest_s, 0.98 * self._pace_s)
            self._newest, self._newest_s = packet, now_s

    def _miss(self, numbers: range, now_s: float) -> None:
        if len(numbers) + len(self._nacks) > MAX_MISSING:
            self._lost += len(numbers) + self._nacks.forget()
            self.want_keyframe(now_s)
        else:
            self._nacks.miss(numbers, now_s)

    # -- frames

    def _released(self, now_s: float) -> list[EncodedFrame]:
        frames = self._buffer.take()
        for frame in frames:
            self._count_freeze(frame, now_s)
            self._left, self._left_s = frame, now_s
            if frame.is_key:
                self._wanted_s, self._is_deaf = None, False
        first = self._buffer.first_missing
        if frames and first is not None:
            self._lost += self._nacks.forget(before=first)
        return frames

    def _count_freeze(self, frame: EncodedFrame, now_s: float) -> None:
        before = self._left
        if before is None:
            return
        still_s = now_s - self._left_s
        if frame.follows:  # nothing is lost; it may have come late
            still_s -= _apart_s(frame.timestamp - before.timestamp)
        self._freezes += still_s > FREEZE_S

    # -- what is missing

    def _follow_blockade(self, now_s: float) -> None:
        first = self._buffer.first_missing
        if first is None:  # no keyframe yet
            if self._blocked_s is None and not self._has_jumped:
                self._blocked_s = now_s
        elif self._highest is None or first > self._highest:
            self._blocked_s = None
        else:
            since_s = self._nacks.since_s(first)
            if since_s is not None:
                self._blocked_s = since_s
            elif self._blocked_s is None:  # too much was lost to ask for it
                self._blocked_s = now_s - self._nacks.worth_s

    def _pli_due_s(self) -> float | None:
        reasons_s = [] if self._wanted_s is None else [self._wanted_s]
        if self._blocked_s is not None:
            waits_s = JOINING_S if self._buffer.first_missing is None else self._nacks.worth_s
            reasons_s.append(self._blocked_s + waits_s)
        if not reasons_s:
            return None
        due_s = max(min(reasons_s), self._pli_s + max(PLI_EVERY_S, 1.5 * self.round_trip.seconds))
        return due_s if max(due_s, self._ticked_s) < self._heard_s + GONE_S else None

    def _patience_s(self) -> float:
        return self._nacks.worth_s if self._is_deaf else DEAF_S

    def _is_given_up(self, now_s: float) -> bool:
        return self._blocked_s is not None and now_s >= self._blocked_s + self._patience_s()

    def _expects_tail(self) -> bool:
        """A frame has begun and not ended, as far as its packets tell, and nothing is missing before that."""
        newest = self._newest
        return (
            newest is not None
            and self._marks
            and self._buffer.trusts_markers
            and bool(newest.payload.data)
            and not newest.marker
            and self._highest is not None
            and not self._nacks.is_known(self._highest + 1)
        )

    def _lacks_tail(self, now_s: float) -> bool:
        return self._expects_tail() and now_s >= self._newest_s + self._tail_s()

    def _tail_s(self) -> float:
        return max(TAIL_S, PACES * min(self._pace_s, FREEZE_S))


def _ahead(sequence_number: int, packet: Packet) -> int:
    """By how many packets, going round."""
    return uint16_add(sequence_number - packet.number, 0x8000) - 0x8000


def _apart_s(ticks: int) -> float:
    """Between two timestamps of video, in seconds; 0 where they jump."""
    return forward / 90_000 if (forward := ticks & 0xFFFFFFFF) < 90_000 * 60 else 0.0
