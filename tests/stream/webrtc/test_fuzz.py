"""Thousands of broken offers, fragments, settings and masks: each gets an answer of a 4xx, or is taken, and the server
serves on as if nothing had been."""

from __future__ import annotations

import asyncio
import gc
import io
import re
from collections import Counter
from random import Random

import aioice.ice
import numpy as np
import pytest
from PIL import Image

from pipeline.settings import Controls
from tests.paths import ROOT
from tests.stream import mutants
from tests.stream.http.test_whip import FRAGMENT, SDP, offer_of
from tests.stream.peers import Publisher, until

from .test_obs import OFFER as OBS

COUNT, SEED = 2_000, 15
PER_SESSION = 20  # fragments: a session takes so many candidates, and refuses all later ones
OFFERS = ROOT / "tests" / "data" / "offers"  # as browsers make them
OVERLOAD = 503

STRANGE_LINES = (
    "m=video 9 UDP/TLS/RTP/SAVPF 96",
    "m=audio 0 UDP/TLS/RTP/SAVPF 0",
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
    "a=sendonly",
    "a=inactive",
    "a=recvonly",
    "a=mid:",
    "a=bundle-only",
    "a=rid:1 send",
    "a=simulcast:send 1",
    "a=setup:holdconn",
    "a=fingerprint:sha-999 00",
    "a=extmap:0 x",
    "a=ssrc:1 cname",
    "a=ssrc-group:FID 1",
    "a=rtcp:x",
    "a=sctp-port:5000",
    "a=max-message-size:0",
    "a=ice-lite",
    "a=crypto:1 x y",
    "b=AS:-1",
    "a=candidate:1 1 udp 1 127.0.0.1 9 typ srflx raddr 127.0.0.1 rport 9",
    "a=candidate:1 1 udp 1 127.0.0.1 9 typ relay raddr x rport x",
    "a=candidate:1 1 tcp 1 ::1 9 typ host tcptype passive generation x ufrag",
    "a=candidate:1 256 sctp 4294967296 fe80::1%eth0 0 typ nothing",
    "a=end-of-candidates",
)


@pytest.fixture
def at_home(monkeypatch):
    """Whatever address a broken candidate names: nothing leaves this machine."""
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])


@pytest.fixture
async def told(server, at_home, caplog):
    """The statuses of the answers, counted; in the end those, the log, and a publisher are looked at."""
    answers: Counter[int] = Counter()
    yield answers
    assert answers.total() >= COUNT
    assert len(answers) > 1, f"all are answered alike: {answers}"
    gc.collect()  # what went wrong in a task is told when that is freed
    await asyncio.sleep(0)
    assert [status for status in answers if status >= 500 and status != OVERLOAD] == []
    assert [record.getMessage() for record in caplog.records if record.exc_info or record.name == "asyncio"] == []
    async with Publisher(server.http, f"{server.url}/whip/afterwards"):
        await until(lambda: server.streams.get("afterwards").last_picture is not None)


def local(offer: str) -> str:
    return re.sub(r"\S+\.local|192\.0\.2\.9|2001:db8::9", "127.0.0.1", offer)


async def offers_of(kind: str) -> list[str]:
    """By browsers, by OBS and by aiortc, for WHIP or WHEP."""
    found = [local(file.read_text()) for file in sorted(OFFERS.glob(f"*-{kind}.sdp"))]
    direction = "sendonly" if kind == "whip" else "recvonly"
    fingerprint = re.search("a=fingerprint:(.*)", found[0])[1]
    secrets = {"ufrag": "abcd", "pwd": "p" * 24, "fingerprint": fingerprint, "audio_ssrc": 1, "video_ssrc": 2}
    obs = OBS.format(**secrets).replace("a=sendonly", f"a={direction}")
    return [*found, obs, await offer_of(direction), await offer_of(direction, kinds=("audio", "video"))]


