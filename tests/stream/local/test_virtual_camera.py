"""The virtual camera: what other programs see in it, and what is said when there is none."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading

import aiohttp
import cv2
import numpy as np
import pytest

from pipeline.settings import Controls
from render.playback import LoopedFile
from stream.engine.frames import Picture
from stream.local import virtual_camera
from stream.local.camera import open_camera
from stream.local.camera_command import run_camera
from stream.local.virtual_camera import PACKAGE, VirtualCamera, VirtualCameraError, next_tick, remedy
from tests.paths import ROOT
from tests.stream.fakes import SIZE, FakeStylizer, solid
from tests.stream.peers import Publisher, until
from tests.stream.waiting import wait_for

pyvirtualcam = pytest.importorskip("pyvirtualcam")  # there are no wheels for some processors

from tests.stream.virtual_cameras import DEVICE, RecordingBackend  # noqa: E402

CLIP = ROOT / "tests" / "data" / "carphone.mp4"
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")


@pytest.fixture
def backend(monkeypatch) -> type[RecordingBackend]:
    """The only backend there is: a developer's own device is left alone."""
    monkeypatch.setattr(pyvirtualcam.camera, "BACKENDS", {})
    pyvirtualcam.register_backend("recording", RecordingBackend)
    return RecordingBackend


def picture(red: int, green: int, blue: int) -> Picture:
    return Picture(solid(red, green, blue, SIZE), 0.0, 0.0, 0.0, Controls())


# -- pictures --------------------------------------------------------------------------------------------------------


def test_black_at_first_then_the_newest_picture_over_and_over(backend):
    output = VirtualCamera(SIZE, SIZE)
    output.start()
    wait_for(lambda: backend.latest.sent >= 2)
    assert not backend.latest.pictures[0].any()
    assert len(backend.latest.pictures) == 1
    output.put(picture(200, 100, 0))
    wait_for(lambda: len(backend.latest.pictures) == 2)
    assert backend.latest.pictures[1][0, 0].tolist() == [200, 100, 0]  # red stays red
    sent = backend.latest.sent
    wait_for(lambda: backend.latest.sent >= sent + 3)  # a rate that does not depend on what comes in
    assert len(backend.latest.pictures) == 2
    output.close()
    assert backend.latest.is_closed


def test_the_device_is_told_the_format_and_a_rate_that_programs_take(backend):
    for asked, told in ((29.97, 29.97), (0.5, 5.0), (240.0, 60.0)):
        output = VirtualCamera(128, 64, asked)
        assert (backend.latest.width, backend.latest.height, backend.latest.fps) == (128, 64, told)
        assert backend.latest.fourcc == pyvirtualcam.util.encode_fourcc(pyvirtualcam.PixelFormat.RGB.value)
        output.close()


def test_ticks_do_not_drift_and_are_not_made_up_for():
    assert next_tick(4, 4 / 30 + 0.001, 30.0) == 5
    assert next_tick(4, 4.9 / 30, 30.0) == 5
    assert next_tick(4, 6.5 / 30, 30.0) == 6
    assert next_tick(4, 0.0, 30.0) == 5


def test_a_device_that_fails_is_told(backend, monkeypatch):
    def fail(self, frame):
        raise RuntimeError("The cable is cut.")

    monkeypatch.setattr(backend, "send", fail)
    output = VirtualCamera(SIZE, SIZE)
    output.start()
    wait_for(lambda: output.fault)
    assert DEVICE in output.fault
    assert "The cable is cut." in output.fault
    output.close()


