"""What viewers' feedback leads to: the decisions on a clock of the test's, and all of it with real peers."""

from __future__ import annotations

import itertools
import random
import time

import numpy as np
import pytest
from aiortc import RTCDtlsTransport, codecs
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRtpfbPacket,
    pack_remb_fci,
)
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch import Pictures
from pipeline.capabilities import Capabilities
from stream.webrtc import tracks
from stream.webrtc.bitrates import FLOOR_BPS, HOLD_DOWN_S, URGENT, BitrateEstimate, EncoderBitrate, bitrate_bps
from stream.webrtc.feedback import (
    HISTORY,
    KEYFRAME_S,
    MAX_RESENDS,
    MIN_RESEND_S,
    RESEND_BURST_S,
    RESEND_SHARE,
    KeyframeRequests,
    ReceiverReports,
    Retransmissions,
    remb_bps,
)
from stream.webrtc.receiving.bitstream import is_keyframe
from tests.stream.fakes import FakeStylizer
from tests.stream.peers import Publisher, Viewer, until

DESERVED = bitrate_bps(512, 512)

# -- packets sent again ------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0, 0.2), st.integers(0, 30), st.integers(1, 1300)), min_size=1, max_size=300),
    st.integers(FLOOR_BPS, DESERVED),
    st.none() | st.floats(0, 0.5),
)
def test_what_is_sent_again_is_bounded(asked, bps, round_trip_s):
    again, now_s, bits = Retransmissions(), 0.0, 0
    sent: dict[int, list[float]] = {}
    for pause_s, number, size in asked:
        now_s += pause_s
        if again.allow(now_s, number, size, bps, round_trip_s):
            bits += 8 * size
            sent.setdefault(number, []).append(now_s)
    assert bits <= bps * (RESEND_BURST_S + RESEND_SHARE * now_s) + 1
    for times in sent.values():
        assert len(times) <= MAX_RESENDS
        assert all(later - earlier >= MIN_RESEND_S - 1e-9 for earlier, later in itertools.pairwise(times))


def test_a_packet_is_sent_again_a_round_trip_later_and_not_for_ever():
    again = Retransmissions()
    sent_s = [now / 100 for now in range(1000) if again.allow(now / 100, 7, 1000, DESERVED, 0.1)]
    assert sent_s[0] == 0.0
    assert len(sent_s) == MAX_RESENDS
    assert all(0.05 <= b - a <= 0.1 for a, b in itertools.pairwise(sent_s))
    assert again.allow(60.0, 7, 1000, DESERVED, 0.1), "numbers go round: this is another packet"


