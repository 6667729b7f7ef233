"""Files as cameras: what comes of them, and what is said when nothing does."""

from __future__ import annotations

import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from render.playback import LoopedFile, origin_s
from sources import CameraError
from tests.paths import CARPHONE

AT_ONCE = threading.Event()  # a source that is closing waits for nothing
AT_ONCE.set()


def encode(path: Path, times_ms: list[int]) -> None:
    """A video whose frame i is a grey of 10 * i, at these times."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=1000)
        stream.width = stream.height = 64
        stream.pix_fmt = "gray"
        for number, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64), 10 * number, np.uint8), format="gray")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def test_a_clip_plays_again_and_its_time_goes_on():
    source = LoopedFile(CARPHONE, (64, 64))
    frames = [source.read(AT_ONCE) for _ in range(250)]
    source.close()
    steps_s = np.diff([frame.media_s for frame in frames])
    assert np.allclose(steps_s, 1001 / 30000, atol=1e-6)
    assert source.rate_hz == pytest.approx(29.97, abs=0.01)
    assert np.array_equal(frames[0].rgb, frames[120].rgb)
    assert not np.array_equal(frames[0].rgb, frames[60].rgb)


def test_variable_frame_rate_is_kept(tmp_path):
    encode(tmp_path / "uneven.mkv", times := [0, 40, 60, 500])
    source = LoopedFile(tmp_path / "uneven.mkv", (64, 64))
    frames = [source.read(AT_ONCE) for _ in range(5)]
    source.close()
    assert [round(1000 * frame.media_s) for frame in frames[:4]] == times
    assert frames[4].media_s > frames[3].media_s
    assert [int(frame.rgb[0, 0, 0]) // 9 for frame in frames] == [0, 1, 2, 3, 0]


def test_a_file_that_is_late_beyond_catching_up_goes_on_from_where_it_is():
    assert origin_s(None, 4.0, 100.0) == 96.0
    assert origin_s(96.0, 5.0, 101.5) == 96.0
    assert origin_s(96.0, 6.0, 200.0) == 194.0


def only_sound(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48_000, 0
        output.mux([*stream.encode(frame), *stream.encode(None)])


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("missing.mp4", lambda path: None),
        ("empty.mp4", lambda path: path.touch()),
        ("corrupt.mp4", lambda path: path.write_bytes(CARPHONE.read_bytes()[:300] + b"\0" * 300)),
        ("sound.mp4", only_sound),
        ("no-frames.y4m", lambda path: path.write_bytes(b"YUV4MPEG2 W64 H64 F25:1 C420jpeg\n")),
        ("huge.y4m", lambda path: path.write_bytes(b"YUV4MPEG2 W60000 H60000 F25:1 C420jpeg\nFRAME\n")),
        ("folder", lambda path: path.mkdir()),
    ],
)
def test_a_file_without_pictures_is_told_in_one_sentence(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(CameraError) as caught:
        LoopedFile(tmp_path / name, (64, 64))
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).endswith(".")
