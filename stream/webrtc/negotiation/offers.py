"""Offers: text in, an Offer that can be answered or one sentence out. aiortc accepts garbage in silence, and stumbles
over what it lacks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiortc.sdp import FMTP_INT_PARAMETERS

from . import h264
from .sdp import (
    BadSdp,
    Candidates,
    MediaSection,
    candidates_of,
    for_aiortc,
    is_payload_type,
    is_port,
    lines_of,
    sections,
    values,
)

MAX_MEDIA = 8
SENDING = frozenset({"sendonly", "sendrecv"})
RECEIVING = frozenset({"recvonly", "sendrecv"})
KINDS = frozenset({"audio", "video", "application"})
# RTP in any dress, since DTLS is told by its fingerprint (RFC 9429, 5.1.2), and data channels in old and new.
_PROTOCOL = re.compile("((UDP|TCP)/TLS/)?RTP/S?AVPF?|((UDP|TCP)/)?DTLS/SCTP")
SHARED = ("a=ice-ufrag:", "a=ice-pwd:", "a=fingerprint:", "a=setup:", "a=rtcp-mux")  # by the sections of a bundle
DIGESTS = {"sha-256": 32, "sha-384": 48, "sha-512": 64}  # bytes; what aiortc compares certificates by
_NUMBER = re.compile("[0-9]{1,9}")
SETUPS = ("actpass", "active", "passive")

FormatKey = tuple[str, int]  # the section's mid, the payload type


class NoCommonCodec(Exception):
    """The offer has no codec that we can decode or encode; the message names those that it has."""


@dataclass(frozen=True)
class Offer:
    """An offer that has been looked through: `text` for aiortc, and the candidates to give to it afterwards."""

    text: str
    ufrag: str  # the ICE user it speaks for
    candidates: Candidates  # mDNS names take a second to resolve, so not before the answer
    sound: bool  # it has sound that goes the right way
    h264: Mapping[FormatKey, h264.H264Format]  # what it says of the H264 that we take
    bundle: str  # the line that names its sections that share a transport; "" where none do
    protocols: tuple[str, ...]  # of the sections that `text` has
    refused: tuple[tuple[int, MediaSection], ...]  # sections that `text` lacks, by their place in the offer

    def answered(self, answer: str) -> str:
        """aiortc's answer, as this offer has it: the same bundle or none, the same protocols, what aiortc did not get
        to see refused (RFC 3264, 6: port 0); and with one fingerprint.

        It gives three. Of SHA-384 and SHA-512 some releases of OBS know nothing or the wrong name.
        """
        answer = re.sub("^a=(fingerprint:(?!sha-256 )|group:).*\n", "", answer, flags=re.MULTILINE)
        head, *media = re.split("(?=^m=)", answer, flags=re.MULTILINE)
        protocols = zip(media, self.protocols, strict=True)
        media = [re.sub(r"(?<=^m=)(\S+ [0-9]+) \S+", rf"\1 {protocol}", section) for section, protocol in protocols]
        for place, section in self.refused:
            lines = [f"m={section.kind} 0 {section.transport}", "c=IN IP4 0.0.0.0", "a=inactive"]
            media.insert(place, "\r\n".join([*lines, *([f"a=mid:{section.mid}"] if section.mid else [])]) + "\r\n")
        return "".join([head, *([f"{self.bundle}\r\n"] if self.bundle else []), *media])


def checked_offer(text: str, directions: frozenset[str], verb: str) -> Offer:
    """The offer in the form that aiortc can use. Raises BadSdp, NoCommonCodec.

    directions: which of them the offer's video may have; verb: what it must do, for the sentence ("send", "receive").
    `a=end-of-candidates` is left out: with it aiortc never connects to an offer that carries no candidates, and waits
    for the peer's own checks without it. So are sound that is not Opus and video that we have no codec for, which would
    make aiortc refuse the rest too, and what the offer itself refuses. A section that leaves to its bundle how to
    connect gets that said again.
    """
    lines = lines_of(text)
    session, media = sections(lines)
    _check_media(media, directions, verb)
    _check_names(session, media)
    offered = {section: _formats(section) for section in media}
    refused = tuple((at, section) for at, section in enumerate(media) if _is_left_out(section, offered[section]))
    strange = {section.mid for _, section in refused}
    kept = [section for section in media if section not in [one for _, one in refused]]
    if not any(section.kind == "video" and section.direction in directions for section in kept):
        raise NoCommonCodec(_no_common_codec(media))
    speaking = [section for section in media if section.port] or media
    shared = [line for line in speaking[0].lines if line.startswith(SHARED)]
    bundle = _bundle(session, strange)
    said = [line for line in session if not line.startswith("a=group:")] + ([bundle] if bundle else [])
    for section in kept:
        inherits = not (section.port or section.values("ice-ufrag"))
        own = [*section.lines, *(shared if inherits else [])]
        _check_transport(section, session, own)
        said += [section.m_line, *_with_formats(own, offered[section])]
    # What a refused section offers to connect by is its bundle's too: the first section that is left takes it.
    candidates = tuple(("" if mid in strange else mid, candidate) for mid, candidate in candidates_of(media))
    return Offer(
        text=for_aiortc(said),
        ufrag=values(lines, "ice-ufrag")[0],
        candidates=candidates,
        sound=any(section.kind == "audio" and section.direction in directions for section in kept),
        h264={
            (section.mid, number): one.h264
            for section in kept
            for number, one in offered[section].items()
            if one.h264 is not None
        },
        bundle=bundle,
        protocols=tuple(section.protocol for section in kept),
        refused=refused,
    )


# -- what an offer must have -----------------------------------------------------------------------------------------


def _check_media(media: Sequence[MediaSection], directions: frozenset[str], verb: str) -> None:
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
    if not all(is_port(section.sctp_port) for section in data):
        raise BadSdp("The SDP offer's data channel names no port between 1 and 65535: a=sctp-port is missing or wrong.")
    if len(data) > 1:
        raise BadSdp("The SDP offer has more than one section of data channels: one takes any number of them.")


def _check_names(session: Sequence[str], media: Sequence[MediaSection]) -> None:
    """Mids (RFC 5888), by which sections are bundled and told apart."""
    if any(len(set(section.values("mid"))) > 1 for section in media):  # we would take the first, aiortc the last
        raise BadSdp("The SDP offer gives a section two names: it takes one a=mid.")
    nameless = [section.kind for section in media if not section.mid]
    if nameless and len(media) > 1:
        raise BadSdp(f"The SDP offer's {nameless[0]} has no name: each section needs an a=mid of its own.")
    mids = Counter(section.mid for section in media)
    if twice := [mid for mid, count in mids.items() if count > 1]:
        raise BadSdp(f"The SDP offer names two sections a=mid:{twice[0][:40]}: the names must differ.")
    bundled = Counter(mid for group in _bundles(session) for mid in group.split()[1:])
    if strangers := [mid for mid in bundled if mid not in mids]:
        raise BadSdp(f"The SDP offer bundles {strangers[0][:40]!r}, but none of its sections has that name (a=mid).")
    if twice := [mid for mid, count in bundled.items() if count > 1]:
        raise BadSdp(f"The SDP offer bundles a=mid:{twice[0][:40]} twice.")


def _check_transport(section: MediaSection, session: Sequence[str], own: Sequence[str]) -> None:
    """What aiortc needs to connect this section; own: its lines, and those that it shares."""
    if not _PROTOCOL.fullmatch(section.protocol):
        raise BadSdp(f"The SDP offer's {section.kind} goes by {section.protocol[:40]!r}: offer UDP/TLS/RTP/SAVPF.")
    for attribute, what in (("ice-ufrag", "ICE credentials"), ("ice-pwd", "ICE credentials")):
        if not all(values(own, attribute) or values(session, attribute) or [""]):
            raise BadSdp(f"The SDP offer lacks {what}: a={attribute} is missing.")
    if not (fingerprints := values(session, "fingerprint") + values(own, "fingerprint")):
        raise BadSdp("The SDP offer lacks DTLS: a=fingerprint is missing.")
    known = [one.split() for one in fingerprints if one.split()[0].lower() in DIGESTS]
    if not known:
        raise BadSdp("The SDP offer's a=fingerprint must be of SHA-256, SHA-384 or SHA-512, as in sha-256 AB:CD:...")
    for digest, value in known:
        if len(value) != 3 * DIGESTS[digest.lower()] - 1:
            raise BadSdp(f"The SDP offer's a=fingerprint:{digest} has not the {DIGESTS[digest.lower()]} bytes it must.")
    setups = values(own, "setup") or values(session, "setup")
    if not setups:
        raise BadSdp("The SDP offer lacks its part in DTLS: a=setup is missing (actpass, mostly).")
    if wrong := [one for one in setups if one not in SETUPS]:
        raise BadSdp(
            f"The SDP offer says a=setup:{wrong[0][:40]}: it must be {', '.join(SETUPS[:-1])} or {SETUPS[-1]}."
        )
    if section.kind != "application" and "a=rtcp-mux" not in own:
        raise BadSdp(f"The SDP offer's {section.kind} lacks a=rtcp-mux: its RTP and RTCP must share one port.")


def _bundles(session: Sequence[str]) -> list[str]:
    return [group for group in values(session, "group") if group.split()[0] == "BUNDLE"]


def _bundle(session: Sequence[str], without: set[str]) -> str:
    """The line of the offer's first bundle, the one that aiortc makes."""
    mids = [mid for group in _bundles(session)[:1] for mid in group.split()[1:] if mid not in without]
    return " ".join(["a=group:BUNDLE", *mids]) if mids else ""


