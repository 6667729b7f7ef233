"""A virtual camera that keeps what it is sent.

`python -m tests.stream.virtual_cameras FOLDER ...` is `main.py ...` with one that writes every new picture into FOLDER
as PNG, and a file `closed` when it is closed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pyvirtualcam
import pyvirtualcam.camera

DEVICE = "test camera"


class RecordingBackend:
    """What pyvirtualcam.Backend asks for; the latest instance is `RecordingBackend.latest`."""

    latest: RecordingBackend

    def __init__(self, *, width: int, height: int, fps: float, fourcc: int, device: str | None):
        if device not in (None, DEVICE):
            raise RuntimeError(f"Device {device} does not exist.")
        self.width, self.height, self.fps, self.fourcc = width, height, fps, fourcc
        self.pictures: list[np.ndarray] = []  # without repetitions, uint8 [H, W, 3]
        self.sent = 0
        self.is_closed = False
        RecordingBackend.latest = self

    def send(self, frame: np.ndarray) -> None:
        assert not self.is_closed
        picture = frame.reshape(self.height, self.width, 3).copy()
        self.sent += 1
        if not self.pictures or not np.array_equal(picture, self.pictures[-1]):
            self.pictures.append(picture)

    def close(self) -> None:
        self.is_closed = True

    def device(self) -> str:
        return DEVICE

    def native_fourcc(self) -> None:
        return None


class PngBackend(RecordingBackend):
    """A file `cut` in the folder breaks it."""

    folder: Path

    def send(self, frame: np.ndarray) -> None:
        if (self.folder / "cut").exists():
            raise RuntimeError("The cable is cut.")
        known = len(self.pictures)
        super().send(frame)
        if len(self.pictures) > known:
            part = self.folder / "part.png"
            cv2.imwrite(str(part), self.pictures[-1][..., ::-1])
            part.rename(self.folder / f"{known:04}.png")  # who looks for it finds it whole

    def close(self) -> None:
        super().close()
        (self.folder / "closed").touch()


if __name__ == "__main__":
    from main import main

    PngBackend.folder = Path(sys.argv[1])
    pyvirtualcam.camera.BACKENDS.clear()  # a developer's own device is left alone
    pyvirtualcam.register_backend("png", PngBackend)
    sys.exit(main(sys.argv[2:]))
