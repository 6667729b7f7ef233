"""Sound on its whole way: a publisher's own reaches its viewers, in step with the picture."""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from aiortc import RTCSessionDescription
from aiortc.codecs import get_encoder
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from av import AudioFrame

from stream.clocks import MediaClock
from stream.engine.frames import SAMPLE_RATE, Sound
from stream.lag import Lag
from stream.webrtc import aiortc_compat
from stream.webrtc.sound import BITRATE_BPS, LATE_S, LEAD_S, MAX_HELD, PIECE, TIME_BASE, Packetizer, SoundTrack
from tests.stream.fakes import FakeStylizer
from tests.stream.peers import PATIENCE_S, ColourTrack, Publisher, ToneTrack, Viewer, pitch, until

RED, RED_SHOWN = (200, 40, 40), (40, 40, 200)  # the fake engine swaps red and blue
START_S = 500.0


def tone(samples: int) -> np.ndarray:
    return np.arange(2 * samples, dtype=np.int16).reshape(-1, 2)


# ---- cutting


def test_unbroken_sound_stays_unbroken_whatever_its_pieces_and_small_steps_of_its_times():
    packetizer, whole, cut = Packetizer(), tone(9600), []
    for begin in range(0, 9600, 441):
        jitter_s = 0.004 * (-1) ** begin
        cut += packetizer.cut(Sound(whole[begin : begin + 441], START_S + begin / SAMPLE_RATE + jitter_s * (begin > 0)))
    assert [piece.pts for piece in cut] == list(range(0, len(cut) * PIECE, PIECE))
    assert np.array_equal(np.concatenate([piece.samples for piece in cut]), whole[: len(cut) * PIECE])
    assert len(cut) == 10


def test_a_gap_is_a_jump_and_what_lay_before_it_is_not_kept_waiting():
    packetizer = Packetizer()
    first = packetizer.cut(Sound(tone(PIECE + 100), START_S))
    second = packetizer.cut(Sound(tone(PIECE), START_S + 3.0))
    assert [piece.pts for piece in first + second] == [0, PIECE, 3 * SAMPLE_RATE]
    assert np.array_equal(second[0].samples[:100], tone(PIECE + 100)[PIECE:])
    assert not second[0].samples[100:].any()
    assert second[1].captured_s == pytest.approx(START_S + 3.0)


def test_of_sound_that_comes_twice_the_second_is_left_out():
    packetizer = Packetizer()
    packetizer.cut(Sound(tone(2 * PIECE), START_S))
    assert packetizer.cut(Sound(tone(PIECE), START_S)) == []
    fresh = packetizer.cut(Sound(tone(2 * PIECE), START_S + PIECE / SAMPLE_RATE))
    assert [piece.pts for piece in fresh] == [2 * PIECE]
    assert np.array_equal(fresh[0].samples, tone(2 * PIECE)[PIECE:])


@pytest.mark.parametrize("parts_per_million", [-100, 100])
def test_a_clock_that_drifts_for_hours_adds_no_offset_and_keeps_nothing_back(parts_per_million):
    """And its sender never reports: arrivals are all there is."""
    clock, packetizer, speed = MediaClock(), Packetizer(), 1 + parts_per_million / 1e6
    for minute in range(4 * 60):
        for second in (0, 1):  # the rest of the minute is left out: a gap
            arrived_s = START_S + 60 * minute + second
            captured_s = clock.captured_s((60 * minute + second) * speed, arrived_s)
            pieces = packetizer.cut(Sound(tone(SAMPLE_RATE), captured_s))
            newest_s = pieces[-1].captured_s + PIECE / SAMPLE_RATE + len(packetizer._rest) / SAMPLE_RATE
            assert newest_s == pytest.approx(arrived_s + 1, abs=0.015)
            assert len(packetizer._rest) < PIECE


def test_sound_is_held_back_by_what_pictures_take_on_the_average():
    lag = Lag()
    lag.shown(START_S, START_S + 0.3)
    assert lag.seconds == pytest.approx(0.3)
    for number in range(100):
        lag.shown(START_S + number, START_S + number + 0.1 + 0.05 * (number % 2))
    assert lag.seconds == pytest.approx(0.125, abs=0.005)


# ---- one viewer's track, without a network


async def test_sound_leaves_when_the_picture_of_its_moment_does(server):
    stream = server.streams.get("one")
    publication, _ = stream.publish(ServerSide())
    stream.lag.seconds = 0.3
    track, captured_s = SoundTrack(stream), time.monotonic()
    for number in range(5):
        publication.put_sound(tone(PIECE), captured_s + number * 0.02)
    for number in range(5):
        frame = await track.recv()
        assert frame.pts == number * PIECE
        assert time.monotonic() >= captured_s + number * 0.02 + 0.3 - LEAD_S
    track.stop()