def test_a_burst_of_losses_is_made_good_at_once():
    """200 ms of 8 Mbit/s, all of them lost."""
    again = Retransmissions()
    assert all(again.allow(1.0, number, 1300, DESERVED, 0.05) for number in range(DESERVED // 5 // (8 * 1300)))


def test_what_can_be_sent_again_reaches_back_most_of_a_second():
    assert HISTORY * 1300 * 8 / tracks.CEILING_BPS > 0.8
    assert 2**16 % HISTORY == 0


# -- keyframes -------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=100), st.floats(0.001, 0.2))
def test_every_request_is_answered_within_300_ms_and_none_sooner_than_300_ms_after_the_last(pauses_s, frame_s):
    """Frames leave every frame_s; the next one after a request that is due is a keyframe."""
    requests, now_s, wanted_s = KeyframeRequests(), 0.0, None
    asked: list[float] = []
    made: list[float] = []
    due: list[float] = []
    next_frame_s = frame_s
    for pause_s in [*pauses_s, 5.0]:
        ask_s = now_s + pause_s
        while next_frame_s <= ask_s:
            if any(at_s <= next_frame_s for at_s in due) and requests.is_due:
                requests.made(next_frame_s)
                made.append(next_frame_s)
                due.clear()
            next_frame_s += frame_s
        now_s = ask_s
        if (wanted_s := requests.ask(now_s)) is not None:
            due.append(now_s + wanted_s)
        asked.append(now_s)
    assert all(b - a >= KEYFRAME_S - 1e-9 for a, b in itertools.pairwise(made))
    for ask_s in asked[:-1]:
        assert any(ask_s <= at_s <= ask_s + KEYFRAME_S + frame_s + 1e-9 for at_s in made)


def test_the_first_request_is_answered_at_once():
    requests = KeyframeRequests()
    requests.made(0.0)
    assert requests.ask(1.0) == 0.0
    assert requests.ask(1.1) is None, "it is on its way"
    requests.made(1.12)
    assert requests.ask(1.2) == pytest.approx(0.22)


def test_a_keyframe_that_came_anyway_answers_who_waits():
    requests = KeyframeRequests()
    requests.made(0.0)
    requests.ask(0.1)
    requests.made(0.2)  # of a new encoder
    assert not requests.is_due


# -- bitrate ---------------------------------------------------------------------------------------------------------

REPORTS = st.lists(
    st.tuples(st.floats(0.01, 2), st.integers(0, 500), st.floats(0, 1), st.none() | st.integers(0, 100_000_000)),
    max_size=100,
)


def clean(estimate: BitrateEstimate, now_s: float, seconds: float, remb_bps: int | None = None) -> float:
    """Reports five times a second that nothing is lost."""
    for _ in range(round(5 * seconds)):
        now_s += 0.2
        if remb_bps is not None:
            estimate.limit(now_s, remb_bps)
        estimate.report(now_s, 100, 0)
    return now_s


@given(REPORTS)
def test_the_estimate_stays_in_its_bounds_and_comes_back_whatever_happened(reports):
    estimate, now_s = BitrateEstimate(lambda: DESERVED), 0.0
    for pause_s, packets, loss, takes_bps in reports:
        now_s += pause_s
        if takes_bps is not None:
            estimate.limit(now_s, takes_bps)
        estimate.report(now_s, packets, round(loss * packets), 0.05)
        assert FLOOR_BPS <= estimate.bps(now_s) <= DESERVED
    now_s = clean(estimate, now_s, 60, remb_bps=2 * DESERVED)
    assert estimate.bps(now_s) == DESERVED


@pytest.mark.parametrize("loss", [0.12, 0.3, 0.8])
def test_heavy_loss_takes_the_estimate_down_to_the_floor_and_not_below(loss):
    estimate = BitrateEstimate(lambda: DESERVED)
    seen = []
    for tenth in range(1000):
        estimate.report(tenth / 10, 100, round(100 * loss), 0.05)
        seen.append(estimate.bps(tenth / 10))
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == DESERVED
    assert seen[-1] == FLOOR_BPS


def test_what_wireless_networks_lose_takes_nothing_off():
    estimate = BitrateEstimate(lambda: DESERVED)
    for tenth in range(600):
        estimate.report(tenth / 10, 100, 5)
    assert estimate.bps(60.0) == DESERVED


def test_what_a_receiver_says_is_followed_at_once_both_ways():
    estimate = BitrateEstimate(lambda: DESERVED)
    estimate.limit(0.0, 1_000_000)
    assert estimate.bps(0.0) == 1_000_000
    estimate.limit(0.2, 100_000)
    assert estimate.bps(0.2) == FLOOR_BPS
    estimate.limit(0.4, 20_000_000)
    assert estimate.bps(0.4) == DESERVED


def test_a_receiver_whose_estimate_waits_for_more_to_arrive_is_sent_more():
    """Chrome's, after a bottleneck: it grows by 15 kbit/s in a second, and by 8 % once 1.2 times as much arrives."""
    estimate, remb, now_s = BitrateEstimate(lambda: DESERVED), 1_600_000.0, 0.0
    while estimate.bps(now_s) < DESERVED and now_s < 90:
        now_s += 0.2
        remb = remb * 1.08**0.2 if estimate.bps(now_s) > 1.2 * remb else remb + 3000
        estimate.limit(now_s, round(remb))
        estimate.report(now_s, 100, 0)
    assert estimate.bps(now_s) == DESERVED


def test_more_than_a_receiver_says_is_tried_ever_less_often_where_it_is_too_much():
    """A way of 2 Mbit/s: whatever exceeds it makes the receiver say less."""
    estimate, remb, tried = BitrateEstimate(lambda: DESERVED), 1_900_000.0, []
    for fifth in range(5 * 300):
        now_s = fifth / 5
        sent = estimate.bps(now_s)
        if sent > 2_000_000:
            tried.append(now_s)
            remb = 1_700_000.0
        elif remb < 1_900_000:
            remb += 15_000
        estimate.limit(now_s, round(remb))
    pauses_s = np.diff(tried)
    assert 4 <= len(tried) <= 12
    assert pauses_s[-1] > 30


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(FLOOR_BPS, DESERVED)), min_size=2, max_size=100))
def test_the_encoder_is_told_of_changes_seldom_unless_they_are_urgent(estimates):
    encoder, now_s = EncoderBitrate(), 0.0
    told = changed_s = None
    for pause_s, bps in estimates:
        now_s += pause_s
        before, told = told, encoder.follow(now_s, bps, DESERVED)
        if before is None or told == before:
            continue
        assert told == bps
        assert changed_s is None or now_s - changed_s >= HOLD_DOWN_S - 1e-9 or bps < URGENT * before
        assert changed_s is None or now_s - changed_s >= 3 - 1e-9 or bps < before
        changed_s = now_s


