"""Broken input for servers, from good input: texts, JSON and PNGs, the same for the same seed."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HUGE = "9" * 5000  # more digits than int() takes
NUMBERS = (
    "-1",
    "0",
    "00",
    "1.5",
    "255",
    "65535",
    "65536",
    "4294967296",
    "9" * 30,
    HUGE,
    HUGE,
    "1e400",
    "\u0663",
    "x",
    "",
)
BITS = ("\x00", "\x7f", "\u2028", "\x85", "é", "🎨", " ", "  ", ":", "=", "/", "%s", "a=", "m=", "\r", "\n", "*", "-")


def mutated(dice: Random, whole: list, changes: Sequence[Callable[[Random, list], None]]) -> list:
    """A copy with one to four changes."""
    parts = list(whole)
    for _ in range(dice.randint(1, 4)):
        if parts:
            dice.choice(changes)(dice, parts)
    return parts


def lose(dice: Random, parts: list) -> None:
    del parts[dice.randrange(len(parts))]


def double(dice: Random, parts: list) -> None:
    parts.insert(dice.randrange(len(parts) + 1), dice.choice(parts))


def swap(dice: Random, parts: list) -> None:
    one, other = dice.randrange(len(parts)), dice.randrange(len(parts))
    parts[one], parts[other] = parts[other], parts[one]


def cut(dice: Random, parts: list) -> None:
    at = dice.randrange(len(parts))
    parts[at] = parts[at][: dice.randrange(len(parts[at]) + 1)]


# -- lines of text: SDP and its fragments ----------------------------------------------------------------------------


def any_line(dice: Random, lines: list[str]) -> int:
    """The place of one; each attribute has an equal chance, however many lines it has."""
    kinds: dict[str, list[int]] = {}
    for at, line in enumerate(lines):
        kinds.setdefault(line.replace("=", ":", 1).split(":")[1] if line[:2] == "a=" else line[:2], []).append(at)
    return dice.choice(kinds[dice.choice(list(kinds))])


def other_number(dice: Random, lines: list[str]) -> None:
    """A number in a line is another one, or a word where there is none."""
    at = any_line(dice, lines)
    words = lines[at].replace(":", " : ").replace("=", " = ").replace("/", " / ").split(" ")
    numbers = [place for place, word in enumerate(words) if word.isdecimal()] or range(len(words))
    words[dice.choice(numbers)] = dice.choice(NUMBERS)
    lines[at] = " ".join(words).replace(" : ", ":").replace(" = ", "=").replace(" / ", "/")


def other_bits(dice: Random, lines: list[str]) -> None:
    at = any_line(dice, lines)
    place = dice.randrange(len(lines[at]) + 1)
    lines[at] = lines[at][:place] + dice.choice(BITS) + lines[at][place + dice.randint(0, 2) :]


def foreign(lines: Sequence[str]) -> Callable[[Random, list[str]], None]:
    """One of these lines comes in."""
    return lambda dice, own: own.insert(dice.randrange(len(own) + 1), dice.choice(lines))


LINES = (lose, double, swap, cut, other_number, other_number, other_bits)


def texts(dice: Random, goods: Sequence[str], extra: Sequence[str], count: int) -> Iterator[bytes]:
    changes = (*LINES, foreign(extra))
    for _ in range(count):
        lines = mutated(dice, dice.choice(goods).splitlines(), changes)
        body = (dice.choice(("\r\n", "\r\n", "\n")).join(lines) + "\r\n").encode()
        yield flipped(dice, body) if dice.random() < 0.1 else body


def flipped(dice: Random, body: bytes) -> bytes:
    """With a few other bytes."""
    own = bytearray(body)
    for _ in range(dice.randint(1, 6)):
        if own:
            own[dice.randrange(len(own))] = dice.randrange(256)
    return bytes(own)


# -- JSON ------------------------------------------------------------------------------------------------------------

RAW = ("NaN", "-Infinity", "1e400", "-0", HUGE, "0.1e-999", '"\\ud800"', "[" * 3000, '{"a":' * 500, "tru", "01", "''")


def any_value(dice: Random, depth: int = 2) -> Any:
    kinds = [None, True, False, 0, 1, -1, 2.0, 2.5, 1e308, 10**30, "", "3", "yes", "x" * 3000, "\ud800", "\x00", [], {}]
    if depth and dice.random() < 0.3:
        keys = ("ink", "prompt", "", "__proto__", "\udfff", "x" * 300)
        return {dice.choice(keys): any_value(dice, depth - 1) for _ in range(dice.randint(1, 3))}
    if depth and dice.random() < 0.2:
        return [any_value(dice, depth - 1) for _ in range(dice.randint(1, 3))]
    return dice.choice(kinds)


def objects(dice: Random, good: dict[str, Any], count: int) -> Iterator[bytes]:
    """Objects with some of the members of `good`, others and other values, as text that is now and then no JSON."""
    for _ in range(count):
        members = {name: good[name] for name in dice.sample(sorted(good), dice.randint(0, 3))}
        for _ in range(dice.randint(1, 2)):
            members[dice.choice([*good, *good, "sharpness", "", "\ud800", "__class__"])] = any_value(dice)
        text = json.dumps(members)
        if dice.random() < 0.3:
            text = text.replace(dice.choice([json.dumps(value) for value in members.values()]), dice.choice(RAW), 1)
        body = text.encode(dice.choice(["utf-8"] * 8 + ["utf-16", "utf-32"]))
        yield flipped(dice, body) if dice.random() < 0.2 else body


# -- PNG -------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, body) of a whole PNG."""
    found, at = [], len(SIGNATURE)
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


