"""Offers of every kind, and what they are answered: what is missing is named, and what is offered is answered so."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import aiortc.codecs
import pytest
from aiortc import RTCCertificate
from aiortc.rtcdtlstransport import generate_certificate
from aiortc.sdp import SessionDescription
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from pipeline.capabilities import Capabilities
from stream.webrtc.negotiation.offers import RECEIVING, SENDING, NoCommonCodec, checked_offer
from stream.webrtc.negotiation.sdp import BadSdp
from tests.paths import ROOT
from tests.stream.fakes import FakeStylizer, Pictures
from tests.stream.http.test_whip import SDP, offer_of, only_codec, without
from tests.stream.peers import Publisher, ToneTrack, Viewer, until

from .test_fuzz import local

OFFERS = {file.stem: local(file.read_text()) for file in sorted((ROOT / "tests" / "data" / "offers").glob("*.sdp"))}
RED, RED_SHOWN = (200, 40, 40), (40, 40, 200)  # the fake engine swaps red and blue
GENERIC = "one of its attributes is malformed"
FFPROBE = shutil.which("ffprobe")


def checked(name: str, text: str):
    return checked_offer(text, *((SENDING, "send") if name.endswith("whip") else (RECEIVING, "receive")))


async def answered(server, offer: str, kind: str = "whip", status: int = 201) -> str:
    async with server.http.post(f"{server.url}/{kind}/one", data=offer.encode(), headers=SDP) as response:
        text = await response.text()
        assert response.status == status, text
    return text if status == 201 else json.loads(text)["error"]


def changing(peer, change):
    """The peer's offer is changed on its way."""
    offer = peer.offer

    async def changed():
        return change(await offer())

    peer.offer = changed
    return peer


# -- bundles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OFFERS)
async def test_an_offer_without_a_bundle_is_answered_without(server, name):
    kind = name.rpartition("-")[2]
    answer = await answered(server, without("a=group:BUNDLE")(OFFERS[name]), kind)
    assert "a=group" not in answer
    ports = re.findall("^m=[a-z]+ ([0-9]+) ", answer, flags=re.MULTILINE)
    assert len({port for port in ports if port != "0"}) == len([port for port in ports if port != "0"])


async def test_the_bundle_that_is_offered_is_the_bundle_that_is_answered(server):
    for name, offer in OFFERS.items():
        answer = await answered(server, offer, name.rpartition("-")[2])
        groups = [re.findall("a=group:BUNDLE.*", text) for text in (offer, answer)]
        assert [one.strip() for one in groups[0]] == [one.strip() for one in groups[1]]


async def test_picture_and_sound_come_by_transports_of_their_own(server):
    unbundled = without("a=group:BUNDLE")
    publisher = changing(
        Publisher(server.http, f"{server.url}/whip/one", RED, audio=ToneTrack(900)),
        lambda text: unbundled(text) + "\r\n",
    )
    viewer = changing(Viewer(server.http, f"{server.url}/whep/one", sound=True), lambda text: unbundled(text) + "\r\n")
    async with publisher, viewer:
        assert len({sender.transport for sender in publisher.peer.getSenders()}) == 2
        await viewer.sees(RED_SHOWN)
        await viewer.hears(900)


# -- DTLS ------------------------------------------------------------------------------------------------------------


def rsa_certificate() -> RTCCertificate:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return RTCCertificate(key, generate_certificate(key))


@pytest.mark.parametrize("setup", ["actpass", "active", "passive"])
@pytest.mark.parametrize("kind", ["whip", "whep"])
async def test_a_peer_with_an_rsa_certificate_connects_in_either_part(server, kind, setup):
    """GStreamer's have one."""
    publisher = Publisher(server.http, f"{server.url}/whip/one", RED)
    viewer = Viewer(server.http, f"{server.url}/whep/one")
    peer = publisher if kind == "whip" else viewer
    peer.peer._RTCPeerConnection__certificates = [rsa_certificate()]
    changing(peer, lambda text: text.replace("a=setup:actpass", f"a=setup:{setup}"))
    async with publisher, viewer:
        await viewer.sees(RED_SHOWN)