def test_an_estimate_that_wavers_makes_no_keyframes():
    encoder, chance = EncoderBitrate(), random.Random(3)
    told = {encoder.follow(n / 5, round(2_000_000 * chance.uniform(0.95, 1.1)), DESERVED) for n in range(500)}
    assert len(told) == 1


def test_only_what_is_meant_for_a_source_is_taken_for_what_its_receiver_takes():
    def remb(fci: bytes) -> int | None:
        return remb_bps(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=fci), 7)

    whole = pack_remb_fci(1_000_000, [5, 7])
    assert remb(whole) == pytest.approx(1_000_000, rel=1e-4)
    assert remb(pack_remb_fci(1_000_000, [5])) is None
    assert [remb(whole[:size]) for size in range(len(whole))] == [None] * len(whole)
    assert remb(b"ABCD" + whole[4:]) is None


# -- reports -----------------------------------------------------------------------------------------------------------


def report(highest: int, lost: int, lsr: int = 0, dlsr: int = 0) -> RtcpReceiverInfo:
    return RtcpReceiverInfo(
        ssrc=1, fraction_lost=0, packets_lost=lost, highest_sequence=highest, jitter=0, lsr=lsr, dlsr=dlsr
    )


def test_a_report_tells_the_round_trip():
    reports = ReceiverReports()
    reports.sent(10.0, 77)
    reports.add(10.35, report(1, 0, 77, round(0.3 * 65536)))
    assert reports.round_trip_s == pytest.approx(0.05, abs=1e-4)
    reports.add(10.36, report(1, 0, 78))
    reports.add(99.0, report(1, 0, 77))
    assert reports.round_trip_s == pytest.approx(0.05, abs=1e-4), "another's, and what cannot be"


def test_two_reports_that_look_the_same_tell_no_round_trip():
    reports = ReceiverReports()
    reports.sent(10.0, 77)
    reports.sent(11.0, 77)
    reports.add(11.1, report(1, 0, 77))
    assert reports.round_trip_s is None


def test_losses_are_counted_from_report_to_report():
    reports = ReceiverReports()
    added = [reports.add(0.0, report(*one)) for one in [(1000, 5), (1100, 9), (1150, 8), (60, 0), (160, 1)]]
    assert added == [(0, 0), (100, 4), (50, 0), (0, 0), (100, 1)]
    assert (reports.expected, reports.lost) == (250, 5)


# -- with real peers ---------------------------------------------------------------------------------------------------


class Noisy(FakeStylizer):
    """Paints noise, so that a picture takes several packets."""

    capabilities = Capabilities(256, 256)

    def painted(self, batch):
        frames = 1 if batch.frames is None else len(batch.frames)
        noise = np.random.default_rng(len(self.calls)).integers(0, 256, (frames, 64, 64, 3), np.uint8)
        return Pictures(noise.repeat(4, axis=1).repeat(4, axis=2))