# -- there is none ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "release", "words"),
    [
        ("Linux", {"ID": "debian"}, ["sudo apt install v4l2loopback-dkms", "sudo modprobe v4l2loopback devices=1"]),
        ("Linux", {"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, ["sudo apt install", "sudo modprobe"]),
        ("Linux", {"ID": "fedora"}, ["sudo dnf install", "sudo modprobe"]),
        ("Linux", {"ID": "manjaro", "ID_LIKE": "arch"}, ["sudo pacman -S", "sudo modprobe"]),
        ("Linux", {}, ["install v4l2loopback", "sudo modprobe"]),
        ("Windows", {}, ["OBS", "virtual camera"]),
        ("Darwin", {}, ["OBS", "virtual camera"]),
    ],
)
def test_the_remedy_is_that_of_the_system(system, release, words):
    assert all(word in remedy(system, release) for word in words)


def test_no_device_at_all(monkeypatch):
    class Missing:
        def __init__(self, **options):
            raise RuntimeError("No loopback device found. See also the manual!")

    monkeypatch.setattr(pyvirtualcam.camera, "BACKENDS", {"missing": Missing})
    monkeypatch.setattr(virtual_camera.platform, "system", lambda: "Linux")
    monkeypatch.setattr(virtual_camera.platform, "freedesktop_os_release", lambda: {"ID": "arch"})
    with pytest.raises(VirtualCameraError, match=r"\(No loopback device found\): run `sudo pacman .*LCMirror`\.$"):
        VirtualCamera(SIZE, SIZE)


def test_an_unknown_device_is_named(backend):
    with pytest.raises(VirtualCameraError, match=r"^The virtual camera /dev/video77 does not open: .* exist\.$"):
        VirtualCamera(SIZE, SIZE, device="/dev/video77")


def test_without_the_package_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with pytest.raises(VirtualCameraError, match=f"-m pip install {PACKAGE}`"):
        VirtualCamera(SIZE, SIZE)
    assert f"\n{PACKAGE}" in (ROOT / "requirements.txt").read_text()


# -- whole runs ------------------------------------------------------------------------------------------------------


def run_with(load=None, camera: str = str(CLIP), virtual_camera: str = "auto") -> int:
    stylizer, size = FakeStylizer(), (SIZE, SIZE)
    return run_camera(
        load or (lambda report: stylizer),
        None,
        model="fake",
        device="cpu",
        defaults=Controls(),
        size=size,
        open_source=lambda: open_camera(camera, size, LoopedFile),
        virtual_camera=virtual_camera,
    )


@needs_signals
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_it_and_everything_is_closed(backend, monkeypatch, capsys, number, code):
    closed = []

    def interrupt_once_painted() -> None:
        wait_for(lambda: len(backend.latest.pictures) >= 3)
        os.kill(os.getpid(), number)

    backend.latest = backend(width=1, height=1, fps=1, fourcc=0, device=None)
    monkeypatch.setattr(backend, "close", lambda self: closed.append("virtual camera"))
    close = LoopedFile.close
    monkeypatch.setattr(LoopedFile, "close", lambda self: (close(self), closed.append("camera")))
    interrupter = threading.Thread(target=interrupt_once_painted)
    interrupter.start()
    assert run_with() == code
    interrupter.join()
    assert closed == ["virtual camera", "camera"]
    printed = capsys.readouterr().out
    assert f"{CLIP} -> virtual camera {DEVICE}, {SIZE}x{SIZE}" in printed
    assert "ready: fake on fake" in printed


def test_a_model_that_does_not_load_ends_it(backend, capsys):
    def fail(report):
        raise RuntimeError("The weights are gone.")

    assert run_with(fail) == 2
    assert capsys.readouterr().err == "The weights are gone.\n"
    assert backend.latest.is_closed


def test_a_virtual_camera_that_stops_ends_it(backend, monkeypatch, caplog):
    def fail(self, frame):
        raise RuntimeError("The cable is cut.")

    monkeypatch.setattr(backend, "send", fail)
    assert run_with() == 2
    assert "The cable is cut." in caplog.text


@pytest.mark.parametrize(
    ("options", "word"),
    [({"camera": "/nonexistent.mp4"}, "/nonexistent.mp4"), ({"virtual_camera": "/dev/video77"}, "/dev/video77")],
)
def test_what_does_not_open_is_one_sentence_and_code_2(backend, capsys, options, word):
    assert run_with(**options) == 2
    complaint = capsys.readouterr().err
    assert len(complaint.splitlines()) == 1
    assert word in complaint


@needs_signals
def test_the_command_with_the_bundled_model(tmp_path):
    """The clip looks like itself in the virtual camera, and Ctrl+C is 130 with nothing on stderr."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.stream.virtual_cameras", str(tmp_path), "camera", "--camera", str(CLIP)),
            *("--model", "mini", "--no-compile", "--prompt", "", "--strength", "0.2", "--seed", "7"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: (tmp_path / "0002.png").exists() or process.poll() is not None, 120)
        process.send_signal(signal.SIGINT)
        printed, complained = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, complained) == (130, "")
    assert "ready: mini on cpu, 256x256" in printed
    assert (tmp_path / "closed").exists()
    shown = cv2.imread(str(tmp_path / "0001.png"))
    source = cv2.VideoCapture(str(CLIP))
    clip = [cv2.resize(source.read()[1][:, 16:160], (256, 256)) for _ in range(120)]
    source.release()
    assert max(likeness(frame, shown) for frame in clip) > 0.8
    assert max(likeness(frame, shown[..., ::-1]) for frame in clip) < max(likeness(frame, shown) for frame in clip)


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two pictures' coarse shapes and colours, 1 when they are the same."""
    return np.corrcoef(*(cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA).ravel() for image in (one, other)))[
        0, 1
    ]