# -- its formats -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Format:
    """A payload type of a section; `wanted` where we have its codec."""

    codec: str
    parameters: Mapping[str, str]
    wanted: bool
    h264: h264.H264Format | None = None
    fault: str = ""  # why not, where the codec alone does not say it


def _formats(section: MediaSection) -> dict[int, _Format]:
    """By payload type. Parameters of one that is not mapped are left out: it has a codec of its own (RFC 3551)."""
    codecs: dict[int, str] = {}
    for value in section.values("rtpmap"):
        number, codec = value.split()
        if is_payload_type(number):
            codecs.setdefault(int(number), codec)
    parameters: dict[int, dict[str, str]] = {number: {} for number in codecs}
    for value in section.values("fmtp"):
        number, _, told = value.partition(" ")
        if int(number) in codecs:
            parameters[int(number)].update(_parameters(told))
    return {number: _format(section.kind, codec, parameters[number]) for number, codec in codecs.items()}


def _format(kind: str, codec: str, parameters: dict[str, str]) -> _Format:
    name = codec.lower()
    if kind == "video" and name == "h264/90000":
        try:
            return _Format(codec, parameters, True, h264.read(parameters))
        except h264.NotTaken as error:
            return _Format(codec, parameters, False, fault=str(error))
    return _Format(codec, parameters, name.startswith("opus/48000") if kind == "audio" else name == "vp8/90000")


