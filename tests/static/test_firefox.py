"""The pages in Debian's Firefox: what a user is owed on a walk through both, and on a longer one (firefox.mjs)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from stream.recording import snapshots
from tests.chromium import CLIP, ROOT
from tests.stream.films import watch

from .test_studio import COLOURFUL, GREY

pytestmark = pytest.mark.calm

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
DRIVER = ROOT / "tests" / "clients" / "node_modules" / "puppeteer-core"
PATIENCE_S = 600  # a watchdog: the walk takes a quarter of a minute
STEPS = ["live", "view", "sound", "file", "prompt", "recording", "snapshot", "mask"]
DETOUR = ["background", "live", "view", "sound", "listen", "file", "loop"]
MISSING = "no {} on this machine: install {} to run the tests in Firefox"


def write_clip(path: Path) -> Path:
    """A second of the clip with a tone, in formats that every Firefox plays."""
    wave = (np.sin(2 * np.pi * 600 * np.arange(1600) / 48_000) * 12_000).astype(np.int16).repeat(2)[None]
    with av.open(str(CLIP)) as source, av.open(str(path), "w") as output:
        video = output.add_stream("libvpx", rate=30, width=320, height=240, pix_fmt="yuv420p")
        audio = output.add_stream("libopus", rate=48_000, layout="stereo")
        for number, frame in enumerate(islice(source.decode(video=0), 30)):
            picture = frame.reformat(320, 240, "yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, 30)
            output.mux(video.encode(picture))
            sound = av.AudioFrame.from_ndarray(wave, format="s16", layout="stereo")
            sound.sample_rate, sound.pts, sound.time_base = 48_000, number * 1600, Fraction(1, 48_000)
            output.mux(audio.encode(sound))
        output.mux(video.encode())
        output.mux(audio.encode())
    return path


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("downloads")


def walk_through(steps: list[str], url: str, clip: Path, downloads: Path) -> dict:
    """What each step of a walk saw."""
    for found, what, demanded in (
        (FIREFOX, ("Firefox", "firefox-esr"), "LCMIRROR_REQUIRE_BROWSER"),
        (DRIVER.is_dir(), ("puppeteer-core", "it with npm ci in tests/clients"), "LCMIRROR_REQUIRE_CLIENTS"),
    ):
        if not found:
            (pytest.fail if os.environ.get(demanded) else pytest.skip)(MISSING.format(*what))
    wishes = {
        "executable": FIREFOX,
        "url": url,
        "clip": str(write_clip(clip)),
        "folder": str(downloads),
        "colourful": COLOURFUL,
        "grey": GREY,
        "steps": steps,
    }
    node = subprocess.Popen(
        ["node", Path(__file__).with_name("firefox.mjs"), json.dumps(wishes)], stdout=subprocess.PIPE, text=True
    )
    try:
        told, _ = node.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        node.terminate()  # it takes its Firefox along
        node.communicate()
        raise
    assert node.returncode == 0
    return json.loads(told)


@pytest.fixture(scope="module")
def walk(server, downloads, tmp_path_factory) -> dict:
    return walk_through(STEPS, server.url, tmp_path_factory.mktemp("clips") / "carphone.webm", downloads)


@pytest.fixture(scope="module")
def detour(server, downloads, tmp_path_factory) -> dict:
    return walk_through(DETOUR, server.url, tmp_path_factory.mktemp("clips") / "carphone.webm", downloads)


def saw(walk: dict, step: str) -> dict:
    assert "failed" not in walk[step], walk[step]["failed"]
    return walk[step]


def test_the_studio_goes_live(walk):
    seen = saw(walk, "live")
    assert seen["phase"] == "live"
    assert seen["status"].startswith("Live")
    assert seen["width"] == 256


@pytest.mark.prove
def test_the_studio_goes_live_behind_another_tab(detour):
    """Nothing is shown there, so no shown picture can be waited for."""
    assert saw(detour, "background") == {"hidden": True, "phase": "live"}


def test_a_changed_prompt_is_seen(walk):
    seen = saw(walk, "prompt")
    assert seen["sketched"] < GREY < COLOURFUL < seen["painted"]


def test_the_page_for_obs_plays_and_leaves_the_studio_behind_it_live(walk):
    seen = saw(walk, "view")
    assert (seen["width"], seen["behind"]) == (256, "live")
    assert saw(walk, "prompt")["viewed"] < GREY


def test_the_page_for_obs_is_heard_after_a_gesture_while_the_microphone_is_on(walk):
    assert saw(walk, "view")["muted"]
    seen = saw(walk, "sound")
    assert not seen["muted"]
    assert max(seen["silence"], seen["silenced"]) < seen["microphone"] / 100


@pytest.mark.prove
def test_the_studio_is_heard_while_that_is_wanted(detour):
    seen = saw(detour, "listen")
    assert seen["heard"] > 0
    assert seen["phase"] == "live"


def test_a_file_is_taken_for_the_source(walk):
    assert saw(walk, "file") == {"source": "file"}


@pytest.mark.prove
def test_a_file_plays_in_a_loop_with_its_own_sound(detour):
    seen = saw(detour, "loop")
    assert seen["sound"] > 0
    assert seen["devices"] == [None, None], "neither camera nor microphone is sent"


def test_a_film_is_recorded_and_its_link_leads_to_it(walk, tmp_path):
    seen = saw(walk, "recording")
    assert "Film saved: " in seen["words"]
    urllib.request.urlretrieve(seen["film"], tmp_path / "film.mp4")
    film = watch(tmp_path / "film.mp4")
    assert film.sizes == {(256, 256)}
    assert film.times[-1] >= 2


def test_a_picture_is_saved_with_its_settings(walk, downloads):
    (name,) = saw(walk, "snapshot")["saved"]
    assert snapshots.read((downloads / name).read_bytes())["controls"]["prompt"] == "pencil sketch"


def test_a_part_is_drawn_and_alone_repainted(walk):
    seen = saw(walk, "mask")
    left, right = seen["part"]
    assert right < left / 2
    left, right = seen["whole"]
    assert right > left / 2


def test_the_pages_log_no_error(walk):
    assert walk["errors"] == []


@pytest.mark.prove
def test_the_pages_log_no_error_on_the_longer_walk(detour):
    assert detour["errors"] == []
