"""What the pages say of a network that loses packets, in Chromium: on the way to the server, and on the way back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.chromium import running_server

from .test_studio import PATIENCE_MS, start, until_moving

pytestmark = pytest.mark.calm

LOSES = re.compile(r"Your network loses [4-8] % of the packets\.")

# What the server sends is lost, six of a hundred, while a file is there.
LOSSY = """
import pathlib, random
from aiortc import RTCDtlsTransport, rtp
send = RTCDtlsTransport._send_rtp
async def lose(self, data):
    if rtp.is_rtcp(data) or random.random() > 0.06 or not pathlib.Path({flag!r}).exists():
        await send(self, data)
RTCDtlsTransport._send_rtp = lose
"""


@pytest.fixture(scope="module")
def losing(tmp_path_factory) -> Path:
    """The file."""
    return tmp_path_factory.mktemp("network") / "loses"


@pytest.fixture(scope="module")
def lossy_server(losing):
    with running_server(first=LOSSY.format(flag=str(losing))) as running:
        yield running


def test_a_viewer_is_told_that_its_network_loses_packets_and_obs_shows_nothing_of_it(lossy_server, losing, new_tab):
    studio, view, obs = new_tab(), new_tab(), new_tab()
    obs.add_init_script("window.obsstudio = {}")
    start(studio, f"{lossy_server.url}/?stream=lossy")
    for tab in (view, obs):
        tab.goto(f"{lossy_server.url}/view/lossy")
        until_moving(tab)
    expect(view.locator("#network")).to_be_hidden()
    losing.touch()
    expect(view.locator("#network")).to_have_text(LOSES, timeout=PATIENCE_MS)
    expect(studio.locator("#status")).to_have_text(LOSES, timeout=PATIENCE_MS)
    until_moving(view, frames=10)
    losing.unlink()
    expect(view.locator("#network")).to_be_hidden(timeout=PATIENCE_MS)
    expect(studio.locator("#status")).to_have_text("Live", timeout=PATIENCE_MS)
    expect(obs.locator("#network")).to_be_empty()


def test_a_publisher_is_told_that_its_network_loses_packets(server, page):
    """The server's own statistics, with counters of a network that loses one of twenty-five."""
    losing, counted = True, {"packets_received": 0, "packets_lost": 0}

    def lose(route):
        def lossy(message: str) -> None:
            told = json.loads(message)
            if told["type"] == "stats":
                counted["packets_received"] += 48
                counted["packets_lost"] += 2 * losing
                told["network"] = {"publisher": counted, "viewers": None}
            route.send(json.dumps(told))

        route.connect_to_server().on_message(lossy)

    page.route_web_socket("**/events", lose)
    start(page, f"{server.url}/?stream=uplink")
    expect(page.locator("#status")).to_have_text("Your network loses 4 % of the packets.", timeout=PATIENCE_MS)
    losing = False
    expect(page.locator("#status")).to_have_text("Live", timeout=PATIENCE_MS)


def test_single_losses_are_not_told_nor_a_loss_that_is_over(page, server):
    page.goto(server.url)
    told = page.evaluate("""async () => {
        const { Losses } = await import('/static/webrtc/losses.js');
        const watch = (lost) => {
            const losses = new Losses(), told = [];
            for (let second = 0, sum = 0; second < 30; second++) {
                sum += lost(second);
                told.push(losses.heard({ received: 100 * second - sum, lost: sum }, 1000 * second));
            }
            return told;
        };
        return {
            none: watch(() => 0), single: watch((s) => (s === 10 ? 2 : 0)), one: watch(() => 1),
            storm: watch((s) => (s >= 5 && s < 15 ? 10 : 0)),
        };
    }""")
    assert told["none"] == told["single"] == told["one"] == [0] * 30
    assert max(told["storm"]) == pytest.approx(0.1)
    assert told["storm"][:5] == [0] * 5
    assert told["storm"][21:] == [0] * 9