@pytest.mark.parametrize("setup", ["active", "passive"])
async def test_a_handshake_that_fails_is_told_in_a_sentence(server, caplog, monkeypatch, setup):
    publisher = Publisher(server.http, f"{server.url}/whip/one")
    changing(publisher, lambda text: text.replace("a=setup:actpass", f"a=setup:{setup}"))
    create = RTCCertificate._create_ssl_context
    certificate = rsa_certificate()
    publisher.peer._RTCPeerConnection__certificates = [certificate]

    def create_with_old_suites(self, srtp_profiles):
        context = create(self, srtp_profiles)
        if self is certificate:
            context.set_options(SSL.OP_NO_TLSv1_3)
            context.set_cipher_list(b"AES256-SHA")
        return context

    monkeypatch.setattr(RTCCertificate, "_create_ssl_context", create_with_old_suites)
    async with publisher:
        await until(lambda: not server.sessions)
    (told,) = [record.getMessage() for record in caplog.records if "DTLS" in record.getMessage()]
    assert told.startswith("The DTLS handshake of a WHIP session of stream one failed: ")
    assert told.endswith(".")
    assert ("no shared cipher" if setup == "active" else "handshake failure") in told


async def test_a_certificate_other_than_the_offers_is_told(server, caplog):
    def another(text):
        return re.sub("a=fingerprint:(sha-[0-9]+) ..", r"a=fingerprint:\1 00", text)

    async with changing(Publisher(server.http, f"{server.url}/whip/one"), another):
        await until(lambda: not server.sessions)
    assert "its certificate is not the one that its offer's a=fingerprint names." in caplog.text


# -- H264 ------------------------------------------------------------------------------------------------------------

FORMATS = {  # what is offered of H264, and what is answered
    "profile-level-id=42e01f; packetization-mode=1; level-asymmetry-allowed=1": (
        "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f"
    ),
    " packetization-mode=1;profile-level-id=42C01E ; ": "packetization-mode=1;profile-level-id=42c01e",
    "profile-level-id=42e01f": "profile-level-id=42e01f",
    "packetization-mode=0": "packetization-mode=0",
    "packetization-mode=1": "packetization-mode=1",
    "profile-level-id=4d801f;packetization-mode=1": "packetization-mode=1;profile-level-id=4d801f",
    "profile-level-id=42002a;packetization-mode=0": "packetization-mode=0;profile-level-id=42002a",
    "": "",
}


@pytest.mark.parametrize("offered", FORMATS)
async def test_h264_is_published_and_seen_in_the_form_that_is_offered(server, offered):
    def change(text):
        return only_codec("H264/90000", offered)(text)

    publisher = Publisher(server.http, f"{server.url}/whip/one", RED, "H264")
    viewer = changing(Viewer(server.http, f"{server.url}/whep/one", "H264"), change)
    answer = await answered(server, change(await offer_of()))
    assert re.findall("a=fmtp:100 (.*)\r", answer) == ([FORMATS[offered]] if FORMATS[offered] else [])
    async with changing(publisher, change), viewer:
        await viewer.sees(RED_SHOWN)


@pytest.mark.parametrize(
    ("offered", "words"),
    [
        ("profile-level-id=640c1f;packetization-mode=1", "High (profile-level-id=640c1f)"),
        ("profile-level-id=4d001f", "Main (profile-level-id=4d001f)"),
        ("profile-level-id=42e01f;packetization-mode=2", "packetization-mode '2'"),
        ("profile-level-id=42;packetization-mode=1", "cannot be read ('42')"),
        ("packetization-mode", "packetization-mode ''"),
    ],
)
async def test_h264_that_is_not_taken_is_refused_by_its_name(server, offered, words):
    for kind, direction in (("whip", "sendonly"), ("whep", "recvonly")):
        told = await answered(server, only_codec("H264/90000", offered)(await offer_of(direction)), kind, status=406)
        assert words in told
        assert "offer video as VP8 or H264 (Constrained Baseline)" in told


