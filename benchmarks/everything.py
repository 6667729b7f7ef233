"""The one script for a GPU machine: checks, then every benchmark that needs a GPU, each in its share of the time.

    python -m benchmarks.everything OUT [--budget-s 580] [--only checks engine ...] [--work DIR] [--tiny]

On a bare machine with Python, PyTorch for CUDA, g++ and the packages of requirements.txt that this needs (transformers,
peft, accelerate, opencv-python-headless, prometheus-client, pillow), put the rest beside it and name the place:

    python -m pip install --no-deps --target SITE diffusers pydantic pydantic-core annotated-types typing-inspection av
    export PYTHONPATH=SITE

in the versions of requirements.txt; where there is no network, from wheels with --no-index --find-links FOLDER.

Each step is a process of its own: one that fails or runs out of time is told, and the others go on. OUT gets one small
JSON a step, `everything.log` with all they said, and `summary.json`: the figures aimed at, beside those measured.
Checkpoints of random weights are kept in the work folder and compiled code in its usual cache, so that a second command
on the same machine, with --only for the steps that the first had no time for, does not make them again. Compiling takes
minutes: with 10 minutes a command, one does `--only checks engine`, a second `--only breakdown streams streams-4-steps
reuse systems`, a third `--only reuse-sdxl engine-sdxl`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report

SHARE = 0.8  # of a step's time, after which it begins nothing new


@dataclass(frozen=True)
class Step:
    """weight: its share of the time beside the others'. shape: with the checkpoint of random weights of that name.
    budgeted: whether it can end early by itself. trial: further arguments with --tiny."""

    name: str
    module: str
    weight: float
    arguments: tuple[str, ...] = ()
    shape: str | None = None
    budgeted: bool = False
    trial: tuple[str, ...] = ()


STEPS = (
    Step("checks", "checks", 60, ("--no-compile",)),
    Step("engine", "engine", 420, shape="sd15", budgeted=True, trial=("--row-s", "1")),
    Step("breakdown", "breakdown", 60, shape="sd15", trial=("--frames", "5")),
    Step("streams", "streams", 90, ("--seconds", "6"), shape="sd15", trial=("--seconds", "2")),
    Step(
        "streams-4-steps",
        "streams",
        30,
        ("--seconds", "6", "--steps", "4", "--streams", "1"),
        shape="sd15",
        trial=("--seconds", "2"),
    ),
    Step("reuse", "reuse", 30, shape="sd15"),
    Step("reuse-sdxl", "reuse", 60, shape="sdxl"),
    Step("systems", "systems", 300, budgeted=True),
    Step("engine-sdxl", "engine", 300, shape="sdxl", budgeted=True, trial=("--row-s", "1")),
)


def command(step: Step, out: Path, work: Path, device: str, limit_s: float | None, tiny: bool) -> list[str]:
    line = [sys.executable, "-m", f"benchmarks.{step.module}", "--device", device, "--json", str(out_file(step, out))]
    line += step.arguments
    if step.shape is not None:
        line += ["--shape", step.shape]
    if step.shape is not None or step.module == "systems":
        line += ["--work", str(work), *(["--tiny", *step.trial] if tiny else [])]
    if step.budgeted and limit_s is not None:
        line += ["--budget-s", str(max(1, int(SHARE * limit_s)))]
    return line


def out_file(step: Step, out: Path) -> Path:
    return out / f"{step.name}.json"


def shares(steps: Sequence[Step], left_s: float) -> float:
    """Seconds for the first of the steps that are left."""
    return left_s * steps[0].weight / sum(step.weight for step in steps)


def run_step(line: Sequence[str], limit_s: float | None, log: Path) -> tuple[str, float]:
    """(how it ended, seconds); what it says goes to stdout and to the end of `log`."""
    started_s = time.monotonic()
    with log.open("a") as file:
        print(f"\n$ {' '.join(line)}", file=file, flush=True)
        child = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return "the time was up", time.monotonic() - started_s
        finally:
            if child.poll() is None:  # with what it started: a compiler, for one
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    return ("ok" if code == 0 else f"failed, exit code {code}"), time.monotonic() - started_s


def _row(result: dict[str, Any] | None, **wanted: Any) -> dict[str, Any] | None:
    """The one row that has these values; None where there is none."""
    rows = result["rows"] if result else []
    return next((row for row in rows if all(row.get(name) == value for name, value in wanted.items())), None)


def _engine(result: dict[str, Any] | None, engine: str, steps: int = 1) -> dict[str, Any] | None:
    return _row(result, engine=engine, steps=steps, batch=1, control="no", cfg="off")


def best_of_ours(result: dict[str, Any] | None, steps: int = 1) -> dict[str, Any] | None:
    rows = [_engine(result, name, steps) for name in ("ours, compiled", "ours, graphs", "ours")]
    return min((row for row in rows if row), key=lambda row: row["p50 ms"], default=None)


def figures(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows (figure, aim, measured, reached). results: step -> its JSON, of those that have one."""
    engine, sdxl, streams = (results.get(name) for name in ("engine", "engine-sdxl", "streams"))
    systems = results.get("systems")
    one, four_sdxl = best_of_ours(engine), best_of_ours(sdxl, steps=4)
    theirs, alone, crowd = _engine(engine, "diffusers img2img"), _row(streams, streams=1), _row(streams, streams=8)
    differ = [row["mean difference"] for row in systems["rows"]] if systems else []
    at_least: Callable[[float, float], bool] = lambda value, aim: value >= aim  # noqa: E731
    at_most: Callable[[float, float], bool] = lambda value, aim: value <= aim  # noqa: E731
    aims = (
        ("one step, times diffusers' pipeline", at_least, 5.0, _ratio(theirs, one, "p50 ms")),
        ("one step, p95 / p50", at_most, 1.15, one["p95 ms"] / one["p50 ms"] if one else None),
        ("fps of 8 streams, times that of one", at_least, 1.8, _ratio(crowd, alone, "sum of fps out")),
        ("SDXL, 4 steps, ms", at_most, 120.0, four_sdxl["p50 ms"] if four_sdxl else None),
        ("systems in float16, largest mean difference", at_most, 2.0, max(differ, default=None)),
    )
    return [
        {
            "figure": name,
            "aim": f"{'>=' if holds is at_least else '<='} {aim:g}",
            "measured": measured,
            "reached": "not measured" if measured is None else "yes" if holds(measured, aim) else "no",
        }
        for name, holds, aim, measured in aims
    ]


