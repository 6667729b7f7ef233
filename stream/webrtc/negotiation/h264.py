"""H264 in offers and answers: which formats are taken, and which level pictures need (RFC 6184; H.264, table A-1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

FRAMES_PER_S = 30  # what levels are reckoned with, and what the encoder is told
CONSTRAINED, BASELINE = "42e01f", "42001f"  # as aiortc names the two profiles that we take; both in level 3.1
PROFILES = {
    66: "Baseline",
    77: "Main",
    88: "Extended",
    100: "High",
    110: "High 10",
    122: "High 4:2:2",
    244: "High 4:4:4",
}
_ID = re.compile("[0-9a-fA-F]{6}")
_LEVEL_1B = 0x10  # constraint_set3_flag: with the idc of level 1.1
_STEP = 16  # pixels: a macroblock


@dataclass(frozen=True)
class Level:
    """A row of table A-1; the bitrate is that of profiles up to Main."""

    idc: int
    macroblocks_per_s: int
    macroblocks: int
    bps: int

    def fits(self, width: int, height: int) -> bool:
        """May pictures have that size? (A.3.1: neither side may be longer than the root of 8 frames' macroblocks.)"""
        columns, rows = _macroblocks(width, height)
        return columns * rows <= self.macroblocks and max(columns, rows) ** 2 <= 8 * self.macroblocks


LEVELS = tuple(
    Level(idc, per_s, frame, kbps * 1000)
    for idc, per_s, frame, kbps in (
        (10, 1_485, 99, 64),
        (11, 3_000, 396, 192),
        (12, 6_000, 396, 384),
        (13, 11_880, 396, 768),
        (20, 11_880, 396, 2_000),
        (21, 19_800, 792, 4_000),
        (22, 20_250, 1_620, 4_000),
        (30, 40_500, 1_620, 10_000),
        (31, 108_000, 3_600, 14_000),
        (32, 216_000, 5_120, 20_000),
        (40, 245_760, 8_192, 20_000),
        (41, 245_760, 8_192, 50_000),
        (42, 522_240, 8_704, 50_000),
        (50, 589_824, 22_080, 135_000),
        (51, 983_040, 36_864, 240_000),
        (52, 2_073_600, 36_864, 240_000),
    )
)
USUAL = next(level for level in LEVELS if level.idc == 31)  # what WebRTC's endpoints name, and mean if they name none


class NotTaken(ValueError):
    """A format that we neither decode nor encode; the message names it."""


@dataclass(frozen=True)
class H264Format:
    """What an offer says of one payload type. `said` are the parameters that it wrote: an answer has no others."""

    profile_level_id: str = CONSTRAINED
    mode: int = 0  # packetization-mode: 0 is single NAL units, 1 also aggregates and fragments
    asymmetric: bool = False  # levels may differ in the two directions
    said: frozenset[str] = frozenset()

    @property
    def level(self) -> Level:
        return level_of(self.profile_level_id)

    @property
    def canonical(self) -> str:
        """The parameters of the format among aiortc's that this one is: the level aside, and whatever else is said."""
        idc, constraints = int(self.profile_level_id[:2], 16), int(self.profile_level_id[2:4], 16)
        plain = idc != 77 and not constraints & 0x40
        return f"packetization-mode={self.mode};profile-level-id={BASELINE if plain else CONSTRAINED}"

    def answered(self, size: tuple[int, int] | None) -> dict[str, int | str | None]:
        """The parameters of our answer: as offered. size: of the pictures that are sent; None where we only receive.

        Only where levels may differ ours rises to what is sent: elsewhere the encoder makes pictures smaller.
        """
        level_id = self.profile_level_id
        if size is not None and self.asymmetric and (needed := level_for(*size)).idc > self.level.idc:
            constraints = int(level_id[2:4], 16) & ~_LEVEL_1B
            level_id = f"{level_id[:2]}{constraints:02x}{needed.idc:02x}"
        told = {
            "level-asymmetry-allowed": str(int(self.asymmetric)),
            "packetization-mode": str(self.mode),
            "profile-level-id": level_id,
        }
        return {name: value for name, value in told.items() if name in self.said}


def read(parameters: Mapping[str, str]) -> H264Format:
    """The format of an offer's a=fmtp. What it leaves out is mode 0 (RFC 6184, 8.1), and the Constrained Baseline in
    level 3.1, as browsers have it. Raises NotTaken."""
    level_id = parameters.get("profile-level-id", CONSTRAINED)
    mode = parameters.get("packetization-mode", "0")
    if not _ID.fullmatch(level_id):
        raise NotTaken(f"H264 of a profile-level-id that cannot be read ({level_id[:20]!r})")
    idc, constraints = int(level_id[:2], 16), int(level_id[2:4], 16)
    # Main and Extended are the Constrained Baseline, or the Baseline, where they say that they keep to it.
    if not (idc == 66 or (idc in (77, 88) and constraints & 0x80)):
        raise NotTaken(f"H264 {PROFILES.get(idc, 'of an unknown profile')} (profile-level-id={level_id})")
    if mode not in ("0", "1"):
        raise NotTaken(f"H264 in packetization-mode {mode[:20]!r}")
    asymmetric = parameters.get("level-asymmetry-allowed") == "1"
    return H264Format(level_id.lower(), int(mode), asymmetric, frozenset(parameters))


def level_of(profile_level_id: str) -> Level:
    """The level that it names, or the next lower one that we know."""
    idc, constraints = int(profile_level_id[4:], 16), int(profile_level_id[2:4], 16)
    if idc == 11 and constraints & _LEVEL_1B:
        return LEVELS[0]
    return max((level for level in LEVELS if level.idc <= idc), key=lambda level: level.idc, default=LEVELS[0])


def level_for(width: int, height: int) -> Level:
    """The lowest level, from the usual one on, that pictures of that size fit at 30 a second; the highest for more."""
    columns, rows = _macroblocks(width, height)
    per_s = columns * rows * FRAMES_PER_S
    found = (level for level in LEVELS if level.fits(width, height) and level.macroblocks_per_s >= per_s)
    return max(next(found, LEVELS[-1]), USUAL, key=lambda level: level.idc)


def sent_level(negotiated: Level, width: int, height: int) -> Level:
    """What the bitstream says of pictures of that size: no more than they need, and than was negotiated."""
    return min(negotiated, level_for(width, height), key=lambda level: level.idc)


def _macroblocks(width: int, height: int) -> tuple[int, int]:
    return -(-width // _STEP), -(-height // _STEP)


def fitted(level: Level, width: int, height: int) -> tuple[int, int]:
    """The size for the level: the same if it fits, else the largest of about the same shape that does; both even."""
    if level.fits(width, height):
        return width, height
    for narrower in range(width // _STEP * _STEP, 0, -_STEP):
        lower = max(2, 2 * round(narrower * height / width / 2))
        if level.fits(narrower, lower):
            return narrower, lower
    return _STEP, _STEP