def _parameters(fmtp: str) -> dict[str, str]:
    """Some write blanks behind the semicolons, some end with one. A word without a value is its own name, and "" ."""
    told = (part.strip().partition("=") for part in fmtp.split(";") if part.strip())
    parameters = {name.strip(): value.strip() for name, _, value in told}
    for name in FMTP_INT_PARAMETERS:
        if (value := parameters.get(name, "")) and not _NUMBER.fullmatch(value):
            raise BadSdp(f"The SDP offer's a=fmtp says {name}={value[:40]}, which is no number.")
    return parameters


def _with_formats(lines: Sequence[str], formats: Mapping[int, _Format]) -> list[str]:
    """A section's lines for aiortc: parameters as it reads them, and no H264 that we do not take."""
    said: list[str] = []
    mapped: set[int] = set()
    for line in lines:
        if line.startswith("a=fmtp:"):
            continue
        if line.startswith("a=rtpmap:"):
            number, codec = line.removeprefix("a=rtpmap:").split()
            found = formats.get(int(number))
            # Of two lines for one payload type the first holds.
            if found is None or found.fault or found.codec != codec or int(number) in mapped:
                continue
            mapped.add(int(number))
            said.append(line)
            told = found.h264.canonical if found.h264 is not None else _text(found.parameters)
            said += [f"a=fmtp:{number} {told}"] if told else []
        else:
            said.append(line)
    return said


def _text(parameters: Mapping[str, str]) -> str:
    return ";".join(f"{name}={value}" if value else name for name, value in parameters.items())


def _is_left_out(section: MediaSection, formats: Mapping[int, _Format]) -> bool:
    return section.is_refused or (section.kind != "application" and not any(one.wanted for one in formats.values()))


def _no_common_codec(media: Sequence[MediaSection]) -> str:
    formats = [one for section in media if section.kind == "video" for one in _formats(section).values()]
    names = dict.fromkeys(one.fault or one.codec.partition("/")[0][:40] for one in formats)
    offered = ", ".join([name for name in names if name.lower() != "rtx"][:4]) or "none"
    return f"No codec in common: offer video as VP8 or H264 (Constrained Baseline); this offer has {offered}."
