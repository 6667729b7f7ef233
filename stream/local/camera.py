"""Local cameras: which there are, how one is opened, and what is said when it does not open."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import cv2

from sources import CameraError, Captured, Source

RATE_HZ = 30.0
SIZES = ((640, 480), (1280, 720), (1920, 1080))  # that webcams have in common, (width, height)
UNCOMPRESSED_SIZE = SIZES[0]  # above it USB 2 carries 30 frames a second only as MJPG
MAX_INDEX = 99
BACKENDS = {"linux": cv2.CAP_V4L2, "win32": cv2.CAP_DSHOW, "darwin": cv2.CAP_AVFOUNDATION}


def open_camera(where: str, size: tuple[int, int], open_file: Callable[[Path, tuple[int, int]], Source]) -> Source:
    """A camera by its number or its device's path, or what opens the file of that name as one. Raises CameraError.

    size: (width, height) of the pictures that will be made of the frames.
    """
    if where.isdecimal():
        return Device(int(where), size)
    path = Path(where)
    if path.is_char_device():
        numbered = re.fullmatch(r"video(\d+)", path.resolve().name)
        if numbered is None:
            raise CameraError(f"{path} is not a camera.")
        return Device(int(numbered[1]), size)
    return open_file(path, size)


class Device:
    """A local camera. Its driver keeps one frame at most, and whoever reads it reads all the time."""

    def __init__(self, number: int, size: tuple[int, int]):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what goes wrong, we say in our own words
        if number > MAX_INDEX:
            raise CameraError(_why_not(number, cameras()))
        self.name = f"Camera {number}"
        self.address = f"/dev/video{number}" if sys.platform == "linux" else self.name
        self._capture = cv2.VideoCapture(number, BACKENDS.get(sys.platform, cv2.CAP_ANY))
        if not self._capture.isOpened():
            self._capture.release()
            raise CameraError(_why_not(number, cameras()))
        for option, value in capture_options(size).items():  # a camera that cannot comes as near as it can
            self._capture.set(option, value)
        if not self._capture.read()[0]:
            self._capture.release()
            raise CameraError(f"{self.name} gives no picture: another program may be using it.")
        self.rate_hz = self._capture.get(cv2.CAP_PROP_FPS) or RATE_HZ

    def read(self, closing: threading.Event) -> Captured | None:
        got, bgr = self._capture.read()
        return Captured(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), None) if got else None

    def close(self) -> None:
        self._capture.release()


def capture_options(size: tuple[int, int]) -> dict[int, float]:
    """What a camera is asked for, in this order: no fewer pixels than the pictures have, and nothing kept waiting."""
    width, height = next((s for s in SIZES if s[0] >= size[0] and s[1] >= size[1]), SIZES[-1])
    compressed = {cv2.CAP_PROP_FOURCC: cv2.VideoWriter.fourcc(*"MJPG")} if (width, height) > UNCOMPRESSED_SIZE else {}
    return {
        **compressed,
        cv2.CAP_PROP_FRAME_WIDTH: width,
        cv2.CAP_PROP_FRAME_HEIGHT: height,
        cv2.CAP_PROP_FPS: RATE_HZ,
        cv2.CAP_PROP_BUFFERSIZE: 1,
    }


def cameras(folder: Path = Path("/sys/class/video4linux")) -> dict[int, str] | None:
    """{number: name} of what is connected; None where that cannot be had cheaply (elsewhere than on Linux)."""
    if sys.platform != "linux":
        return None
    found = {}
    for device in folder.glob("video*"):
        with contextlib.suppress(OSError):  # it was unplugged meanwhile
            if (device / "index").read_text().strip() == "0":  # a camera's further nodes carry no pictures
                found[int(device.name.removeprefix("video"))] = (device / "name").read_text().strip()
    return dict(sorted(found.items()))


def _why_not(number: int, there: dict[int, str] | None) -> str:
    if there is None:
        return f"Camera {number} does not open: it is not there, another program uses it, or you may not."
    if number not in there:
        listed = ", ".join(f"{other} ({name})" for other, name in there.items())
        return f"There is no camera {number}; " + (f"there is {listed}." if listed else "none is connected.")
    if not os.access(f"/dev/video{number}", os.R_OK | os.W_OK):
        return f"You may not use camera {number}: run `sudo usermod -aG video $USER` and log in again."
    return f"Camera {number} ({there[number]}) does not open: another program may be using it."
