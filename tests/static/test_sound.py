"""Sound in real Chromium: the microphone's and a file's own go out, the output is heard, the page for OBS plays it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.chromium import until_promised

from .test_studio import PATIENCE_MS, start, until, until_live, until_moving

pytestmark = pytest.mark.calm

# Mean loudness of what a video element plays: 0 while it is muted or has no sound.
LOUDNESS = """async () => {
    const video = document.getElementById('output');
    if (video.muted || !video.srcObject?.getAudioTracks().length) return 0;
    const context = new AudioContext(), analyser = context.createAnalyser();
    context.createMediaStreamSource(video.srcObject).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    let sum = 0;
    for (let i = 0; i < 24; i++) {
        await new Promise(resolve => setTimeout(resolve, 50));
        analyser.getFloatTimeDomainData(samples);
        sum += samples.reduce((power, sample) => power + sample * sample, 0) / samples.length;
    }
    await context.close();
    return Math.sqrt(sum / 24);
}"""
LOUD, SILENT = f"async () => await ({LOUDNESS})() > 0.005", f"async () => await ({LOUDNESS})() < 0.0005"
COUNT_POSTS = """() => {
    const ask = window.fetch;
    window.posts = [];
    window.fetch = (url, options) => (options?.method === 'POST' && posts.push(String(url)), ask(url, options));
}"""


@pytest.fixture(scope="module")
def clip_with_sound(tmp_path_factory) -> Path:
    """Three seconds of grey with a tone."""
    path = tmp_path_factory.mktemp("clips") / "tone.webm"
    with av.open(str(path), "w") as output:
        video = output.add_stream("libvpx", rate=25, width=160, height=120, pix_fmt="yuv420p")
        audio = output.add_stream("libopus", rate=48_000, layout="stereo")
        wave = (np.sin(2 * np.pi * 600 * np.arange(1920) / 48_000) * 12_000).astype(np.int16).repeat(2)[None]
        for number in range(75):
            frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), 2 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(video.encode(frame))
            sound = av.AudioFrame.from_ndarray(wave, format="s16", layout="stereo")
            sound.sample_rate, sound.pts, sound.time_base = 48_000, number * 1920, Fraction(1, 48_000)
            output.mux(audio.encode(sound))
        output.mux(video.encode())
        output.mux(audio.encode())
    return path


def pressed(tab: Page, button: str) -> bool:
    return tab.locator(f"#{button}").get_attribute("aria-pressed") == "true"


def test_the_microphone_is_heard_while_it_is_on_and_the_page_for_obs_plays_it(server, new_tab):
    """Switched while live, and nothing is negotiated anew for it: the publisher's one POST stays the only one."""
    studio, view = new_tab(), new_tab()
    studio.add_init_script(f"({COUNT_POSTS})()")
    start(studio, f"{server.url}/?stream=spoken")
    assert not pressed(studio, "microphone")
    view.goto(f"{server.url}/view/spoken")
    until(view, "() => document.getElementById('output').videoWidth === 256")
    view.mouse.click(5, 5)  # where the browser wants a gesture before it lets a page be heard
    until(view, "() => !document.getElementById('output').muted")
    until_promised(view, SILENT)
    studio.locator("#microphone").click()
    assert pressed(studio, "microphone")
    until_promised(view, LOUD)
    studio.keyboard.press("v")
    assert not pressed(studio, "microphone")
    until_promised(view, SILENT)
    until_moving(view)
    assert studio.evaluate("posts.filter(url => url.includes('/whip/')).length") == 1


def test_the_page_for_obs_can_be_kept_silent(server, new_tab):
    studio, view = new_tab(), new_tab()
    start(studio, f"{server.url}/?stream=hushed")
    studio.locator("#microphone").click()
    view.goto(f"{server.url}/view/hushed?sound=0")
    until(view, "() => document.getElementById('output').videoWidth === 256")
    view.mouse.click(5, 5)
    until_moving(view)
    assert view.evaluate("(video => video.muted && !video.srcObject.getAudioTracks().length)(output)")


