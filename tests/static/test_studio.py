"""The studio page in real Chromium, the real server, the bundled model, a real clip as the camera."""

from __future__ import annotations

import json
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, takewhile

import av
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.chromium import CLIP, ROOT, running_server, until_promised
from tests.ffmpeg import certificate, needs_whip, publish

pytestmark = pytest.mark.calm

PATIENCE_MS = 60_000  # a watchdog, not a measurement: CI machines are slow

# What colourfulness() gives for the clip at strength 0.7: 110 as pop art, 21 as it came, 4 as a pencil sketch.
COLOURFUL, PLAIN, GREY = 70, 45, 14

GRAB = """id => {
    const video = document.getElementById(id), canvas = document.createElement('canvas');
    const side = Math.min(video.videoWidth, video.videoHeight);
    const left = (video.videoWidth - side) / 2, top = (video.videoHeight - side) / 2;
    canvas.width = canvas.height = 32;
    const context = canvas.getContext('2d');
    context.drawImage(video, left, top, side, side, 0, 0, 32, 32);
    return Array.from(context.getImageData(0, 0, 32, 32).data);
}"""
_COLOURS = """limit => {{
    const data = ({grab})('output');
    let sum = 0;
    for (let i = 0; i < data.length; i += 4)
        sum += Math.max(data[i], data[i + 1], data[i + 2]) - Math.min(data[i], data[i + 1], data[i + 2]);
    return sum / (data.length / 4) {sign} limit;
}}"""
COLOURS_ABOVE = _COLOURS.format(grab=GRAB, sign=">")
COLOURS_BELOW = _COLOURS.format(grab=GRAB, sign="<")

COUNT_FRAMES = """id => {
    const video = document.getElementById(id);
    const count = () => (window.newFrames++, video.requestVideoFrameCallback(count));
    if (window.newFrames === undefined) video.requestVideoFrameCallback(count);
    window.newFrames = 0;
}"""


def until(tab: Page, condition: str, arg=None) -> None:
    tab.wait_for_function(condition, arg=arg, timeout=PATIENCE_MS)


def until_live(tab: Page) -> None:
    expect(tab.locator("body")).to_have_attribute("data-phase", "live", timeout=PATIENCE_MS)


def until_moving(tab: Page, element: str = "output", frames: int = 3) -> None:
    """So many frames that were not there before."""
    tab.evaluate(COUNT_FRAMES, element)
    until(tab, "frames => window.newFrames >= frames", frames)


def start(page: Page, url: str) -> None:
    page.goto(url)
    page.locator("#start").click(timeout=PATIENCE_MS)
    until_live(page)


def paint(page: Page, prompt: str) -> None:
    page.locator("#strength").fill("0.7")
    page.locator("#prompt").fill(prompt)


def grab(page: Page, element: str = "output") -> np.ndarray:
    """The middle square of what a video element shows, as float [32, 32, 3]."""
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
    expect(page.locator("#stop")).to_be_focused()  # Start, which was clicked, is gone
    paint(page, "pop art")
    until(page, COLOURS_ABOVE, COLOURFUL)
    assert np.abs(grab(page, "output") - grab(page, "input")).mean() > 25
    until(page, "() => Number(document.querySelector('[data-stat=fps_out]').textContent) > 0")
    for name in ("fps_in", "latency_p50", "latency_p95", "dropped"):
        assert float(page.locator(f"[data-stat={name}]").text_content()) >= 0
    stats = ask(f"{server.url}/api/streams/first")
    assert (stats["width"], stats["height"]) == (256, 256)
    assert 0 <= stats["frames_in"] - stats["frames_out"] - stats["frames_dropped"] <= 3
    page.locator("#stop").click()
    expect(page.locator("#start")).to_be_focused()