async def test_a_second_video_without_a_codec_of_ours_is_refused_alone(server):
    first, second = await offer_of(), only_codec("H265/90000")(await offer_of())
    section = "m=" + second.split("m=")[1].replace("a=mid:0", "a=mid:1")
    answer = await answered(server, first.replace("BUNDLE 0", "BUNDLE 0 1") + section)
    assert re.findall("^m=video [0-9]+", answer, flags=re.MULTILINE)[1] == "m=video 0"
    assert "a=group:BUNDLE 0\r\n" in answer


async def test_payload_types_below_96_are_answered_as_offered(server):
    """RFC 5761, 4: from 35 on they are free, and Chromium takes them."""
    offer = only_codec("VP8/90000")(await offer_of()).replace("SAVPF 100", "SAVPF 39").replace(":100 ", ":39 ")
    assert "a=rtpmap:39 VP8/90000" in await answered(server, offer)


async def test_payload_types_that_rtcp_has_are_not_taken(server):
    """RFC 5761, 4: beside RTCP every packet of theirs with the marker would be lost."""
    offer = only_codec("VP8/90000")(await offer_of()).replace("SAVPF 100", "SAVPF 70").replace(":100 ", ":70 ")
    async with server.http.post(
        f"{server.url}/whip/one", data=offer, headers={"Content-Type": "application/sdp"}
    ) as response:
        assert response.status == 400, await response.text()
        assert "no RTP payload type" in (await response.json())["error"]


# -- levels ----------------------------------------------------------------------------------------------------------


class LargeStylizer(FakeStylizer):
    """Paints pictures of `size`."""

    def __init__(self, width: int, height: int):
        super().__init__()
        self.capabilities = Capabilities(width, height)

    def painted(self, batch):
        one = super().painted(batch).rgb
        return Pictures(one[:, :1, :1].repeat(self.capabilities.height, 1).repeat(self.capabilities.width, 2))


@pytest.fixture
def received(monkeypatch):
    """The H264 that a viewer gets, whole."""
    data = bytearray()

    class KeepingDecoder(aiortc.codecs.H264Decoder):
        def decode(self, encoded):
            data.extend(encoded.data)
            return super().decode(encoded)

    monkeypatch.setattr(aiortc.codecs, "H264Decoder", KeepingDecoder)
    return data


def probed(data: bytes) -> tuple[int, int, int]:
    """Level, width and height as ffprobe has them."""
    command = [FFPROBE, "-v", "error", "-f", "h264", "-show_streams", "-of", "json", "-"]
    found = json.loads(subprocess.run(command, input=data, capture_output=True, check=True).stdout)["streams"][0]
    return found["level"], found["width"], found["height"]


@pytest.mark.skipif(FFPROBE is None, reason="ffprobe is not installed")
@pytest.mark.parametrize(
    ("offered", "size", "answered_level", "seen"),
    [
        ("42e01f;level-asymmetry-allowed=1", (1024, 1024), "42e020", (32, 1024, 1024)),
        ("42e01f", (1024, 1024), "42e01f", (31, 960, 960)),
        ("42e01f", (768, 1344), "42e01f", (31, 720, 1260)),
        ("42e01f;level-asymmetry-allowed=1", (512, 512), "42e01f", (31, 512, 512)),
        ("42e033;level-asymmetry-allowed=1", (1024, 1024), "42e033", (32, 1024, 1024)),
        ("42e014", (512, 512), "42e014", (20, 304, 304)),
    ],
)
@pytest.mark.parametrize("mode", [0, 1])
async def test_the_level_that_is_answered_fits_what_is_sent(
    start_server, received, offered, size, answered_level, seen, mode
):
    server = await start_server(LargeStylizer(*size))
    change = only_codec("H264/90000", f"packetization-mode={mode};profile-level-id={offered}")
    answer = await answered(server, change(await offer_of("recvonly")), "whep")
    assert f"profile-level-id={answered_level}\r\n" in answer
    viewer = changing(Viewer(server.http, f"{server.url}/whep/one", "H264"), change)
    async with Publisher(server.http, f"{server.url}/whip/one", RED), viewer:
        await viewer.sees(RED_SHOWN)
    assert probed(bytes(received)) == seen


