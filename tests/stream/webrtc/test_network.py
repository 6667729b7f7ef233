"""Publishers behind a network that loses, delays and reorders: real browsers and FFmpeg, through the relay.

What is measured is from the drawing of a picture in the publisher to its decoded frame at the engine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.chromium import CHROMIUM, launch_options, write_camera_file
from tests.ffmpeg import FPS, needs_whip
from tests.paths import ROOT

from . import timed
from .relay import Plan, Relay
from .timed import PUBLISH, STATS, Timed, Watched, timed_server

pytestmark = pytest.mark.prove

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
DRIVER = ROOT / "tests" / "clients" / "node_modules" / "puppeteer-core"
CODECS = pytest.mark.parametrize("codec", ["VP8", "H264"])
THREE = [{"rid": "q", "scaleResolutionDownBy": 4}, {"rid": "h", "scaleResolutionDownBy": 2}, {"rid": "f"}]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    camera = write_camera_file(tmp_path_factory.mktemp("camera") / "camera.y4m", width=640, height=480)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_options(camera))
        yield browser
        browser.close()


class Publishing:
    """Chromium publishes through a relay."""

    def __init__(self, server: Timed, relay: Relay, page: Page, one_way_s: float):
        self.server, self.relay, self.page, self.one_way_s = server, relay, page, one_way_s

    def turn_to(self, **up) -> None:
        """The way to the server; the way back as it does, but that nothing is late there."""
        down = {name: value for name, value in up.items() if name in ("loss", "burst", "until_s", "from_s")}
        self.relay.turn_to(
            Plan(one_way_s=self.one_way_s, **up), Plan(one_way_s=self.one_way_s, **down, seed=up.get("seed", 0) + 1)
        )

    def watch(self, seconds: float) -> Watched:
        since_s = time.time()
        self.page.wait_for_timeout(1000 * seconds)
        return Watched(since_s, self.server.since(since_s))

    def counted(self) -> dict[str, float]:
        return self.page.evaluate(STATS)[0]


@contextmanager
def publishing(browser, codec="VP8", fps=30, one_way_s=0.0, settle_s=4.0, **options):
    plan = Plan(one_way_s=one_way_s)
    with timed_server() as server, Relay(server.url, plan, plan) as relay:
        page = browser.new_page()
        page.goto(f"{relay.url}/empty")
        page.evaluate(PUBLISH, [f"{relay.url}/whip/one", codec, fps, options])
        until(lambda: server.pictures)
        page.wait_for_timeout(1000 * settle_s)
        yield Publishing(server, relay, page, one_way_s)
        page.close()


def until(happened, patience_s: float = 30.0) -> None:
    ends_s = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < ends_s
        time.sleep(0.02)


@CODECS
@pytest.mark.parametrize("one_way_s", [0.0, 0.075])
@pytest.mark.parametrize("retransmissions", [1, 60])
def test_a_packet_and_its_retransmission_are_lost(browser, codec, one_way_s, retransmissions):
    with publishing(browser, codec, one_way_s=one_way_s) as one:
        one.turn_to(lose=(20,), retransmissions=retransmissions)
        seen = one.watch(6)
        assert seen.longest_gap_s < 0.55 + 2 * one_way_s
        assert len(seen.pictures) > 150
        assert len(seen.after(4).pictures) > 50


@pytest.mark.parametrize("seed", range(3))
@CODECS
def test_pictures_are_back_within_a_second_of_a_clean_network(browser, codec, seed):
    with publishing(browser, codec, one_way_s=0.025) as one:
        one.turn_to(loss=0.3, until_s=3.0, seed=seed)
        seen = one.watch(7)
        assert len(seen.pictures) > 60
        clean = seen.after(3)
        assert clean.pictures[0][0] - clean.since_s < 1.0
        assert len(clean.after(1).pictures) > 70
        assert clean.after(1).longest_gap_s < 0.3


@CODECS
def test_five_percent_of_loss_for_a_while(browser, codec):
    with publishing(browser, codec, one_way_s=0.005) as one:
        clean = one.watch(8)
        one.turn_to(loss=0.05)
        lossy = one.watch(25)
        assert lossy.percentile_ms(95) < clean.percentile_ms(95) + 60
        assert lossy.longest_gap_s < 0.3
        assert one.counted()["pliCount"] <= 1


@pytest.mark.parametrize("options", [{}, {"still": True, "kbps": 2000}], ids=["moving", "one packet a frame"])
def test_latency_comes_down_again_after_packets_that_were_late(browser, options):
    with publishing(browser, **options) as one:
        before = one.watch(4)
        one.turn_to(late=0.3, late_s=0.5, until_s=2.0)
        seen = one.watch(6)
        assert seen.after(3.5).percentile_ms(50) < before.percentile_ms(50) + 10
        assert len(seen.after(3.5).pictures) > 60


@CODECS
@pytest.mark.parametrize("fps", [2, 5])
def test_latency_does_not_depend_on_the_frame_rate(browser, codec, fps):
    with publishing(browser, codec, fps=fps, still=True, settle_s=8) as one:
        assert one.watch(8).percentile_ms(50) < 60


def test_one_layer_of_three_is_taken(browser):
    """Negotiated by a=ssrc-group:SIM. The fake model has 64x64 pixels: the smallest layer is enough."""
    options = {"layers": 3, "width": 1280, "height": 720, "startKbps": 4000}
    with publishing(browser, fps=15, settle_s=10, **options) as one:
        seen = one.watch(4)
        told = one.page.evaluate(STATS)
        assert sum(layer["framesEncoded"] > 30 for layer in told) == 3
        assert {picture[2:] for picture in seen.pictures} == {(320, 180)}
        assert len(seen.pictures) > 45
        assert sum(layer["pliCount"] for layer in told) <= 12


def test_rids_show_a_picture(browser):
    with publishing(browser, rids=THREE) as one:
        assert len(one.watch(4).pictures) > 90


def test_firefox():
    if FIREFOX is None or shutil.which("node") is None or not DRIVER.exists():
        pytest.skip("Firefox, Node.js or puppeteer-core is missing")
    with timed_server() as server, Relay(server.url, Plan(one_way_s=0.01), Plan(one_way_s=0.01)) as relay:
        given = {
            "executable": FIREFOX,
            "url": f"{relay.url}/empty",
            "script": PUBLISH,
            "arguments": [f"{relay.url}/whip/one", "VP8", 30, {"plain": True}],
        }
        driver = ["node", str(ROOT / "tests" / "stream" / "webrtc" / "publish.mjs"), json.dumps(given)]
        process = subprocess.Popen(driver, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "published\n"
            until(lambda: server.pictures)
            time.sleep(4)
            one_way = {"one_way_s": 0.01}
            relay.turn_to(Plan(lose=(20,), retransmissions=60, **one_way), Plan(**one_way))
            since_s = time.time()
            time.sleep(4)
            lost = Watched(since_s, server.since(since_s))
            relay.turn_to(Plan(loss=0.3, until_s=3, **one_way), Plan(loss=0.3, until_s=3, **one_way))
            since_s = time.time()
            time.sleep(7)
            seen = Watched(since_s, server.since(since_s))
        finally:
            process.stdin.close()
            process.wait(20)
    assert lost.longest_gap_s < 0.6
    assert len(lost.pictures) > 90
    assert seen.after(3).pictures[0][0] - since_s - 3 < 1.0
    assert len(seen.after(4).pictures) > 60


@needs_whip
def test_ffmpeg(tmp_path):
    """It answers NACKs but knows no PLI: its keyframes come once a second."""
    with timed_server() as server, Relay(server.url, Plan(one_way_s=0.01), Plan(one_way_s=0.01)) as relay:
        command = [sys.executable, timed.__file__, f"{relay.url}/whip/one", str(tmp_path), "20"]
        publisher = subprocess.Popen(command)
        until(lambda: server.pictures)
        time.sleep(4)
        clean = Watched(time.time() - 3, server.since(time.time() - 3))
        relay.turn_to(*[Plan(loss=0.05, one_way_s=0.01, seed=seed) for seed in (1, 2)])
        since_s = time.time()
        time.sleep(8)
        lossy = Watched(since_s, server.since(since_s))
        publisher.terminate()
        publisher.wait(10)
    assert clean.percentile_ms(50) < 45
    assert len(lossy.pictures) > 0.7 * 8 * FPS
    assert lossy.longest_gap_s < 1.3
