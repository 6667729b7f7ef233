"""What is in a recorded film: its pictures as mean colours with their times, its sound as one array."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from stream.engine.frames import SAMPLE_RATE

AAC_FRAME_S = 1024 / SAMPLE_RATE


@dataclass
class Film:
    times: list[float]  # seconds, of the pictures
    colours: np.ndarray  # float [pictures, 3]: mean RGB
    sizes: set[tuple[int, int]]
    sound: np.ndarray  # float [samples]: the left channel from 0 s on, full scale being 1
    audio_tracks: int

    def beep_s(self) -> float:
        """When the sound is loud for the first time."""
        return float(np.argmax(np.abs(self.sound) > 0.1)) / SAMPLE_RATE

    def flash_s(self) -> float:
        """When the picture is white for the first time."""
        return self.times[int(np.argmax(self.colours.min(axis=1) > 200))]


def watch(path: Path) -> Film:
    """Decodes all of it, as a player would."""
    with av.open(str(path)) as film:
        pictures = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in film.decode(video=0)]
        tracks = len(film.streams.audio)
    with av.open(str(path)) as film:
        pieces = [(frame.time, frame.to_ndarray()[0]) for frame in film.decode(audio=0)]
    sound = np.zeros(max((round(at * SAMPLE_RATE) + len(piece) for at, piece in pieces), default=0))
    for at, piece in pieces:
        start = round(at * SAMPLE_RATE)
        sound[start : start + len(piece)] = piece
    return Film(
        [at for at, _ in pictures],
        np.array([rgb.mean(axis=(0, 1)) for _, rgb in pictures]),
        {rgb.shape[1::-1] for _, rgb in pictures},
        sound,
        tracks,
    )


def tone(samples: int, hz: float = 880.0) -> np.ndarray:
    """int16 [samples, 2], half as loud as can be."""
    wave = np.sin(np.arange(samples) * 2 * np.pi * hz / SAMPLE_RATE + np.pi / 2) * 16_000
    return np.repeat(wave.astype(np.int16)[:, None], 2, axis=1)