def test_the_output_is_heard_when_asked_for_and_both_wishes_are_remembered(server, page):
    start(page, f"{server.url}/?stream=echo")
    assert not pressed(page, "listen")
    page.locator("#microphone").click()
    page.locator("#listen").click()
    until_promised(page, LOUD)
    until_moving(page)
    page.reload()
    assert pressed(page, "microphone")
    assert pressed(page, "listen")
    page.locator("#start").click(timeout=PATIENCE_MS)
    until_live(page)
    until_promised(page, LOUD)
    page.keyboard.press("l")
    until_promised(page, SILENT)
    until_moving(page)
    expect(page.locator("body")).to_have_attribute("data-phase", "live")


def test_a_file_sends_its_own_sound_in_the_microphones_place(server, page, clip_with_sound):
    page.add_init_script("""
        const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        window.microphones = 0;
        navigator.mediaDevices.getUserMedia = wish => (wish.audio && microphones++, open(wish));
    """)
    page.goto(f"{server.url}/?stream=film")
    page.locator("#listen").click()
    page.locator("#microphone").click()
    page.locator("#file").set_input_files(clip_with_sound)
    until_live(page)
    until_promised(page, LOUD)
    assert page.evaluate("microphones") == 0
    page.locator("#source").select_option("camera")
    until(page, "() => microphones === 1")


SCREEN = """
    navigator.mediaDevices.getDisplayMedia = async () => {
        if (window.mute) throw new DOMException('Could not start audio source', 'NotReadableError');
        const canvas = Object.assign(document.createElement('canvas'), {width: 160, height: 120});
        const context = canvas.getContext('2d'), audio = new AudioContext(), tone = audio.createOscillator();
        const draw = () => {
            context.fillStyle = `hsl(${performance.now() % 360} 50% 50%)`;
            context.fillRect(0, 0, 160, 120);
        };
        setInterval(draw, 40);
        const sound = audio.createMediaStreamDestination();
        tone.connect(sound);
        tone.start();
        return new MediaStream([...canvas.captureStream().getTracks(), ...sound.stream.getTracks()]);
    };
    const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    window.microphones = 0;
    navigator.mediaDevices.getUserMedia = wish => (wish.audio && microphones++, open(wish));
"""


def test_a_shared_tab_sends_its_own_sound_in_the_microphones_place(server, page):
    page.add_init_script(SCREEN)
    page.goto(f"{server.url}/?stream=tab")
    page.locator("#source").select_option("screen")
    page.locator("#listen").click()
    page.locator("#start").click(timeout=PATIENCE_MS)
    until_live(page)
    until_promised(page, SILENT)
    page.locator("#microphone").click()
    until_promised(page, LOUD)
    assert page.evaluate("microphones") == 0


def test_a_screen_whose_sound_cannot_be_had_is_said_and_the_camera_goes_on(server, page):
    page.add_init_script(SCREEN)
    start(page, f"{server.url}/?stream=deaf-tab")
    page.evaluate("window.mute = true")
    page.locator("#source").select_option("screen")
    expect(page.locator("#status")).to_contain_text("cannot be shared with its sound", timeout=PATIENCE_MS)
    expect(page.locator("#source")).to_have_value("camera")
    until_moving(page)


def test_a_refused_microphone_is_said_in_plain_words_and_disturbs_nothing(server, page):
    page.add_init_script("""
        const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = wish =>
            wish.audio ? Promise.reject(new DOMException('no', 'NotAllowedError')) : open(wish);
    """)
    start(page, f"{server.url}/?stream=shy")
    page.locator("#microphone").click()
    expect(page.locator("#status")).to_contain_text("microphone is blocked", timeout=PATIENCE_MS)
    expect(page.locator("#microphone")).to_have_attribute("aria-pressed", "false")
    until_moving(page)