async def test_until_a_model_is_loaded_the_answer_goes_by_the_size_that_is_asked_for(start_server):
    stylizer = FakeStylizer()
    stylizer.gate.clear()

    def load(report):
        stylizer.gate.wait(20)
        return stylizer

    server = await start_server(load=load, wait=False, room_options={"size": (1024, 1024)})
    offer = only_codec("H264/90000", "profile-level-id=42e01f;level-asymmetry-allowed=1")(await offer_of("recvonly"))
    assert "profile-level-id=42e020" in await answered(server, offer, "whep")
    stylizer.gate.set()
    server.engine.wait_settled(10)
    assert "profile-level-id=42e01f" in await answered(server, offer, "whep")


# -- holes -----------------------------------------------------------------------------------------------------------

NEEDED = ("ice-ufrag", "ice-pwd", "fingerprint", "setup", "mid", "rtcp-mux")


@pytest.mark.parametrize("attribute", NEEDED)
@pytest.mark.parametrize("name", OFFERS)
async def test_what_an_offer_lacks_is_named(server, name, attribute):
    kind = name.rpartition("-")[2]
    offer = "\r\n".join(line for line in OFFERS[name].splitlines() if not re.match(f"a={attribute}(:|$)", line))
    assert f"a={attribute}" in await answered(server, offer, kind, status=400)


@pytest.mark.parametrize("name", OFFERS)
async def test_whatever_line_is_missing_or_cut_off_it_is_no_riddle(server, name):
    """Each kind of line left out, cut off behind its colon, or turned into rubbish: taken, or named in a sentence."""
    kind, lines = name.rpartition("-")[2], OFFERS[name].splitlines()
    attributes = sorted({line.partition(":")[0] for line in lines if line.startswith("a=")} | {"c=", "o=", "s=", "t="})
    for attribute in attributes:
        of_kind = re.compile(f"{attribute}([:]|$)" if attribute.startswith("a=") else attribute)
        for change in (None, f"{attribute}:", f"{attribute}:rubbish", f"{attribute}:1 rubbish", attribute):
            changed = [change if of_kind.match(line) else line for line in lines]
            text = "\r\n".join(line for line in changed if line is not None)
            async with server.http.post(f"{server.url}/{kind}/one", data=text, headers=SDP) as response:
                body = await response.text()
            if response.status == 201:
                await server.http.delete(server.url + response.headers["Location"])
            else:
                assert response.status in (400, 406), (attribute, change, body)
                assert GENERIC not in body, (attribute, change, body)


HARMLESS = {
    "a connection line of nobody's": lambda text: text.replace("c=IN IP4 0.0.0.0", "c=IN IP4"),
    "blanks in parameters": lambda text: re.sub("(a=fmtp:.*);", r"\1 ; ", text),
    "parameters of nothing": lambda text: text + "a=fmtp:18 annexb=no\r\n",
    "an extension with attributes": lambda text: re.sub("(a=extmap:.*)", r"\1 short", text),
    "an RTCP port that is none": lambda text: re.sub("a=rtcp:.*", "a=rtcp:none", text),
    "a source without a value": lambda text: text + "a=ssrc:7 hidden\r\n",
    "a stream of no name": lambda text: re.sub("a=msid:.*", "a=msid: -", text),
    "blanks behind a colon": lambda text: text.replace("a=setup:", "a=setup: ").replace("a=mid:", "a=mid: "),
    "two lines of parameters": lambda text: re.sub("(a=fmtp:[0-9]+) (.*)", r"\1 \2\r\n\1 x-more=1", text),
    "a protocol of before": lambda text: text.replace("UDP/TLS/RTP/SAVPF", "RTP/SAVPF"),
}


@pytest.mark.parametrize("name", HARMLESS)
async def test_what_does_no_harm_is_passed_over(server, name):
    def change(text):
        return HARMLESS[name](text.replace("\r\n", "\n"))

    viewer = changing(Viewer(server.http, f"{server.url}/whep/one"), change)
    async with changing(Publisher(server.http, f"{server.url}/whip/one", RED), change), viewer:
        await viewer.sees(RED_SHOWN)


