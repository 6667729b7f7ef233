"""Viewers behind a network that loses packets: real Chromium watches through the relay."""

from __future__ import annotations

import json
import time
import urllib.request
from itertools import pairwise

import pytest
from playwright.sync_api import sync_playwright

from tests.chromium import CHROMIUM, launch_options, running_server, write_camera_file

from .relay import Plan, Relay

pytestmark = pytest.mark.prove

ONE_WAY_S = 0.025

# When frames were shown, in milliseconds of the wall clock.
SHOWN = """() => {
    window.shown = [];
    const video = document.getElementById('output');
    const note = () => { shown.push(Date.now()); video.requestVideoFrameCallback(note); };
    video.requestVideoFrameCallback(note);
}"""


class Watching:
    def __init__(self, server, relay, page):
        self.server, self.relay, self.page = server, relay, page

    def lose(self, **plan) -> None:
        self.relay.turn_to(Plan(one_way_s=ONE_WAY_S), Plan(one_way_s=ONE_WAY_S, **plan))

    def watch(self, seconds: float) -> list[float]:
        """When frames were shown meanwhile, in seconds from now on."""
        since_s = time.time()
        self.page.wait_for_timeout(1000 * seconds)
        return [at / 1000 - since_s for at in self.page.evaluate("shown") if at / 1000 >= since_s]

    def viewers(self) -> dict:
        with urllib.request.urlopen(f"{self.server.url}/api/streams/one", timeout=10) as response:
            return json.load(response)["network"]["viewers"]


@pytest.fixture(scope="module")
def watching(tmp_path_factory):
    """What the camera shows, unpainted, so that pictures come at its own pace."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    camera = write_camera_file(tmp_path_factory.mktemp("camera") / "camera.y4m")
    plan = Plan(one_way_s=ONE_WAY_S)
    with running_server() as server, Relay(server.url, plan, plan) as relay, sync_playwright() as playwright:
        headers = {"Content-Type": "application/json"}
        url = f"{server.url}/api/streams/one/controls"
        urllib.request.urlopen(urllib.request.Request(url, b'{"bypass": true}', headers, method="PATCH")).close()
        browser = playwright.chromium.launch(**launch_options(camera))
        studio, page = browser.new_page(), browser.new_page()
        studio.goto(f"{server.url}/?stream=one")
        studio.locator("#start:not([disabled])").click()
        studio.wait_for_selector("body[data-phase=live]", timeout=60_000)
        page.goto(f"{relay.url}/view/one")
        page.wait_for_function("document.getElementById('output').videoWidth", timeout=60_000)
        page.evaluate(SHOWN)
        page.wait_for_timeout(3000)
        yield Watching(server, relay, page)
        browser.close()


def longest_gap_s(times_s: list[float]) -> float:
    return max((later - earlier for earlier, later in pairwise(times_s)), default=float("inf"))


def test_five_percent_of_loss_holds_nothing_up(watching):
    watching.lose(loss=0.05)
    shown_s = watching.watch(15)
    assert longest_gap_s(shown_s) < 0.7
    assert len(shown_s) > 15 * 15
    assert 0.02 < watching.viewers()["loss"] < 0.1
    watching.lose()


@pytest.mark.parametrize("seed", range(3))
def test_pictures_are_back_within_a_second_of_a_clean_network(watching, seed):
    watching.lose(loss=0.3, until_s=3.0, seed=seed)
    clean_s = [at for at in watching.watch(8) if at > 3.0]
    assert clean_s[0] < 4.0
    assert longest_gap_s([at for at in clean_s if at > 4.0]) < 0.7
    assert len(clean_s) > 3 * 15
