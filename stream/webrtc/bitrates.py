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

# An encoder is made anew for another bitrate, and begins with a keyframe, which costs three to eight frames' bits.
STEP_DOWN, STEP_UP = 0.85, 1.2  # smaller changes are not worth it
URGENT = 0.6
HOLD_DOWN_S, HOLD_UP_S = 1.0, 3.0


def bitrate_bps(width: int, height: int) -> int:
    """What stylized video deserves, its texture being new in every frame: 2.5 Mbit/s at 256x256, 8.4 at 512x512."""
    return min(CEILING_BPS, BASE_BPS + BPS_PER_PIXEL * width * height)


class BitrateEstimate:
    """What one viewer's way carries: much loss takes half of its share off at once, without loss it grows by 8 % a
    second. deserved: bits a second of what is sent, the most that is ever asked for."""

    def __init__(self, deserved: Callable[[], int]):
        self._deserved = deserved
        self._by_loss: float | None = None  # None while nothing was lost, for all that is deserved
        self._remb_bps: int | None = None
        self._decided_s: float | None = None
        self._packets = self._lost = 0  # since then

    def limit(self, bps: int) -> None:
        """REMB: what the receiver says it can take, which holds until it says something else."""
        self._remb_bps = bps

    def report(self, now_s: float, packets: int, lost: int) -> None:
        """Of so many packets the receiver reports so many as lost."""
        if self._decided_s is None:
            self._decided_s = now_s
        self._packets, self._lost = self._packets + packets, self._lost + lost
        since_s = now_s - self._decided_s
        if since_s < DECIDE_S or (self._packets < DECIDE_PACKETS and since_s < DECIDE_AT_LAST_S):
            return
        loss = min(1.0, self._lost / max(1, self._packets))
        self._decide(loss, min(since_s, DECIDE_AT_LAST_S))
        self._decided_s, self._packets, self._lost = now_s, 0, 0

    def _decide(self, loss: float, since_s: float) -> None:
        deserved = self._deserved()
        bps = float(deserved) if self._by_loss is None else self._by_loss
        if self._remb_bps is not None:  # beyond what the receiver takes, nothing was tried
            bps = min(bps, max(FLOOR_BPS, self._remb_bps))
        if loss > HIGH_LOSS:
            self._by_loss = max(float(FLOOR_BPS), bps * (1 - loss / 2))
        elif self._by_loss is not None and loss < LOW_LOSS:
            grown = max(self._by_loss, bps) * GROWTH_PER_S**since_s + 1000
            self._by_loss = grown if grown < deserved else None

    @property
    def bps(self) -> int:
        deserved = self._deserved()
        limits = [limit for limit in (self._by_loss, self._remb_bps) if limit is not None]
        return round(max(min(FLOOR_BPS, deserved), min([deserved, *limits])))


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
