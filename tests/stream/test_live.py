"""The whole live way with real peers: publish, stylize, watch."""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import aioice.ice
import numpy as np
import pytest
from aiortc.codecs.vpx import Vp8Decoder

from pipeline.settings import Controls
from stream.engine import frames
from stream.engine.frames import Picture
from stream.engine.i420 import to_i420
from stream.webrtc import decoding, sessions, tracks

from .fakes import FakeStylizer, solid
from .peers import Publisher, Viewer, new_peer, until

RED, RED_SHOWN = (200, 40, 40), (40, 40, 200)  # the fake engine swaps red and blue
GREEN, GREEN_SHOWN = (30, 180, 90), (90, 180, 30)


@pytest.mark.parametrize(("published", "watched"), [("VP8", "VP8"), ("H264", "H264"), ("VP8", "H264")])
async def test_what_is_published_is_seen_stylized(server, published, watched):
    async with Publisher(server.http, f"{server.url}/whip/one", RED, published) as publisher:
        async with Viewer(server.http, f"{server.url}/whep/one", watched) as viewer:
            await viewer.sees(RED_SHOWN)
            stats = await server.stats("one")
        assert publisher.location.startswith("/whip/one/")
    assert (stats["width"], stats["height"]) == (64, 64)
    assert (stats["publishing"], stats["publisher"], stats["viewers"]) == (True, "whip", 1)
    assert 0 <= stats["frames_in"] - stats["frames_out"] - stats["frames_dropped"] <= 3
    await until(lambda: not server.sessions)


async def test_a_publisher_that_outruns_the_decoder_adds_no_latency_and_its_surplus_is_counted(
    server, monkeypatch, caplog
):
    decode = Vp8Decoder.decode

    def slowly(self, encoded):
        time.sleep(0.1)
        return decode(self, encoded)

    monkeypatch.setattr(Vp8Decoder, "decode", slowly)
    async with Publisher(server.http, f"{server.url}/whip/one", RED, fps=40, audio=True) as publisher:
        await until(lambda: publisher.track.sent > 140)  # 3.5 s, of which a second or so is decoded
        stats = await server.stats("one")
        ending_s = time.monotonic()
    # Left to itself the queue would hold 2.5 s of video by now, and closing would decode it all.
    assert time.monotonic() - ending_s < 2
    assert stats["latency_ms"]["p95"] < 1500
    assert stats["frames_dropped"] > 40
    assert stats["frames_out"] >= 5
    assert 0 <= stats["frames_in"] - stats["frames_out"] - stats["frames_dropped"] <= 3
    assert len([record for record in caplog.records if "faster than" in record.getMessage()]) == 1


async def test_an_offer_with_sound_is_answered_and_its_video_shown(server):
    async with (
        Publisher(server.http, f"{server.url}/whip/one", RED, audio=True),
        Viewer(server.http, f"{server.url}/whep/one") as viewer,
    ):
        await viewer.sees(RED_SHOWN)


async def test_two_streams_are_never_mixed_up(server):
    """Different colours, different controls, several viewers: every frame any viewer gets is of its own stream."""
    await server.patch("/api/streams/green/controls", bypass=True)
    async with (
        Publisher(server.http, f"{server.url}/whip/red", RED),
        Publisher(server.http, f"{server.url}/whip/green", GREEN),
        Viewer(server.http, f"{server.url}/whep/red") as red,
        Viewer(server.http, f"{server.url}/whep/green") as green,
        Viewer(server.http, f"{server.url}/whep/red") as red_too,
    ):
        for viewer, own in ((red, RED_SHOWN), (green, GREEN), (red_too, RED_SHOWN)):
            await viewer.sees(own)
            for _ in range(15):
                await viewer.next_frame()
                assert np.abs(viewer.colour() - own).max() < 30


async def test_controls_change_the_picture_while_it_runs_and_are_shared_by_all(server):
    async with (
        Publisher(server.http, f"{server.url}/whip/one", RED),
        Viewer(server.http, f"{server.url}/whep/one") as viewer,
    ):
        await viewer.sees(RED_SHOWN)
        assert (await server.patch("/api/streams/one/controls", bypass=True))[0] == 200
        await viewer.sees(RED)
        await server.patch("/api/streams/one/controls", bypass=False)
        await viewer.sees(RED_SHOWN)


