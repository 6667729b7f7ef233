"""WHIP and WHEP as HTTP: good offers, bad offers, sessions and their end."""

from __future__ import annotations

import asyncio
import gc
import re

import aioice.ice
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription

from stream.webrtc.negotiation import sdp
from tests.stream.peers import Publisher, ToneTrack, Viewer, new_peer, until

SDP = {"Content-Type": "application/sdp"}
FRAGMENT = {"Content-Type": "application/trickle-ice-sdpfrag"}


async def offer_of(direction="sendonly", *, kinds=("video",)) -> str:
    peer = new_peer()
    for kind in kinds:
        peer.addTransceiver(kind, direction=direction)
    await peer.setLocalDescription(await peer.createOffer())
    text = peer.localDescription.sdp
    await peer.close()
    return text


def without(*starts):
    return lambda text: "\r\n".join(line for line in text.splitlines() if not line.startswith(starts))


def replaced(old, new):
    return lambda text: text.replace(old, new)


def only_codec(rtpmap, fmtp=""):
    """The offer with its codecs replaced by one."""

    def change(text):
        lines = without("a=rtpmap:", "a=fmtp:", "a=rtcp-fb:")(text).splitlines()
        lines = [line.split(" ")[0] + " 9 UDP/TLS/RTP/SAVPF 100" if line.startswith("m=") else line for line in lines]
        return "\r\n".join([*lines, f"a=rtpmap:100 {rtpmap}", *([f"a=fmtp:100 {fmtp}"] if fmtp else [])]) + "\r\n"

    return change


DATA = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:9\r\n"  # RFC 8841, 5
BAD_OFFERS = {
    "empty": (lambda text: "", 400, "empty"),
    "blank": (lambda text: " \r\n \r\n", 400, "empty"),
    "garbage": (lambda text: "hello, is this thing on?", 400, "not an SDP"),
    "html": (lambda text: "<html><body>v=0</body></html>", 400, "not an SDP"),
    "binary": (lambda text: "\x01\x02\x03", 400, "not an SDP"),
    "NUL bytes": (replaced("s=-", "s=\x00"), 400, "NUL"),
    "no media": (lambda text: text.split("m=")[0], 400, "media sections"),
    "too many media": (lambda text: text + ("m=" + text.split("m=")[1]) * 9, 400, "media sections"),
    "broken m-line": (replaced("m=video", "m=vi deo x"), 400, "cannot be read"),
    "bundle of nobody's": (
        lambda text: without("a=ice-")(re.sub("m=video [0-9]+", "m=video 0", text)) + "\r\na=bundle-only\r\n",
        400,
        "ice-ufrag",
    ),
    "audio only": (replaced("m=video", "m=audio"), 400, "no video"),
    "video refused": (lambda text: text.replace(text.split("m=video ")[1].split(" ")[0], "0", 1), 400, "no video"),
    "no ice user": (without("a=ice-ufrag"), 400, "ice-ufrag"),
    "no ice password": (without("a=ice-pwd"), 400, "ice-pwd"),
    "no fingerprint": (without("a=fingerprint"), 400, "fingerprint"),
    "no DTLS role": (without("a=setup"), 400, "a=setup is missing"),
    "no rtcp-mux": (without("a=rtcp-mux"), 400, "lacks a=rtcp-mux"),
    "odd DTLS role": (replaced("a=setup:actpass", "a=setup:sideways"), 400, "a=setup:sideways"),
    "broken candidate": (lambda text: text + "a=candidate:1 x\r\n", 400, "cannot be read"),
    "impossible port": (
        lambda text: text + "a=candidate:1 1 udp 1 192.0.2.9 70000 typ host\r\n",
        400,
        "cannot be read",
    ),
    "port of 5,000 digits": (
        lambda text: re.sub("^m=video [0-9]+", "m=video " + "9" * 5000, text, flags=re.MULTILINE),
        400,
        "cannot be read",
    ),
    "port that is none": (lambda text: re.sub("m=video [0-9]+", "m=video 70000", text), 400, "cannot be read"),
    "rport of letters": (
        lambda text: text + "a=candidate:1 1 udp 1 192.0.2.9 9 typ srflx raddr 0.0.0.0 rport x\r\n",
        400,
        "cannot be read",
    ),
    "words that only look like one": (
        lambda text: text + "a=candidate:1\u2003x 1 udp 1 192.0.2.9 9 typ host\r\n",
        400,
        "cannot be read",
    ),
    "two directions": (lambda text: text + "a=inactive\r\n", 400, "one direction"),
    "two directions of the session": (
        lambda text: text.replace("t=0 0", "t=0 0\r\na=sendonly\r\na=recvonly"),
        400,
        "one",
    ),
    "two names of a section": (lambda text: text + "a=mid:x\r\n", 400, "a=mid"),
    "data channel without a port": (lambda text: text + DATA, 400, "sctp-port"),
    "data channel to nowhere": (lambda text: text + DATA + "a=sctp-port:70000\r\n", 400, "sctp-port"),
    "unknown media": (lambda text: text + "m=text 9 UDP/TLS/RTP/SAVPF 98\r\na=mid:9\r\n", 400, "unknown kind"),
    "bundle of strangers": (replaced("a=group:BUNDLE 0", "a=group:BUNDLE 7"), 400, "a=mid"),
    "too many candidates": (
        lambda text: text + "a=candidate:1 1 udp 1 192.0.2.9 9 typ host\r\n" * 101,
        400,
        "candidates",
    ),
    "broken rtpmap": (replaced("VP8/90000", "VP8"), 400, "VP8' cannot be read"),
    "H265 only": (only_codec("H265/90000"), 406, "VP8 or H264"),
    "AV1 only": (only_codec("AV1/90000"), 406, "VP8 or H264"),
    "H264 High only": (
        only_codec("H264/90000", "profile-level-id=640c1f;packetization-mode=1"),
        406,
        "VP8 or H264",
    ),
}


