"""Two checkouts, the one before and this one, compared: by their pictures, bit for bit, or by what they cost.

    python -m benchmarks.checkouts OTHER [--json FILE]                       exit code 1 where a picture differs
    python -m benchmarks.checkouts OTHER --times [--rounds 5] [--live-rounds 3] [--json FILE]

OTHER: the folder of another checkout, as `git worktree add` makes it. Both run with this interpreter, and only by the
names of their public interface. Pictures are of fixed frames and controls on the bundled models, hashed. Times are the
engine's and those of live sessions in Chromium, as ratios: in turns, because a machine's pace drifts by more than most
changes cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import report
from tests.chromium import CHROMIUM, ROOT

LIVE_S = 25

ENGINE = """
import statistics, time
try:
    from pipeline.runtime import environment
except ImportError:  # a checkout from before there were rooms
    from pipeline import environment
environment.prepare()
environment.keep_freed_memory()
import numpy as np
from pipeline import PRESETS, Controls, load
stylizer, controls = load(PRESETS["mini"], device="cpu", compile=False), Controls(prompt="watercolor", steps=1)
frames = np.random.default_rng(0).integers(0, 256, (1, 480, 640, 3), dtype=np.uint8)
times_ms = []
for _ in range(60):
    started_s = time.perf_counter()
    stylizer(frames, controls)
    times_ms.append(1000 * (time.perf_counter() - started_s))
print(statistics.median(times_ms[10:]))
"""

PICTURES = """
import hashlib, itertools, json, subprocess, sys, tempfile
from pathlib import Path
import av, numpy as np, torch
from pipeline import PRESETS, Controls, load

torch.set_num_threads(2)
clip = Path("tests/data/carphone.mp4")
with av.open(str(clip)) as source:
    frames = [f.to_ndarray(format="rgb24") for f in itertools.islice(source.decode(video=0), 0, 90, 30)]