SERVE = """
import sys
from pathlib import Path
import pyvirtualcam.camera
from pipeline.settings import Controls
from stream.http.serving import serve
from tests.stream.fakes import SIZE, FakeStylizer
from tests.stream.virtual_cameras import PngBackend

pyvirtualcam.camera.BACKENDS.clear()
PngBackend.folder = Path(sys.argv[1])
pyvirtualcam.register_backend("png", PngBackend)
sys.exit(serve(lambda report: FakeStylizer(), None, model="fake", device="cpu", defaults=Controls(), presets=[],
               give_memory_back=lambda: None, host="127.0.0.1", port=0,
               virtual_camera=sys.argv[2], from_stream="one", size=(SIZE, SIZE)))
"""


async def cut_is_told(http, url):
    async with http.get(f"{url}/api/status") as response:
        status = await response.json()
    return status["state"] == "ready" and "The cable is cut." in status.get("virtual_camera", "")


@needs_signals
async def test_the_server_shows_a_stream_and_keeps_its_last_picture(tmp_path):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, str(tmp_path), "auto", cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        url = (await process.stdout.readline()).decode().split()[-1]
        assert (await process.stdout.readline()).decode() == f"Virtual camera {DEVICE} shows stream one.\n"
        async with aiohttp.ClientSession() as http:
            async with Publisher(http, f"{url}/whip/one", rgb=(200, 40, 40)):
                await asyncio.to_thread(wait_for, (tmp_path / "0001.png").exists)
            async with http.get(f"{url}/api/streams/one") as response:
                stream = await response.json()
            assert (stream["publishing"], stream["viewers"]) == (False, 1)
            (tmp_path / "cut").touch()
            await until(cut_is_told, http, url)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 15) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (tmp_path / "closed").exists()
    shown = [cv2.imread(str(file)) for file in sorted(tmp_path.glob("*.png"))]
    assert not shown[0].any()
    assert np.allclose(
        shown[-1][0, 0], (200, 40, 40), atol=10
    )  # BGR of what the fake makes of it: red and blue swapped


def test_a_server_whose_virtual_camera_does_not_open_never_listens(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", SERVE, str(tmp_path), "/dev/video77"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "/dev/video77" in result.stderr
    assert len(result.stderr.splitlines()) == 1
