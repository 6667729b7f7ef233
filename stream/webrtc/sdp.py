"""Checks SDP offers: text in, text that we can answer or one sentence out; aiortc accepts garbage in silence."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from aiortc import RTCIceCandidate
from aiortc.sdp import candidate_from_sdp

MAX_MEDIA = 8
MAX_CANDIDATES = 100
MAX_PORT = 65535
SENDING = frozenset({"sendonly", "sendrecv"})
RECEIVING = frozenset({"recvonly", "sendrecv"})
KINDS = frozenset({"audio", "video", "application"})
DIRECTIONS = frozenset({"sendonly", "recvonly", "sendrecv", "inactive"})
SHARED = ("a=ice-ufrag:", "a=ice-pwd:", "a=fingerprint:", "a=setup:", "a=rtcp-mux")  # by the sections of a bundle

_LINE = re.compile(r"[a-z]=[^\x00]*")
# RFC 8839, 5.1: words of visible ASCII characters, and numbers of as many digits as they can need.
_CANDIDATE = re.compile(
    "[!-~]{1,32} [0-9]{1,3} [!-~]+ [0-9]{1,10} [!-~]{1,256} (?P<port>[0-9]+) typ [!-~]+(?: [ -~]*)?"
)
# Candidates come later, and of header extensions none has another number (RFC 8285, 4.3): aiortc could not send it.
_UNUSED = re.compile(r"a=(candidate:|extmap:(?!0*([1-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])\b))", re.ASCII)
_MEDIA = re.compile(r"m=(\S+) ([0-9]+)(?:/[0-9]+)? (\S+) (.*\S)")
_PORT = re.compile("[0-9]{1,5}")

Candidates = tuple[tuple[str, RTCIceCandidate], ...]  # each with the mid of its section, "" for the first that is left


class BadSdp(ValueError):
    """An offer that cannot be answered, or a fragment that cannot be read; the message is for the sender."""


@dataclass(frozen=True)
class Offer:
    """An offer that has been looked through: `text` for aiortc, and the candidates to give to it afterwards."""

    text: str
    ufrag: str  # the ICE user it speaks for
    candidates: Candidates  # mDNS names take a second to resolve, so not before the answer
    sound: bool  # it has sound that goes the right way
    refused: tuple[tuple[int, MediaSection], ...]  # sections that `text` lacks, by their place in the offer

    def answered(self, answer: str) -> str:
        """aiortc's answer, with what it did not get to see refused (RFC 3264, 6: port 0), and with one fingerprint.

        It gives three. Of SHA-384 and SHA-512 some releases of OBS know nothing or the wrong name.
        """
        answer = re.sub("^a=fingerprint:(?!sha-256 ).*\n", "", answer, flags=re.MULTILINE)
        head, *media = re.split("(?=^m=)", answer, flags=re.MULTILINE)
        for place, section in self.refused:
            lines = [f"m={section.kind} 0 {section.transport}", "c=IN IP4 0.0.0.0", "a=inactive"]
            media.insert(place, "\r\n".join([*lines, f"a=mid:{section.mid}"]) + "\r\n")
        return "".join([head, *media])


@dataclass(frozen=True)
class MediaSection:
    """One m-line with its attributes; those of the session are not included."""

    kind: str
    port: int
    transport: str  # protocol and formats, the rest of the m-line
    lines: tuple[str, ...]

    def values(self, attribute: str) -> list[str]:
        return _values(self.lines, attribute)

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

    @property
    def is_opus(self) -> bool:
        return any(" opus/48000" in codec.lower() for codec in self.values("rtpmap"))


def checked_offer(text: str, directions: frozenset[str], verb: str) -> Offer:
    """The offer in the form that aiortc can use. Raises BadSdp.

    directions: which of them the offer's video may have; verb: what it must do, for the sentence ("send", "receive").
    `a=end-of-candidates` is left out: with it aiortc never connects to an offer that carries no candidates, and waits
    for the peer's own checks without it. So are sound that is not Opus, which would make aiortc refuse the video too,
    and what the offer itself refuses. A section that leaves to its bundle how to connect gets that said again.
    """
    if not text.strip():
        raise BadSdp("The SDP offer is empty.")
    if "\x00" in text:
        raise BadSdp("The SDP offer contains NUL bytes.")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if lines[0] != "v=0" or not all(_LINE.fullmatch(line) for line in lines):
        raise BadSdp("The body is not an SDP offer: each line must read letter=value, the first v=0.")
    lines = _with_directions(lines)
    session, media = _sections(lines)
    if not 1 <= len(media) <= MAX_MEDIA:
        raise BadSdp(f"The SDP offer must have 1 to {MAX_MEDIA} media sections, not {len(media)}.")
    video = [section for section in media if section.kind == "video" and not section.is_refused]
    if not video:
        raise BadSdp("The SDP offer has no video.")
    if not any(section.direction in directions for section in video):
        raise BadSdp(f"The SDP offer's video must {verb} but is {video[0].direction}.")
    if unknown := [section.kind for section in media if section.kind not in KINDS]:
        raise BadSdp(f"The SDP offer has a media section of unknown kind {unknown[0][:40]!r}.")
    data = [section for section in media if section.kind == "application" and not section.is_refused]
    if not all(_is_port(section.sctp_port) for section in data):
        raise BadSdp("The SDP offer's data channel names no port between 1 and 65535: a=sctp-port is missing or wrong.")
    mids = [section.mid for section in media]
    bundled = [mid for group in _values(session, "group") for mid in group.split()[1:]]
    has_two = any(len(set(section.values("mid"))) > 1 for section in media)  # we would take the first, aiortc the last
    if has_two or len(set(mids)) < len(mids) or not set(bundled) <= set(mids):
        raise BadSdp("The SDP offer's a=mid names must differ, one a section, and its bundle may name no others.")
    speaking = [section for section in media if section.port] or media
    for attribute, what in (("ice-ufrag", "ICE credentials"), ("ice-pwd", "ICE credentials"), ("fingerprint", "DTLS")):
        if not _values(session, attribute) and not all(section.values(attribute) for section in speaking):
            raise BadSdp(f"The SDP offer lacks {what}: a={attribute} is missing.")
    sounds = [section for section in media if section.kind == "audio"]
    sound = any(section.is_opus and section.direction in directions for section in sounds if not section.is_refused)
    refused = tuple(
        (at, section)
        for at, section in enumerate(media)
        if section.is_refused or (section in sounds and not section.is_opus)
    )
    strange = {section.mid for _, section in refused}
    kept = [_without_mids(line, strange) if line.startswith("a=group:") else line for line in session]
    shared = [line for line in speaking[0].lines if line.startswith(SHARED)]
    for section in media:
        if section.mid not in strange:
            kept += [section.m_line, *section.lines, *([] if section.port or section.values("ice-ufrag") else shared)]
    kept = [line for line in kept if line != "a=end-of-candidates" and not _UNUSED.match(line)]
    # What a refused section offers to connect by is its bundle's too: the first section that is left takes it.
    candidates = tuple(("" if mid in strange else mid, candidate) for mid, candidate in _candidates(media))
    return Offer("\r\n".join(kept) + "\r\n", _values(lines, "ice-ufrag")[0], candidates, sound, refused)


def _without_mids(group: str, mids: set[str]) -> str:
    return " ".join(word for word in group.split() if word not in mids)


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
    session, media = _sections(lines)
    ufrags = _values(lines, "ice-ufrag")
    # Some clients send candidates without an m-line: they mean the bundle, so the first section.
    loose = MediaSection("", 0, "", tuple(line for line in session if line.startswith(("a=candidate:", "a=mid:"))))
    return Fragment(ufrags[0] if ufrags else None, _candidates([loose, *media]))


def _sections(lines: list[str]) -> tuple[list[str], list[MediaSection]]:
    """Session lines and media sections. Raises BadSdp for a broken m-line."""
    starts = [number for number, line in enumerate(lines) if line.startswith("m=")]
    media = []
    for start, end in pairwise([*starts, len(lines)]):
        match = _MEDIA.fullmatch(lines[start])
        if match is None or not (match[2] == "0" or _is_port(match[2])):
            raise BadSdp(f"The SDP line {lines[start][:60]!r} cannot be read.")
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


def _candidates(media: Sequence[MediaSection]) -> Candidates:
    """All that can be tried. Raises BadSdp for those that cannot be read and for too many.

    Addresses and mDNS names (which browsers without camera permission give) only: to look another name up would hold
    up the event loop, and RFC 8839 has us ignore it.
    """
    values = [(section.mid, value) for section in media for value in section.values("candidate")]
    if len(values) > MAX_CANDIDATES:
        raise BadSdp(f"More than {MAX_CANDIDATES} candidates are not taken.")
    candidates = [(mid, _candidate(value)) for mid, value in values]
    return tuple((mid, one) for mid, one in candidates if one.ip.lower().endswith(".local") or _is_address(one.ip))


def _candidate(value: str) -> RTCIceCandidate:
    match = _CANDIDATE.fullmatch(value)
    if match is not None and _is_port(match["port"]):
        with contextlib.suppress(ValueError):  # of an rport that is no number
            return candidate_from_sdp(value)
    raise BadSdp(f"The candidate {value[:80]!r} cannot be read.")


def _is_port(digits: str) -> bool:
    """Python refuses to read numbers of thousands of digits."""
    return _PORT.fullmatch(digits) is not None and 0 < int(digits) <= MAX_PORT


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _values(lines: tuple[str, ...] | list[str], attribute: str) -> list[str]:
    prefix = f"a={attribute}:"
    return [line.strip()[len(prefix) :] for line in lines if line.startswith(prefix)]