async def test_late_sound_is_left_out_where_newer_waits_and_little_is_held(server):
    stream = server.streams.get("one")
    publication, _ = stream.publish(ServerSide())
    track, captured_s = SoundTrack(stream), time.monotonic() - 60
    for number in range(2 * MAX_HELD):
        publication.put_sound(tone(PIECE), captured_s + number * 0.02)
    await asyncio.sleep(0)  # the loop takes what was put
    assert len(track._held) == MAX_HELD
    assert (await track.recv()).pts == (2 * MAX_HELD - 1) * PIECE  # all of it is late: the newest wins
    publication.put_sound(tone(PIECE), time.monotonic() - 2 * LATE_S)
    await track.recv()  # nothing newer waits
    track.stop()


async def test_pictures_that_take_longer_than_sound_can_be_held_do_not_silence_it(server):
    stream = server.streams.get("one")
    publication, _ = stream.publish(ServerSide())
    stream.lag.seconds = 60.0
    track, captured_s = SoundTrack(stream), time.monotonic() - 0.02 * 2 * MAX_HELD
    for number in range(2 * MAX_HELD):
        publication.put_sound(tone(PIECE), captured_s + number * 0.02)
    async with asyncio.timeout(PATIENCE_S):
        assert (await track.recv()).samples == PIECE
    track.stop()


async def test_sound_may_come_from_any_thread_and_ends_with_its_viewer(server):
    stream = server.streams.get("one")
    publication, _ = stream.publish(ServerSide())
    track = SoundTrack(stream)
    threading.Thread(target=publication.put_sound, args=(tone(PIECE), time.monotonic())).start()
    assert (await track.recv()).samples == PIECE
    track.stop()
    assert publication.put_sound(tone(PIECE), time.monotonic())
    await asyncio.sleep(0)
    assert not track._held


class ServerSide:
    kind = "test"


def opus_encoder():
    aiortc_compat.apply()
    return get_encoder(RTCRtpCodecParameters("audio/opus", 48_000, channels=2, payloadType=111))


def test_sound_is_encoded_for_music():
    encoder = opus_encoder()
    assert (encoder.codec.bit_rate, encoder.codec.options) == (BITRATE_BPS, {"application": "audio"})