@pytest.mark.parametrize("case", BAD_OFFERS)
@pytest.mark.parametrize("kind", ["whip", "whep"])
async def test_bad_offers_get_one_clear_sentence(server, kind, case):
    change, expected_status, words = BAD_OFFERS[case]
    text = change(await offer_of("sendonly" if kind == "whip" else "recvonly"))
    async with server.http.post(f"{server.url}/{kind}/one", data=text.encode(), headers=SDP) as response:
        body = await response.json()
    assert (response.status, list(body)) == (expected_status, ["error"]), body
    assert words in body["error"]
    assert body["error"].endswith(".")
    assert len(server.sessions) == 0


@pytest.mark.parametrize("change", ["not said", "of the session"])
async def test_a_direction_may_be_left_out_or_said_for_the_whole_session(server, change):
    publisher = Publisher(server.http, f"{server.url}/whip/one", audio=True)
    offer = without("a=sendonly")(await publisher.offer()) + "\r\n"
    if change == "of the session":
        offer = offer.replace("m=", "a=sendonly\r\nm=", 1)
    async with server.http.post(publisher.url, data=offer, headers=SDP) as response:
        answer = await response.text()
        assert response.status == 201, answer
    assert answer.count("a=recvonly") == 2
    await publisher.peer.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))
    await until(lambda: server.streams.get("one").last_picture is not None)
    await publisher.peer.close()


async def test_offers_that_are_refused_push_no_stream_out(start_server):
    server = await start_server(max_names=1)
    await server.patch("/api/streams/one/controls", steps=3)
    for kind in ("whip", "whep"):
        for body, headers in (("v=0", SDP), ("", SDP), (await offer_of("inactive"), SDP), (b"\xff", SDP), ("v=0", {})):
            async with server.http.post(f"{server.url}/{kind}/two", data=body, headers=headers) as response:
                assert response.status in (400, 415)
    assert (await server.get("/api/streams/one/controls"))[1]["steps"] == 3


