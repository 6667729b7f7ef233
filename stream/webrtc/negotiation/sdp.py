"""SDP text: its lines, sections and candidates, and trickled fragments. Whatever cannot be read is named."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from aiortc import RTCIceCandidate
from aiortc.sdp import candidate_from_sdp

MAX_CANDIDATES = 100
MAX_PORT = 65535
DIRECTIONS = frozenset({"sendonly", "recvonly", "sendrecv", "inactive"})
MAX_PAYLOAD_TYPE = 127
_RTCP = range(64, 96)  # no payload types: beside RTCP on one port they could not be told apart (RFC 5761, 4)

_LINE = re.compile(r"[a-z]=[^\x00]*")
# RFC 8839, 5.1: words of visible ASCII characters, and numbers of as many digits as they can need.
_CANDIDATE = re.compile(
    "[!-~]{1,32} [0-9]{1,3} [!-~]+ [0-9]{1,10} [!-~]{1,256} (?P<port>[0-9]+) typ [!-~]+(?: [ -~]*)?"
)
# What aiortc need not see: candidates come later, addresses are ICE's, and over the rest, which nobody uses, it
# stumbles. Of header extensions none has another number (RFC 8285, 4.3): it could not send it.
_UNUSED = re.compile(
    r"c=|a=((candidate|end-of-candidates|msid|msid-semantic|rtcp|sctpmap)(:|$)"
    r"|ssrc:[0-9]+ [^:]*$|extmap:(?!0*([1-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])\b))",
    re.ASCII,
)
# What aiortc reads of each attribute, and stumbles over if it is otherwise.
_ATTRIBUTES = {
    name: re.compile(value, re.ASCII)
    for name, value in {
        "extmap": r"[0-9]+(/[a-z]+)? \S+",
        "fingerprint": r"\S+ [0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2})*",
        "fmtp": r"[0-9]{1,3}( .+)?",
        "group": r"\S+( \S+)*",
        "ice-pwd": r"\S*",
        "ice-ufrag": r"\S*",
        "max-message-size": r"[0-9]{1,20}",
        "mid": r"\S+",
        "rtcp-fb": r"(\*|[0-9]{1,3}) \S.*",
        "rtpmap": r"[0-9]{1,3} [^\s/]+/[0-9]{1,9}(/[0-9]{1,3})?",
        "sctp-port": r"\S*",
        "setup": r"\S+",
        "ssrc": r"[0-9]{1,10} .+",
        "ssrc-group": r"\S+( [0-9]{1,10})*",
    }.items()
}
_MEDIA = re.compile(r"m=(\S+) ([0-9]+)(?:/[0-9]+)? (\S+) (.*\S)")
_PORT = re.compile("[0-9]{1,5}")
_PAYLOAD_TYPE = re.compile("[0-9]{1,3}")

Candidates = tuple[tuple[str, RTCIceCandidate], ...]  # each with the mid of its section, "" for the first that is left


class BadSdp(ValueError):
    """An offer that cannot be answered, or a fragment that cannot be read; the message is for the sender."""


@dataclass(frozen=True)
class MediaSection:
    """One m-line with its attributes; those of the session are not included."""

    kind: str
    port: int
    transport: str  # protocol and formats, the rest of the m-line
    lines: tuple[str, ...]

    def values(self, attribute: str) -> list[str]:
        return values(self.lines, attribute)

    @property
    def protocol(self) -> str:
        return self.transport.partition(" ")[0]

    @property
    def m_line(self) -> str:
        return f"m={self.kind} {self.port} {self.transport}"

    @property
    def mid(self) -> str:
        return next(iter(self.values("mid")), "")

    @property
    def is_refused(self) -> bool:
        """Not where it has its bundle's port (RFC 9143, 6), as all but the first of Firefox's have."""
        return self.port == 0 and "a=bundle-only" not in self.lines

    @property
    def direction(self) -> str:
        return _direction(self.lines) or "sendrecv"

    @property
    def sctp_port(self) -> str:
        """Where data channels go (RFC 8841, 5; before it: the m-line's format), as it is written; "" if it is not."""
        protocol, _, formats = self.transport.partition(" ")
        return formats.split()[0] if protocol == "DTLS/SCTP" else next(iter(self.values("sctp-port")), "")


@dataclass(frozen=True)
class Fragment:
    """A trickle-ICE fragment (RFC 8840): candidates, and the ICE user it speaks for."""

    ufrag: str | None
    candidates: Candidates


def parse_fragment(text: str) -> Fragment:
    """Raises BadSdp."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if not lines or "\x00" in text or not all(_LINE.fullmatch(line) for line in lines):
        raise BadSdp("The body is not an SDP fragment.")
    session, media = sections(lines)
    ufrags = values(lines, "ice-ufrag")
    # Some clients send candidates without an m-line: they mean the bundle, so the first section.
    loose = MediaSection("", 0, "", tuple(line for line in session if line.startswith(("a=candidate:", "a=mid:"))))
    return Fragment(ufrags[0] if ufrags else None, candidates_of([loose, *media]))


def lines_of(text: str) -> list[str]:
    """The lines of an offer as aiortc can read them, each section with a direction of its own. Raises BadSdp."""
    if not text.strip():
        raise BadSdp("The SDP offer is empty.")
    if "\x00" in text:
        raise BadSdp("The SDP offer contains NUL bytes.")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if lines[0] != "v=0" or not all(_LINE.fullmatch(line) for line in lines):
        raise BadSdp("The body is not an SDP offer: each line must read letter=value, the first v=0.")
    return _with_directions([_readable(line) for line in lines])


def _readable(line: str) -> str:
    """An attribute without blanks at its value's ends or twice within. Raises BadSdp where its value is none."""
    name, colon, value = line.removeprefix("a=").partition(":")
    if not line.startswith("a=") or name not in _ATTRIBUTES:
        return line
    value = " ".join(value.split())
    if name == "extmap":
        value = " ".join(value.split()[:2])  # what follows are the extension's own attributes (RFC 8285, 8)
    if not colon or not _ATTRIBUTES[name].fullmatch(value):
        raise BadSdp(f"The SDP line {line[:60]!r} cannot be read: it is malformed.")
    return f"a={name}:{value}"


def sections(lines: list[str]) -> tuple[list[str], list[MediaSection]]:
    """Session lines and media sections. Raises BadSdp for a broken m-line."""
    starts = [number for number, line in enumerate(lines) if line.startswith("m=")]
    media = []
    for start, end in pairwise([*starts, len(lines)]):
        match = _MEDIA.fullmatch(lines[start])
        if match is None or not (match[2] == "0" or is_port(match[2])):
            raise BadSdp(f"The SDP line {lines[start][:60]!r} cannot be read.")
        if match[1] in ("audio", "video") and not all(map(is_payload_type, match[4].split())):
            raise BadSdp(f"The SDP line {lines[start][:60]!r} has a format that is no RTP payload type (0 to 127).")
        media.append(MediaSection(match[1], int(match[2]), f"{match[3]} {match[4]}", tuple(lines[start + 1 : end])))
    return lines[: starts[0]] if starts else lines, media


def _with_directions(lines: list[str]) -> list[str]:
    """Every section with a direction of its own: aiortc knows neither the session's nor the default (RFC 8866, 6.7).

    Raises BadSdp for a section that names two: of these we would take the first, and aiortc the last.
    """
    starts = [number for number, line in enumerate(lines) if line.startswith("m=")]
    directed = lines[: starts[0]] if starts else list(lines)
    inherited = _direction(directed) or "sendrecv"
    for start, end in pairwise([*starts, len(lines)]):
        section = lines[start:end]
        directed += section if _direction(section) else [*section, f"a={inherited}"]
    return directed


def _direction(lines: Sequence[str]) -> str | None:
    named = sorted({line[2:].partition(":")[0] for line in lines if line.startswith("a=")} & DIRECTIONS)
    if len(named) > 1:
        raise BadSdp(f"The SDP offer says both a={named[0]} and a={named[1]} of the same: a section has one direction.")
    return named[0] if named else None


def candidates_of(media: Sequence[MediaSection]) -> Candidates:
    """All that can be tried. Raises BadSdp for those that cannot be read and for too many.

    Addresses and mDNS names (which browsers without camera permission give) only: to look another name up would hold
    up the event loop, and RFC 8839 has us ignore it.
    """
    found = [(section.mid, value) for section in media for value in section.values("candidate")]
    if len(found) > MAX_CANDIDATES:
        raise BadSdp(f"More than {MAX_CANDIDATES} candidates are not taken.")
    candidates = [(mid, _candidate(value)) for mid, value in found]
    return tuple((mid, one) for mid, one in candidates if one.ip.lower().endswith(".local") or _is_address(one.ip))


def _candidate(value: str) -> RTCIceCandidate:
    match = _CANDIDATE.fullmatch(value)
    if match is not None and is_port(match["port"]):
        with contextlib.suppress(ValueError):  # of an rport that is no number
            return candidate_from_sdp(value)
    raise BadSdp(f"The candidate {value[:80]!r} cannot be read.")


def is_port(digits: str) -> bool:
    """Python refuses to read numbers of thousands of digits."""
    return _PORT.fullmatch(digits) is not None and 0 < int(digits) <= MAX_PORT


def is_payload_type(digits: str) -> bool:
    return _PAYLOAD_TYPE.fullmatch(digits) is not None and int(digits) <= MAX_PAYLOAD_TYPE and int(digits) not in _RTCP


def for_aiortc(lines: Sequence[str]) -> str:
    """An offer's text, without what it need not see."""
    return "".join(f"{line}\r\n" for line in lines if not _UNUSED.match(line))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def values(lines: Sequence[str], attribute: str) -> list[str]:
    prefix = f"a={attribute}:"
    return [line.strip()[len(prefix) :] for line in lines if line.startswith(prefix)]
