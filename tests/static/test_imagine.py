"""Pictures from words alone, in real Chromium: no camera is asked for, and each change paints another picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.chromium import until_promised

from .test_studio import GRAB, PATIENCE_MS, ask, grab, until, until_live, until_moving

pytestmark = pytest.mark.calm

DIFFERS = f"""before => {{
    const now = ({GRAB})('output').filter((_, i) => i % 4 < 3);
    return now.reduce((sum, value, i) => sum + Math.abs(value - before[i]), 0) / now.length > 8;
}}"""
PUBLISHER_IS = "async ([url, kind]) => (await (await fetch(url)).json()).publisher === kind"


def imagine(page: Page, url: str) -> None:
    page.goto(url)
    page.locator("#source").select_option("imagine", timeout=PATIENCE_MS)
    page.locator("#start").click()
    until_live(page)


def until_another(page: Page, before: np.ndarray) -> np.ndarray:
    """The picture that is shown in place of `before`."""
    until(page, DIFFERS, before.ravel().tolist())
    return grab(page)


def test_words_become_a_picture_and_each_change_another(server, page):
    page.add_init_script("""
        window.asked = 0;
        const get = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = (...wishes) => (window.asked++, get(...wishes));
    """)
    imagine(page, f"{server.url}/?stream=words")
    expect(page.locator("#status")).to_contain_text("made to repaint", timeout=PATIENCE_MS)  # mini is no generator
    expect(page.locator("#strength-help")).to_contain_text("No effect", timeout=PATIENCE_MS)
    expect(page.locator("#input")).to_be_hidden()
    first = grab(page)
    page.locator("#prompt").fill("pencil sketch")
    sketch = until_another(page, first)
    page.keyboard.press("Escape")  # out of the prompt: keys are shortcuts again
    page.keyboard.press("n")
    until_another(page, sketch)
    until_moving(page, frames=2)  # it stands, and is sent again for who comes late
    stats = ask(f"{server.url}/api/streams/words")
    assert (stats["publisher"], stats["frames_in"], stats["frames_out"]) == ("imagine", 3, 3)
    assert page.evaluate("asked") == 0
    page.locator("#stop").click()
    until_promised(page, "async () => !(await (await fetch('/api/streams')).json()).some(s => s.stream === 'words')")


def test_the_source_changes_between_camera_and_words_while_live(server, page):
    imagine(page, f"{server.url}/?stream=both")
    page.evaluate("""() => {
        window.phases = [];
        const note = () => phases.push(document.body.dataset.phase);
        new MutationObserver(note).observe(document.body, {attributeFilter: ['data-phase']});
    }""")
    for source, publisher in (("camera", "whip"), ("imagine", "imagine")):
        page.locator("#source").select_option(source)
        until_promised(page, PUBLISHER_IS, [f"{server.url}/api/streams/both", publisher])
    assert set(page.evaluate("phases")) == {"live"}, "the picture stands meanwhile"


def test_a_publisher_that_takes_over_is_said(server, page):
    """What the server would tell of one, on the page's question who publishes."""
    imagine(page, f"{server.url}/?stream=taken")
    url = f"{server.url}/api/streams/taken"
    stats = {**ask(url), "publisher": "whip"}
    page.route(url, lambda route: route.fulfill(body=json.dumps(stats), content_type="application/json"))
    page.evaluate("url => fetch(url, {method: 'DELETE'})", f"{url}/imagine")
    expect(page.locator("#card-title")).to_have_text("Another tab took over", timeout=PATIENCE_MS)


def test_a_model_that_needs_a_picture_is_said(server, page):
    """The server's own refusal, as with a ControlNet loaded."""
    refusal = {"error": "It follows lines."}
    page.route("**/imagine", lambda route: route.fulfill(status=409, json=refusal))
    page.goto(f"{server.url}/?stream=lines")
    page.locator("#source").select_option("imagine", timeout=PATIENCE_MS)
    page.locator("#start").click()
    expect(page.locator("#card")).to_contain_text("This model needs a picture", timeout=PATIENCE_MS)
    expect(page.locator("#card")).to_contain_text("It follows lines.")
    expect(page.locator("#start")).to_be_visible()
    page.errors.clear()  # the browser notes every refused request


def test_a_long_wait_for_a_picture_is_said(server, page):
    """The server's own statistics, with one more picture asked for than painted."""

    def wait(route):
        def asked(message: str) -> None:
            told = json.loads(message)
            is_stats = told["type"] == "stats"
            route.send(json.dumps({**told, "frames_in": told["frames_in"] + 1} if is_stats else told))

        route.connect_to_server().on_message(asked)

    page.route_web_socket("**/events", wait)
    imagine(page, f"{server.url}/?stream=patience")
    expect(page.locator("#status")).to_have_text("Painting…", timeout=PATIENCE_MS)
