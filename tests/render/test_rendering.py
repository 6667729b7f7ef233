"""Every frame, in order, at its time, with its sound; and what a killed run has painted is not painted again."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.batch import Batch, Pending, Pictures, there
from pipeline.settings import Controls
from render.clip import open_clip
from render.errors import FilmError
from render.muxing import FilmSettings, film_for
from render.painting import Animate
from render.rendering import RenderSpec, render
from render.segments import PacketFile

from .clips import CARPHONE, assert_same_film, carphone, constant, flash_and_beep_s, look, make_clip, pictures_of

SIZE = (64, 64)
UNEVEN_S = [Fraction(number, 30) for number in (0, 1, 2, 5, 6, 12, 13, 14, 20, 21, 22, 30)]


class Painter:
    """Inverts; remembers how often it was asked for how many frames, and with which seeds."""

    def __init__(self, fail_at: int | None = None):
        self.batches: list[int] = []
        self.seen: list[bytes] = []  # the frames, each once
        self.seeds: list[int] = []
        self._fail_at = fail_at

    def __call__(self, batch: Batch) -> Pending[Pictures]:
        frames = batch.frames
        if self._fail_at is not None and len(self.batches) == self._fail_at:
            raise RuntimeError("The power went out.")
        self.batches.append(len(frames))
        self.seen += dict.fromkeys(frame.tobytes() for frame in frames)  # a last batch is filled up
        self.seeds += [one.seed for one in batch.controls]
        return there(Pictures(255 - frames))


def unchanged(batch: Batch) -> Pending[Pictures]:
    return there(Pictures(batch.frames))


class Animator:
    """Inverts, too, but each picture comes LAG frames later, and the first LAG ones of any beginning are of no use."""

    LAG = 7

    def __init__(self):
        self.firsts: list[int] = []

    def paint(self, frames, first: int):
        self.firsts.append(first)
        held = []
        for number, frame in enumerate(frames):
            held.append(np.zeros_like(frame) if first and number < self.LAG else 255 - frame)
            if len(held) > self.LAG:
                yield held.pop(0)
        yield from held

    def restart(self, done: int) -> int:
        return max(0, done - self.LAG)


def paint(
    source: Path,
    target: Path,
    painter=None,
    *,
    size=SIZE,
    batch=4,
    resume=False,
    stop_after=None,
    abandon=False,
    **take,
):
    """One rendering as run.run does it, without its checks; returns the film. abandon: what does not happen to a
    process that is killed."""
    clip = open_clip(source, take.pop("fps", Fraction(25)))
    part = {name: take[name] for name in ("start_s", "end_s") if name in take}
    codec = take.pop("codec", None)
    width = 2 * size[0] if take.get("side_by_side") else size[0]
    film = film_for(FilmSettings(clip, target, (width, size[1]), codec=codec, **part))
    film.work.resume({}) if resume else film.work.begin({})
    painter = painter or Painter()
    stops = iter([False] * stop_after + [True]) if stop_after is not None else None
    try:
        complete = render(
            RenderSpec(clip, Controls(), size, batch=batch, **take),
            painter,
            film,
            should_stop=(lambda: next(stops)) if stops else (lambda: False),
        )
        film.finish(complete)
    finally:
        if abandon:
            film.abandon()
        film.work.close()  # as the system does with what a killed process had open
    if complete:
        film.work.discard()
    return film


CLIPS = {
    "24 fps, H264, AAC, mp4": ("a.mp4", constant(30, Fraction(24)), {"audio": "aac"}),
    "25 fps, HEVC, mp3, mkv": ("a.mkv", constant(30, Fraction(25)), {"video": "libx265", "audio": "libmp3lame"}),
    "29.97 fps, H264, mp3, mp4": ("a.mp4", constant(30, Fraction(30_000, 1001)), {"audio": "libmp3lame"}),
    "variable, H264, AAC, mp4": ("a.mp4", UNEVEN_S, {"audio": "aac"}),
    "variable, H264, AAC, mov": ("a.mov", UNEVEN_S, {"audio": "aac"}),
    "25 fps, cinepak, mp3, avi": (
        "a.avi",
        constant(30, Fraction(25)),
        {"video": "cinepak", "pixels": "rgb24", "audio": "libmp3lame", "time_base": Fraction(1, 25)},
    ),
    "25 fps, H264, AAC, ts": ("a.ts", constant(30, Fraction(25)), {"audio": "aac"}),
}
QUIET = {"libx265": {"x265-params": "log-level=error"}}


@pytest.fixture(params=CLIPS, ids=lambda name: name)
def clip(request, tmp_path) -> Path:
    name, times_s, options = CLIPS[request.param]
    options = {**options, "options": QUIET.get(options.get("video"), {})}
    return make_clip(tmp_path / name, carphone(len(times_s)), times_s, **options)


def test_count_times_duration_and_sound_are_kept(clip, tmp_path):
    paint(clip, tmp_path / "out.mp4")
    before, after = look(clip), look(tmp_path / "out.mp4")
    zero_s = open_clip(clip).zero_s
    assert after.times_s == [time_s - zero_s for time_s in before.times_s]
    assert abs(after.duration_s - before.duration_s) <= 1 / 24
    assert after.sound_codec == before.sound_codec
    # A transport stream has a header of seven bytes before each AAC packet, which mp4 must not have.
    assert after.sound == [packet[7:] if clip.suffix == ".ts" else packet for packet in before.sound]
    assert len(after.sound) > 30


@pytest.mark.parametrize(
    ("suffix", "codec", "sound"), [(".webm", None, "opus"), (".mkv", "hevc", "aac"), (".mov", None, "aac")]
)
def test_containers_and_codecs(tmp_path, suffix, codec, sound):
    clip = make_clip(tmp_path / "in.mp4", carphone(12), constant(12, Fraction(25)), audio="aac")
    paint(clip, tmp_path / f"out{suffix}", codec=codec)
    after = look(tmp_path / f"out{suffix}")
    assert after.sound_codec == sound  # copied, but for WebM, which takes no AAC
    # Matroska knows no time before zero, where AAC's first packet lies: picture and sound begin that much later.
    np.testing.assert_allclose(
        [float(time_s - after.times_s[0]) * 25 for time_s in after.times_s], range(12), atol=0.03
    )
    assert after.times_s[0] < Fraction(1, 25)


def test_each_picture_is_painted_from_its_own_frame(tmp_path):
    greys = [np.full((64, 64, 3), 20 + 3 * number, np.uint8) for number in range(60)]
    clip = make_clip(tmp_path / "in.mp4", greys, constant(60, Fraction(25)))
    film = paint(clip, tmp_path / "out.mp4")
    means = [picture.mean() for picture in pictures_of(tmp_path / "out.mp4")]
    np.testing.assert_allclose(means, [255 - (20 + 3 * number) for number in range(60)], atol=2)
    assert not film.work.folder.exists()


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_is_painted_upright(tmp_path, rotation):
    quarters = np.zeros((48, 96, 3), np.uint8)
    quarters[:24, :48], quarters[:24, 48:], quarters[24:, :48] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    clip = make_clip(tmp_path / "in.mp4", [quarters] * 5, constant(5, Fraction(25)), rotation=rotation)
    upright = np.rot90(quarters, rotation // 90)  # the display matrix turns counterclockwise
    opened = open_clip(clip)
    assert (opened.height, opened.width) == upright.shape[:2]
    paint(clip, tmp_path / "out.mp4", unchanged, size=(opened.width, opened.height))
    picture = pictures_of(tmp_path / "out.mp4")[2]
    height, width = picture.shape[:2]
    for y in (height // 4, 3 * height // 4):
        for x in (width // 4, 3 * width // 4):
            np.testing.assert_allclose(picture[y, x], upright[y, x], atol=12)


def test_wide_pixels_become_square(tmp_path):
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[16:48, 24:40] = 255  # a square, once its pixels are twice as wide
    clip = make_clip(tmp_path / "in.mp4", [frame] * 3, constant(3, Fraction(25)), sample_aspect=Fraction(2))
    opened = open_clip(clip)
    assert (opened.width, opened.height) == (128, 64)
    still = next(opened.stills((128, 64)))
    assert (still.rgb[32, :, 0] > 128).sum() == (still.rgb[:, 64, 0] > 128).sum() == 32


@pytest.mark.parametrize("full_range", [False, True])
def test_colour_range_is_honoured(tmp_path, full_range):
    colours = [(0, 0, 0), (255, 255, 255), (180, 60, 40), (30, 120, 200)]
    frames = [np.full((64, 64, 3), colour, np.uint8) for colour in colours]
    options = {"crf": "1"}
    clip = make_clip(tmp_path / "in.mp4", frames, constant(4, Fraction(25)), full_range=full_range, options=options)
    paint(clip, tmp_path / "out.mp4", unchanged)
    painted = [picture[32, 32] for picture in pictures_of(tmp_path / "out.mp4")]
    np.testing.assert_allclose(painted, colours, atol=5)


def test_a_wide_clip_is_cropped_not_stretched(tmp_path):
    frame = np.zeros((64, 192, 3), np.uint8)
    frame[:, 64:128] = 255  # the middle third is all that a square picture shows
    clip = make_clip(tmp_path / "in.mp4", [frame] * 3, constant(3, Fraction(25)))
    still = next(open_clip(clip).stills((64, 64)))
    assert still.rgb[:, 4:-4].min() > 200


def test_a_part_keeps_sound_and_picture_together(tmp_path):
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    frames = [white if number in (50, 75) else black for number in range(100)]
    clip = make_clip(tmp_path / "in.mp4", frames, constant(100, Fraction(25)), audio="aac", beeps_s=(2, 3))
    part = {"start_s": Fraction("1.5"), "end_s": Fraction("3.4")}
    paint(clip, tmp_path / "out.mp4", unchanged, **part)
    after = look(tmp_path / "out.mp4")
    assert len(after.times_s) == 47  # frames 38 to 84
    flashes, beeps = flash_and_beep_s(tmp_path / "out.mp4")
    np.testing.assert_allclose(flashes, [0.5, 1.5], atol=0.021)
    np.testing.assert_allclose(beeps, [0.5, 1.5], atol=0.03)


def test_a_part_without_pictures_makes_no_picture(tmp_path):
    clip = make_clip(tmp_path / "in.mp4", carphone(5), constant(5, Fraction(25)))
    opened = open_clip(clip)
    assert list(opened.stills(SIZE, Fraction(10))) == []
    assert opened.expected(Fraction(10), None) == 0


def test_batches_are_always_full(tmp_path):
    painter = Painter()
    clip = make_clip(tmp_path / "in.mp4", carphone(10), constant(10, Fraction(25)))
    paint(clip, tmp_path / "out.mp4", painter, batch=4)
    assert painter.batches == [4, 4, 4]
    assert len(look(tmp_path / "out.mp4").times_s) == 10


def test_side_by_side(tmp_path):
    clip = make_clip(tmp_path / "in.mp4", carphone(4), constant(4, Fraction(25)))
    paint(clip, tmp_path / "out.mp4", side_by_side=True)
    picture = pictures_of(tmp_path / "out.mp4")[1].astype(int)
    assert picture.shape == (64, 128, 3)
    assert np.abs(picture[:, :64] + picture[:, 64:] - 255).mean() < 8  # the right half is the left one, inverted


@pytest.mark.parametrize("killed_at", [0, 1, 5, 8, 14])
def test_a_kill_loses_one_segment_at_most(tmp_path, killed_at, monkeypatch):
    monkeypatch.setattr("render.segments.SEGMENT", 10)
    clip = make_clip(tmp_path / "in.mp4", carphone(60), constant(60, Fraction(25)), audio="aac")
    whole = tmp_path / "whole.mp4"
    paint(clip, whole)
    first, second = Painter(fail_at=killed_at), Painter()
    with pytest.raises(RuntimeError):
        paint(clip, tmp_path / "out.mp4", first)
    assert not (tmp_path / "out.mp4").exists()
    paint(clip, tmp_path / "out.mp4", second, resume=True)
    assert len(second.seen) == 60 - 4 * killed_at // 10 * 10
    assert_same_film(tmp_path / "out.mp4", whole)


def test_nothing_raw_lies_on_the_disk(tmp_path):
    """A picture of 1080p is 6.2 MB."""
    most, clip = [], make_clip(tmp_path / "in.mp4", carphone(60), constant(60, Fraction(25)))

    def painter(batch: Batch) -> Pending[Pictures]:
        most.append(sum(file.stat().st_size for file in (tmp_path / "out.mp4.partial").iterdir()))
        return unchanged(batch)

    paint(clip, tmp_path / "out.mp4", painter, size=(128, 64))
    assert 0 < max(most) < 60 * 128 * 64 * 3 / 10


def test_what_was_put_before_a_fault_is_kept(tmp_path):
    """No kill: the engine gave up, and the segment in work can be completed."""
    clip = make_clip(tmp_path / "in.mp4", carphone(60), constant(60, Fraction(25)))
    paint(clip, tmp_path / "whole.mp4")
    first, second = Painter(fail_at=11), Painter()
    with pytest.raises(RuntimeError):
        paint(clip, tmp_path / "out.mp4", first, abandon=True)
    paint(clip, tmp_path / "out.mp4", second, resume=True)
    assert len(first.seen) + len(second.seen) == 60
    assert_same_film(tmp_path / "out.mp4", tmp_path / "whole.mp4")


@pytest.mark.parametrize("name", ["out.mp4", "out_%d.png"])
def test_a_picture_that_could_not_be_written_leaves_no_gap(tmp_path, monkeypatch, name):
    """The disk was full for a moment, with more pictures waiting to be written."""
    clip = make_clip(tmp_path / "in.mp4", carphone(60), constant(60, Fraction(25)))
    numbers = itertools.count()
    paint(clip, tmp_path / name.replace("out", "whole"))

    def fails_once(write):
        def attempt(*arguments, **options):
            if next(numbers) == 30:
                raise OSError(28, "No space left on device")
            return write(*arguments, **options)

        return attempt

    with monkeypatch.context() as full:
        full.setattr(PacketFile, "write", fails_once(PacketFile.write))
        full.setattr(Image.Image, "save", fails_once(Image.Image.save))
        with pytest.raises(OSError, match="No space left"):
            paint(clip, tmp_path / name, batch=8, abandon=True)
    paint(clip, tmp_path / name, resume=True)
    for number in range(1, 61) if "%d" in name else ():
        assert (tmp_path / f"out_{number}.png").read_bytes() == (tmp_path / f"whole_{number}.png").read_bytes()
    if "%d" not in name:
        assert_same_film(tmp_path / "out.mp4", tmp_path / "whole.mp4")


def test_an_interrupted_film_plays_with_its_sound_and_goes_on(tmp_path):
    clip = make_clip(tmp_path / "in.mp4", carphone(60), constant(60, Fraction(25)), audio="aac")
    paint(clip, tmp_path / "whole.mp4")
    paint(clip, tmp_path / "out.mp4", stop_after=5)
    partial = look(tmp_path / "out.mp4")
    assert partial.times_s == look(clip).times_s[:20]
    assert 0.7 < len(partial.sound) * 1024 / 44_100 < 0.9  # 0.8 s of picture
    painter = Painter()
    paint(clip, tmp_path / "out.mp4", painter, resume=True)
    assert len(painter.batches) == 10
    assert_same_film(tmp_path / "out.mp4", tmp_path / "whole.mp4")


def test_a_resumed_run_can_be_stopped_before_it_paints(tmp_path):
    clip = make_clip(tmp_path / "in.mp4", carphone(60), constant(60, Fraction(25)))
    paint(clip, tmp_path / "out.mp4", stop_after=10)
    painter = Painter()
    paint(clip, tmp_path / "out.mp4", painter, resume=True, stop_after=3)
    assert painter.batches == []
    assert len(look(tmp_path / "out.mp4").times_s) == 40


def test_a_long_last_picture_stays_long(tmp_path):
    shown_ms = [100, 50, 1500]
    colours = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue", "green")]
    colours[0].save(tmp_path / "in.gif", save_all=True, append_images=colours[1:], duration=shown_ms)
    for suffix in (".mp4", ".mov", ".mkv", ".webm", ".gif"):
        paint(tmp_path / "in.gif", tmp_path / f"out{suffix}")
        film = look(tmp_path / f"out{suffix}")
        assert film.times_s == [0, Fraction(1, 10), Fraction(3, 20)]
        assert film.duration_s == pytest.approx(1.65, abs=0.01)


def test_other_settings_do_not_resume(tmp_path):
    clip = make_clip(tmp_path / "in.mp4", carphone(8), constant(8, Fraction(25)))
    film = film_for(FilmSettings(open_clip(clip), tmp_path / "out.mp4", SIZE))
    film.work.begin({"strength": 0.5, "codec": "x"})
    film.work.close()
    with pytest.raises(FilmError, match=r"--resume: strength was 0\.5 and is 0\.6 now"):
        film.work.resume({"strength": 0.6, "codec": "x"})


def test_many_segments_join_without_a_seam(tmp_path, monkeypatch):
    monkeypatch.setattr("render.segments.SEGMENT", 7)
    times_s = sorted({*constant(60, Fraction(25)), *constant(40, Fraction(7))})
    clip = make_clip(tmp_path / "in.mp4", (carphone(60) * 2)[: len(times_s)], times_s)
    paint(clip, tmp_path / "out.mp4")
    assert look(tmp_path / "out.mp4").times_s == look(clip).times_s


def test_noise_is_fixed_until_a_cut(tmp_path):
    shots = [*carphone(12), *[255 - frame for frame in carphone(12)], *carphone(6)]
    clip = make_clip(tmp_path / "in.mp4", shots, constant(30, Fraction(25)))
    fixed, cut = Painter(), Painter()
    paint(clip, tmp_path / "a.mp4", fixed, batch=1)
    paint(clip, tmp_path / "b.mp4", cut, batch=1, cuts=True)
    assert set(fixed.seeds) == {0}
    assert cut.seeds == [0] * 12 + [1] * 12 + [2] * 6


def test_a_moving_shot_has_no_cut(tmp_path):
    painter = Painter()
    paint(CARPHONE, tmp_path / "out.mp4", painter, cuts=True)
    assert set(painter.seeds) == {0}


def test_gif_out_and_in(tmp_path):
    clip = make_clip(tmp_path / "in.mp4", carphone(20), constant(20, Fraction(25)))
    paint(clip, tmp_path / "out.gif")
    gif = look(tmp_path / "out.gif")
    assert [round(time_s * 100) for time_s in gif.times_s] == [4 * number for number in range(20)]
    inverted = [255 - still.rgb.astype(int) for still in open_clip(clip).stills(SIZE)]
    assert np.abs(np.stack(pictures_of(tmp_path / "out.gif")) - np.stack(inverted)).mean() < 8
    paint(tmp_path / "out.gif", tmp_path / "back.mp4")
    assert look(tmp_path / "back.mp4").times_s == gif.times_s


def test_pictures_in_and_out(tmp_path):
    for number, picture in enumerate(carphone(12)):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")  # 10 comes after 9, not after 1
    paint(tmp_path / "%d.png", tmp_path / "out.mp4", fps=Fraction(10))
    assert look(tmp_path / "out.mp4").times_s == constant(12, Fraction(10))
    (tmp_path / "out").mkdir()
    paint(tmp_path / "out.mp4", tmp_path / "out" / "%03d.png", unchanged)
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == [f"{number:03d}.png" for number in range(1, 13)]
    shown = [255 - still.rgb.astype(int) for still in open_clip(tmp_path / "%d.png").stills(SIZE)]
    written = [np.asarray(Image.open(tmp_path / "out" / name)).astype(int) for name in names]
    assert np.abs(np.stack(written) - np.stack(shown)).mean() < 4


def test_the_engine_has_the_next_batch_before_the_last_is_taken_from_it(tmp_path):
    told, numbers = [], itertools.count()

    def painter(batch: Batch) -> Pending[Pictures]:
        number = next(numbers)
        told.append(f"given {number}")
        return unchanged(batch).then(lambda pictures: told.append(f"taken {number}") or pictures)

    clip = make_clip(tmp_path / "in.mp4", carphone(12), constant(12, Fraction(25)))
    paint(clip, tmp_path / "out.mp4", painter, ahead=True)
    assert told == ["given 0", "given 1", "taken 0", "given 2", "taken 1", "taken 2"]


def test_pictures_resume(tmp_path):
    (tmp_path / "out").mkdir()
    clip = make_clip(tmp_path / "in.mp4", carphone(60), constant(60, Fraction(25)))
    first, second = Painter(fail_at=9), Painter()
    with pytest.raises(RuntimeError):
        paint(clip, tmp_path / "out" / "%d.png", first)
    paint(clip, tmp_path / "out" / "%d.png", second, resume=True)
    assert len(first.batches) + len(second.batches) == 15  # each picture is a whole file: none is lost
    assert len(list((tmp_path / "out").iterdir())) == 60
    for number, still in enumerate(open_clip(clip).stills(SIZE), start=1):
        written = np.asarray(Image.open(tmp_path / "out" / f"{number}.png"))
        np.testing.assert_array_equal(written, 255 - still.rgb)


@pytest.mark.parametrize("stopped_at", [3, 20, 50])
def test_what_is_animated_goes_on_in_the_middle(tmp_path, stopped_at):
    clip = make_clip(tmp_path / "in.mp4", carphone(60), constant(60, Fraction(25)))
    animator = Animator()
    (tmp_path / "out").mkdir()
    for limits in ({"stop_after": stopped_at}, {"resume": True}):
        paint(clip, tmp_path / "out" / "%d.png", Animate(animator.paint, animator.restart), **limits)
    done = max(0, stopped_at - Animator.LAG)
    assert animator.firsts == [0, max(0, done - Animator.LAG)]
    assert len(list((tmp_path / "out").iterdir())) == 60
    for number, still in enumerate(open_clip(clip).stills(SIZE), start=1):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / f"{number}.png")), 255 - still.rgb)


def test_one_picture(tmp_path):
    Image.fromarray(carphone(1)[0]).save(tmp_path / "in.png")
    paint(tmp_path / "in.png", tmp_path / "out.jpg")
    assert Image.open(tmp_path / "out.jpg").size == SIZE


def test_a_truncated_clip_is_painted_as_far_as_it_goes(tmp_path):
    whole = make_clip(tmp_path / "in.ts", carphone(60), constant(60, Fraction(25)))
    (tmp_path / "cut.ts").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    paint(tmp_path / "cut.ts", tmp_path / "out.mp4")
    assert 10 < len(look(tmp_path / "out.mp4").times_s) < 60


def test_damage_in_the_middle_is_counted_and_passed_over(tmp_path):
    clip = make_clip(tmp_path / "in.avi", carphone(30), constant(30, Fraction(25)), video="cinepak", pixels="rgb24",
                     time_base=Fraction(1, 25))  # fmt: skip
    data = bytearray(clip.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    (tmp_path / "bad.avi").write_bytes(data)
    opened = open_clip(tmp_path / "bad.avi")
    stills = list(opened.stills(SIZE))
    assert 10 < len(stills) < 30
    assert [still.pts for still in stills] == sorted({still.pts for still in stills})