class Watcher(Viewer):
    """A viewer that keeps what comes, loses what `loses` says, and says what a test wants said; silent: does
    not say by itself what it lacks."""

    def __init__(self, *arguments, rtx=True, silent=False, loses=lambda: False, **more):
        super().__init__(*arguments, **more)
        self.rtx, self.silent, self.loses = rtx, silent, loses
        self.packets = []  # as they came, those of rtx too

    async def offer(self) -> str:
        self.peer.addTransceiver("video", direction="recvonly")
        transceiver = self.peer.getTransceivers()[0]
        wanted = {f"video/{self.codec}".lower(), *(["video/rtx"] if self.rtx else [])}
        offered = transceiver.receiver.getCapabilities("video").codecs
        transceiver.setCodecPreferences([codec for codec in offered if codec.mimeType.lower() in wanted])
        self.receiver = transceiver.receiver
        self.receiver._RTCRtpReceiver__remote_bitrate_estimator = None  # the test says it
        if self.silent:
            self.receiver._RTCRtpReceiver__nack_generator = None
        handle = self.receiver._handle_rtp_packet

        async def see(packet, arrival_time_ms):
            if not self.loses():
                self.packets.append(packet)
                await handle(packet, arrival_time_ms=arrival_time_ms)

        self.receiver._handle_rtp_packet = see
        await self.peer.setLocalDescription(await self.peer.createOffer())
        return self.peer.localDescription.sdp

    def again(self) -> list[int]:
        """Which numbers came once more, by RTX (RFC 4588, 4)."""
        return [int.from_bytes(one.payload[:2], "big") for one in self.packets if one.ssrc != self.ssrc]

    @property
    def ssrc(self) -> int:
        return self.packets[0].ssrc

    def keyframes(self) -> int:
        """How many came."""
        name = self.codec
        codec = next(one for one in codecs.CODECS["video"] if one.name == name)
        frames: dict[int, bytes] = {}
        for packet in self.packets:
            if packet.ssrc == self.ssrc:
                frames[packet.timestamp] = frames.get(packet.timestamp, b"") + codecs.depayload(codec, packet.payload)
        return sum(is_keyframe(name, data) for data in frames.values())

    def frames(self) -> int:
        return len({packet.timestamp for packet in self.packets if packet.ssrc == self.ssrc})

    async def asks_for_a_keyframe(self, fmt: int = RTCP_PSFB_PLI) -> None:
        await self.receiver._send_rtcp(RtcpPsfbPacket(fmt=fmt, ssrc=1, media_ssrc=self.ssrc))

    async def says_lost(self, *numbers: int) -> None:
        packet = RtcpRtpfbPacket(fmt=RTCP_RTPFB_NACK, ssrc=1, media_ssrc=self.ssrc)
        packet.lost = list(numbers)
        await self.receiver._send_rtcp(packet)

    async def takes(self, bps: int) -> None:
        fci = pack_remb_fci(bps, [self.ssrc])
        await self.receiver._send_rtcp(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=fci))


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_what_a_viewer_gets_first_is_a_keyframe_whenever_it_joins(server, codec):
    async with (
        Publisher(server.http, f"{server.url}/whip/one"),
        Watcher(server.http, f"{server.url}/whep/one", codec=codec) as early,
    ):
        await until(lambda: early.packets and early.frames() > 5)
        async with Watcher(server.http, f"{server.url}/whep/one", codec=codec) as late:
            await until(lambda: late.packets and late.frames() > 5)
            for watcher in (early, late):
                watcher.packets = [p for p in watcher.packets if p.timestamp == watcher.packets[0].timestamp]
                assert watcher.keyframes() == 1


@pytest.mark.parametrize("codec", ["VP8", "H264"])
@pytest.mark.parametrize("fmt", [RTCP_PSFB_PLI, RTCP_PSFB_FIR])
async def test_who_asks_for_a_keyframe_gets_one_though_the_picture_stands_still(server, monkeypatch, codec, fmt):
    monkeypatch.setattr(tracks, "REPEAT_S", 3600.0)
    async with Publisher(server.http, f"{server.url}/whip/one"):
        await until(lambda: server.streams.get("one").last_picture is not None)
    await until(lambda: server.streams.get("one").publication is None)
    async with Watcher(server.http, f"{server.url}/whep/one", codec=codec) as watcher:
        await until(lambda: watcher.packets)
        for asked in range(1, 3):
            await watcher.asks_for_a_keyframe(fmt)
            await until(lambda asked=asked: watcher.keyframes() == 1 + asked)
        assert watcher.frames() == 3
        counted = await until(lambda: server.streams.get("one").network.snapshot()["viewers"])
        assert counted["plis"] <= 2


