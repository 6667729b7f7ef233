"""Every private name of aiortc 1.16 and aioice 0.13 that we touch, and every constant of theirs that we change.

`apply` changes what holds for the whole process; each other function what belongs to one peer or transport. Those of
receivers and senders stand beside it, in aiortc_receivers.py and aiortc_senders.py. What these changes decide lies in
files that know no private name: decoding.py, feedback.py, reports.py, sound.py, negotiation/, receiving/.

At an upgrade of either package: run tests/stream, and read again what each "Recheck" below names.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from aioice import Connection, ice, stun
from aiortc import (
    RTCCertificate,
    RTCDtlsTransport,
    RTCPeerConnection,
    codecs,
    rtcrtpsender,
    rtp,
)
from aiortc.codecs import h264, vpx
from aiortc.codecs.base import Encoder
from aiortc.rtcdtlstransport import SRTPProtectionProfile
from aiortc.rtcrtpparameters import ParametersDict, RTCRtpCodecParameters
from OpenSSL import SSL

from .decoding import MAX_MACROBLOCKS
from .feedback import HISTORY
from .h264_encoder import AgreedH264Encoder
from .sound import BITRATE_BPS, MusicEncoder

# -- the process -----------------------------------------------------------------------------------------------------

_host_addresses = ice.get_host_addresses


@functools.cache
def apply() -> None:
    """Change what aiortc and aioice hold once for the process: call it before the first peer is made.

    Our answers offer VP8 up to MAX_MACROBLOCKS (RFC 7741, 6.1; those of H264 say what the offer does, and senders may
    exceed it), and of sound Opus alone, in stereo (RFC 7587, 6.1), which is encoded as music.

    Recheck: `codecs.CODECS` is what answers are made of, `codecs.get_encoder` finds OpusEncoder in its own module,
    `ice.Connection` finds get_host_addresses in its own, and RTCRtpSender RTP_HISTORY_SIZE.
    """
    for codec in codecs.CODECS["video"]:
        if codec.mimeType == "video/VP8":
            codec.parameters["max-fs"] = MAX_MACROBLOCKS
    opus = [codec for codec in codecs.CODECS["audio"] if codec.mimeType == "audio/opus"]
    opus[0].parameters.update({"stereo": 1, "sprop-stereo": 1, "maxaveragebitrate": BITRATE_BPS})
    codecs.CODECS["audio"] = opus
    codecs.OpusEncoder = MusicEncoder  # type: ignore[misc]  # a class is no variable to mypy
    ice.get_host_addresses = _addresses_or_loopback
    _apply_negotiation()
    rtcrtpsender.RTP_HISTORY_SIZE = HISTORY


def _addresses_or_loopback(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    """aioice offers no loopback address, so a laptop without any network would have nothing to connect by."""
    return _host_addresses(use_ipv4, use_ipv6) or ["127.0.0.1"]


def set_bitrates(floor_bps: int, ceiling_bps: int) -> None:
    """What every encoder of video is made with from now on, the ceiling, and between what it can be told (bitrates.py).

    Recheck: both modules read these constants whenever an encoder is made or told a bitrate.
    """
    vpx.MIN_BITRATE = h264.MIN_BITRATE = floor_bps
    vpx.DEFAULT_BITRATE = vpx.MAX_BITRATE = h264.DEFAULT_BITRATE = h264.MAX_BITRATE = ceiling_bps


# -- a peer and its transport ----------------------------------------------------------------------------------------


def tell_failure(peer: RTCPeerConnection, on_failure: Callable[[Exception], None]) -> None:
    """Call on_failure when connecting raises, which aiortc does in a task that nobody looks after; before the answer.

    What an offer says of a section is used only then, and a peer that is closed meanwhile raises, too.

    Recheck: setLocalDescription and setRemoteDescription make tasks of RTCPeerConnection.__connect().
    """
    inside: Any = peer
    connect = inside._RTCPeerConnection__connect

    async def connect_and_tell() -> None:
        try:
            await connect()
        except Exception as error:
            on_failure(error)

    inside._RTCPeerConnection__connect = connect_and_tell


def take_media_for_consent(
    transport: RTCDtlsTransport, on_round_trip: Callable[[float], None] = lambda seconds: None
) -> None:
    """Let whatever a publisher sends pass for an answer to our consent checks (RFC 7675); before it is connected.

    FFmpeg's WHIP client (8.1) answers none, and lost us after 30 s. One that sends nothing and answers nothing for as
    long is gone: its connection fails. on_round_trip: called with the seconds that an answer took.

    Recheck: RTCDtlsTransport.__rx_packets counts media too, RTCIceTransport._connection is aioice's Connection, which
    makes a task of its query_consent() once it is connected.
    """
    inside: Any = transport
    connection = inside.transport._connection
    connection.query_consent = lambda: _query_consent(
        connection, lambda: inside._RTCDtlsTransport__rx_packets, on_round_trip
    )


async def _query_consent(
    connection: Connection, received: Callable[[], int], on_round_trip: Callable[[float], None]
) -> None:
    """aioice's own, but that it fails only where nothing has been received either.

    Recheck: it against aioice's, and that close() waits for _query_consent_task.
    """
    failures = 0
    while failures < ice.CONSENT_FAILURES:
        before = received()
        await asyncio.sleep(ice.CONSENT_INTERVAL * random.uniform(0.8, 1.2))
        answered = all([await _answers(connection, pair, on_round_trip) for pair in connection._nominated.values()])
        failures = 0 if answered or received() > before else failures + 1
    connection._query_consent_task = None
    await connection.close()


async def _answers(connection: Connection, pair: ice.CandidatePair, on_round_trip: Callable[[float], None]) -> bool:
    assert connection.remote_password is not None  # it is connected
    request = connection.build_request(pair, nominate=False)
    password = connection.remote_password.encode()
    asked_s = time.monotonic()
    try:
        await pair.protocol.request(request, pair.remote_addr, integrity_key=password, retransmissions=0)
    except stun.TransactionError:
        return False
    on_round_trip(time.monotonic() - asked_s)
    return True


# -- negotiation and DTLS --------------------------------------------------------------------------------------------

# aiortc's own are for peers with ECDSA certificates. GStreamer's have RSA: as servers they need a suite that says so.
_RSA_SUITES = b"ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-CHACHA20-POLY1305:ECDHE-RSA-AES256-GCM-SHA384"
_ECDSA_SUITES = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA"
)
_HANDSHAKE_FAILED = "x DTLS handshake failed ("


def _apply_negotiation() -> None:
    """RSA suites; H264 as single NAL units, too, each encoder for the level and mode that were agreed on; and payload
    types 35 to 63, which senders take where 96 to 127 are not enough. Those between are RTCP's (RFC 5761, 4).

    Recheck: RTCCertificate._create_ssl_context makes each transport's context; rtcrtpsender finds get_encoder in its
    own module; find_common_codecs takes the payload types of rtp.DYNAMIC_PAYLOAD_TYPES from the offer, and tells H264's
    formats apart by mode and profile.
    """
    inside: Any = RTCCertificate
    create = inside._create_ssl_context

    def create_with_rsa(certificate: RTCCertificate, srtp_profiles: list[SRTPProtectionProfile]) -> SSL.Context:
        context = create(certificate, srtp_profiles)
        context.set_cipher_list(_ECDSA_SUITES + b":" + _RSA_SUITES)
        return context

    inside._create_ssl_context = create_with_rsa
    rtp.DYNAMIC_PAYLOAD_TYPES = (*range(35, 64), *range(96, 128))  # type: ignore[assignment]  # it is looked into only
    unused = max(codec.payloadType or 0 for codec in codecs.CODECS["video"]) + 1
    for codec in [one for one in codecs.CODECS["video"] if one.mimeType == "video/H264"]:
        single = copy.deepcopy(codec)
        single.payloadType, single.parameters["packetization-mode"] = unused, "0"
        retransmitted = RTCRtpCodecParameters("video/rtx", codec.clockRate, None, unused + 1, [], {"apt": unused})
        codecs.CODECS["video"] += [single, retransmitted]
        unused += 2
    rtcrtpsender.get_encoder = _encoder_for


def _encoder_for(codec: RTCRtpCodecParameters) -> Encoder:
    return AgreedH264Encoder(codec) if codec.mimeType.lower() == "video/h264" else codecs.get_encoder(codec)


def agree_on(peer: RTCPeerConnection, parameters: Mapping[tuple[str, int], ParametersDict]) -> None:
    """What the answer says of codecs, by mid and payload type, and what their encoders go by; in place of aiortc's own
    parameters. After setRemoteDescription, before createAnswer.

    Recheck: RTCRtpTransceiver._codecs are copies made for that transceiver, which the answer names, and of which the
    sender gets the first.
    """
    for transceiver in peer.getTransceivers():
        inside: Any = transceiver
        for codec in inside._codecs:
            codec.parameters = parameters.get((transceiver.mid or "", codec.payloadType), codec.parameters)


def tell_handshake_failure(transport: RTCDtlsTransport, on_failure: Callable[[str], None]) -> None:
    """Call on_failure with the reason when the DTLS handshake fails, of which aiortc tells only its debug log; before
    the transport is connected.

    Recheck: RTCDtlsTransport.__log_debug gets "x DTLS handshake failed (...)"; _do_handshake has a Connection in _ssl,
    and what OpenSSL says of a failure comes with that one's recv(), whose errors are passed over.
    """
    inside: Any = transport
    log_debug, do_handshake = inside._RTCDtlsTransport__log_debug, inside._do_handshake
    reasons: list[str] = []

    async def do_and_note() -> None:
        receive = inside._ssl.recv

        def receive_and_note(size: int) -> bytes:
            try:
                data: bytes = receive(size)
            except SSL.Error as error:  # of (library, function, reason)
                reasons.extend(said[-1] for said in (error.args[0] if error.args else []))
                raise
            return data

        inside._ssl.recv = receive_and_note
        await do_handshake()
        inside._ssl.recv = receive

    def log_and_tell(message: str, *arguments: object) -> None:
        log_debug(message, *arguments)
        if message.startswith(_HANDSHAKE_FAILED):
            said = message.removeprefix(_HANDSHAKE_FAILED).removesuffix(")").replace("%s", "in OpenSSL")
            on_failure(reasons[-1] if reasons else said)

    inside._RTCDtlsTransport__log_debug, inside._do_handshake = log_and_tell, do_and_note
