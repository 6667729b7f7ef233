"""The page for OBS in Chromium as OBS has it: sound without a gesture, and what is not picture is transparent."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page

from tests.chromium import ROOT, Server, launch_options, until_promised
from tests.ffmpeg import needs_whip

from .test_sound import LOUD, SILENT
from .test_studio import until, until_moving

pytestmark = pytest.mark.calm

WIDTH, HEIGHT = 600, 400  # of the source in OBS; the stream is square
BRIGHT, DARK = 200, 90

IS_OVER = """async stream => !(await (await fetch('/api/streams/' + stream)).json()).publishing"""


@pytest.fixture
def source(chromium, camera_file) -> Iterator[Page]:
    """A browser source."""
    options = launch_options(camera_file)
    options["args"].append("--autoplay-policy=no-user-gesture-required")
    browser = chromium.browser_type.launch(**options)
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    yield page
    browser.close()


@pytest.fixture
def untouched(server) -> Callable[[str], str]:
    """The address of a stream that passes its pictures through unpainted."""

    def address(stream: str, on: Server = server) -> str:
        headers = {"Content-Type": "application/json"}
        url = f"{on.url}/api/streams/{stream}/controls"
        request = urllib.request.Request(url, json.dumps({"bypass": True}).encode(), headers, method="PATCH")
        urllib.request.urlopen(request, timeout=10).close()
        return f"{on.url}/whip/{stream}"

    return address


@contextmanager
def ffmpeg(folder: Path, address: str, *what: int) -> Iterator[subprocess.Popen]:
    """Publishes width, height, grey, hertz; killed in the end, so nothing is said to anybody."""
    command = [sys.executable, "-m", "tests.ffmpeg", address, str(folder), *map(str, what)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def seen(source: Page) -> np.ndarray:
    """What OBS composes with what lies below: uint8 [HEIGHT, WIDTH, 4] RGBA."""
    return np.array(Image.open(io.BytesIO(source.screenshot(omit_background=True))).convert("RGBA"))


def until_grey(source: Page, grey: int) -> None:
    source.wait_for_function(
        """grey => {
            const video = document.getElementById('output'), canvas = document.createElement('canvas');
            if (video.videoWidth !== 256 || video.videoHeight !== 256) return false;
            canvas.width = canvas.height = 1;
            const context = canvas.getContext('2d');
            context.drawImage(video, 0, 0, 1, 1);
            return Math.abs(context.getImageData(0, 0, 1, 1).data[1] - grey) < 12;
        }""",
        arg=grey,
        timeout=60_000,
    )


@needs_whip
def test_it_shows_the_whole_picture_and_nothing_else(server, source, untouched, tmp_path):
    source.goto(f"{server.url}/view/bare")
    until(source, "() => document.readyState === 'complete'")
    assert not seen(source).any(), "before a picture comes, nothing is to be seen"
    with ffmpeg(tmp_path, untouched("bare"), 320, 180, BRIGHT, 600):
        until_grey(source, BRIGHT)
        shown = seen(source)
        side = (WIDTH - HEIGHT) // 2
        picture, beside = shown[:, side + 2 : -side - 2], np.hstack([shown[:, : side - 2], shown[:, 2 - side :]])
        assert not beside.any()
        assert (picture[..., 3] == 255).all()
        assert picture[..., :3].min() > BRIGHT - 25, "no bars, though the publisher's picture is wider"
        source.set_viewport_size({"width": HEIGHT, "height": HEIGHT})
        assert (seen(source)[..., 3] == 255).all()
        source.goto(f"{server.url}/view/bare?fit=cover")
        source.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        until_grey(source, BRIGHT)
        assert (seen(source)[..., 3] == 255).all()


@needs_whip
def test_after_a_killed_publisher_picture_and_sound_of_the_next_one_come(hasty_server, source, untouched, tmp_path):
    """Of another shape, too. And one that nobody follows is noticed by the server, which never stumbles."""
    address = untouched("killed", hasty_server)
    source.goto(f"{hasty_server.url}/view/killed")
    with ffmpeg(tmp_path, address, 320, 180, BRIGHT, 600):
        until_grey(source, BRIGHT)
        until_promised(source, LOUD)
        assert not source.evaluate("output.muted")
    until_promised(source, SILENT)
    with ffmpeg(tmp_path, address, 180, 320, DARK, 900):
        until_grey(source, DARK)
        until_promised(source, LOUD)
        until_moving(source)
    until_promised(source, IS_OVER, "killed")
    assert not [line for line in hasty_server.output if "Traceback" in line or "ERROR" in line]
