"""The studio page in real Chromium, the real server, the bundled model, a real clip as the camera."""

from __future__ import annotations

import json
import urllib.request

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.chromium import running_server

PATIENCE_MS = 60_000  # a watchdog, not a measurement: CI machines are slow

GRAB = """id => {
    const video = document.getElementById(id), canvas = document.createElement('canvas');
    canvas.width = 32; canvas.height = 32;
    const context = canvas.getContext('2d');
    context.drawImage(video, 0, 0, 32, 32);
    return Array.from(context.getImageData(0, 0, 32, 32).data);
}"""
HAS_PICTURE = "id => document.getElementById(id).videoWidth > 0 && document.getElementById(id).currentTime > 0"


def start(page: Page, url: str) -> None:
    page.goto(url)
    page.locator("#start").click(timeout=PATIENCE_MS)
    page.wait_for_function(HAS_PICTURE, arg="output", timeout=PATIENCE_MS)


def grab(page: Page, element: str = "output") -> np.ndarray:
    """What a video element shows, as float [32, 32, 3]."""
    return np.array(page.evaluate(GRAB, element), float).reshape(32, 32, 4)[..., :3]


def colourfulness(picture: np.ndarray) -> float:
    return float((picture.max(axis=2) - picture.min(axis=2)).mean())


def ask(url: str, data: dict | None = None, method: str = "GET") -> dict:
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def test_the_camera_comes_back_stylized(server, page):
    start(page, f"{server.url}/?stream=first")
    expect(page.locator("#stop")).to_be_visible()
    page.wait_for_function("() => Number(document.querySelector('[data-stat=fps_out]').textContent) > 0")
    stats = ask(f"{server.url}/api/streams/first")
    assert (stats["width"], stats["height"]) == (256, 256)
    assert stats["frames_in"] >= stats["frames_out"] + stats["frames_dropped"]
    page.locator("#stop").click()
    expect(page.locator("#start")).to_be_visible()


def test_the_picture_follows_the_prompt(server, page):
    """A pencil drawing is grey, pop art is not: the change is asked for in the prompt box and seen in the picture."""
    start(page, f"{server.url}/?stream=prompts")
    page.locator("#strength").fill("0.7")
    page.locator("#prompt").fill("pop art")
    page.wait_for_function(COLOURS_ABOVE, arg=60, timeout=PATIENCE_MS)
    page.locator("#prompt").fill("pencil sketch")
    page.wait_for_function(COLOURS_BELOW, arg=30, timeout=PATIENCE_MS)
    assert ask(f"{server.url}/api/streams/prompts/controls")["prompt"] == "pencil sketch"


_COLOURS = """limit => {{
    const data = ({grab})('output');
    let sum = 0;
    for (let i = 0; i < data.length; i += 4)
        sum += Math.max(data[i], data[i + 1], data[i + 2]) - Math.min(data[i], data[i + 1], data[i + 2]);
    return sum / (data.length / 4) {sign} limit;
}}"""
COLOURS_ABOVE = _COLOURS.format(grab=GRAB, sign=">")
COLOURS_BELOW = _COLOURS.format(grab=GRAB, sign="<")


def test_bypass_shows_the_source_and_another_client_can_turn_it(server, page):
    start(page, f"{server.url}/?stream=bypassed")
    page.locator("#prompt").fill("pop art")
    ask(f"{server.url}/api/streams/bypassed/controls", {"bypass": True}, "PATCH")
    expect(page.locator("#bypass")).to_be_checked(timeout=PATIENCE_MS)
    page.wait_for_function(COLOURS_BELOW, arg=60, timeout=PATIENCE_MS)


def test_two_tabs_never_see_each_other(server, chromium, page):
    """One paints grey, one in pop art colours; both are watched for a while."""
    other = chromium.new_context().new_page()
    start(page, f"{server.url}/?stream=grey")
    start(other, f"{server.url}/?stream=colourful")
    for tab, prompt, condition, limit in (
        (page, "pencil sketch", COLOURS_BELOW, 30),
        (other, "pop art", COLOURS_ABOVE, 60),
    ):
        tab.locator("#strength").fill("0.7")
        tab.locator("#prompt").fill(prompt)
        tab.wait_for_function(condition, arg=limit, timeout=PATIENCE_MS)
    for _ in range(25):
        assert colourfulness(grab(page)) < 45 < colourfulness(grab(other))
        page.wait_for_timeout(100)
    other.context.close()


def test_every_control_has_its_labelled_input(server, page):
    page.goto(server.url)
    page.wait_for_selector("#strength", state="attached")
    schema = ask(f"{server.url}/api/schema")
    features = set(ask(f"{server.url}/api/status")["features"])
    for name, control in schema["properties"].items():
        if control.get("x-needs", next(iter(features))) in features:
            field = page.locator(f"#{name}")
            assert field.count() == 1, name
            assert field.evaluate("e => e.labels.length > 0 || e.hasAttribute('aria-label')"), name


def test_a_value_out_of_range_is_refused_and_changes_nothing(server):
    url = f"{server.url}/api/streams/ranges/controls"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask(url, {"strength": 1.5, "steps": 1}, "PATCH")
    assert refusal.value.code == 422
    assert "strength" in json.load(refusal.value)["error"]
    assert ask(url) == ask(url.replace("ranges", "untouched"))


def test_a_refused_camera_is_said_in_plain_words(server, chromium):
    context = chromium.new_context()
    page = context.new_page()
    page.add_init_script(
        "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', 'NotAllowedError'))"
    )
    page.goto(server.url)
    page.locator("#start").click(timeout=PATIENCE_MS)
    expect(page.locator("#card")).to_contain_text("camera", ignore_case=True)
    expect(page.locator("#start")).to_be_visible()
    context.close()


def test_the_view_page_plays_alone_and_survives_a_restart(chromium, page):
    """OBS's browser source: it comes before the publisher, and outlives the server."""
    with running_server() as first:
        port = int(first.url.rsplit(":", 1)[1])
        view = chromium.new_context().new_page()
        view.goto(f"{first.url}/view/on-air")
        start(page, f"{first.url}/?stream=on-air")
        view.wait_for_function("() => document.querySelector('video').videoWidth === 256", timeout=PATIENCE_MS)
    with running_server(port=port):
        played = view.evaluate("document.querySelector('video').currentTime")
        page.wait_for_function(
            "id => !document.getElementById(id).hidden && document.getElementById(id).currentTime > 0",
            arg="output",
            timeout=PATIENCE_MS,
        )
        view.wait_for_function(
            """before => {
                const now = document.querySelector('video');
                return now.videoWidth === 256 && now.currentTime > 0 && now.currentTime !== before;
            }""",
            arg=played,
            timeout=PATIENCE_MS,
        )
        view.context.close()
    page.errors.clear()  # the browser itself notes every request to a server that is down
