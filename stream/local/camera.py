"""Where do frames come from without a browser? From a local camera, or from a file that plays in its place."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from render.clip import FilmError, open_clip

RATE_HZ = 30.0
SIZES = ((640, 480), (1280, 720), (1920, 1080))  # that webcams have in common, (width, height)
UNCOMPRESSED_SIZE = SIZES[0]  # above it USB 2 carries 30 frames a second only as MJPG
MAX_INDEX = 99
BACKENDS = {"linux": cv2.CAP_V4L2, "win32": cv2.CAP_DSHOW, "darwin": cv2.CAP_AVFOUNDATION}
LATE_S = 1.0  # a file that is further behind goes on from where it is: the machine slept, or decodes too slowly


class CameraError(Exception):
    """There are no frames to be had from there; one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Captured:
    """One frame. `media_s` is its time on the source's own clock, None where it has none."""

    rgb: np.ndarray  # uint8 [H, W, 3]
    media_s: float | None


class Source(Protocol):
    """A camera, used by one thread. `name` begins sentences; `address` tells two apart."""

    name: str
    address: str
    rate_hz: float

    def read(self, closing: threading.Event) -> Captured | None:
        """The next frame, as soon as there is one or `closing` is set; None once the source is gone."""

    def close(self) -> None: ...


def open_camera(where: str, size: tuple[int, int]) -> Source:
    """A camera by its number or its device's path, or the file of that name as one. Raises CameraError.

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
    return LoopedFile(path, size)


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
        for option, value in wishes(size).items():  # a camera that cannot comes as near as it can
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


def wishes(size: tuple[int, int]) -> dict[int, float]:
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


class LoopedFile:
    """A video file (or a picture) as a camera: at its own times, variable rates too, from the beginning after its end.

    Frames come cropped to `size`, (width, height).
    """

    def __init__(self, path: Path, size: tuple[int, int]):
        try:
            self._clip = open_clip(path)
        except FilmError as error:
            raise CameraError(str(error)) from error
        self.name = self.address = str(path)
        self.rate_hz = float(self._clip.rate)
        self._frames = self._passes(size)
        self._origin_s: float | None = None

    def read(self, closing: threading.Event) -> Captured | None:
        try:
            frame = next(self._frames, None)
        except FilmError:  # it was there when we opened it
            return None
        if frame is not None:
            now_s = time.monotonic()
            self._origin_s = origin_s(self._origin_s, frame.media_s, now_s)
            closing.wait(max(0.0, self._origin_s + frame.media_s - now_s))
        return frame

    def close(self) -> None:
        self._frames.close()

    def _passes(self, size: tuple[int, int]) -> Iterator[Captured]:
        """All frames, again and again; the time goes on. Ends when the file holds none any more."""
        begin_s = end_s = 0.0
        while True:
            for still in self._clip.stills(size):
                media_s = begin_s + float(still.pts * self._clip.time_base)
                end_s = media_s + float(still.duration * self._clip.time_base)
                yield Captured(still.rgb, media_s)
            if end_s <= begin_s:
                return
            begin_s = end_s


def origin_s(origin_s: float | None, media_s: float, now_s: float) -> float:
    """When the file's time was zero: kept, so that nothing drifts, unless this frame is late beyond catching up."""
    if origin_s is None or now_s - (origin_s + media_s) > LATE_S:
        return now_s - media_s
    return origin_s
