"""How many frames does --skip-similar save, and how far is what is shown from what would have been painted?

    python -m benchmarks.similar [CLIP[@WxH+X+Y]]... [--model mini] [--frames 300] [--json FILE]

Every frame of a clip (or of a part of its picture) is painted once; then it is decided, at the clip's own pace and for
each limit, which of them would have been. Differences are of the skipped frames: the mean over the picture, of 255.
"""

from __future__ import annotations

import argparse
import re
import time
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks import report
from pipeline import PRESETS, load
from pipeline.presets import TABLE
from stream.engine.similarity import Painted, difference, reduced, stands
from tests.paths import CARPHONE

CLIP = str(CARPHONE)
LIMITS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
PART = re.compile(r"(.*)@(\d+)x(\d+)\+(\d+)\+(\d+)")


def frames_of(clip: str, count: int) -> tuple[list[np.ndarray], float]:
    """The first frames of a clip, uint8 [H, W, 3], and how many there are a second."""
    path, *box = match.groups() if (match := PART.fullmatch(clip)) else (clip,)
    width, height, x, y = map(int, box) if box else (None, None, 0, 0)
    with av.open(path) as container:
        rate = float(container.streams.video[0].average_rate)
        pictures = [frame.to_ndarray(format="rgb24") for frame in islice(container.decode(video=0), count)]
    ends = (None, None) if width is None else (y + height, x + width)
    return [np.ascontiguousarray(picture[y : ends[0], x : ends[1]]) for picture in pictures], rate


def skipped(small: list[np.ndarray], rate: float, limit: float) -> list[tuple[int, int]]:
    """(a frame that is skipped, the frame whose picture is shown for it), by number."""
    last, shown, pairs = None, 0, []
    for number, frame in enumerate(small):
        if stands(number / rate, last, None, frame, limit):
            pairs.append((number, shown))
        else:
            last, shown = Painted(number / rate, None, frame), number
    return pairs


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())


def rows_of(name: str, small: list[np.ndarray], painted: list[np.ndarray], rate: float) -> list[dict[str, Any]]:
    """A row for each limit, under one that skips nothing: its differences are of each picture from the one before."""
    changes = {0.0: [(number, number - 1) for number in range(1, len(small))]}
    changes |= {limit: skipped(small, rate, limit) for limit in LIMITS}
    rows = []
    for limit, pairs in changes.items():
        far = [apart(painted[a], painted[b]) for a, b in pairs]
        rows.append(
            {
                "clip": name,
                "skip_similar": limit,
                "frames skipped": f"{len(pairs) / len(small):.0%}" if limit else "0%",
                "difference p50": report.percentile(far, 50) if far else None,
                "difference p95": report.percentile(far, 95) if far else None,
                "difference max": max(far, default=None),
            }
        )
    return rows


def comparison_ms(rounds: int = 300) -> float:
    """Median time of a decision on one frame of a webcam, 640x480, as a decoder gives it."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 480, 640, 3), np.uint8)
    last, frame = (av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p") for rgb in noise)
    before, times = reduced(last), []
    for _ in range(rounds):
        started_s = time.perf_counter()
        difference(before, reduced(frame))
        times.append(1000 * (time.perf_counter() - started_s))
    return round(report.percentile(times, 50), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", default=[CLIP], metavar="CLIP[@WxH+X+Y]")
    parser.add_argument("--model", default="mini", choices=sorted(TABLE))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompt", default="an oil painting")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    stylizer = load(PRESETS[options.model], options.device, compile=False)
    controls = TABLE[options.model].defaults.merged({"prompt": options.prompt, "steps": 1})
    about = {
        **report.machine(options.device),
        "model": options.model,
        "prompt": options.prompt,
        "frames": options.frames,
        "comparison p50 ms": comparison_ms(),
    }
    title, made = f"Skipping similar frames, {options.model} in one step", []
    for clip in options.clips:
        frames, rate = frames_of(clip, options.frames)
        small = [reduced(frame) for frame in frames]
        changes = [difference(a, b) for a, b in pairwise(small)]
        print(f"{clip}: {len(frames)} frames, {rate:.4g} a second, change p50 {report.percentile(changes, 50):.1f}")
        painted = [stylizer(frame[None], controls)[0] for frame in frames]
        made += rows_of(Path(clip).name, small, painted, rate)
    report.publish(title, about, made, options.json)


if __name__ == "__main__":
    main()
