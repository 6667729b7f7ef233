"""How many bits a second a viewer is sent: what its way carries, and no more than the picture deserves.

The loss-based half of draft-ietf-rmcat-gcc-02 (section 6), under what the receiver says it can take (REMB).
"""

from __future__ import annotations

from collections.abc import Callable

FLOOR_BPS, BASE_BPS, BPS_PER_PIXEL, CEILING_BPS = 300_000, 500_000, 30, 12_000_000

HIGH_LOSS, LOW_LOSS = 0.1, 0.02
GROWTH_PER_S = 1.08
DECIDE_S, DECIDE_PACKETS = 0.3, 20  # loss is told from at least so many packets, over at least so long
DECIDE_AT_LAST_S = 1.0  # ... or over this, however few they are: a still picture is a packet a second

FALL = 0.95  # a receiver's estimate is less than before
TRY = 1.3  # of what the receiver says
TRY_AFTER_S, TRY_AT_LAST_S = 3.0, 60.0

# An encoder is made anew for another bitrate, and begins with a keyframe, which costs three to eight frames' bits.
STEP_DOWN, STEP_UP = 0.85, 1.2  # smaller changes are not worth it
URGENT = 0.7
HOLD_DOWN_S, HOLD_UP_S = 0.5, 3.0


def bitrate_bps(width: int, height: int) -> int:
    """What stylized video deserves, its texture being new in every frame: 2.5 Mbit/s at 256x256, 8.4 at 512x512."""
    return min(CEILING_BPS, BASE_BPS + BPS_PER_PIXEL * width * height)


class BitrateEstimate:
    """What one viewer's way carries: much loss takes half of its share off at once, without loss it grows by 8 % a
    second. deserved: bits a second of what is sent, the most that is ever asked for.

    A receiver's own estimate (REMB) is kept to, and after a while tried a little beyond: Chrome's rises by some
    kbit/s in a second until more than it says arrives. A try that makes it fall is repeated later, and later still.
    """

    def __init__(self, deserved: Callable[[], int]):
        self._deserved = deserved
        self._by_loss: float | None = None  # None while nothing was lost, for all that is deserved
        self._remb_bps: int | None = None
        self._calm_since_s = 0.0  # neither much loss nor less than before
        self._try_after_s = TRY_AFTER_S
        self._tried_from_bps: int | None = None
        self._decided_s: float | None = None
        self._packets = self._lost = 0  # since then

    def limit(self, now_s: float, bps: int) -> None:
        """REMB: what the receiver says it can take, which holds until it says something else."""
        before, self._remb_bps = self._remb_bps, bps
        if before is None:
            self._calm_since_s = now_s
            return
        if self._tried_from_bps is None and self._tries(now_s):
            self._tried_from_bps = before
        if bps < FALL * before:
            self._disturbed(now_s)
        elif self._tried_from_bps is not None and bps > TRY * self._tried_from_bps:
            self._try_after_s = TRY_AFTER_S

    def report(self, now_s: float, packets: int, lost: int, round_trip_s: float | None = None) -> None:
        """Of so many packets the receiver reports so many as lost."""
        if self._decided_s is None:
            self._decided_s = now_s
        self._packets, self._lost = self._packets + packets, self._lost + lost
        since_s = now_s - self._decided_s
        enough_s = DECIDE_S if self._packets >= DECIDE_PACKETS else DECIDE_AT_LAST_S
        # What was sent before a decision still comes, and is still lost, for a round trip.
        if since_s >= enough_s + (round_trip_s or 0.0):
            self._decide(now_s, min(1.0, self._lost / max(1, self._packets)), min(since_s, DECIDE_AT_LAST_S))
            self._decided_s, self._packets, self._lost = now_s, 0, 0

    def _decide(self, now_s: float, loss: float, since_s: float) -> None:
        deserved = self._deserved()
        bps = min(self.bps(now_s), deserved if self._by_loss is None else self._by_loss)
        if loss > HIGH_LOSS:
            self._by_loss = max(float(FLOOR_BPS), bps * (1 - loss / 2))
        elif self._by_loss is not None and loss < LOW_LOSS:
            grown = self._by_loss * GROWTH_PER_S**since_s + 1000
            self._by_loss = grown if grown < deserved else None
        if loss >= LOW_LOSS:
            self._disturbed(now_s)

    def _disturbed(self, now_s: float) -> None:
        if self._tried_from_bps is not None:
            self._try_after_s = min(TRY_AT_LAST_S, 2 * self._try_after_s)
        self._calm_since_s, self._tried_from_bps = now_s, None

    def _tries(self, now_s: float) -> bool:
        return now_s - self._calm_since_s >= self._try_after_s

    def bps(self, now_s: float) -> int:
        deserved = self._deserved()
        bps = float(deserved) if self._by_loss is None else min(deserved, self._by_loss)
        if self._remb_bps is not None:
            bps = min(bps, self._remb_bps * (TRY if self._tries(now_s) else 1.0))
        return round(max(min(FLOOR_BPS, deserved), bps))


class EncoderBitrate:
    """The estimate in steps that are worth another encoder: down soon, up after a while."""

    def __init__(self) -> None:
        self._bps: int | None = None
        self._changed_s = 0.0

    def follow(self, now_s: float, estimate_bps: int, deserved_bps: int) -> int:
        """What the encoder is to be told now."""
        if self._bps is None or self._is_due(now_s, estimate_bps, deserved_bps, self._bps):
            self._bps, self._changed_s = estimate_bps, now_s
        return self._bps

    def _is_due(self, now_s: float, estimate_bps: int, deserved_bps: int, bps: int) -> bool:
        held_s = now_s - self._changed_s
        if bps > deserved_bps or estimate_bps < URGENT * bps:
            return True
        if estimate_bps <= STEP_DOWN * bps or (estimate_bps < bps and estimate_bps <= FLOOR_BPS):
            return held_s >= HOLD_DOWN_S
        arrives = estimate_bps == deserved_bps and estimate_bps > bps
        return (estimate_bps >= STEP_UP * bps or arrives) and held_s >= HOLD_UP_S
