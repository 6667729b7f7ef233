"""The real server with the bundled model in its own process, and real Chromium with a real clip as its camera."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
CLIP = ROOT / "tests" / "data" / "carphone.mp4"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
MEDIA = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]

STARTED_S = 120


@dataclass
class Server:
    """A running `python main.py serve`."""

    url: str
    process: subprocess.Popen
    output: list[str]


@contextmanager
def running_server(*arguments: str, port: int = 0):
    """Yield the server once frames can flow; it is interrupted, as by Ctrl-C, at the end."""
    process = subprocess.Popen(
        [sys.executable, "main.py", "serve", "--model", "mini", "--port", str(port), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output: list[str] = []
    ready = threading.Event()

    def read() -> None:
        for line in process.stdout:
            output.append(line.rstrip())
            if line.startswith("ready"):
                ready.set()
        ready.set()  # ended: whoever waits shall look

    threading.Thread(target=read, daemon=True).start()
    try:
        assert ready.wait(STARTED_S), output
        assert process.poll() is None, output
        url = next(line.split()[3] for line in output if line.startswith("LCMirror listening on"))
        yield Server(url, process, output)
    finally:
        process.send_signal(2)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.fixture(scope="session")
def server():
    with running_server() as running:
        yield running


@pytest.fixture(scope="session")
def camera_file(tmp_path_factory) -> Path:
    """The clip as raw 320x240 video, which is what Chromium's stand-in for a camera plays in a loop."""
    file = tmp_path_factory.mktemp("camera") / "carphone.y4m"
    with av.open(str(CLIP)) as clip, file.open("wb") as out:
        out.write(b"YUV4MPEG2 W320 H240 F30:1 Ip A1:1 C420jpeg\n")
        for frame in clip.decode(video=0):
            planes = frame.reformat(320, 240, "yuv420p").to_ndarray()
            out.write(b"FRAME\n" + planes.tobytes())
    return file


@pytest.fixture(scope="session")
def chromium(camera_file) -> Browser:
    """Chromium whose camera shows the clip and whose permission dialogs say yes."""
    if CHROMIUM is None:
        if os.environ.get("LCMIRROR_REQUIRE_BROWSER"):
            pytest.fail("LCMIRROR_REQUIRE_BROWSER is set and there is no Chromium: install the package chromium.")
        pytest.skip("no Chromium on this machine: install it to run the browser tests")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", *QUIET, *MEDIA, f"--use-file-for-fake-video-capture={camera_file}"],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(chromium) -> Page:
    """A fresh tab without memory. The test fails if the page logs an error."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.errors = errors
    yield page
    context.close()
    assert errors == []