@pytest.mark.parametrize(
    ("kind", "direction"), [("whip", "recvonly"), ("whip", "inactive"), ("whep", "sendonly"), ("whep", "inactive")]
)
async def test_video_that_goes_the_wrong_way_is_refused(server, kind, direction):
    text = (await offer_of("sendrecv")).replace("a=sendrecv", f"a={direction}")
    async with server.http.post(f"{server.url}/{kind}/one", data=text, headers=SDP) as response:
        assert response.status == 400
        assert direction in (await response.json())["error"]


async def test_video_of_which_aiortc_takes_nothing_is_not_said_to_be_published(server, monkeypatch):
    """Should it read an offer otherwise than we do: nothing would ever end such a publication."""
    monkeypatch.setattr(sdp, "_direction", lambda lines: "sendonly")
    async with server.http.post(f"{server.url}/whip/one", data=await offer_of("inactive"), headers=SDP) as response:
        assert response.status == 400
        assert "sends nothing" in (await response.json())["error"]
    assert server.streams.get("one").publication is None
    await until(lambda: not server.sessions)


async def test_an_offer_without_candidates_connects_though_it_says_there_are_no_more(server):
    publisher = Publisher(server.http, f"{server.url}/whip/one")
    offer = without("a=candidate")(await publisher.offer()) + "\r\n"
    assert "a=end-of-candidates" in offer
    async with server.http.post(f"{server.url}/whip/one", data=offer, headers=SDP) as response:
        assert response.status == 201
        answer = await response.text()
    await publisher.peer.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))
    await until(lambda: server.streams.get("one").last_picture is not None)
    await publisher.peer.close()


async def test_an_offer_with_mdns_candidates_is_answered_and_connects(server):
    publisher = Publisher(server.http, f"{server.url}/whip/one")
    offer = without("a=candidate", "a=end-of-candidates")(await publisher.offer()) + "\r\n"
    offer += "a=candidate:1 1 udp 2113937151 7f3c1f0e-0d6b-4c55-8f6f-000000000000.local 50000 typ host\r\n"
    async with server.http.post(f"{server.url}/whip/one", data=offer, headers=SDP) as response:
        assert response.status == 201
        answer = await response.text()
    await publisher.peer.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))
    await until(lambda: server.streams.get("one").last_picture is not None)
    await publisher.peer.close()


@pytest.mark.parametrize("leaves_out", [(), ("a=ice-", "a=fingerprint", "a=setup", "a=rtcp-mux", "a=candidate")])
async def test_a_section_may_leave_port_and_credentials_to_its_bundle(server, leaves_out):
    """RFC 9143, 6: in Firefox's offers all sections but the first have port 0; others say the rest once, too."""
    async with Publisher(server.http, f"{server.url}/whip/one", audio=ToneTrack(900)):
        viewer = Viewer(server.http, f"{server.url}/whep/one", sound=True)
        offer = viewer.offer

        async def bundled():
            head, video, sound = re.split("(?=^m=)", await offer(), flags=re.MULTILINE)
            sound = without(*leaves_out, "a=end-of")(re.sub("^m=audio [0-9]+", "m=audio 0", sound))
            return f"{head}{video}{sound}\r\na=bundle-only\r\n"

        viewer.offer = bundled
        async with viewer:
            await viewer.hears(900)
            assert viewer.frame is not None


async def test_header_extensions_that_cannot_be_sent_are_left_out(server):
    """RFC 8285, 4.3: their numbers end at 255; what an offer has beyond, it does not mean to have used as it stands."""
    async with Publisher(server.http, f"{server.url}/whip/one"):
        viewer = Viewer(server.http, f"{server.url}/whep/one")
        offer = viewer.offer

        async def renumbered():
            return re.sub("a=extmap:[0-9]+ ", "a=extmap:4096 ", await offer())

        viewer.offer = renumbered
        async with viewer:
            await until(lambda: viewer.frame is not None)


