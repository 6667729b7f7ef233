"""Did a change cost anything? Engine time and live pictures of two checkouts, in turns on one machine, as ratios.

    python -m benchmarks.turns OTHER [--rounds 5] [--live-rounds 3] [--json FILE]

OTHER: the folder of another checkout, the one before, as `git worktree add` makes it. Both run with this interpreter.
In turns, because a machine's pace drifts by more than most changes cost.
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


def _run(checkout: Path, *arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], cwd=checkout, check=True, capture_output=True, text=True).stdout


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="of the engine alone")
    parser.add_argument("--live-rounds", type=int, default=3, help="of live sessions; 0 for none")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.live_rounds and CHROMIUM is None:
        parser.error("there is no Chromium on this machine: install it, or --live-rounds 0")
    checkouts = [options.other.resolve(), ROOT]
    rows = in_turns(engine, checkouts, options.rounds)
    if options.live_rounds:
        rows += in_turns(live, checkouts, options.live_rounds)
    about = {**report.machine("cpu"), "rounds": options.rounds, "live rounds": options.live_rounds}
    report.publish("Two checkouts in turns, the bundled model", about, rows, options.json)


if __name__ == "__main__":
    main()
