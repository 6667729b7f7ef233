"""What is read of a clip: every frame at its time, from any start, whatever the container says about times."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from render.clip import Timeline, VideoClip, open_clip
from render.errors import FilmError
from render.pictures import fitting_pattern, numbered, opened

from .clips import carphone, constant, make_clip

SIZE = (48, 32)
X264 = {"g": "20", "bf": "3", "x264-params": "open-gop=1"}
FILES = {  # name: the options that make it
    "a.mp4": {"audio": "aac", "options": X264},
    "a.mkv": {"audio": "libmp3lame", "options": X264},
    "a.ts": {"audio": "aac", "options": X264},
    "a.flv": {"audio": "libmp3lame", "options": X264, "time_base": Fraction(1, 1000)},
    "a.mpg": {"audio": "mp2", "video": "mpeg2video", "options": {"g": "12", "bf": "2"}, "time_base": Fraction(1, 25)},
    "a.avi": {"audio": "libmp3lame", "options": X264, "time_base": Fraction(1, 25)},
    "b.avi": {"video": "mpeg4", "options": {"g": "20", "bf": "2"}, "time_base": Fraction(1, 25)},
    "a.h264": {"options": X264, "time_base": Fraction(1, 25)},
}


@pytest.fixture(params=FILES, ids=lambda name: name)
def clip(request, tmp_path) -> VideoClip:
    frames = carphone(100, *SIZE)
    return open_clip(make_clip(tmp_path / request.param, frames, constant(100, Fraction(25)), **FILES[request.param]))


def test_every_frame_has_its_time(clip):
    times_s = [float(still.pts * clip.time_base) for still in clip.stills(SIZE)]
    np.testing.assert_allclose(times_s, np.arange(100) / 25 + times_s[0], atol=0.002)
    assert times_s[0] < 0.1  # sound may begin a little earlier


def test_a_part_is_what_the_whole_shows_then(clip):
    """A seek alone loses frames: transport streams and MPEG program streams have no index."""
    whole = [(still.pts, still.rgb) for still in clip.stills(SIZE)]
    for start_s, end_s in [(0.5, 0.9), (1, 1.3), (1.81, 1.82), (2.6, 3.3), (3.9, None)]:
        start_s, end_s = Fraction(start_s).limit_denominator(100), end_s and Fraction(end_s).limit_denominator(100)
        origin = round(clip.zero_s / clip.time_base)
        zero = round((clip.zero_s + start_s) / clip.time_base) - origin
        expected = [
            (pts - zero, rgb)
            for pts, rgb in whole
            if pts >= zero and (end_s is None or (pts + origin) * clip.time_base < clip.zero_s + end_s)
        ]
        part = list(clip.stills(SIZE, start_s, end_s))
        assert [still.pts for still in part] == [pts for pts, _ in expected]
        for still, (_, rgb) in zip(part, expected, strict=True):
            np.testing.assert_array_equal(still.rgb, rgb)


def test_files_joined_as_they_are_play_one_after_the_other(tmp_path):
    one = make_clip(tmp_path / "one.ts", carphone(50, *SIZE), constant(50, Fraction(25)))
    (tmp_path / "two.ts").write_bytes(one.read_bytes() * 2)
    clip = open_clip(tmp_path / "two.ts")
    times_s = [float(still.pts * clip.time_base) for still in clip.stills(SIZE)]
    np.testing.assert_allclose(np.diff(times_s), 1 / 25, atol=0.001)
    assert len(times_s) == 100


def test_the_last_picture_lasts(tmp_path):
    Image.new("RGB", SIZE, "red").save(
        tmp_path / "a.gif",
        save_all=True,
        append_images=[Image.new("RGB", SIZE, "blue"), Image.new("RGB", SIZE, "green")],
        duration=[100, 50, 1500],
    )
    clip = open_clip(tmp_path / "a.gif")
    durations_s = [float(still.duration * clip.time_base) for still in clip.stills(SIZE)]
    np.testing.assert_allclose(durations_s, [0.1, 0.05, 1.5])


def test_a_name_with_a_colon(tmp_path):
    clip = make_clip(tmp_path / "plain.mp4", carphone(5, *SIZE), constant(5, Fraction(25)))
    assert len(list(open_clip(clip.rename(tmp_path / "12:30 at the sea.mp4")).stills(SIZE))) == 5


def test_times_rise():
    strict, loose = Timeline(Fraction(1, 100)), Timeline(Fraction(1, 100), strictly=False)
    assert [strict.placed(time, 4) for time in (0, 4, 4, 3, 8)] == [0, 4, 5, 6, 8]
    assert [loose.placed(time, 4) for time in (0, 4, 4, 3, 8)] == [0, 4, 4, 4, 8]
    # More than a second back: what follows was joined to it, and begins anew.
    assert [strict.placed(time, 4) for time in (400, 10, 14)] == [400, 404, 408]
    assert strict.offset == 394


def test_patterns_mean_numbers(tmp_path):
    for name in ("0001.png", "0012.png", "12345.png", "7.png", "cover.png", "a[1].png", ".0003.png"):
        (tmp_path / name).touch()

    def fitting(pattern: str) -> list[str]:
        return [file.name for file in fitting_pattern(tmp_path / pattern)]

    assert fitting("%04d.png") == ["0001.png", "0012.png", "12345.png"]
    assert fitting("%d.png") == ["0001.png", "7.png", "0012.png", "12345.png"]
    assert fitting("a[%d].png") == ["a[1].png"]
    assert fitting("c*.png") == ["cover.png"]
    assert fitting_pattern(tmp_path / "nowhere" / "%d.png") == []


def test_numbered_names():
    assert numbered(Path("out/50%_%03d.png"), 7) == Path("out/50%_007.png")
    assert numbered(Path("%d.png"), 12) == Path("12.png")
    for pattern in ("%d_%d.png", "*.png", "*_%d.png"):
        with pytest.raises(FilmError, match="needs one number in its name"):
            numbered(Path(pattern), 1)


def test_transparent_pictures_lie_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(opened(tmp_path / "clear.png")).min() == 255
    Image.new("RGBA", SIZE, (255, 0, 0, 0)).save(tmp_path / "clear.gif")
    assert next(open_clip(tmp_path / "clear.gif").stills(SIZE)).rgb.min() == 255


def test_sixteen_bits_keep_their_tones(tmp_path):
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16)[None].repeat(8, 0)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    np.testing.assert_allclose(np.asarray(opened(tmp_path / "deep.png"))[0, :, 1], np.arange(256), atol=1)
