"""Cameras: what is asked of them, what comes of them, and what is said when nothing does."""

from __future__ import annotations

import queue
import threading

import cv2
import numpy as np
import pytest

from render.playback import LoopedFile
from sources import CameraError, Source
from stream.engine.runner import EngineRunner
from stream.local import camera, capture
from stream.local.camera import cameras, capture_options
from stream.local.capture import Capture
from stream.streams import Streams
from tests.paths import CARPHONE
from tests.stream.fakes import FakeStylizer
from tests.stream.waiting import wait_for

CLIP = CARPHONE
AT_ONCE = threading.Event()  # a source that is closing waits for nothing
AT_ONCE.set()


class Webcam:
    """In place of cv2.VideoCapture: red frames while `plugged_in` is set."""

    plugged_in = threading.Event()
    shape = (480, 640, 3)
    opened: list[Webcam]

    def __init__(self, number: int, backend: int):
        self.options: dict[int, float] = {}
        self.is_released = False
        self.opened.append(self)

    def isOpened(self) -> bool:
        return self.plugged_in.is_set()

    def set(self, option: int, value: float) -> bool:
        self.options[option] = value
        return True

    def get(self, option: int) -> float:
        return self.options.get(option, 0.0)

    def read(self):
        assert not self.is_released
        if not self.plugged_in.is_set():
            return False, None
        return True, np.full(self.shape, (0, 0, 255)[: self.shape[2]], np.uint8)  # BGR

    def release(self) -> None:
        self.is_released = True


@pytest.fixture
def webcam(monkeypatch) -> type[Webcam]:
    Webcam.opened = []
    Webcam.plugged_in.set()
    monkeypatch.setattr(camera.cv2, "VideoCapture", Webcam)
    monkeypatch.setattr(camera, "cameras", lambda: {0: "Front", 2: "Back"})
    return Webcam


def open_number(number: int) -> Source:
    return camera.open_camera(str(number), (256, 256), LoopedFile)


# -- cameras ---------------------------------------------------------------------------------------------------------


def test_a_camera_is_asked_for_as_many_pixels_as_the_picture_has():
    small, large, huge = capture_options((256, 256)), capture_options((512, 512)), capture_options((4096, 4096))
    assert (small[cv2.CAP_PROP_FRAME_WIDTH], small[cv2.CAP_PROP_FRAME_HEIGHT]) == (640, 480)
    assert cv2.CAP_PROP_FOURCC not in small
    assert (large[cv2.CAP_PROP_FRAME_WIDTH], large[cv2.CAP_PROP_FRAME_HEIGHT]) == (1280, 720)
    assert next(iter(large)) == cv2.CAP_PROP_FOURCC  # drivers settle the size for the format they are set to
    assert huge[cv2.CAP_PROP_FRAME_WIDTH] == 1920


def test_a_camera_gives_rgb_and_keeps_no_frames(webcam):
    source = open_number(0)
    assert webcam.opened[0].options[cv2.CAP_PROP_BUFFERSIZE] == 1
    assert source.read(AT_ONCE).rgb[0, 0].tolist() == [255, 0, 0]
    source.close()
    assert webcam.opened[0].is_released


@pytest.mark.parametrize(
    ("where", "there", "words"),
    [
        ("3", {0: "Front", 2: "Back"}, ["no camera 3", "0 (Front), 2 (Back)"]),
        ("0", {}, ["no camera 0", "none is connected"]),
        ("99999999999999", {}, ["99999999999999"]),
        ("1", None, ["Camera 1", "another program"]),
        ("/dev/null", {}, ["/dev/null is not a camera"]),
    ],
)
def test_a_camera_that_does_not_open_is_told_in_one_sentence(webcam, monkeypatch, capfd, where, there, words):
    webcam.plugged_in.clear()
    monkeypatch.setattr(camera, "cameras", lambda: there)
    with pytest.raises(CameraError) as caught:
        camera.open_camera(where, (256, 256), LoopedFile)
    assert all(word in str(caught.value) for word in words), caught.value
    assert all(webcam.is_released for webcam in webcam.opened)


def test_opencv_adds_no_noise_of_its_own(capfd):
    with pytest.raises(CameraError):
        open_number(98)
    assert capfd.readouterr() == ("", "")