def test_a_gap_is_sent_as_one():
    """aiortc's own encoder gives the first packet behind a gap the time of one that follows without."""
    encoder = opus_encoder()
    stamps = []
    for pts in (0, PIECE, 100 * PIECE, 101 * PIECE):
        frame = AudioFrame.from_ndarray(tone(PIECE).reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, pts, TIME_BASE
        stamps.append(encoder.encode(frame)[1])
    assert stamps == [0, PIECE, 100 * PIECE, 101 * PIECE]


# ---- the whole way


@pytest.mark.calm
async def test_each_viewer_hears_the_publisher_it_watches(server):
    async with (
        Publisher(server.http, f"{server.url}/whip/low", RED, audio=ToneTrack(450)),
        Publisher(server.http, f"{server.url}/whip/high", RED, audio=ToneTrack(2000)),
        Viewer(server.http, f"{server.url}/whep/low", sound=True) as low,
        Viewer(server.http, f"{server.url}/whep/high", sound=True) as high,
        Viewer(server.http, f"{server.url}/whep/high") as deaf,
    ):
        for viewer, hertz in ((low, 450), (high, 2000)):
            await viewer.sees(RED_SHOWN)
            await viewer.hears(hertz)
            stereo = viewer.heard()
            assert np.abs(stereo.astype(int)).mean() == pytest.approx(8000 * 2 / np.pi, rel=0.1)
        await deaf.sees(RED_SHOWN)
        assert len(deaf.peer.getReceivers()) == 1
    for viewer in (low, high):
        steps = {later.pts - earlier.pts for earlier, later in pairwise(viewer.sounds)}
        assert steps == {PIECE}, "sound without gaps has none"


class FlashTrack(ColourTrack):
    """White for the last fifth of every second, by its own timestamps."""

    async def recv(self):
        self.rgb = (255, 255, 255) if self.sent % self.fps >= 0.8 * self.fps else (0, 0, 0)
        return await super().recv()


class BeepTrack(ToneTrack):
    """Heard for the last fifth of every second."""

    async def recv(self):
        self.hertz = 1000 if self.sent % 48_000 >= 0.8 * 48_000 else 0
        return await super().recv()


@pytest.mark.calm
async def test_a_beep_is_placed_at_the_flash_it_belongs_to(server):
    """By captured_s alone, which is what every sink goes by: viewers, recordings."""
    flashes, beeps = [], []
    stream = server.streams.get("one")
    stream.watch(lambda picture: picture.rgb.mean() > 128 and flashes.append(picture.captured_s))
    stream.listen(lambda sound: np.abs(sound.samples).max() > 4000 and beeps.append(sound.captured_s))
    flash, beep = FlashTrack(RED), BeepTrack(1000)
    beep._started_s = flash._started_s
    publisher = Publisher(server.http, f"{server.url}/whip/one", audio=beep)
    publisher.track = flash
    async with publisher:
        await until(lambda: len(begins(flashes)) > 4 and len(begins(beeps)) > 4)
    placed = begins(flashes)[1:-1]
    assert [min(abs(begin - other) for other in begins(beeps)) for begin in placed] == pytest.approx(
        [0] * len(placed), abs=0.1
    )


def begins(times_s: list[float]) -> list[float]:
    """Of each group of times, the first."""
    return [time_s for before, time_s in pairwise([0.0, *times_s]) if time_s - before > 0.4]


@pytest.mark.calm
async def test_a_slow_engine_holds_sound_back_and_does_not_break_it(start_server):
    server = await start_server(FakeStylizer(engine_s=0.5))
    async with (
        Publisher(server.http, f"{server.url}/whip/one", RED, audio=ToneTrack(1000)),
        Viewer(server.http, f"{server.url}/whep/one", sound=True) as viewer,
    ):
        await viewer.sees(RED_SHOWN)
        await until(lambda: server.streams.get("one").lag.seconds > 0.4)
        viewer.sounds.clear()
        await until(lambda: len(viewer.sounds) > 100)
        assert abs(pitch(viewer.heard(50)) - 1000) < 5


@pytest.mark.calm
async def test_viewers_go_on_through_a_takeover_a_pause_and_a_publisher_without_sound(server):
    async with Viewer(server.http, f"{server.url}/whep/one", sound=True) as viewer:
        async with Publisher(server.http, f"{server.url}/whip/one", RED, audio=ToneTrack(450)):
            await viewer.hears(450)
            async with Publisher(server.http, f"{server.url}/whip/one", RED, audio=ToneTrack(2000)):
                await viewer.hears(2000)
        async with Publisher(server.http, f"{server.url}/whip/one", RED):
            await viewer.sees(RED_SHOWN)
        async with Publisher(server.http, f"{server.url}/whip/one", RED, audio=ToneTrack(900)):
            await viewer.hears(900)
            assert viewer.peer.connectionState == "connected"
    assert all(later.pts > earlier.pts for earlier, later in pairwise(viewer.sounds))


@pytest.mark.calm
async def test_sound_flows_before_the_first_picture(start_server):
    stylizer = FakeStylizer()
    stylizer.gate.clear()  # no picture is ever finished
    server = await start_server(stylizer)
    async with (
        Publisher(server.http, f"{server.url}/whip/one", RED, audio=ToneTrack(1000)),
        Viewer(server.http, f"{server.url}/whep/one", sound=True) as viewer,
    ):
        await viewer.hears(1000)
        assert viewer.frame is None
        stylizer.gate.set()
        await viewer.sees(RED_SHOWN)


STRANGE = "m=audio 9 UDP/TLS/RTP/SAVPF 98 0\r\na=mid:strange\r\na=rtcp-mux\r\na=rtpmap:98 multiopus/48000/6\r\n"


@pytest.mark.parametrize("sound_first", [True, False])
@pytest.mark.parametrize(("kind", "one"), [("whip", Publisher), ("whep", Viewer)])
async def test_an_offer_whose_sound_is_not_opus_still_gets_video(server, kind, one, sound_first):
    peer = one(server.http, f"{server.url}/{kind}/one").peer
    track = ColourTrack(RED)
    peer.addTransceiver(track if kind == "whip" else "video", direction="sendonly" if kind == "whip" else "recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    head, video = peer.localDescription.sdp.split("m=video")
    video, sound = f"m=video{video}", STRANGE + "".join(f"{line}\r\n" for line in secrets_of(video))
    mids = "strange 0" if sound_first else "0 strange"
    offer = head.replace("BUNDLE 0", f"BUNDLE {mids}") + (sound + video if sound_first else video + sound)
    async with server.http.post(
        f"{server.url}/{kind}/one", data=offer, headers={"Content-Type": "application/sdp"}
    ) as response:
        answer = await response.text()
        assert response.status == 201, answer
    sections = answer.split("m=")[1:]
    refused = sections.pop(0 if sound_first else 1)
    assert refused.startswith("audio 0 ")
    assert "a=mid:strange\r\n" in refused
    assert "BUNDLE 0\r\n" in answer
    accepted = answer.replace(f"m={refused}", "")  # aiortc itself takes no answer that refuses anything
    await peer.setRemoteDescription(RTCSessionDescription(sdp=accepted, type="answer"))
    await until(lambda: peer.connectionState == "connected")
    if kind == "whip":
        await until(lambda: server.streams.get("one").last_picture is not None)
    await peer.close()


def secrets_of(section: str) -> list[str]:
    """The lines that every section of a bundle repeats."""
    return [line for line in section.splitlines() if line.startswith(("a=ice-", "a=fingerprint", "a=setup"))]
