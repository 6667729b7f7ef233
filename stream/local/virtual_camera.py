"""A virtual camera: pictures go out at a steady rate to whatever program shows cameras.

pyvirtualcam is optional: it is imported when a virtual camera is opened.
"""

from __future__ import annotations

import logging
import platform
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import ModuleType

import numpy as np

from stream.engine.frames import Picture
from stream.engine.mailbox import Mailbox
from stream.engine.status import sentence

log = logging.getLogger(__name__)

PACKAGE = "pyvirtualcam==0.15.0"
ANY = "auto"  # the first device that opens
RATE_HZ = 30.0
MIN_RATE_HZ, MAX_RATE_HZ = 5.0, 60.0  # what programs take for a live camera

# How a system gets its first virtual camera. Linux by ID or ID_LIKE of os-release, the others by platform.system().
MODPROBE = "sudo modprobe v4l2loopback devices=1 exclusive_caps=1 card_label=LCMirror"
INSTALL = {
    "debian": "sudo apt install v4l2loopback-dkms",
    "ubuntu": "sudo apt install v4l2loopback-dkms",
    "fedora": "sudo dnf install akmod-v4l2loopback",  # from RPM Fusion
    "arch": "sudo pacman -S v4l2loopback-dkms",
    "suse": "sudo zypper install v4l2loopback-kmp-default",
}
WITH_OBS = {
    "Windows": "install OBS (https://obsproject.com), start its virtual camera once and close OBS",
    "Darwin": "install OBS (https://obsproject.com), start its virtual camera once, allow it and close OBS",
}


class VirtualCameraError(Exception):
    """It cannot be opened; one sentence that names the remedy."""


class VirtualCamera:
    """One device. Its pictures are black until `put` brought the first: so it is there for other programs at once.

    width, height: of every picture. device: its path or name, or ANY. Raises VirtualCameraError.
    `fault`: why it stopped by itself, None while it has not.
    """

    def __init__(self, width: int, height: int, rate_hz: float = RATE_HZ, device: str = ANY):
        package = _package()
        self.rate_hz = min(max(rate_hz, MIN_RATE_HZ), MAX_RATE_HZ)
        self.fault: str | None = None
        try:
            self._camera = package.Camera(
                width,
                height,
                self.rate_hz,
                fmt=package.PixelFormat.RGB,
                device=None if device == ANY else device,
            )
        except RuntimeError as error:
            raise VirtualCameraError(_why_not(device, str(error))) from error
        self.device: str = self._camera.device
        self._black = np.zeros((height, width, 3), np.uint8)
        self._newest: Mailbox[Picture] = Mailbox()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="virtual camera", daemon=True)

    def start(self, stopped: Callable[[str], None] = lambda fault: None) -> None:
        """stopped: is told the `fault`, in the camera's thread."""
        self._stopped = stopped
        self._thread.start()

    def put(self, picture: Picture) -> None:
        """The picture to show from the next tick on: a sink for Stream.watch."""
        self._newest.put(picture)

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._camera.close()

    def _run(self) -> None:
        rgb, tick, started_s = self._black, 0, time.monotonic()
        try:
            while not self._closing.wait(max(0.0, started_s + tick / self.rate_hz - time.monotonic())):
                if (picture := self._newest.take()) is not None:
                    rgb = picture.rgb
                self._camera.send(rgb)
                tick = next_tick(tick, time.monotonic() - started_s, self.rate_hz)
        except Exception as error:  # whatever a driver raises
            self.fault = f"The virtual camera {self.device} stopped: {sentence(error)}"
            log.error("%s", self.fault, exc_info=log.isEnabledFor(logging.DEBUG))
            self._stopped(self.fault)


def next_tick(tick: int, elapsed_s: float, rate_hz: float) -> int:
    """The tick to wait for after `tick`: those whose time has passed are left out, not made up for."""
    return max(tick + 1, int(elapsed_s * rate_hz))


def _package() -> ModuleType:
    try:
        import pyvirtualcam
    except ImportError as error:
        raise VirtualCameraError(
            f"A virtual camera needs the package pyvirtualcam: run `{sys.executable} -m pip install {PACKAGE}`."
        ) from error
    return pyvirtualcam


def _why_not(device: str, complaint: str) -> str:
    """complaint: pyvirtualcam's, a line for each backend it tried."""
    reasons = "; ".join(
        re.sub(r"^'.*?' backend: ", "", line).split(". ")[0].rstrip(".!") for line in complaint.splitlines()
    )
    if device != ANY:
        return f"The virtual camera {device} does not open: {reasons}."
    system = platform.system()
    return f"No virtual camera opens ({reasons}): {remedy(system, _release() if system == 'Linux' else {})}."


def remedy(system: str, release: Mapping[str, str]) -> str:
    """What to do for a first virtual camera. system: as platform.system() has it. release: of os-release."""
    if system in WITH_OBS:
        return WITH_OBS[system]
    kinds = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    install = next((f"run `{INSTALL[kind]}`" for kind in kinds if kind in INSTALL), "install v4l2loopback")
    return f"{install} and then `{MODPROBE}`"


def _release() -> Mapping[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}
