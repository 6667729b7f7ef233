"""Real Chromium, as viewer and as publisher, with the codecs and bundles that its own page would not ask for."""

from __future__ import annotations

import pytest
from playwright.async_api import async_playwright

from tests.chromium import CHROMIUM, launch_options, write_camera_file
from tests.stream.peers import Publisher, ToneTrack, until

from .test_negotiation import RED, LargeStylizer

pytestmark = [pytest.mark.calm, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

NEGOTIATE = """async ({path, codec, mode, bundled}) => {
    const peer = window.peer = new RTCPeerConnection();
    const kind = path.split("/")[1];
    if (kind === "whip") {
        const camera = await navigator.mediaDevices.getUserMedia({video: true, audio: true});
        for (const track of camera.getTracks()) peer.addTransceiver(track, {direction: "sendonly"});
    } else {
        for (const what of ["video", "audio"]) peer.addTransceiver(what, {direction: "recvonly"});
        window.got = [];
        peer.ontrack = ({track}) => window.got.push(track);
    }
    const video = peer.getTransceivers().find(one => one.receiver.track.kind === "video");
    const wanted = RTCRtpReceiver.getCapabilities("video").codecs.filter(one => one.mimeType === codec
        && (!mode || one.sdpFmtpLine.includes(`packetization-mode=${mode};profile-level-id=42`)));
    if (!wanted.length) return "no such codec";
    video.setCodecPreferences(wanted);
    let {sdp} = await peer.createOffer();
    if (!bundled) sdp = sdp.replace(/a=group:BUNDLE.*\\r\\n/, "");
    await peer.setLocalDescription({type: "offer", sdp});
    while (peer.iceGatheringState !== "complete") await new Promise(done => setTimeout(done, 20));
    const response = await fetch(path, {method: "POST", body: peer.localDescription.sdp,
        headers: {"Content-Type": "application/sdp"}});
    const answer = await response.text();
    if (response.status !== 201) return answer;
    await peer.setRemoteDescription({type: "answer", sdp: answer});
    return "";
}"""
STATS = """async () => {
    const all = [...(await window.peer.getStats()).values()];
    const streams = all.filter(one => ["inbound-rtp", "outbound-rtp"].includes(one.type));
    const video = streams.find(one => one.kind === "video") || {};
    const audio = streams.find(one => one.kind === "audio") || {};
    const codec = all.find(one => one.id === video.codecId) || {};
    return {
        state: window.peer.connectionState, codec: codec.mimeType, fmtp: codec.sdpFmtpLine, width: video.frameWidth,
        frames: video.framesDecoded || video.framesEncoded || 0, sound: audio.packetsReceived || audio.packetsSent || 0,
        transports: all.filter(one => one.type === "transport").length,
    };
}"""


@pytest.fixture
async def tab(tmp_path):
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(**launch_options(write_camera_file(tmp_path / "camera.y4m")))
        yield await browser.new_page()
        await browser.close()


async def stats_of(tab) -> dict:
    """Once pictures and sound flow."""
    found = {}

    async def flows():
        found.update(await tab.evaluate(STATS))
        return found["frames"] >= 5 and found["sound"] >= 5

    await until(flows)
    return found


@pytest.mark.parametrize("bundled", [True, False])
@pytest.mark.parametrize(("codec", "mode"), [("video/VP8", None), ("video/H264", "1"), ("video/H264", "0")])
async def test_chromium_sees_large_pictures(start_server, tab, codec, mode, bundled):
    server = await start_server(LargeStylizer(1024, 1024))
    async with Publisher(server.http, f"{server.url}/whip/one", RED, audio=ToneTrack(900)):
        await tab.goto(f"{server.url}/healthz")
        how = {"path": "/whep/one", "codec": codec, "mode": mode, "bundled": bundled}
        assert await tab.evaluate(NEGOTIATE, how) == ""
        seen = await stats_of(tab)
    assert (seen["codec"], seen["width"], seen["transports"]) == (codec, 1024, 1 if bundled else 2)
    if mode is not None:
        assert f"packetization-mode={mode}" in seen["fmtp"]


@pytest.mark.parametrize(
    ("codec", "mode", "bundled"), [("video/VP8", None, False), ("video/H264", "0", True), ("video/H264", "1", False)]
)
async def test_chromium_publishes(server, tab, codec, mode, bundled):
    await tab.goto(f"{server.url}/healthz")
    how = {"path": "/whip/one", "codec": codec, "mode": mode, "bundled": bundled}
    assert await tab.evaluate(NEGOTIATE, how) == ""
    sent = await stats_of(tab)
    assert (sent["codec"], sent["transports"]) == (codec, 1 if bundled else 2)
    await until(lambda: server.streams.get("one").last_picture is not None)