def test_nodes_without_pictures_are_not_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(camera.sys, "platform", "linux")
    for node, index, name in (("video2", 0, "Back"), ("video0", 0, "Front"), ("video1", 1, "Front")):
        (tmp_path / node).mkdir()
        (tmp_path / node / "index").write_text(f"{index}\n")
        (tmp_path / node / "name").write_text(f"{name}\n")
    assert cameras(tmp_path) == {0: "Front", 2: "Back"}


# -- draining --------------------------------------------------------------------------------------------------------


class Feeder:
    kind = "camera"


@pytest.fixture
def pictures():
    """(stream, queue of its pictures) with the fake engine behind."""
    engine = EngineRunner(lambda report: FakeStylizer(), model="fake")
    stream = Streams(engine).get("camera")
    shown = queue.Queue()
    stream.watch(shown.put)
    engine.start()
    yield stream, shown
    engine.close()


def test_a_clip_comes_out_painted(pictures):
    stream, shown = pictures
    feed = Capture(lambda: camera.open_camera(str(CLIP), (64, 64), LoopedFile), stream.publish(Feeder())[0])
    feed.start()
    first = shown.get(timeout=20)
    feed.close()
    frames = LoopedFile(CLIP, (64, 64))
    expected = frames.read(AT_ONCE).rgb.mean(axis=(0, 1))[::-1]  # the fake swaps red and blue
    frames.close()
    assert np.abs(first.rgb[0, 0] - expected).max() < 8
    assert stream.snapshot()["publisher"] == "camera"


def test_a_camera_that_vanishes_is_opened_again(webcam, pictures, monkeypatch):
    monkeypatch.setattr(capture, "RETRY_S", 0.01)
    stream, shown = pictures
    feed = Capture(lambda: open_number(0), stream.publish(Feeder())[0])
    feed.start()
    shown.get(timeout=20)
    webcam.plugged_in.clear()
    wait_for(lambda: len(webcam.opened) >= 3)  # it was looked for in vain
    assert "Camera 0 is gone" in feed.trouble
    while not shown.empty():
        shown.get()
    assert stream.last_picture is not None
    webcam.plugged_in.set()
    shown.get(timeout=20)
    wait_for(lambda: feed.trouble is None)
    feed.close()
    assert all(one.is_released for one in webcam.opened)


def test_a_camera_that_sends_what_nobody_can_read_is_opened_again(webcam, pictures, monkeypatch):
    """Some drivers hand out other kinds of frames after the machine has slept, until they are opened anew."""
    monkeypatch.setattr(capture, "RETRY_S", 0.01)
    stream, shown = pictures
    feed = Capture(lambda: open_number(0), stream.publish(Feeder())[0])
    feed.start()
    shown.get(timeout=20)
    monkeypatch.setattr(webcam, "shape", (480, 640, 2))
    wait_for(lambda: feed.trouble)
    assert feed.trouble.startswith("Camera 0 failed (")
    assert len(feed.trouble.splitlines()) == 1
    wait_for(lambda: len(webcam.opened) >= 3)
    monkeypatch.setattr(webcam, "shape", (480, 640, 3))
    wait_for(lambda: feed.trouble is None)
    feed.close()
    assert all(one.is_released for one in webcam.opened)


def test_a_driver_that_fails_while_it_is_closed_is_opened_again_too(webcam, pictures, monkeypatch):
    monkeypatch.setattr(capture, "RETRY_S", 0.01)
    stream, shown = pictures
    feed = Capture(lambda: open_number(0), stream.publish(Feeder())[0])
    close = camera.Device.close
    monkeypatch.setattr(camera.Device, "close", lambda self: (close(self), 1 / 0))
    feed.start()
    shown.get(timeout=20)
    monkeypatch.setattr(webcam, "shape", (480, 640, 2))
    wait_for(lambda: feed.trouble)
    monkeypatch.setattr(webcam, "shape", (480, 640, 3))
    wait_for(lambda: feed.trouble is None)
    feed.close()


def test_a_node_that_vanishes_while_it_is_listed_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(camera.sys, "platform", "linux")
    (tmp_path / "video0").mkdir()
    assert cameras(tmp_path) == {}