async def test_offers(server, told):
    dice = Random(SEED)
    for kind in ("whip", "whep"):
        offers = await offers_of(kind)
        assert [await post(server, kind, offer.encode()) for offer in offers] == [201] * len(offers)
        for body in mutants.texts(dice, offers, STRANGE_LINES, COUNT // 2):
            told[await post(server, kind, body)] += 1


async def post(server, kind: str, body: bytes) -> int:
    """The answer's status; what is opened is ended."""
    async with server.http.post(f"{server.url}/{kind}/one", data=body, headers=SDP) as response:
        await response.read()
    if response.status == 201:
        async with server.http.delete(server.url + response.headers["Location"]) as ended:
            assert ended.status == 200
    return response.status


async def test_fragments(server, told):
    offers = await offers_of("whip")
    fragments = [fragment(offer) for offer in offers]
    bodies = mutants.texts(Random(SEED), fragments, STRANGE_LINES, COUNT)
    for number, body in enumerate(bodies):
        if number % PER_SESSION == 0:
            which = number // PER_SESSION % len(offers)
            async with server.http.post(f"{server.url}/whip/one", data=offers[which], headers=SDP) as response:
                assert response.status == 201
                session = server.url + response.headers["Location"]
            async with server.http.patch(session, data=fragments[which], headers=FRAGMENT) as response:
                assert response.status == 204
        async with server.http.patch(session, data=body, headers=FRAGMENT) as response:
            told[response.status] += 1
        if number % PER_SESSION == PER_SESSION - 1:
            await asyncio.sleep(0)  # what is taken is given to the peer beside the answer
            async with server.http.delete(session) as response:
                assert response.status == 200


def fragment(offer: str) -> str:
    """What a browser sends when it has found the candidates of this offer."""
    lines = offer.splitlines()
    own = [line for line in lines if line.startswith(("a=ice-ufrag", "a=ice-pwd"))][:2]
    candidates = [line for line in lines if line.startswith("a=candidate")][:4]
    sections = [
        line for mid in re.findall("a=mid:.*", offer) for line in ("m=video 9 UDP/TLS/RTP/SAVPF 0", mid, *candidates)
    ]
    return "\r\n".join([*own, *sections, "a=end-of-candidates"])


async def test_controls(server, told):
    url = f"{server.url}/api/streams/one/controls"
    for body in mutants.objects(Random(SEED), Controls().model_dump(), COUNT):
        async with server.http.patch(url, data=body) as response:
            told[response.status] += 1
            answer = await response.json()
        if response.status == 200:
            assert Controls.model_validate_json(await text(server, url)).model_dump() == answer
        else:
            assert answer["error"].endswith(".")


async def text(server, url: str) -> str:
    async with server.http.get(url) as response:
        return await response.text()


@pytest.mark.filterwarnings("ignore:::PIL")  # pytest has put the module's own filter aside
async def test_masks(server, told):
    url = f"{server.url}/api/streams/one/mask"
    goods = masks()
    for body in goods:
        async with server.http.put(url, data=body) as response:
            assert response.status == 204
    for body in mutants.pngs(Random(SEED), goods, COUNT):
        async with server.http.put(url, data=body) as response:
            told[response.status] += 1


def masks() -> list[bytes]:
    """One of each kind of PNG: colours, palette, transparency, depth, animation."""
    photo = Image.fromarray(np.random.default_rng(SEED).integers(0, 256, (12, 10, 4), np.uint8))
    pictures = [photo.convert(mode) for mode in ("1", "L", "LA", "RGB", "RGBA", "P", "I;16")]
    plain = [(picture, {}) for picture in pictures]
    transparent = pictures[5], {"transparency": b"\0\x80\xff"}
    animated = pictures[1], {"save_all": True, "append_images": pictures[1:3]}
    found = []
    for picture, how in (*plain, transparent, animated):
        file = io.BytesIO()
        picture.save(file, "PNG", **how)
        found.append(file.getvalue())
    return found