async def test_who_asks_over_and_over_gets_few(server):
    async with (
        Publisher(server.http, f"{server.url}/whip/one"),
        Watcher(server.http, f"{server.url}/whep/one") as watcher,
    ):
        await until(lambda: watcher.packets and watcher.frames() > 5)
        before, began_s = watcher.keyframes(), time.monotonic()
        for _ in range(50):
            await watcher.asks_for_a_keyframe()
        frames = watcher.frames()
        await until(lambda: watcher.frames() > frames + 20)
        assert 1 <= watcher.keyframes() - before <= 1 + (time.monotonic() - began_s) / KEYFRAME_S
        assert watcher.keyframes() - before <= 3


@pytest.mark.parametrize("rtx", [True, False])
async def test_a_packet_of_long_ago_is_sent_again(start_server, monkeypatch, rtx):
    send, large, lost = RTCDtlsTransport._send_rtp, 0, []

    async def lose_one(self, data):
        nonlocal large
        large += len(data) > 1200  # the server's: the publisher's picture is small
        if large == 3 and not lost:
            lost.append(int.from_bytes(data[2:4], "big"))
        else:
            await send(self, data)

    monkeypatch.setattr(RTCDtlsTransport, "_send_rtp", lose_one)
    server = await start_server(Noisy())
    async with (
        Publisher(server.http, f"{server.url}/whip/one"),
        Watcher(server.http, f"{server.url}/whep/one", rtx=rtx, silent=True) as watcher,
    ):
        await until(lambda: len(watcher.packets) > 400)

        def came() -> bool:
            return lost[0] in (watcher.again() if rtx else [packet.sequence_number for packet in watcher.packets])

        assert not came()
        await watcher.says_lost(lost[0])
        await until(came)


async def test_what_came_before_a_keyframe_is_not_sent_again(start_server):
    server = await start_server(Noisy())
    async with (
        Publisher(server.http, f"{server.url}/whip/one"),
        Watcher(server.http, f"{server.url}/whep/one", silent=True) as watcher,
    ):
        await until(lambda: len(watcher.packets) > 50)
        before = watcher.packets[-1].sequence_number
        await watcher.asks_for_a_keyframe()
        await until(lambda: watcher.keyframes() == 2)
        after = watcher.packets[-1].sequence_number
        await watcher.says_lost(before, after)
        await until(lambda: after in watcher.again())
        assert watcher.again() == [after]


async def test_the_bitrate_follows_what_a_viewer_takes_down_and_up_again(start_server):
    server = await start_server(Noisy())

    def told() -> int:
        viewers = server.streams.get("one").network.snapshot()["viewers"]
        return viewers["bitrate_bps"] if viewers else 0

    async with (
        Publisher(server.http, f"{server.url}/whip/one"),
        Watcher(server.http, f"{server.url}/whep/one") as watcher,
    ):
        await until(lambda: told() == bitrate_bps(256, 256))
        await watcher.takes(600_000)
        await until(lambda: told() == 600_000)
        await watcher.takes(50_000)
        await until(lambda: told() == FLOOR_BPS)
        await watcher.takes(20_000_000)
        await until(lambda: told() == bitrate_bps(256, 256))
        assert watcher.peer.connectionState == "connected"


async def test_losses_are_made_good_and_told_in_the_statistics_and_to_prometheus(start_server):
    server, chance = await start_server(Noisy()), random.Random(7)
    lossy = Watcher(server.http, f"{server.url}/whep/one", loses=lambda: chance.random() < 0.05)
    async with Publisher(server.http, f"{server.url}/whip/one"), lossy as watcher:

        async def told() -> bool:
            viewers = (await server.stats("one"))["network"]["viewers"]
            return bool(viewers and viewers["loss"] and viewers["nacks"] and viewers["round_trip_ms"])

        await until(told)
        await until(lambda: len(watcher.pts) > 60)
        network = (await server.stats("one"))["network"]
        assert 0.01 < network["viewers"]["loss"] < 0.15
        async with server.http.get(f"{server.url}/metrics") as response:
            lines = dict(line.rsplit(" ", 1) for line in (await response.text()).splitlines() if line[0] != "#")
        labels = '{role="viewers",stream="one"}'
        assert float(lines[f"lcmirror_packets_lost_total{labels}"]) > 0
        assert float(lines[f"lcmirror_nacks_total{labels}"]) >= network["viewers"]["nacks"] > 0
        assert 0 < float(lines[f"lcmirror_round_trip_seconds{labels}"]) < 5
    await until(lambda: server.streams.get("one").network.snapshot() == {"publisher": None, "viewers": None})