@pytest.mark.parametrize(("fails_at", "status"), [(1, 400), (2, 201)])  # with the offer, with the answer
async def test_a_peer_that_cannot_be_connected_is_let_go_at_once(server, monkeypatch, caplog, fails_at, status):
    """aiortc connects in a task that nobody looks after."""
    offer, calls, faults = await offer_of(), [], []

    async def fail(peer):
        calls.append(peer)
        if len(calls) >= fails_at:
            raise ValueError("what an offer says is used only now")

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    monkeypatch.setattr(RTCPeerConnection, "_RTCPeerConnection__connect", fail)
    async with server.http.post(f"{server.url}/whip/one", data=offer, headers=SDP) as response:
        assert response.status == status
    await until(lambda: not server.sessions)
    assert server.streams.get("one").publication is None
    gc.collect()
    assert not faults
    assert "used only now" in caplog.text


async def test_what_an_offer_refuses_stays_refused(server):
    sound = (await offer_of(kinds=("audio",))).split("m=")[1]
    sound = "m=" + re.sub("^audio [0-9]+", "audio 0", sound.replace("a=mid:0", "a=mid:1"))
    offer = (await offer_of()).replace("BUNDLE 0", "BUNDLE 0 1") + sound
    async with server.http.post(f"{server.url}/whip/one", data=offer, headers=SDP) as response:
        answer = await response.text()
        assert response.status == 201, answer
    assert [line.split()[:2] for line in answer.splitlines() if line.startswith("m=")][1] == ["m=audio", "0"]
    assert "BUNDLE 0\r\n" in answer


async def test_answers_tell_how_large_vp8_may_be(server):
    """RFC 7741, 6.1."""
    async with server.http.post(f"{server.url}/whip/one", data=await offer_of(), headers=SDP) as response:
        answer = await response.text()
    payload_type = re.search("a=rtpmap:([0-9]+) VP8/90000", answer)[1]
    assert f"a=fmtp:{payload_type} max-fs=36864\r\n" in answer


async def test_trickled_candidates_are_taken(server):
    async with Publisher(server.http, f"{server.url}/whip/one") as publisher:
        url = server.url + publisher.location
        async with server.http.get(url) as response:
            etag = response.headers["ETag"]
        fragment = "m=video 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=candidate:1 1 udp 1 127.0.0.1 9 typ host\r\n"
        cases = [
            (fragment, {"If-Match": etag}, 204),
            (fragment, {"ETag": etag}, 204),  # what one client sends in its place
            (fragment, {}, 204),
            (fragment + "a=end-of-candidates\r\n", {}, 204),
            (fragment, {"If-Match": '"other"'}, 412),
            (f"a=ice-ufrag:other\r\na=ice-pwd:{'p' * 24}\r\n{fragment}", {"If-Match": "*"}, 422),
            ("a=candidate:rubbish\r\n", {}, 400),
            (fragment.replace("m=video 9", "m=video " + "9" * 5000), {}, 400),
            (fragment.replace("typ host", "typ srflx raddr 127.0.0.1 rport x"), {}, 400),
            ("rubbish", {}, 400),
            ("", {}, 400),
            (fragment + "a=candidate:1 1 udp 1 127.0.0.1 9 typ host\r\n" * 101, {}, 400),
        ]
        for body, headers, expected in cases:
            async with server.http.patch(url, data=body, headers={**FRAGMENT, **headers}) as response:
                assert response.status == expected, (body, await response.text())
        async with server.http.patch(url, data=fragment, headers=SDP) as response:
            assert response.status == 415


