"""A real server in its own process, and real Chromium with a real clip as its camera: for tests and benchmarks."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
from playwright.sync_api import Page

from tests.paths import CARPHONE as CLIP
from tests.paths import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
_MEDIA = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]

STARTED_S = 120


@dataclass
class Server:
    """A running `python main.py serve`."""

    url: str
    process: subprocess.Popen
    output: list[str]


@contextmanager
def running_server(*arguments: str, port: int = 0, first: str = ""):
    """Yield the server once frames can flow; it is interrupted, as by Ctrl-C, at the end. Uncompiled, unless asked.

    first: Python to run in its process before it, to turn its clocks.
    """
    program = ["-c", f"{first}\nimport sys, main\nsys.exit(main.main())"] if first else ["main.py"]
    process = subprocess.Popen(
        [sys.executable, *program, "serve", "--model", "mini", "--no-compile", "--port", str(port), *arguments],
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
        urls = [line.split()[3] for line in output if line.startswith("LCMirror listening on")]
        assert urls, output
        yield Server(urls[0], process, output)
    finally:
        process.send_signal(2)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def write_camera_file(file: Path, clip: Path = CLIP, width: int = 320, height: int = 240) -> Path:
    """The clip as raw video, which is what Chromium's stand-in for a camera plays in a loop."""
    with av.open(str(clip)) as source, file.open("wb") as out:
        out.write(f"YUV4MPEG2 W{width} H{height} F30:1 Ip A1:1 C420jpeg\n".encode())
        for frame in source.decode(video=0):
            out.write(b"FRAME\n" + frame.reformat(width, height, "yuv420p").to_ndarray().tobytes())
    return file


def launch_options(camera_file: Path) -> dict:
    """For playwright's `chromium.launch`: the camera shows the file, permission dialogs say yes."""
    return {
        "executable_path": CHROMIUM,
        "args": ["--no-sandbox", *_QUIET, *_MEDIA, f"--use-file-for-fake-video-capture={camera_file}"],
    }


def until_promised(tab: Page, condition: str, arg=None, patience_s: float = 60.0) -> None:
    """Until an async condition holds: Playwright's wait_for_function takes every promise for true."""
    ends_s = time.monotonic() + patience_s
    while not tab.evaluate(condition, arg):
        assert time.monotonic() < ends_s, condition
        tab.wait_for_timeout(100)