def test_the_picture_follows_the_prompt(server, page):
    """A pencil drawing is grey, pop art is not: the change is asked for in the prompt box and seen in the picture."""
    start(page, f"{server.url}/?stream=prompts")
    paint(page, "pop art")
    until(page, COLOURS_ABOVE, COLOURFUL)
    page.locator("#prompt").fill("pencil sketch")
    until(page, COLOURS_BELOW, GREY)
    assert ask(f"{server.url}/api/streams/prompts/controls")["prompt"] == "pencil sketch"


def test_bypass_shows_the_source_and_another_client_can_turn_it(server, page):
    start(page, f"{server.url}/?stream=bypassed")
    paint(page, "pop art")
    until(page, COLOURS_ABOVE, COLOURFUL)
    ask(f"{server.url}/api/streams/bypassed/controls", {"bypass": True}, "PATCH")
    expect(page.locator("#bypass")).to_be_checked(timeout=PATIENCE_MS)
    until(page, COLOURS_BELOW, PLAIN)
    expect(page.locator("#status")).to_contain_text("bypass")


def test_two_tabs_never_see_each_other(server, new_tab):
    """One paints grey, one in pop art colours; both are watched for a while."""
    grey, colourful = new_tab(), new_tab()
    start(grey, f"{server.url}/?stream=grey")
    start(colourful, f"{server.url}/?stream=colourful")
    paint(grey, "pencil sketch")
    paint(colourful, "pop art")
    until(grey, COLOURS_BELOW, GREY)
    until(colourful, COLOURS_ABOVE, COLOURFUL)
    for _ in range(25):
        assert colourfulness(grab(grey)) < PLAIN < COLOURFUL < colourfulness(grab(colourful))
        grey.wait_for_timeout(100)