def _ratio(one: dict[str, Any] | None, other: dict[str, Any] | None, name: str) -> float | None:
    return one[name] / other[name] if one and other and other[name] else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--budget-s", type=report.count, metavar="S", help="for all steps together")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], metavar="STEP")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "lcmirror-benchmarks")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try it all on a CPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [step for step in STEPS if not options.only or step.name in options.only]
    log, started_s, ended = options.out / "everything.log", time.monotonic(), []
    for number, step in enumerate(chosen):
        limit_s = None
        if options.budget_s is not None:
            limit_s = shares(chosen[number:], max(1.0, options.budget_s - (time.monotonic() - started_s)))
        print(f"{step.name} ..." + (f" at most {limit_s:.0f} s" if limit_s else ""), flush=True)
        line = command(step, options.out, options.work, options.device, limit_s, options.tiny)
        result, seconds = run_step(line, limit_s, log)
        if result != "ok":
            print("\n".join(log.read_text().splitlines()[-8:]), flush=True)
        ended.append({"step": step.name, "result": result, "seconds": seconds})
    files = {step.name: out_file(step, options.out) for step in STEPS}
    reached = figures({name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()})
    (options.out / "summary.json").write_text(json.dumps({"steps": ended, "figures": reached}, indent=2) + "\n")
    print(f"\n{report.table(ended)}\n\n{report.table(reached)}")
    return int(any(step["result"] != "ok" for step in ended))


if __name__ == "__main__":
    sys.exit(main())
