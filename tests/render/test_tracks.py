"""A clip's sound in the film: copied where the container takes it, else encoded; lost or late never."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from render.clip import open_clip
from render.sound import FilmSound

from .clips import carphone, constant, flash_and_beep_s, look, make_clip
from .test_rendering import paint, unchanged

COPIED = {  # source: (encoder, where it can be copied to)
    "a.mp4": ("aac", {".mp4", ".mov", ".m4v", ".mkv"}),
    "a.mkv": ("libmp3lame", {".mp4", ".mov", ".m4v", ".mkv"}),
    "b.mkv": ("flac", {".mp4", ".mkv"}),
    "a.webm": ("libopus", {".mp4", ".mkv", ".webm"}),
    "a.mov": ("pcm_s16le", {".mp4", ".mov", ".mkv"}),
    "a.avi": ("pcm_u8", {".mov", ".mkv"}),
    "a.mpg": ("mp2", {".mp4", ".mov", ".m4v", ".mkv"}),
}
BEEPS_S = [0.2, 0.8]


def clip_with(name: str, tmp_path, count: int = 30):
    frames = [np.full((32, 48, 3), 255 if number in (5, 20) else 0, np.uint8) for number in range(count)]
    video = {".webm": "libvpx", ".mpg": "mpeg2video"}.get("." + name.split(".")[1], "libx264")
    time_base = Fraction(1, 1000) if name.endswith((".mkv", ".webm")) else Fraction(1, 25)
    return make_clip(
        tmp_path / name,
        frames,
        constant(count, Fraction(25)),
        video=video,
        audio=COPIED[name][0],
        time_base=time_base,
        beeps_s=BEEPS_S,
    )


@pytest.mark.parametrize("name", COPIED)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_every_sound_in_every_container(tmp_path, name, suffix):
    clip = clip_with(name, tmp_path)
    (encoding,) = FilmSound(open_clip(clip), suffix).encodings.values()
    assert (encoding.encoder is None) == (suffix in COPIED[name][1])
    out = tmp_path / f"out{suffix}"
    paint(clip, out, painter=unchanged)
    encoded = "opus" if suffix in (".mkv", ".webm") else "aac"
    kept = {"mp2": {"mp2", "mp3"}}.get(look(clip).sound_codec, {look(clip).sound_codec})  # mp4 has one name for both
    assert look(out).sound_codec in ({encoded} if encoding.encoder else kept)
    (flashes, beeps), (flashes_before, beeps_before) = flash_and_beep_s(out), flash_and_beep_s(clip)
    assert len(flashes) == len(beeps) == 2
    offsets = np.subtract(beeps, flashes)
    if clip.suffix != ".avi":  # which does not tell when a picture is shown
        offsets -= np.subtract(beeps_before, flashes_before)
    np.testing.assert_allclose(offsets, 0, atol=0.015)


def test_surround_sound_stays_surround(tmp_path):
    with av.open(str(tmp_path / "in.mov"), "w") as output:
        video = output.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        sound = output.add_stream("pcm_s16le", rate=48_000, layout="5.1")
        for picture in carphone(10, 48, 32):
            output.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(video.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 6 * 19_200), np.int16), format="s16", layout="5.1")
        silence.sample_rate = 48_000
        output.mux(sound.encode(silence))
        output.mux(sound.encode(None))
    for suffix in (".mp4", ".webm"):
        paint(tmp_path / "in.mov", tmp_path / f"out{suffix}", size=(48, 32))
        with av.open(str(tmp_path / f"out{suffix}")) as film:
            assert film.streams.audio[0].codec_context.channels == 6


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mpg"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_part_has_its_sound_at_its_time(tmp_path, name, suffix):
    clip = clip_with(name, tmp_path)
    paint(clip, tmp_path / f"out{suffix}", painter=unchanged, start_s=Fraction(1, 2))
    (flashes, beeps), (flashes_before, beeps_before) = (
        flash_and_beep_s(tmp_path / f"out{suffix}"),
        flash_and_beep_s(clip),
    )
    assert len(flashes) == len(beeps) == 1
    offset_before_s = beeps_before[1] - flashes_before[1]
    assert abs(beeps[0] - flashes[0] - offset_before_s) < 0.03


def test_broken_packets_of_sound_do_not_cost_the_film(tmp_path):
    clip = make_clip(tmp_path / "in.ts", carphone(50, 48, 32), constant(50, Fraction(25)), audio="aac")
    packets = look(clip).sound
    data = bytearray(clip.read_bytes())
    for packet in packets[20:24]:
        at = data.find(packet[:20])
        assert at > 0
        data[at : at + 7] = bytes(7)  # what tells a decoder of AAC where a packet begins
    (tmp_path / "bad.ts").write_bytes(data)
    paint(tmp_path / "bad.ts", tmp_path / "out.mp4", size=(48, 32))
    after = look(tmp_path / "out.mp4")
    assert len(after.times_s) == 50
    assert len(packets) - 10 <= len(after.sound) < len(packets)
