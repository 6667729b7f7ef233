"""Which lost packets are asked for again (NACK, RFC 4585), and when: soon, then once each round trip, and no longer
than a frame is worth waiting for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

REORDERED_S = 0.01  # a packet that was only overtaken comes by itself in that time
WORTH_S = 0.2  # a frame is waited for so long, and one round trip; a keyframe takes as long and then brings a new one
UNKNOWN_S = 0.05  # a round trip that nothing is known of
AGAIN = 1.1  # round trips between two requests for the same packet
HEAVY = 0.05  # share of packets lost from which requests are lost so often, too, that each is worth a second one
AGAIN_HEAVY = 0.5
LEAST_S = 0.015  # between two requests for the same packet
RECENT = 200  # packets that the share of losses is judged by
MAX_MISSING = 256  # packets at once: who lost more had better have a keyframe
SAMPLES = 16


class RoundTrip:
    """How long a request and its answer take.

    A packet that was asked for twice may answer either request. So the times are counted from the first one, and of the
    latest samples the lower quartile holds: those whose first request or its answer was lost are above it.
    """

    def __init__(self) -> None:
        self._samples_s: deque[float] = deque(maxlen=SAMPLES)

    def add(self, sample_s: float) -> None:
        self._samples_s.append(sample_s)

    @property
    def measured_s(self) -> float | None:
        return sorted(self._samples_s)[len(self._samples_s) // 4] if self._samples_s else None

    @property
    def seconds(self) -> float:
        return UNKNOWN_S if self.measured_s is None else min(self.measured_s, 1.0)


@dataclass(slots=True)
class Missing:
    """A packet that has not come. is_guess: it may not exist, as nothing behind it has come either."""

    since_s: float
    ask_s: float
    is_guess: bool
    asked_s: float | None = None  # first


class NackList:
    """The missing packets of one stream, by number. Ask `due` whenever `due_s` is over."""

    def __init__(self, round_trip: RoundTrip):
        self._round_trip = round_trip
        self._missing: dict[int, Missing] = {}
        self._loss = 0.0  # share of the latest packets

    def __len__(self) -> int:
        return len(self._missing)

    @property
    def worth_s(self) -> float:
        """How long a missing packet is waited for."""
        return WORTH_S + self._round_trip.seconds

    def miss(self, numbers: Iterable[int], now_s: float) -> None:
        """A packet behind these has come."""
        for number in numbers:
            self._loss += (1 - self._loss) / RECENT
            if number in self._missing:
                self._missing[number].is_guess = False
            else:
                self._missing[number] = Missing(now_s, now_s + REORDERED_S, False)

    def guess(self, number: int, now_s: float) -> None:
        """A packet that ought to have come: ask for it now."""
        self._missing.setdefault(number, Missing(now_s, now_s, True))

    def came(self, number: int, now_s: float, is_again: bool) -> bool:
        """A packet came. is_again: because it was asked for, as retransmissions tell of themselves (RFC 4588).
        True where it had been asked for."""
        missing = self._missing.pop(number, None)
        self._loss -= self._loss / RECENT
        if missing is None or missing.asked_s is None:
            return False
        if is_again or not missing.is_guess:
            self._round_trip.add(now_s - missing.asked_s)
        return True

    def since_s(self, number: int) -> float | None:
        """Since when a packet is known to be missing; None where it is not."""
        missing = self._missing.get(number)
        return None if missing is None or missing.is_guess else missing.since_s

    def is_asked_for(self, number: int) -> bool:
        missing = self._missing.get(number)
        return missing is not None and missing.asked_s is not None

    def is_known(self, number: int) -> bool:
        return number in self._missing

    def forget(self, before: int | None = None) -> int:
        """Those that nobody waits for any more, all by default; how many did exist."""
        kept = {} if before is None else {number: one for number, one in self._missing.items() if number >= before}
        lost = sum(not one.is_guess for number, one in self._missing.items() if number not in kept)
        self._missing = kept
        return lost

    def due(self, now_s: float) -> list[int]:
        """Numbers to ask for now."""
        again_s = max(LEAST_S, (AGAIN_HEAVY if self._loss > HEAVY else AGAIN) * self._round_trip.seconds)
        asked = []
        for number, missing in self._missing.items():
            if missing.ask_s <= now_s < missing.since_s + self.worth_s:
                missing.ask_s = now_s + again_s
                missing.asked_s = now_s if missing.asked_s is None else missing.asked_s
                asked.append(number)
        return sorted(asked)

    def due_s(self, now_s: float) -> float | None:
        """When `due` has something next, after what it had now; None while it has nothing."""
        asks_s = [one.ask_s for one in self._missing.values() if max(one.ask_s, now_s) < one.since_s + self.worth_s]
        return min(asks_s, default=None)