async def test_a_viewer_may_come_first(server):
    async with (
        Viewer(server.http, f"{server.url}/whep/one") as viewer,
        Publisher(server.http, f"{server.url}/whip/one", RED),
    ):
        await viewer.sees(RED_SHOWN)


async def test_with_the_publisher_gone_the_last_picture_stays_for_new_viewers_too_and_a_new_one_resumes(server):
    async with Publisher(server.http, f"{server.url}/whip/one", RED):
        await until(lambda: server.streams.get("one").last_picture is not None)
    await until(lambda: server.streams.get("one").publication is None)
    async with Viewer(server.http, f"{server.url}/whep/one") as late:
        await late.sees(RED_SHOWN)
        stats = await server.stats("one")
        assert (stats["publishing"], stats["publisher"], stats["viewers"]) == (False, None, 1)
        assert stats["frames_in"] > 0
        async with Publisher(server.http, f"{server.url}/whip/one", GREEN):
            await late.sees(GREEN_SHOWN)


async def test_the_newest_publisher_takes_over_and_the_old_one_is_closed(server):
    async with (
        Publisher(server.http, f"{server.url}/whip/one", RED) as old,
        Viewer(server.http, f"{server.url}/whep/one") as viewer,
    ):
        await viewer.sees(RED_SHOWN)
        async with Publisher(server.http, f"{server.url}/whip/one", GREEN) as new:
            await viewer.sees(GREEN_SHOWN)
            await until(lambda: old.peer.connectionState == "closed")
            assert (await server.get(old.location))[0] == 404
            assert (await server.get(new.location))[0] == 200
            for _ in range(10):
                await viewer.next_frame()
                assert np.abs(viewer.colour() - GREEN_SHOWN).max() < 30


