"""What do colours cost around the engine? From the decoder's YUV to its input, from its pictures to the encoders' YUV.

    python -m benchmarks.conversions [--rounds 200] [--json FILE]

The ways take turns, so that whatever else the machine does meets all of them alike. `processor ms` is the time of all
threads. Into the engine goes one frame of 640x480; out of it a picture, to all of its viewers. `all threads` is swscale
left to itself, `by each encoder` what aiortc does with RGB: swscale for each viewer. VP8 stands there for comparison,
per viewer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from aiortc.codecs.vpx import Vp8Encoder
from av import VideoFrame

from benchmarks import report
from pipeline import Controls
from stream.engine.frames import Frame, Picture
from stream.engine.statistics import Statistics
from stream.webrtc.tracks import fit_bitrates

WARM_UP, ROUNDS = 5, 200
SIZES, VIEWERS = (256, 512), (1, 3)

Way = Callable[[], object]


def photo(width: int, height: int) -> np.ndarray:
    """Soft blobs, uint8 [height, width, 3]."""
    blobs = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    return cv2.resize(blobs, (width, height), interpolation=cv2.INTER_CUBIC)


def yuv(rgb: np.ndarray) -> VideoFrame:
    return VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")


def ways_in() -> dict[str, Way]:
    """Of a decoded frame to what the engine uploads."""
    frame = Frame(yuv(photo(640, 480)), 0.0, 0.0, Statistics())
    return {
        "in, as RGB, all threads": lambda: np.stack([frame.pixels.to_ndarray(format="rgb24")]),
        "in, as RGB (on a CPU)": lambda: np.stack([frame.rgb()]),
        "in, as I420 (on CUDA)": lambda: np.stack([frame.as_it_came()]),
    }


def ways_out(size: int, viewers: int) -> dict[str, Way]:
    """Of a picture to what the viewers' encoders take."""
    rgb = photo(size, size)

    def once_for_all() -> None:
        picture = Picture(rgb, 0.0, 0.0, 0.0, Controls())
        for _ in range(viewers):
            VideoFrame.from_numpy_buffer(picture.i420, format="yuv420p")

    def by_each_encoder() -> None:
        for _ in range(viewers):
            yuv(rgb)

    place = f"out, {size}x{size}, viewers: {viewers}"
    return {f"{place}, by each encoder": by_each_encoder, f"{place}, once for all": once_for_all}


def way_of_vp8(size: int) -> dict[str, Way]:
    fit_bitrates(size, size)
    encoder, frames, sent = Vp8Encoder(), [yuv(np.roll(photo(size, size), 3 * i, 1)) for i in range(8)], 0

    def encode() -> None:
        nonlocal sent
        frame = frames[sent % len(frames)]
        frame.pts, frame.time_base = 3000 * sent, Fraction(1, 90_000)
        encoder.encode(frame)
        sent += 1

    return {f"VP8, {size}x{size}": encode}


def measure(ways: dict[str, Way], rounds: int) -> list[dict[str, Any]]:
    """A row for each way, of `rounds` calls."""
    times_s: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(WARM_UP + rounds):
        for name, way in ways.items():
            started_s, used_s = time.perf_counter(), time.process_time()
            way()
            times_s[name].append((time.perf_counter() - started_s, time.process_time() - used_s))
    return [row(name, taken[WARM_UP:]) for name, taken in times_s.items()]


def row(name: str, taken_s: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """taken_s: (by the clock, by the processor) of each call."""
    passed_ms, used_ms = ([1000 * one for one in column] for column in zip(*taken_s, strict=True))
    return {
        "way": name,
        "least ms": min(passed_ms),
        "p50 ms": report.percentile(passed_ms, 50),
        "processor p50 ms": report.percentile(used_ms, 50),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ways = ways_in()
    for size in SIZES:
        for viewers in VIEWERS:
            ways |= ways_out(size, viewers)
        ways |= way_of_vp8(size)
    about = {**report.machine("cpu"), "rounds": options.rounds}
    title = "Colours around the engine, of one frame"
    report.publish(title, about, measure(ways, options.rounds), options.json)


if __name__ == "__main__":
    main()