BOMB = zlib.compress(bytes(8 << 20), 9)
STRANGE = (
    *(
        (kind, b"")
        for kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"tEXt", b"eXIf", b"fdAT", b"sRGB")
    ),
    *((kind, bytes(3)) for kind in (b"PLTE", b"tRNS", b"cHRM", b"pHYs", b"fcTL", b"acTL", b"iCCP", b"zTXt", b"iTXt")),
    (b"PLTE", bytes(1)),
    (b"PLTE", bytes(769)),
    (b"acTL", b"\xff" * 8),
    (b"fcTL", b"\xff" * 26),
    (b"eXIf", b"II*\0\xff\xff\xff\xff"),
    (b"iCCP", b"x\0\0" + BOMB),
    (b"zTXt", b"x\0\0" + BOMB),
    (b"iTXt", b"x\0\1\0\0\0" + BOMB),
    (b"IDAT", BOMB),
    (b"\0\0\0\0", b"x"),
)


def other_chunk(dice: Random, parts: list[tuple[bytes, bytes]]) -> None:
    parts.insert(dice.randrange(len(parts) + 1), dice.choice(STRANGE))


def cut_chunk(dice: Random, parts: list[tuple[bytes, bytes]]) -> None:
    at = dice.randrange(len(parts))
    kind, body = parts[at]
    parts[at] = kind, body[: dice.randrange(len(body) + 1)]


def other_byte(dice: Random, parts: list[tuple[bytes, bytes]]) -> None:
    """In a chunk's body, so that the checksum is right."""
    at = dice.randrange(len(parts))
    kind, body = parts[at]
    if body:
        place = dice.randrange(len(body))
        parts[at] = kind, body[:place] + bytes([dice.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))]) + body[place + 1 :]


CHUNKS = (lose, double, swap, other_chunk, cut_chunk, other_byte, other_byte)


def pngs(dice: Random, goods: Sequence[bytes], count: int) -> Iterator[bytes]:
    for _ in range(count):
        parts = mutated(dice, chunks(dice.choice(goods)), CHUNKS)
        png = SIGNATURE + b"".join(chunk(*part) for part in parts)
        yield flipped(dice, png) if dice.random() < 0.2 else png