async def test_timestamps_increase_strictly_through_drops_takeovers_and_still_pictures(start_server):
    server = await start_server(FakeStylizer(engine_s=0.08))
    async with Viewer(server.http, f"{server.url}/whep/one") as viewer:
        async with Publisher(server.http, f"{server.url}/whip/one", RED, fps=30):
            await viewer.sees(RED_SHOWN)
        async with Publisher(server.http, f"{server.url}/whip/one", GREEN, fps=30):
            await viewer.sees(GREEN_SHOWN)
            for _ in range(10):
                await viewer.next_frame()
    assert all(later > earlier for earlier, later in pairwise(viewer.pts))
    # 80 ms of engine: the gaps that drops leave show in the timestamps (90 kHz), they are not closed up.
    gaps = sorted(later - earlier for earlier, later in pairwise(viewer.pts))
    assert gaps[len(gaps) // 2] > 0.05 * 90_000


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_a_publisher_may_change_its_resolution(server, codec, caplog):
    async with (
        Publisher(server.http, f"{server.url}/whip/one", RED, codec) as publisher,
        Viewer(server.http, f"{server.url}/whep/one", codec) as viewer,
    ):
        for size, rgb, shown in ((160, GREEN, GREEN_SHOWN), (48, RED, RED_SHOWN)):
            publisher.track.size, publisher.track.rgb = size, rgb
            await viewer.sees(shown)
            assert (viewer.frame.width, viewer.frame.height) == (64, 64)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_picture_of_before_is_no_reason_to_hold_the_next_one_back(server, monkeypatch):
    """It is an hour old to who comes now; by timestamps that say so, the next would be due in an hour."""
    clock = SimpleNamespace(now_s=5000.0)
    monkeypatch.setattr(tracks, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    stream = server.streams.get("one")
    stream.last_picture = Picture(solid(*RED), clock.now_s - 3600, clock.now_s - 3600, clock.now_s - 3600, Controls())
    track = tracks.PictureTrack(stream)
    first = await track.recv()
    clock.now_s += 0.5
    track._outbox.put(Picture(solid(*GREEN), clock.now_s, clock.now_s, clock.now_s, Controls()))
    assert (await track.recv()).pts - first.pts <= (0.5 + tracks.REPEAT_S) * tracks.CLOCK_HZ
    track.stop()


async def test_a_picture_is_converted_once_for_all_viewers_and_not_on_the_event_loop(server, monkeypatch):
    threads = []

    def convert(rgb):
        threads.append(threading.current_thread())
        time.sleep(0.05)  # so that all viewers have asked
        return to_i420(rgb)

    monkeypatch.setattr(frames, "to_i420", convert)
    stream = server.streams.get("one")
    watching = [tracks.PictureTrack(stream) for _ in range(3)]
    for rgb in (RED, GREEN):
        picture = Picture(solid(*rgb), 1.0, 1.0, 1.0, Controls())
        for track in watching:
            track._outbox.put(picture)
        got = await asyncio.gather(*(track.recv() for track in watching))
        assert all(np.array_equal(frame.to_ndarray(), to_i420(picture.rgb)) for frame in got)
    assert len(threads) == 2
    assert threading.current_thread() not in threads
    for track in watching:
        track.stop()


async def test_a_publisher_that_vanishes_is_noticed(server, monkeypatch):
    monkeypatch.setattr(tracks, "SILENCE_S", 0.5)
    async with Publisher(server.http, f"{server.url}/whip/one", RED) as publisher:
        await until(lambda: server.streams.get("one").last_picture is not None)
        publisher.track.fps = 0.001  # sends nothing any more, says nothing
        await until(lambda: server.streams.get("one").publication is None)
        await until(lambda: not server.sessions)


async def test_a_publisher_that_never_sends_a_frame_is_let_go(server, monkeypatch):
    monkeypatch.setattr(sessions, "CONNECT_S", 1.0)
    publisher = Publisher(server.http, f"{server.url}/whip/one", RED, fps=0.001)
    publisher.track.sent = 1  # the next one is due in a quarter of an hour
    async with publisher:
        await until(lambda: publisher.peer.connectionState == "connected")
        assert (await server.stats("one"))["publishing"]
        await until(lambda: server.streams.get("one").publication is None)
        await until(lambda: not server.sessions)


async def test_a_publisher_that_rests_is_kept_while_its_connection_lives(server, monkeypatch):
    """Its page lies in the background, or its screen stands still."""
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.05)
    monkeypatch.setattr(aioice.ice, "CONSENT_FAILURES", 6)
    async with Publisher(server.http, f"{server.url}/whip/one", RED) as publisher:
        await until(lambda: server.streams.get("one").last_picture is not None)
        publisher.track.fps = 0.001
        checked = aioice.ice.Connection.build_request
        checks = []
        monkeypatch.setattr(
            aioice.ice.Connection, "build_request", lambda *args, **kw: checks.append(1) or checked(*args, **kw)
        )
        await until(lambda: len(checks) > 30)  # the publisher's own, too
        assert server.streams.get("one").publication is not None
        vanish(publisher.peer)  # without a word: long before SILENCE_S is over
        await until(lambda: server.streams.get("one").publication is None)
        await until(lambda: not server.sessions)


def vanish(peer) -> None:
    """Its machine is gone: nothing leaves it, nothing reaches it."""
    connection = peer.getSenders()[0].transport.transport._connection
    for protocol in connection._protocols:
        protocol.send_stun = protocol.datagram_received = lambda *args: None
        protocol.send_data = dropped


async def dropped(*args) -> None:
    pass


async def test_an_empty_frame_ends_nothing(server):
    """FFmpeg's decoders take one for the end of the stream."""
    async with (
        Publisher(server.http, f"{server.url}/whip/one", RED) as publisher,
        Viewer(server.http, f"{server.url}/whep/one") as viewer,
    ):
        await viewer.sees(RED_SHOWN)
        sender, empty = publisher.peer.getSenders()[0], []
        encode = sender._next_encoded_frame

        async def encode_first_nothing(codec):
            encoded = await encode(codec)
            if encoded is not None and not empty:
                empty.append(encoded)
                encoded.payloads = [b""]
            return encoded

        sender._next_encoded_frame = encode_first_nothing
        await until(lambda: empty)
        publisher.track.rgb = GREEN
        await viewer.sees(GREEN_SHOWN)


async def test_video_that_is_too_large_is_refused_with_a_sentence_until_it_is_smaller(server, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_MACROBLOCKS", 36)  # 96x96
    async with (
        Publisher(server.http, f"{server.url}/whip/one", RED) as publisher,
        Viewer(server.http, f"{server.url}/whep/one") as viewer,
    ):
        await viewer.sees(RED_SHOWN)
        publisher.track.size, publisher.track.rgb = 112, GREEN
        await until(lambda: server.streams.get("one").fault)
        told = await server.stats("one")
        assert "112x112" in told["detail"]
        assert told["publishing"]
        assert np.abs(viewer.colour() - RED_SHOWN).max() < 25
        publisher.track.size = 80
        await viewer.sees(GREEN_SHOWN)
        told = await server.stats("one")
        assert told["detail"] == ""
        assert told["frames_dropped"] > 0


async def test_a_publisher_that_answers_no_consent_checks_is_kept_while_it_sends(server, monkeypatch):
    """FFmpeg's WHIP client is one."""
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.05)
    monkeypatch.setattr(aioice.ice, "CONSENT_FAILURES", 1)
    monkeypatch.setattr(aioice.ice.Connection, "request_received", ignore_once_connected)
    async with Publisher(server.http, f"{server.url}/whip/one", RED) as publisher:
        publisher.peer.getSenders()[0].transport.transport._connection.query_consent = no_checks
        await until(lambda: publisher.track.sent > 60)
        sent = (await server.stats("one"))["frames_in"]
        await until(lambda: publisher.track.sent > 80)
        assert (await server.stats("one"))["frames_in"] > sent


_answer = aioice.ice.Connection.request_received


def ignore_once_connected(connection, *request):
    if connection._query_consent_task is None:
        _answer(connection, *request)


async def no_checks():
    pass


async def test_a_peer_that_never_connects_is_let_go(server, monkeypatch):
    monkeypatch.setattr(sessions, "CONNECT_S", 0.3)
    for path in ("/whip/one", "/whep/one"):
        peer = new_peer()
        peer.addTransceiver("video", direction="sendonly" if "whip" in path else "recvonly")
        await peer.setLocalDescription(await peer.createOffer())
        headers = {"Content-Type": "application/sdp"}
        async with server.http.post(server.url + path, data=peer.localDescription.sdp, headers=headers) as response:
            assert response.status == 201
        await peer.close()  # the answer never reaches it
    await until(lambda: not server.sessions)
    assert not server.streams.get("one").in_use


async def test_a_viewer_that_hangs_up_without_a_delete_is_noticed(server):
    async with Viewer(server.http, f"{server.url}/whep/one") as viewer:
        await until(lambda: viewer.peer.connectionState == "connected")
        await viewer.peer.close()
        await until(lambda: not server.sessions)
        assert server.streams.get("one").viewers == 0
        for expected in (200, 404):  # its DELETE comes late, and only once
            async with server.http.delete(server.url + viewer.location) as response:
                assert response.status == expected


async def test_pictures_flow_after_the_model_has_loaded_and_the_status_tells(start_server):
    release = asyncio.Event()
    loop, stylizer = asyncio.get_running_loop(), FakeStylizer()

    def load(report):
        report("Reading weights.", 0.25)
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(20)
        return stylizer

    server = await start_server(stylizer, load=load, wait=False)
    async with (
        Publisher(server.http, f"{server.url}/whip/one", RED),
        Viewer(server.http, f"{server.url}/whep/one") as viewer,
    ):
        await until(lambda: server.streams.get("one").mailbox.dropped > 2)
        assert (await server.get("/api/status"))[1]["state"] == "loading"
        assert viewer.frame is None
        release.set()
        await viewer.sees(RED_SHOWN)
        assert (await server.get("/api/status"))[1]["state"] == "ready"


async def test_it_works_without_any_network_interface(server, monkeypatch):
    monkeypatch.setattr(aioice.ice.ifaddr, "get_adapters", lambda: [])
    async with (
        Publisher(server.http, f"{server.url}/whip/one", RED),
        Viewer(server.http, f"{server.url}/whep/one") as viewer,
    ):
        await viewer.sees(RED_SHOWN)
