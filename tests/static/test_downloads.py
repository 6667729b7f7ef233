"""What a user takes along from the page: films and pictures, and the settings that a picture gives back."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from pipeline.settings import Controls
from stream.recording import snapshots
from tests.stream.films import watch

from .test_studio import PATIENCE_MS, ask, start, until

pytestmark = pytest.mark.calm

PROMPT = "Ölgemälde, 油絵, 🎨"


def drop(page: Page, file: Path, kind: str) -> None:
    """Lets go of a file over the page, as from a file manager."""
    page.evaluate(
        """([data, name, type]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, { type }));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        [base64.b64encode(file.read_bytes()).decode(), file.name, kind],
    )


def until_told(page: Page, url: str, holds: Callable[[dict], bool]) -> None:
    """Until the server's answer is so."""
    for _ in range(PATIENCE_MS // 100):
        if holds(ask(url)):
            return
        page.wait_for_timeout(100)
    raise AssertionError(ask(url))


def save_picture(page: Page, folder: Path) -> Path:
    with page.expect_download(timeout=PATIENCE_MS) as download:
        page.keyboard.press("s")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_the_button_records_a_film_that_plays(server, page, tmp_path):
    start(page, f"{server.url}/?stream=films")
    page.locator("#record").click()
    expect(page.locator("#record")).to_have_attribute("aria-pressed", "true", timeout=PATIENCE_MS)
    until(page, "() => Number(document.getElementById('recording').textContent.split(':')[1]) >= 2")
    assert ask(f"{server.url}/api/streams/films")["recording"]["frames"] > 0
    page.locator("#record").click()
    expect(page.locator("#film")).to_contain_text("Film saved: 0:0", timeout=PATIENCE_MS)
    expect(page.locator("#record")).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#recording")).to_be_hidden()
    with page.expect_download(timeout=PATIENCE_MS) as download:
        page.locator("#film a").click()
    assert download.value.suggested_filename.startswith("films-2")
    download.value.save_as(tmp_path / "film.mp4")
    film = watch(tmp_path / "film.mp4")
    assert film.sizes == {(256, 256)}
    assert film.times[-1] >= 2
    assert film.colours.std(axis=1).mean() > 1  # a picture, not grey
    page.evaluate("""() => {
        window.film = Object.assign(document.createElement('video'), { muted: true });
        film.src = document.querySelector('#film a').href;
        film.play();
    }""")
    until(page, "() => film.ended && film.duration >= 2 && film.videoWidth === 256")
    page.locator("#film button").press("Enter")
    expect(page.locator("#film")).to_be_hidden()
    expect(page.locator("#record")).to_be_focused()


def test_a_recording_that_another_tab_started_is_shown_and_can_be_stopped(server, new_tab):
    publisher, other = new_tab(), new_tab()
    start(publisher, f"{server.url}/?stream=shared")
    other.goto(f"{server.url}/?stream=shared")
    expect(other.locator("#recording")).to_be_hidden()
    publisher.keyboard.press("r")
    expect(other.locator("#recording")).to_be_visible(timeout=PATIENCE_MS)
    until(other, "() => Number(document.getElementById('recording').textContent.split(':')[1]) >= 1")
    other.keyboard.press("r")
    for tab in (publisher, other):
        expect(tab.locator("#film")).to_contain_text("Film saved", timeout=PATIENCE_MS)


def test_a_recording_that_cannot_start_says_why(server, page):
    start(page, f"{server.url}/?stream=refused")
    reason = "Recordings cannot be written to films: No space left on device."
    page.route("**/recording", lambda route: route.fulfill(status=500, json={"error": reason}))
    page.locator("#record").click()
    expect(page.locator("#film")).to_contain_text(reason)
    expect(page.locator("#film a")).to_be_hidden()
    page.errors.clear()  # the browser notes every refused request


@pytest.mark.parametrize("way", ["dropped", "chosen"])
def test_a_saved_picture_gives_its_settings_back(server, page, tmp_path, way):
    start(page, f"{server.url}/?stream=pictures-{way}")
    controls = f"{server.url}/api/streams/pictures-{way}/controls"
    wanted = {"prompt": PROMPT, "strength": 0.65, "seed": 77}
    ask(controls, wanted, "PATCH")
    until(page, "prompt => document.getElementById('prompt').value === prompt", PROMPT)
    state = f"{server.url}/api/streams/pictures-{way}"
    shown = ask(state)["frames_out"]
    until_told(page, state, lambda stats: stats["frames_out"] > shown + 2)
    picture = save_picture(page, tmp_path)
    settings = snapshots.read(picture.read_bytes())
    assert settings["controls"] == ask(controls)
    assert (settings["model"], settings["size"]) == ("mini", "256x256")
    page.locator("#reset").click()
    expect(page.locator("#prompt")).not_to_have_value(PROMPT, timeout=PATIENCE_MS)
    expect(page.locator("#seed")).to_have_value("0")
    if way == "dropped":
        drop(page, picture, "image/png")
    else:
        page.locator("#file").set_input_files(picture)
    expect(page.locator("#prompt")).to_have_value(PROMPT, timeout=PATIENCE_MS)
    expect(page.locator("#seed")).to_have_value("77")
    expect(page.locator("#status")).to_contain_text("Settings taken from the picture")
    until_told(page, controls, lambda values: values["seed"] == 77)
    assert ask(controls) == settings["controls"]
    expect(page.locator("#source")).to_have_value("camera")  # no video came of it


def test_pictures_without_usable_settings_are_told_in_words_and_change_nothing(server, page, tmp_path):
    page.goto(f"{server.url}/?stream=foreign")
    page.wait_for_selector("#strength", state="attached", timeout=PATIENCE_MS)
    controls = f"{server.url}/api/streams/foreign/controls"
    before = ask(controls)
    rgb, file = np.zeros((8, 8, 3), np.uint8), tmp_path / "picture.png"
    cv2.imwrite(str(file), rgb)
    for kind in ("image/png", "image/jpeg"):
        drop(page, file, kind)
        expect(page.locator("#status")).to_have_text("This picture holds no settings of LCMirror")
        page.evaluate("document.getElementById('status').textContent = ''")
    file.write_bytes(snapshots.write(rgb, {"version": 1, "controls": [1]}))
    drop(page, file, "image/png")
    expect(page.locator("#status")).to_have_text("The settings in this picture are damaged")
    file.write_bytes(file.read_bytes()[:60])
    drop(page, file, "image/png")
    expect(page.locator("#status")).to_have_text("This picture holds no settings of LCMirror")
    assert ask(controls) == before


def test_what_this_model_refuses_of_a_picture_is_said_and_the_rest_is_taken(server, page, tmp_path):
    page.goto(f"{server.url}/?stream=other-model")
    page.wait_for_selector("#strength", state="attached", timeout=PATIENCE_MS)
    made = Controls(prompt="ink", seed=5, lora_weights={"oil": 0.5}).model_dump()
    settings = {"version": 1, "model": "sd15", "controls": {**made, "sparkle": 3, "__proto__": 1}}
    (tmp_path / "other.png").write_bytes(snapshots.write(np.zeros((8, 8, 3), np.uint8), settings))
    drop(page, tmp_path / "other.png", "image/png")
    expect(page.locator("#lora_weights-error")).to_contain_text("oil", timeout=PATIENCE_MS)
    until_told(page, f"{server.url}/api/streams/other-model/controls", lambda values: values["seed"] == 5)
    expect(page.locator("#prompt")).to_have_value("ink")
    page.errors.clear()  # the browser notes every refused request


def test_values_of_another_kind_are_left_out(server, page, tmp_path):
    page.goto(f"{server.url}/?stream=odd-values")
    page.wait_for_selector("#strength", state="attached", timeout=PATIENCE_MS)
    controls = f"{server.url}/api/streams/odd-values/controls"
    before = ask(controls)
    odd = {"lora_weights": None, "strength": "much", "seed": [1], "bypass": 1, "prompt": "ink"}
    (tmp_path / "odd.png").write_bytes(
        snapshots.write(np.zeros((8, 8, 3), np.uint8), {"version": 1, "controls": {**odd, "x" * 500: 1}})
    )
    drop(page, tmp_path / "odd.png", "image/png")
    expect(page.locator("#status")).to_contain_text("not known here: lora_weights, strength, seed, bypass, x")
    until_told(page, controls, lambda values: values["prompt"] == "ink")
    assert ask(controls) == {**before, "prompt": "ink"}
    expect(page.locator("#strength")).to_have_value(str(before["strength"]))


def test_a_film_that_goes_on_in_a_next_one_is_told_with_a_link(server, page):
    page.goto(f"{server.url}/?stream=long")
    page.wait_for_selector("#strength", state="attached", timeout=PATIENCE_MS)
    page.evaluate("""async () => {
        const { Recorder } = await import('/static/recording/recorder.js');
        const parts = { button: 'record', dot: 'recording', film: 'film' };
        for (const name in parts) parts[name] = document.getElementById(parts[name]);
        const recorder = new Recorder('other', parts);
        for (const name of ['first', 'second']) {
            const recording = { started: name, file: name, url: `/api/recordings/${name}`, seconds: 1, detail: '' };
            recorder.heard({ recording });
        }
    }""")
    expect(page.locator("#film")).to_contain_text("The film so far is saved")
    expect(page.locator("#film a")).to_have_attribute("download", "first")


def test_without_a_picture_there_is_none_to_save(server, page):
    page.goto(f"{server.url}/?stream=no-picture")
    page.locator("#snapshot").click()
    expect(page.locator("#status")).to_have_text("There is no picture to save yet", timeout=PATIENCE_MS)
    page.errors.clear()  # the browser notes every refused request
