"""Pictures and sound at their own times in an MP4: given times in, the times in the file out."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from stream.engine.frames import SAMPLE_RATE
from stream.recording.mp4 import SOUND_WAIT_S, FragmentFile, Mp4Muxer
from tests.stream.fakes import solid
from tests.stream.films import AAC_FRAME_S, tone, watch

ORIGIN_S = 5000.0  # of a clock that has run for a while
PIECE = SAMPLE_RATE // 50  # an Opus packet


@pytest.fixture
def film(tmp_path):
    """film(record, seconds): what `record(muxer)` made, watched."""

    def make(record, seconds: float):
        path = tmp_path / "film.mp4"
        file = FragmentFile(path)
        muxer = Mp4Muxer(file, 64, 64, ORIGIN_S)
        record(muxer)
        muxer.close(ORIGIN_S + seconds)
        file.close()
        assert file.bytes == path.stat().st_size
        return watch(path)

    return make


def at(seconds: float) -> float:
    return ORIGIN_S + seconds


def test_pictures_stand_at_the_times_they_were_captured(film):
    times = [0.0, 0.05, 0.07, 0.4, 0.41, 1.9, 5.25]
    shades = [20, 60, 100, 140, 180, 220, 250]

    def record(muxer):
        for time_s, shade in zip(times, shades, strict=True):
            muxer.add_picture(solid(shade, 0, 255 - shade, 64), at(time_s))

    made = film(record, 6.0)
    assert made.times == pytest.approx([*times, 6.0], abs=1e-4)  # the last one again: so long it stayed
    assert made.colours[:, 0] == pytest.approx([*shades, 250], abs=6)
    assert made.colours[:, 2] == pytest.approx([255 - shade for shade in [*shades, 250]], abs=6)


def test_times_that_go_backwards_still_increase_in_the_film(film):
    def record(muxer):
        for time_s in (0.0, 1.0, 0.5, 0.5, 1.5):
            muxer.add_picture(solid(9, 9, 9, 64), at(time_s))

    made = film(record, 1.6)
    assert len(made.times) == 6
    assert np.all(np.diff(made.times) > 0)
    assert made.times[4] == pytest.approx(1.5)


def test_without_sound_there_is_a_silent_track_as_long_as_the_film(film):
    def record(muxer):
        for number in range(40):
            muxer.add_picture(solid(0, 0, 0, 64), at(number / 10))

    made = film(record, 4.0)
    assert made.audio_tracks == 1
    assert len(made.sound) / SAMPLE_RATE == pytest.approx(4.0, abs=2 * AAC_FRAME_S)
    assert np.abs(made.sound).max() < 0.001


@pytest.mark.parametrize("jitter_s", [0.0, 0.004])
@pytest.mark.parametrize("flash", [1.0, 2.5])
def test_a_beep_is_heard_when_the_flash_is_seen(film, jitter_s, flash):
    rng = np.random.default_rng(3)

    def record(muxer):
        sound = np.concatenate([np.zeros((round(flash * SAMPLE_RATE), 2), np.int16), tone(SAMPLE_RATE)])
        for number in range(36):
            time_s = number / 12
            for piece in range(round(time_s * 50), round((time_s + 1 / 12) * 50)):
                heard_s = piece / 50 + rng.uniform(-jitter_s, jitter_s)
                muxer.add_sound(sound[piece * PIECE : (piece + 1) * PIECE], at(heard_s))
            is_flash = flash <= time_s < flash + 0.2
            muxer.add_picture(solid(255, 255, 255, 64) if is_flash else solid(0, 0, 0, 64), at(time_s))

    made = film(record, 3.0)
    assert made.flash_s() == pytest.approx(flash, abs=1e-4)
    assert made.beep_s() == pytest.approx(flash, abs=AAC_FRAME_S)


def test_gaps_in_the_sound_are_silence_and_what_follows_keeps_its_place(film):
    def record(muxer):
        for number in range(60):
            muxer.add_picture(solid(0, 0, 0, 64), at(number / 20))
            if number == 10:
                muxer.add_sound(tone(PIECE), at(0.5))
            if number == 40:
                muxer.add_sound(tone(PIECE), at(2.0))

    loud = np.flatnonzero(np.abs(film(record, 3.0).sound) > 0.1) / SAMPLE_RATE
    first, second = loud[loud < 1.2], loud[loud > 1.2]
    assert first[[0, -1]] == pytest.approx([0.5, 0.52], abs=AAC_FRAME_S)
    assert second[[0, -1]] == pytest.approx([2.0, 2.02], abs=AAC_FRAME_S)


def test_sound_from_before_the_film_after_its_time_and_twice_is_cut(film):
    def record(muxer):
        muxer.add_sound(tone(SAMPLE_RATE), at(-2.0))
        muxer.add_sound(tone(SAMPLE_RATE), at(-0.9))  # its last tenth is in the film
        for number in range(60):
            muxer.add_picture(solid(0, 0, 0, 64), at(number / 20))
        muxer.add_sound(tone(PIECE), at(1.0 - SOUND_WAIT_S))
        for _ in range(2):
            muxer.add_sound(tone(PIECE), at(2.9))

    loud = np.flatnonzero(np.abs(film(record, 3.0).sound) > 0.1) / SAMPLE_RATE
    assert loud[loud < 1.5][[0, -1]] == pytest.approx([0.0, 0.1], abs=AAC_FRAME_S)
    assert loud[loud > 1.5][[0, -1]] == pytest.approx([2.9, 2.92], abs=AAC_FRAME_S)


def test_another_size_is_scaled_to_the_first(film):
    def record(muxer):
        muxer.add_picture(solid(200, 0, 0, 64), at(0.0))
        muxer.add_picture(np.full((96, 128, 3), (0, 200, 0), np.uint8), at(1.0))
        muxer.add_picture(solid(0, 0, 200, 32), at(2.0))

    made = film(record, 3.0)
    assert made.sizes == {(64, 64)}
    assert made.colours.argmax(axis=1).tolist() == [0, 1, 2, 2]


def test_what_is_written_when_the_process_ends_lacks_at_most_its_last_second(film, tmp_path):
    file = FragmentFile(tmp_path / "cut.mp4")
    muxer = Mp4Muxer(file, 64, 64, ORIGIN_S)
    for number in range(100):
        muxer.add_picture(solid(number, 0, 0, 64), at(number / 20))
        made_s = (number + 1) / 20
        if made_s in (1.5, 3.0, 5.0):
            (tmp_path / "copy.mp4").write_bytes((tmp_path / "cut.mp4").read_bytes())
            made = watch(tmp_path / "copy.mp4")
            assert made_s - 1 < made.times[-1] < made_s
            assert made_s - 1 < len(made.sound) / SAMPLE_RATE < made_s
    muxer.close(at(5.0))


class Tape:
    """In place of a FragmentFile's file: notes every write, and has room for `room` bytes."""

    def __init__(self, inner):
        self.inner, self.room = inner, 10**9
        self.writes: list[tuple[int, bytes]] = []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def write(self, data) -> int:
        at = self.inner.tell()
        data = bytes(data[: max(0, self.room - at)])
        if not data:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.writes.append((at, data))
        return self.inner.write(data)