three = np.stack(frames)
noise = np.random.default_rng(0).integers(0, 256, (1, 480, 640, 3), dtype=np.uint8)
mask = np.zeros(three.shape[:3], np.uint8)
mask[:, : mask.shape[1] // 2] = 255
told = {}

def tell(name, pictures):
    told[name] = hashlib.sha256(np.ascontiguousarray(pictures).tobytes()).hexdigest()[:16]

for model in ("mini", "mini-canny"):
    stylizer = load(PRESETS[model], device="cpu", compile=False)
    for strength, steps, guidance in itertools.product((0.0, 0.3, 0.5, 0.8, 1.0), (1, 2, 4), (1.0, 2.0)):
        for seed, prompt in ((0, "watercolor"), (7, "van gogh")):
            asked = Controls(prompt=prompt, negative_prompt="photo", strength=strength, steps=steps,
                             guidance=guidance, seed=seed)
            tell(f"{model} {strength} {steps} {guidance} {prompt}", stylizer(three[:1], asked))
    asked = Controls(prompt="poster", strength=0.5, steps=2)
    tell(f"{model} batch of three", stylizer(three, asked))
    tell(f"{model} three prompts", stylizer(three, [
        Controls(prompt=prompt, strength=0.5, steps=2, seed=seed)
        for seed, prompt in enumerate(("poster", "pastel", "ink drawing"))]))
    tell(f"{model} torch", stylizer(torch.from_numpy(three), asked).numpy())
    tell(f"{model} noise", stylizer(noise, asked))
    tell(f"{model} bypass", stylizer(noise, Controls(bypass=True)))
    tell(f"{model} mask", stylizer(three, asked, mask=mask))
    tell(f"{model} mask, full strength", stylizer(three, asked.model_copy(update={"strength": 1.0}), mask=mask))
    for scale in stylizer.scales:
        tell(f"{model} scale {scale}", stylizer(three, asked, scale=scale))
    if model == "mini":
        tell("mini imagined", stylizer.imagine(Controls(prompt="poster", steps=4, seed=3), 2))
    else:
        tell("canny thresholds", stylizer(three, Controls(prompt="poster", canny_low=30, canny_high=90)))
        tell("control scale", stylizer(three, Controls(prompt="poster", control_scale=0.4)))
        tell("control frames", stylizer(three, asked, control_frames=three[::-1].copy()))
        tell("mini-canny imagined", stylizer.imagine(Controls(prompt="poster", steps=4), 3, control_frames=three))
with tempfile.TemporaryDirectory() as folder:
    short = Path(folder) / "short.mp4"
    with av.open(str(short), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height = three.shape[2], three.shape[1]
        for frame in (*frames, *frames[::-1]):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    for extra in ((), ("--steps", "2", "--seed", "5"), ("--reuse", "2"), ("--skip-similar", "0.05")):
        pictures = Path(folder) / ("-".join(extra) or "plain")
        pictures.mkdir()
        subprocess.run([sys.executable, "main.py", "render", str(short), str(pictures / "%03d.png"), "--device", "cpu",
                        "--model", "mini", "--no-compile", *extra], check=True, capture_output=True)
        files = sorted(pictures.glob("*.png"))
        assert files
        for file in files:
            with av.open(str(file)) as source:
                tell(f"rendered {pictures.name} {file.name}", next(source.decode(video=0)).to_ndarray(format="rgb24"))
print(json.dumps(told))
"""


def _run(checkout: Path, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments], cwd=checkout, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def pictures(checkout: Path) -> dict[str, str]:
    """Case -> the beginning of its pictures' SHA-256."""
    return json.loads(_run(checkout, "-c", PICTURES))


def differing(before: dict[str, str], after: dict[str, str]) -> list[dict[str, Any]]:
    """A row for each case that differs, or is on one side only."""
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [{"case": name, "before": before.get(name), "after": after.get(name)} for name in names]


def engine(checkout: Path) -> dict[str, float]:
    """The median time of a frame of the bundled model, one step, uncompiled."""
    return {"engine ms": float(_run(checkout, "-c", ENGINE).split()[-1])}


def live(checkout: Path) -> dict[str, float]:
    """What benchmarks.live sees at the end of a session in Chromium."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "live.json"
        _run(checkout, "-m", "benchmarks.live", "--seconds", str(LIVE_S), "--json", str(file))
        last = json.loads(file.read_text())["rows"][-1]
    return {name: last[name] for name in ("fps out", "latency p50 ms", "latency p95 ms")}


def in_turns(measure: Callable[[Path], dict[str, float]], checkouts: list[Path], rounds: int) -> list[dict[str, Any]]:
    """A row for each figure: medians before and after, their ratio, and how far single rounds lie apart."""
    seen: list[list[dict[str, float]]] = [[] for _ in checkouts]
    for number in range(rounds):
        order = list(enumerate(checkouts))
        for index, checkout in order if number % 2 == 0 else reversed(order):
            seen[index].append(measure(checkout))
            print(checkout.name, seen[index][-1], flush=True)
    return [
        {
            "figure": name,
            "before": (before := statistics.median(one[name] for one in seen[0])),
            "after": (after := statistics.median(one[name] for one in seen[1])),
            "ratio": after / before,
            "spread before": max(one[name] for one in seen[0]) / min(one[name] for one in seen[0]),
            "spread after": max(one[name] for one in seen[1]) / min(one[name] for one in seen[1]),
        }
        for name in seen[0][0]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--times", action="store_true")
    parser.add_argument("--rounds", type=report.count, default=5, help="of the engine alone")
    parser.add_argument("--live-rounds", type=int, default=3, help="of live sessions; 0 for none")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    checkouts, about = [options.other.resolve(), ROOT], report.machine("cpu")
    if not options.times:
        before, after = map(pictures, checkouts)
        found = differing(before, after)
        rows = found or [{"case": f"all {len(before)}", "before": "equal", "after": "equal"}]
        report.publish("Pictures of two checkouts, bit for bit", about, rows, options.json)
        return int(bool(found))
    if options.live_rounds and CHROMIUM is None:
        parser.error("there is no Chromium on this machine: install it, or --live-rounds 0")
    rows = in_turns(engine, checkouts, options.rounds)
    if options.live_rounds:
        rows += in_turns(live, checkouts, options.live_rounds)
    about |= {"rounds": options.rounds, "live rounds": options.live_rounds}
    report.publish("Two checkouts in turns, the bundled model", about, rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
