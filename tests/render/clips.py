"""Clips as they come from the world, made of the bundled one: frame rates, codecs, sound, rotation, pixel shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange

from tests.paths import CARPHONE


@cache
def carphone(count: int, width: int = 96, height: int = 64) -> tuple[np.ndarray, ...]:
    with av.open(str(CARPHONE)) as clip:
        frames = [frame.to_ndarray(format="rgb24", width=width, height=height) for frame in clip.decode(video=0)]
    return tuple(frames[:count])


def constant(count: int, rate: Fraction) -> list[Fraction]:
    """Times of frames at an even rate, seconds."""
    return [number / rate for number in range(count)]


def make_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    times_s: Sequence[Fraction],
    *,
    video: str = "libx264",
    audio: str | None = None,
    time_base: Fraction = Fraction(1, 90_000),
    rotation: int = 0,
    sample_aspect: Fraction | None = None,
    full_range: bool = False,
    pixels: str = "yuv420p",
    beeps_s: Sequence[float] = (),
    options: dict[str, str] | None = None,
) -> Path:
    """Write the clip; its sound, if any, is silence but for 20 ms beeps, as long as the pictures."""
    rate = (len(frames) - 1) / (times_s[-1] - times_s[0]) if len(frames) > 1 else Fraction(25)
    with av.open(str(path), "w") as output:
        stream = output.add_stream(video, rate=Fraction(rate).limit_denominator(100_000), options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        if sample_aspect:
            stream.codec_context.sample_aspect_ratio = sample_aspect
        if full_range:
            stream.codec_context.color_range = ColorRange.JPEG
        rate_hz = 48_000 if audio == "libopus" else 44_100
        sound = output.add_stream(audio, rate=rate_hz, layout="stereo") if audio else None
        for picture, time_s in zip(frames, times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if full_range:
                frame = frame.reformat(format=pixels, dst_color_range=ColorRange.JPEG)
            frame.pts, frame.time_base = round(time_s / time_base), time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound:
            samples = np.zeros(int(rate_hz * (times_s[-1] + 1 / Fraction(rate))), np.float32)
            for beep_s in beeps_s:
                first = round(beep_s * rate_hz)
                tone = np.sin(np.arange(round(0.02 * rate_hz)) * 2 * np.pi * 1000 / rate_hz)
                samples[first : first + len(tone)] = 0.8 * tone
            _encode_sound(output, sound, samples)
    return path


def _encode_sound(output, stream, samples: np.ndarray) -> None:
    frame = av.AudioFrame.from_ndarray(np.stack([samples, samples]), format="fltp", layout="stereo")
    context = stream.codec_context
    frame.sample_rate, frame.pts, frame.time_base = context.sample_rate, 0, Fraction(1, context.sample_rate)
    resampler = av.AudioResampler(context.format, context.layout, context.sample_rate, context.frame_size or 1024)
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        output.mux(stream.encode(piece))
    output.mux(stream.encode(None))


@dataclass
class Seen:
    """What a player finds in a file."""

    times_s: list[Fraction]  # of the pictures
    duration_s: float  # as the container tells it
    sound: list[bytes]  # packets of the first sound track
    sound_codec: str | None
    size: tuple[int, int]


def look(path: Path) -> Seen:
    with av.open(str(path)) as clip:
        video = clip.streams.video[0]
        times_s = [frame.pts * frame.time_base for frame in clip.decode(video)]
        size = video.codec_context.width, video.codec_context.height
        duration_s = (clip.duration or 0) / av.time_base
    with av.open(str(path)) as clip:
        track = clip.streams.audio[0] if clip.streams.audio else None
        sound = [bytes(packet) for packet in clip.demux(track) if packet.size] if track else []
        codec = track.codec_context.codec.canonical_name if track else None
    return Seen(times_s, duration_s, sound, codec, size)


def pictures_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as clip:
        return [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]


def assert_same_film(one: Path, other: Path) -> None:
    """Equal but for what x264 makes of small pictures, which is not the same in every run."""
    first, second = look(one), look(other)
    assert first.times_s == second.times_s
    assert first.sound == second.sound
    for mine, theirs in zip(pictures_of(one), pictures_of(other), strict=True):
        assert np.abs(mine.astype(int) - theirs).mean() < 4


def flash_and_beep_s(path: Path) -> tuple[list[float], list[float]]:
    """When white pictures begin, and when beeps begin, in seconds."""
    with av.open(str(path)) as clip:
        bright = [(float(frame.time), frame.to_ndarray(format="gray").mean() > 128) for frame in clip.decode(video=0)]
    mono = av.AudioResampler(format="fltp", layout="mono")
    with av.open(str(path)) as clip:
        sound = [
            (float(f.time), f.to_ndarray()[0], f.sample_rate)
            for raw in clip.decode(audio=0)
            for f in mono.resample(raw)
        ]
    flashes = [now[0] for before, now in zip([(0, False), *bright], bright, strict=False) if now[1] and not before[1]]
    beeps: list[float] = []
    for at_s, samples, rate in sound:
        loud = np.flatnonzero(np.abs(samples) > 0.2)
        if len(loud) and (not beeps or at_s - beeps[-1] > 0.2):
            beeps.append(at_s + loud[0] / rate)
    return flashes, beeps