def test_an_unplayable_file_disturbs_nothing(server, page, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_text("this is no video")
    start(page, f"{server.url}/?stream=files")
    page.locator("#file").set_input_files(broken)
    expect(page.locator("#status")).to_contain_text("file", timeout=PATIENCE_MS)
    expect(page.locator("#source")).to_have_value("camera")
    until_moving(page, "input")
    page.locator("#file").set_input_files(CLIP)
    expect(page.locator("#source")).to_have_value("file", timeout=PATIENCE_MS)
    until(page, "() => document.getElementById('input').videoHeight === 144")
    page.locator("#file").set_input_files(broken)
    expect(page.locator("#status")).to_contain_text("file", timeout=PATIENCE_MS)
    expect(page.locator("#source")).to_contain_text(CLIP.name)
    until_moving(page, "input")


def test_what_an_outdated_dialog_brings_is_let_go(server, page):
    """The screen dialog is answered after something else was chosen, and again after Stop."""
    page.add_init_script("""
        navigator.mediaDevices.getDisplayMedia = () => new Promise(resolve => window.answer = () => {
            const stream = document.createElement('canvas').captureStream();
            window.brought = stream.getVideoTracks()[0];
            resolve(stream);
        });
    """)
    start(page, f"{server.url}/?stream=dialogs")
    page.locator("#source").select_option("screen")
    page.locator("#source").select_option("camera")
    page.evaluate("answer()")
    until(page, "() => brought.readyState === 'ended'")
    expect(page.locator("#source")).to_have_value("camera")
    until_moving(page, "input")
    page.locator("#source").select_option("screen")
    page.locator("#stop").click()
    page.evaluate("answer()")
    until(page, "() => brought.readyState === 'ended'")
    expect(page.locator("#input")).to_be_hidden()


def test_a_held_up_picture_is_said_and_comes_back(hasty_server, page):
    """The server sends its last picture again each second: only its statistics tell that nothing new comes."""
    page.add_init_script("""
        window.peers = [];
        window.RTCPeerConnection = class extends RTCPeerConnection {
            constructor(...options) { super(...options); peers.push(this); }
        };
    """)
    start(page, f"{hasty_server.url}/?stream=held")
    page.evaluate("peers.forEach(peer => peer.getSenders().forEach(sender => sender.replaceTrack(null)))")
    expect(page.locator("#status")).to_contain_text("held up", timeout=PATIENCE_MS)
    expect(page.locator("#hud [data-stat=state]")).to_have_text("stalled")
    # After seconds of silence the server lets the publisher go, and the page publishes its camera anew.
    until(page, "() => !document.getElementById('status').textContent.includes('held up')")
    until_live(page)
    until_moving(page, frames=10)


def test_overload_is_said_in_plain_words(server, page):
    """The server's own statistics, with the quality that an overloaded device would have left."""

    def overload(route):
        def lowered(message: str) -> None:
            told = json.loads(message)
            less = {"steps": 1, "steps_asked": 4, "quality": 4, "scale": 0.75}
            route.send(json.dumps({**told, **less} if told["type"] == "stats" else told))

        route.connect_to_server().on_message(lowered)

    page.route_web_socket("**/events", overload)
    start(page, f"{server.url}/?stream=overloaded")
    expect(page.locator("#status")).to_have_text(
        "Live, at 1 of 4 steps and 75 % of the size: this device cannot keep up. "
        "Ask for fewer steps or start with a smaller --size."
    )
    expect(page.locator("[data-stat=steps]")).to_have_text("1 of 4")
    expect(page.locator("[data-stat=quality]")).to_have_text("3 steps fewer, at 75 % of the size")


def test_failed_sessions_leave_no_peer_connection_behind(server, page):
    """A viewer that waits for days for its publisher's server would otherwise be refused the next one."""
    page.goto(server.url)
    page.evaluate("""async () => {
        window.peers = [];
        window.RTCPeerConnection = class extends RTCPeerConnection {
            constructor(...options) { super(...options); peers.push(new WeakRef(this)); }
        };
        const { play } = await import('/static/webrtc/whip.js');
        window.leaving = new AbortController();
        const video = document.createElement('video');
        for (let i = 0; i < 10; i++) await play('No such name', video, leaving.signal).catch(() => {});
    }""")
    assert page.evaluate("peers.length") == 10
    until(page, "() => (gc(), peers.every(peer => !peer.deref()))")
    page.errors.clear()  # the browser notes every refused request


def test_the_page_works_where_site_data_is_blocked(server, page):
    page.add_init_script("""
        for (const area of ['localStorage', 'sessionStorage'])
            Object.defineProperty(window, area, { get() { throw new DOMException('no', 'SecurityError'); } });
    """)
    start(page, server.url)


def test_spoilt_memories_are_no_memories(server, page):
    page.add_init_script("""
        for (const name of ['view', 'settings']) localStorage.setItem(`lcmirror.${name}`, '{"words": 5, "mod');
        sessionStorage.setItem('lcmirror.stream', '7');
    """)
    start(page, server.url)


def test_a_refused_value_is_not_remembered(server, page):
    page.goto(f"{server.url}/?stream=refusals")
    page.locator("#steps").fill("3", timeout=PATIENCE_MS)
    refusal = {"error": "strength: no", "field": "strength"}
    page.route("**/controls", lambda route: route.fulfill(status=422, json=refusal))
    page.locator("#strength").fill("0.9")
    expect(page.locator("#strength-error")).to_have_text("No.", ignore_case=True, timeout=PATIENCE_MS)
    kept = page.evaluate("Object.values(JSON.parse(localStorage.getItem('lcmirror.settings')).models)[0]")
    assert kept == {"steps": 3}
    page.errors.clear()  # the browser notes every refused request


def test_a_setting_the_server_could_not_take_goes_again(server, page):
    page.goto(f"{server.url}/?stream=retries")
    busy = {"error": "Busy."}
    page.route("**/controls", lambda route: route.fulfill(status=503, json=busy), times=1)
    page.locator("#steps").fill("3", timeout=PATIENCE_MS)
    expect(page.locator("#status")).to_contain_text("full", timeout=PATIENCE_MS)
    controls = f"{server.url}/api/streams/retries/controls"
    until_promised(page, "async url => (await (await fetch(url)).json()).steps === 3", controls)
    page.errors.clear()  # the browser notes every refused request


def test_every_control_has_its_labelled_input(server, page):
    page.goto(server.url)
    page.wait_for_selector("#strength", state="attached", timeout=PATIENCE_MS)
    schema = ask(f"{server.url}/api/schema")
    features = set(ask(f"{server.url}/api/status")["features"])
    for name, control in schema["properties"].items():
        if control.get("x-needs", next(iter(features))) in features:
            field = page.locator(f"#{name}")
            assert field.count() == 1, name
            named = "e => e.labels?.length > 0 || e.hasAttribute('aria-label') || e.hasAttribute('aria-labelledby')"
            assert field.evaluate(named), name


def test_a_value_out_of_range_is_refused_and_changes_nothing(server):
    url = f"{server.url}/api/streams/ranges/controls"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask(url, {"strength": 1.5, "steps": 1}, "PATCH")
    assert refusal.value.code == 422
    assert "strength" in json.load(refusal.value)["error"]
    assert ask(url) == ask(url.replace("ranges", "untouched"))


def test_a_refused_camera_is_said_in_plain_words(server, page):
    page.add_init_script(
        "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', 'NotAllowedError'))"
    )
    page.goto(server.url)
    page.locator("#start").click(timeout=PATIENCE_MS)
    expect(page.locator("#card")).to_contain_text("camera", ignore_case=True)
    expect(page.locator("#start")).to_be_visible()


def test_studio_and_view_survive_a_restart(new_tab):
    """OBS's browser source comes before the publisher; it and the studio page outlive the server.

    What the next server has loaded otherwise is shown: its size, its LoRAs at the weights that they were given.
    """
    view, studio = new_tab(), new_tab()
    with running_server() as first:
        port = int(first.url.rsplit(":", 1)[1])
        view.goto(f"{first.url}/view/on-air")
        start(studio, f"{first.url}/?stream=on-air")
        until(view, "() => document.querySelector('video').videoWidth === 256")
        expect(studio.locator("#lora_weights output")).to_have_text("1.00")
    expect(studio.locator("body")).to_have_attribute("data-phase", "lost", timeout=PATIENCE_MS)
    expect(studio.locator("[data-stat=fps_out]")).to_have_text("–")
    for tab in (studio, view):
        tab.evaluate(COUNT_FRAMES, "output")
    lora = ROOT / "models" / "mini" / "lcm-lora"
    with running_server("--size", "384x256", "--lora", f"{lora}:0.83", port=port):
        until_live(studio)
        for tab in (studio, view):
            until(tab, "() => window.newFrames >= 3")
            until(tab, "() => output.videoWidth === 384 && output.videoHeight === 256")
        expect(studio.locator("#lora_weights output")).to_have_text("0.83")
        for tab in (studio, view):
            tab.context.close()
    for tab in (studio, view):
        tab.errors.clear()  # the browser notes every request to a server that is down


@needs_whip
def test_ffmpeg_publishes_and_the_view_page_plays(server, new_tab, tmp_path):
    """A real clip by FFmpeg's WHIP client, with sound, seen repainted in Chromium on the page for OBS."""
    with av.open(str(CLIP)) as clip:
        frames = [frame.reformat(320, 240, "rgb24").to_ndarray() for frame in clip.decode(video=0)]
    ask(f"{server.url}/api/streams/ffmpeg/controls", {"prompt": "pencil sketch", "strength": 0.7}, "PATCH")
    view = new_tab()
    view.goto(f"{server.url}/view/ffmpeg")
    seen = threading.Event()
    pictures = takewhile(lambda _: not seen.is_set(), cycle(frames))
    with ThreadPoolExecutor() as pool:
        publishing = pool.submit(publish, f"{server.url}/whip/ffmpeg", certificate(tmp_path), pictures)
        try:
            until(view, "() => document.getElementById('output').videoWidth === 256")
            assert colourfulness(grab(view)) < GREY < colourfulness(frames[0].astype(float))
        finally:
            seen.set()
        publishing.result(PATIENCE_MS / 1000)