def test_a_process_killed_in_the_middle_of_whatever_write_leaves_a_film_that_plays(tmp_path):
    """Every state that the file went through, and those in between: FFmpeg's libraries read it to its end."""
    file = FragmentFile(tmp_path / "film.mp4")
    file._file = tape = Tape(file._file)
    muxer, rng = Mp4Muxer(file, 64, 64, ORIGIN_S), np.random.default_rng(0)
    made_s = []  # of the film, before each write
    for number in range(60):
        muxer.add_sound(tone(SAMPLE_RATE // 20), at(number / 20))
        muxer.add_picture(rng.integers(0, 255, (64, 64, 3), np.uint8), at(number / 20))
        made_s += [number / 20] * (len(tape.writes) - len(made_s))
    muxer.close(at(3.0))
    file.close()
    made_s += [3.0] * (len(tape.writes) - len(made_s))
    killed, lasted_s = tmp_path / "killed.mp4", []
    with open(killed, "w+b", buffering=0) as disk:
        for (start, data), seconds in zip(tape.writes, made_s, strict=True):
            for part in (data[:1], data[: len(data) // 2], data[:-1], data):
                disk.seek(start)
                disk.write(part)
                if seconds < 1.0:  # nothing of it has been on the disk for sure
                    continue
                film = watch(killed)
                assert seconds - 1.0 < film.times[-1] <= seconds
                assert seconds - 1.0 < len(film.sound) / SAMPLE_RATE
                lasted_s.append(film.times[-1])
    assert lasted_s == sorted(lasted_s)
    assert lasted_s[-1] == pytest.approx(3.0, abs=1e-4)
    assert killed.read_bytes() == (tmp_path / "film.mp4").read_bytes()


def test_after_a_fault_nothing_more_is_written_and_what_was_plays(tmp_path):
    """The disk is full in the middle of a write, and has room again when the film is closed."""
    path = tmp_path / "film.mp4"
    file = FragmentFile(path)
    file._file = tape = Tape(file._file)
    tape.room = 150_000
    muxer, noise = Mp4Muxer(file, 64, 64, ORIGIN_S), np.random.default_rng(0)

    def record() -> None:
        for number in range(10_000):
            muxer.add_picture(noise.integers(0, 255, (64, 64, 3), np.uint8), at(number / 20))

    with pytest.raises(OSError, match="No space left"):
        record()
    tape.room = 10**9
    muxer.abandon()
    file.close()
    assert path.stat().st_size == file.bytes == 150_000
    made = watch(path)
    assert muxer.seconds - 1 < made.times[-1] < muxer.seconds


def test_a_file_that_is_there_is_never_taken(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        FragmentFile(tmp_path / "film.mp4")