async def test_a_candidate_that_cannot_be_tried_is_no_fault(server, monkeypatch, caplog):
    """A name on a machine without multicast; one for a section that is not there; an address that leads nowhere."""

    async def refuse():
        raise OSError("Address already in use")

    monkeypatch.setattr(aioice.ice.mdns, "create_mdns_protocol", refuse)
    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    async with Publisher(server.http, f"{server.url}/whip/one") as publisher:
        for host, mid in (("7f3c1f0e.local", "0"), ("192.0.2.9", "7"), ("fe80::1%nowhere", "0")):
            fragment = f"m=video 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:{mid}\r\na=candidate:1 1 udp 1 {host} 9 typ host\r\n"
            async with server.http.patch(server.url + publisher.location, data=fragment, headers=FRAGMENT) as response:
                assert response.status == 204
        await until(lambda: server.streams.get("one").last_picture is not None)
    gc.collect()
    assert not faults
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("kind", ["whip", "whep"])
async def test_a_session_is_known_until_it_is_deleted(server, kind):
    made = (Publisher if kind == "whip" else Viewer)(server.http, f"{server.url}/{kind}/one")
    async with made as peer:
        url = server.url + peer.location
        assert len(peer.location.rsplit("/", 1)[1]) >= 20
        for method, expected in [("GET", 200), ("HEAD", 200), ("OPTIONS", 204), ("DELETE", 200), ("DELETE", 404)]:
            async with server.http.request(method, url) as response:
                assert response.status == expected
        assert len(server.sessions) == 0
    other = "whep" if kind == "whip" else "whip"
    async with server.http.delete(url.replace(kind, other)) as response:
        assert response.status == 404


@pytest.mark.parametrize("kind", ["whip", "whep"])
async def test_the_endpoints_say_what_they_take(server, kind):
    for method in ("OPTIONS", "GET", "HEAD"):
        async with server.http.request(method, f"{server.url}/{kind}/one") as response:
            assert response.status == 204
            assert response.headers["Accept-Post"] == "application/sdp"
    async with server.http.post(f"{server.url}/{kind}/one", json={}) as response:
        assert response.status == 415
    async with server.http.put(f"{server.url}/{kind}/one", data="") as response:
        assert response.status == 405
        assert "POST" in response.headers["Allow"]
    async with server.http.post(f"{server.url}/{kind}/one", data=b"v=0\r\n" * 20_000, headers=SDP) as response:
        assert response.status == 413
        assert "exceeded" in (await response.json())["error"]
    async with server.http.post(f"{server.url}/{kind}/one", data=b"v=0\r\n\xff\xfe", headers=SDP) as response:
        assert response.status == 400


@pytest.mark.parametrize("name", ["Bad", "a_b", "a" * 65, "%20", "a.b"])
async def test_bad_stream_names_are_refused_everywhere(server, name):
    text = await offer_of()
    for path in (f"/whip/{name}", f"/whep/{name}"):
        async with server.http.post(server.url + path, data=text, headers=SDP) as response:
            assert response.status == 400
            assert "name" in (await response.json())["error"]
    for path in (
        f"/api/streams/{name}",
        f"/api/streams/{name}/controls",
        f"/view/{name}",
        f"/api/streams/{name}/events",
    ):
        assert (await server.get(path))[0] == 400


async def test_one_session_too_many_is_told_to_come_back_but_a_reload_gets_through(start_server):
    server = await start_server(max_sessions=2)
    async with Publisher(server.http, f"{server.url}/whip/one"), Viewer(server.http, f"{server.url}/whep/one"):
        for kind, direction in (("whep", "recvonly"), ("whip", "sendonly")):
            async with server.http.post(
                f"{server.url}/{kind}/two", data=await offer_of(direction), headers=SDP
            ) as response:
                assert response.status == 503
                assert int(response.headers["Retry-After"]) > 0
                assert "try again" in (await response.json())["error"]
        # The page of the publisher is reloaded: its new session replaces its old one, so the limit holds.
        async with Publisher(server.http, f"{server.url}/whip/one"):
            await until(lambda: len(server.sessions) == 2)


async def test_when_all_names_are_in_use_a_new_one_has_to_wait(start_server):
    server = await start_server(max_names=1)
    async with Publisher(server.http, f"{server.url}/whip/one"):
        async with server.http.post(f"{server.url}/whip/two", data=await offer_of(), headers=SDP) as response:
            assert response.status == 503
            assert "Retry-After" in response.headers
        assert (await server.patch("/api/streams/two/controls", steps=3))[0] == 503
