"""OBS's WHIP output, as far as it can be had without OBS: offers of the shape that libdatachannel writes for it.

H264 and Opus, ICE and DTLS said once for the session, a lip-sync group, no candidates, never a PATCH; it wants exactly
201 and a Location, sends its token as Bearer, and ends with a DELETE after its peer is closed.
"""

from __future__ import annotations

import pytest
from aiortc import RTCSessionDescription

from tests.stream.peers import Publisher, ToneTrack, Viewer, until

RED, RED_SHOWN = (200, 40, 40), (40, 40, 200)  # the fake engine swaps red and blue
TOKEN = "stream key"
OFFER = """v=0
o=rtc 3877212184 0 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1
a=group:LS 0 1
a=msid-semantic:WMS *
a=setup:actpass
a=ice-ufrag:{ufrag}
a=ice-pwd:{pwd}
a=ice-options:ice2,trickle
a=fingerprint:{fingerprint}
m=audio 9 UDP/TLS/RTP/SAVPF 111
c=IN IP4 0.0.0.0
a=mid:0
a=sendonly
a=ssrc:{audio_ssrc} cname:Yuu1KDxQcc3L5CpY
a=ssrc:{audio_ssrc} msid:XmQSKutZo7zYcEQl XmQSKutZo7zYcEQl-audio
a=msid:XmQSKutZo7zYcEQl XmQSKutZo7zYcEQl-audio
a=rtcp-mux
a=rtpmap:111 opus/48000/2
a=fmtp:111 minptime=10;maxaveragebitrate=96000;stereo=1;sprop-stereo=1;useinbandfec=1
m=video 9 UDP/TLS/RTP/SAVPF 96
c=IN IP4 0.0.0.0
a=mid:1
a=sendonly
a=ssrc:{video_ssrc} cname:Yuu1KDxQcc3L5CpY
a=ssrc:{video_ssrc} msid:XmQSKutZo7zYcEQl XmQSKutZo7zYcEQl-video
a=msid:XmQSKutZo7zYcEQl XmQSKutZo7zYcEQl-video
a=rtcp-mux
a=rtpmap:96 H264/90000
a=rtcp-fb:96 nack
a=rtcp-fb:96 nack pli
a=rtcp-fb:96 goog-remb
a=fmtp:96 profile-level-id=42e01f;packetization-mode=1;level-asymmetry-allowed=1
"""


LATER = {  # what other releases add: retransmission, header extensions, the candidates they have by then
    "SAVPF 96\n": "SAVPF 96 97\n",
    "a=rtcp-fb:96 goog-remb\n": "a=rtcp-fb:96 goog-remb\na=rtpmap:97 rtx/90000\na=fmtp:97 apt=96\n",
    "a=mid:1\n": "a=mid:1\na=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid\n"
    "a=extmap:2 urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id\na=ssrc-group:FID {video_ssrc} 7\n",
    "c=IN IP4 0.0.0.0\na=mid:0\n": "c=IN IP4 192.0.2.9\na=mid:0\n"
    "a=candidate:1 1 UDP 2122317823 192.0.2.9 57249 typ host\na=end-of-candidates\n",
}


class Obs(Publisher):
    """Sends OBS's offer with the secrets of its own peer; its answer says which payload types it is to use."""

    def __init__(self, http, url, additions):
        super().__init__(http, url, RED, "H264", audio=ToneTrack(1000))
        self.additions = additions

    async def offer(self) -> str:
        own = await super().offer()
        first = {
            name: next(line for line in own.splitlines() if line.startswith(f"a={name}:")).split(":", 1)[1]
            for name in ("ice-ufrag", "ice-pwd", "fingerprint")
        }
        audio, video = (sender._ssrc for sender in self.peer.getSenders())
        text = OFFER
        for line, more in self.additions.items():
            assert line in text
            text = text.replace(line, more)
        return text.format(
            ufrag=first["ice-ufrag"],
            pwd=first["ice-pwd"],
            fingerprint=first["fingerprint"],
            audio_ssrc=audio,
            video_ssrc=video,
        ).replace("\n", "\r\n")


@pytest.mark.parametrize(("token", "additions"), [(None, {}), (TOKEN, {}), (None, LATER)])
async def test_obs_publishes_picture_and_sound_and_ends(start_server, token, additions):
    server = await start_server(token=token)
    bearer = {} if token is None else {"Authorization": f"Bearer {token}"}
    server.http.headers.update(bearer)
    obs = Obs(server.http, f"{server.url}/whip/one", additions)
    headers = {"Content-Type": "application/sdp", "User-Agent": "Mozilla/5.0 (OBS-Studio/30.1.0; Linux x86_64; en-US)"}
    async with server.http.post(obs.url, data=await obs.offer(), headers=headers) as response:
        answer = await response.text()
        assert response.status == 201, answer
        location = response.headers["Location"]
    assert answer.startswith("v=0")
    assert [line.split()[0] for line in answer.splitlines() if line.startswith("m=")] == ["m=audio", "m=video"]
    assert "m=audio 0 " not in answer
    # One fingerprint for each: OBS 30.2 knows the others by a wrong name, earlier ones not at all.
    assert [line.split()[0] for line in answer.splitlines() if "fingerprint" in line] == ["a=fingerprint:sha-256"] * 2
    assert answer.count("a=setup:active") == 2
    assert "a=candidate:" in answer
    await obs.peer.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))
    async with Viewer(server.http, f"{server.url}/whep/one", sound=True) as viewer:
        await viewer.sees(RED_SHOWN)
        await viewer.hears(1000)
        await obs.peer.close()
        async with server.http.delete(server.url + location) as response:
            assert response.status == 200
        await until(lambda: server.streams.get("one").publication is None)


async def test_obs_without_its_token_is_told(start_server):
    server = await start_server(token=TOKEN)
    async with server.http.post(f"{server.url}/whip/one", data=OFFER) as response:
        assert response.status == 401
        assert "token" in (await response.json())["error"]