async def test_the_protocol_is_answered_as_offered(server):
    answer = await answered(server, (await offer_of()).replace("UDP/TLS/RTP/SAVPF", "TCP/TLS/RTP/SAVPF"))
    assert re.search("^m=video [0-9]+ TCP/TLS/RTP/SAVPF ", answer, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("UDP/TLS/RTP/SAVPF", "udp"), "goes by 'udp'"),
        (lambda text: re.sub("(m=video .*)", r"\1 200", text), "no RTP payload type"),
        (lambda text: re.sub("(m=video .*)", r"\1 72", text), "no RTP payload type"),
        (lambda text: re.sub("a=fingerprint:sha-[0-9]+", "a=fingerprint:sha-1", text), "SHA-256"),
        (lambda text: re.sub("(a=fingerprint:.*):..", r"\1", text), "bytes"),
        (lambda text: re.sub("a=fmtp:.*", "a=fmtp:97 max-fs=many", text), "max-fs=many"),
        (lambda text: text.replace("BUNDLE 0", "BUNDLE 0 0"), "a=mid:0 twice"),
        (lambda text: text + "m=" + text.split("m=")[1], "two sections a=mid:0"),
        (lambda text: text + "m=" + text.split("m=")[1].replace("a=mid:0\n", ""), "a=mid of its own"),
        (lambda text: text + "a=ssrc-group:FID x\r\n", "'a=ssrc-group:FID x' cannot be read"),
        (lambda text: text + "a=rtcp-fb:97\r\n", "'a=rtcp-fb:97' cannot be read"),
    ],
)
async def test_what_cannot_be_meant_is_named(server, change, words):
    assert words in await answered(server, change((await offer_of()).replace("\r\n", "\n")), status=400)


# -- any text --------------------------------------------------------------------------------------------------------


@st.composite
def mangled(draw):
    """A real offer, some of whose lines are lost, doubled, cut or exchanged for others'."""
    name = draw(st.sampled_from(sorted(OFFERS)))
    lines = OFFERS[name].splitlines()
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(lines) - 1))
        what = draw(st.sampled_from(["lose", "double", "cut", "blank", "digit", "other"]))
        if what == "lose" and len(lines) > 1:
            del lines[at]
        elif what == "double":
            lines.insert(draw(st.integers(0, len(lines))), lines[at])
        elif what == "cut":
            lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
        elif what == "blank":
            place = draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:place] + draw(st.sampled_from(["  ", ";", ":", "/", "="])) + lines[at][place:]
        elif what == "digit":
            lines[at] = re.sub(
                "[0-9]+", draw(st.sampled_from(["", "x", "0", "72", "300", "99999999999"])), lines[at], count=1
            )
        elif what == "other":
            lines[at] = draw(st.sampled_from(OFFERS[draw(st.sampled_from(sorted(OFFERS)))].splitlines()))
    return name, "\r\n".join(lines)


@settings(max_examples=1500, deadline=None)
@given(mangled())
def test_whatever_is_let_through_aiortc_can_read(offer):
    name, text = offer
    try:
        found = checked(name, text)
    except (BadSdp, NoCommonCodec):
        return
    described = SessionDescription.parse(found.text)
    assert len(described.media) == len(found.protocols)
    for media in described.media:
        assert media.ice.usernameFragment
        assert media.ice.password
        assert media.dtls.fingerprints
        assert media.rtcp_mux or media.kind == "application"
    assert checked(name, text) == found


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["packetization-mode=1", "profile-level-id=42E01F", "level-asymmetry-allowed=1"])),
    st.data(),
)
def test_blanks_and_order_of_parameters_change_nothing(parts, data):
    blank = st.sampled_from(["", " ", "  "])
    spoilt = ";".join(data.draw(blank) + part + data.draw(blank) for part in data.draw(st.permutations(parts)))
    plain, other = (
        checked_offer(
            "v=0\r\na=ice-ufrag:u\r\na=ice-pwd:p\r\na=setup:actpass\r\n"
            f"a=fingerprint:sha-256 {':'.join(['00'] * 32)}\r\n"
            f"m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=rtcp-mux\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 {fmtp}\r\n",
            SENDING,
            "send",
        )
        for fmtp in (";".join(parts), spoilt)
    )
    assert plain.h264 == other.h264
    assert plain.text == other.text
