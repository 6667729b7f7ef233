"""npm's WHIP and WHEP clients publish and play in real Chromium, from another origin, with and without a token."""

from __future__ import annotations

import json
import urllib.request

import pytest

from tests.chromium import until_promised

pytestmark = pytest.mark.calm

PATIENCE_MS = 60_000  # a watchdog, not a measurement: CI machines are slow

PUBLISH = """async ([client, url, token]) => {
    const stream = await navigator.mediaDevices.getUserMedia({video: true, audio: true});
    window.publishing = await publishers[client](url, token, stream);
}"""
PLAY = """async ([client, url, token]) => {
    window.playing = await players[client](url, token, document.getElementById('output'));
}"""

ENDED = """async ([api, name, token]) => {
    const headers = token === null ? {} : {Authorization: `Bearer ${token}`};
    const told = await (await fetch(api, {headers})).json();
    return !told.some(one => one.stream === name);
}"""


def ask(url: str, token: str | None) -> dict:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as response:
        return json.load(response)


@pytest.mark.parametrize(
    ("publisher", "player"),
    [("whip-whep", "@eyevinn/webrtc-player"), ("@eyevinn/whip-web-client", "whip-whep")],
)
def test_clients_of_others_publish_and_play(guarded, clients_page, new_tab, publisher, player):
    server, token = guarded
    name = f"by-{publisher.split('/')[-1]}"
    sender, receiver = new_tab(), new_tab()
    for tab in (sender, receiver):
        tab.goto(clients_page)
        tab.wait_for_function("() => window.players")
    sender.evaluate(PUBLISH, [publisher, f"{server.url}/whip/{name}", token])
    receiver.evaluate(PLAY, [player, f"{server.url}/whep/{name}", token])
    receiver.wait_for_function("() => document.getElementById('output').videoWidth === 256", timeout=PATIENCE_MS)
    until_promised(receiver, "async () => await loudness(document.getElementById('output')) > 0.01")
    api = f"{server.url}/api/streams/{name}"
    told = ask(api, token)
    assert (told["publishing"], told["viewers"]) == (True, 1)
    receiver.evaluate("() => playing.stop()")
    sender.evaluate("() => publishing.stop()")
    until_promised(sender, ENDED, [f"{server.url}/api/streams", name, token])
