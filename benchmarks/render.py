"""How much of the engine's own throughput rendering a file reaches, and its memory while a long one is rendered.

python -m benchmarks.render [CLIP] [--json FILE]               engine alone and whole rendering, in turns
python -m benchmarks.render CLIP --memory [--json FILE]        one long rendering with --bypass, memory as it goes
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from benchmarks import report
from pipeline import PRESETS, Controls, load
from pipeline.presets import TABLE
from pipeline.runtime.devices import prepared
from render.clip import open_clip
from render.muxing import FilmSettings, film_for
from render.painting import BATCH
from render.rendering import RenderSpec, render
from tests.paths import CARPHONE

CLIP = CARPHONE
ROUNDS = 9


def engine_fps(stylizer, frames: list[np.ndarray], controls: Controls, batch: int) -> float:
    """Frames a second with all frames in memory already and nothing done with the pictures."""
    whole = len(frames) // batch * batch
    batches = [np.stack(frames[first : first + batch]) for first in range(0, whole, batch)]
    started_s = time.perf_counter()
    for each in batches:
        stylizer(each, [controls] * batch)
    return whole / (time.perf_counter() - started_s)


def render_fps(stylizer, clip_path: Path, controls: Controls, batch: int, folder: Path) -> float:
    """Frames a second from opening the clip to the finished film, the model being loaded."""
    started_s = time.perf_counter()
    clip = open_clip(clip_path)
    size = stylizer.spec.width, stylizer.spec.height
    film = film_for(FilmSettings(clip, folder / "film.mp4", size))
    film.work.begin({})
    render(RenderSpec(clip, controls, size, batch=batch), stylizer.submit, film)
    film.finish(True)
    pictures = film.work.done
    film.work.discard()
    return pictures / (time.perf_counter() - started_s)


def throughput(clip_path: Path, batch: int | None) -> tuple[list[dict], list[dict]]:
    """(one row, the rounds behind it)."""
    stylizer = load(PRESETS["mini"], compile=False)
    controls = TABLE["mini"].defaults
    batch = batch or BATCH[stylizer.device.type]
    size = stylizer.spec.width, stylizer.spec.height
    frames = [still.rgb for still in open_clip(clip_path).stills(size)]
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        stylizer.capture_calls(lambda: engine_fps(stylizer, frames[: 4 * batch], controls, batch))
        engine_fps(stylizer, frames[: 4 * batch], controls, batch)  # warm-up
        before = engine_fps(stylizer, frames, controls, batch)
        for _ in range(ROUNDS):
            whole = render_fps(stylizer, clip_path, controls, batch, Path(folder))
            after = engine_fps(stylizer, frames, controls, batch)
            # The machine's own speed wanders: the engine is timed on both sides of each rendering.
            alone = (before + after) / 2
            rounds.append({"engine fps": round(alone, 2), "render fps": round(whole, 2), "ratio": whole / alone})
            print(rounds[-1], flush=True)
            before = after
    return [summary(rounds, batch)], rounds


def summary(rounds: list[dict], batch: int) -> dict:
    ratios = sorted(each["ratio"] for each in rounds)
    return {
        "batch": batch,
        "rounds": len(rounds),
        "engine fps": statistics.median(each["engine fps"] for each in rounds),
        "render fps": statistics.median(each["render fps"] for each in rounds),
        "ratio": f"{statistics.median(ratios):.3f}",
        "least, most": f"{ratios[0]:.2f}, {ratios[-1]:.2f}",
    }


def memory(clip_path: Path) -> tuple[list[dict], list[dict]]:
    """Resident megabytes while a long clip is rendered with --bypass, sampled every 5 s: (one row, samples)."""
    stylizer = load(PRESETS["mini"], compile=False)
    controls = TABLE["mini"].defaults.merged({"bypass": True})
    samples: list[dict] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(5):
            samples.append({"after s": 5 * (len(samples) + 1), "resident MB": report.resident_mb()})
            print(samples[-1], flush=True)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            fps = render_fps(stylizer, clip_path, controls, 4, Path(folder))
    finally:
        ended.set()
        watcher.join()
    clip = open_clip(clip_path)
    row = {
        "pictures": clip.expected(Fraction(0), None),
        "fps": fps,
        "MB after 5 s": samples[0]["resident MB"],
        "MB at the end": samples[-1]["resident MB"],
        "MB at most": max(sample["resident MB"] for sample in samples),
    }
    return [row], samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", nargs="?", type=Path, default=CLIP)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prepared("auto")
    rows, samples = memory(options.clip) if options.memory else throughput(options.clip, options.batch)
    about = {**report.machine("cpu"), "model": "mini", "clip": options.clip.name, "samples": samples}
    report.publish("Rendering a file" + (", bypassed" if options.memory else ""), about, rows, options.json)


if __name__ == "__main__":
    main()
