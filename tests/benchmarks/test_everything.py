"""The one script for a GPU machine and its steps: what they make of given numbers, and that each row runs."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import checks, everything, report, streams, systems
from benchmarks.engine import LeftOut
from pipeline import Controls, ModelSpec
from tests.paths import ROOT
from tests.stream.fakes import FakeStylizer


def test_a_row_of_streams_sums_and_compares_them():
    row = streams.row([[0.01] * 20, [0.02] * 10], seconds=2.0)
    assert row == {
        "streams": 2, "sum of fps out": 15.0, "fps, least": 5.0, "fps, most": 10.0, "fairness": 0.5,
        "age p95 ms, best stream": 10.0, "age p95 ms, worst stream": 20.0,
    }  # fmt: skip
    assert streams.row([[], []], seconds=1.0)["fairness"] is None


def test_every_stream_comes_out_of_the_real_engine_thread(monkeypatch):
    monkeypatch.setattr(streams, "WARM_UP_S", 0.1)
    ages_s = streams.measure(FakeStylizer(0.001), Controls(), 3, seconds=0.8)
    assert len(ages_s) == 3
    assert all(ages and min(ages) >= 0.001 for ages in ages_s)


def test_checks_are_made_of_tiny_models(tmp_path):
    made = dict(checks.checks(torch.device("cpu"), tmp_path, compile=False))
    wanted = ("I420", "Canny's edges, as", "diffusers' pipeline", "CUDA graphs", "sdxl in float16")
    rows = [checks.row(name, check) for name, check in made.items() if name.startswith(wanted)]
    assert [row["result"] for row in rows] == ["ok", "ok", "ok", "left out", "ok"]


def test_a_system_is_within_two_of_255_or_not():
    system, spec = systems.SYSTEMS[0], ModelSpec("x")
    row = systems.row(system, spec, [3.0, 1.0, 2.0], [5.0], {"peak GB": 4.5}, 2.0)
    assert (row["p50 ms"], row["new prompt p50 ms"], row["peak GB"], row["within 2"]) == (2.0, 5.0, 4.5, "yes")
    assert systems.row(system, spec, [1.0], [1.0], {}, 3.0)["within 2"] == "no"


@pytest.mark.parametrize("name", ["LCM img2img", "SSD-1B text-to-image", "inpainting", "AnimateDiff, 16 frames"])
def test_each_kind_of_system_paints(name, tmp_path_factory, monkeypatch):
    """Of the tiny shapes; which parts combine is proven in tests/pipeline/test_systems.py."""
    monkeypatch.setattr(systems, "CALLS", 1)
    monkeypatch.setattr(systems, "WARM_UP", 0)
    monkeypatch.setattr(systems, "CLIP", 2)
    work = tmp_path_factory.getbasetemp() / "systems"
    system = next(each for each in systems.SYSTEMS if each.name == name)
    row = systems.measure(replace(system, loras={}), work, torch.device("cpu"), is_tiny=True)
    assert row["within 2"] == "yes"
    assert row["calls"] == 1


def test_a_check_is_passed_failed_or_left_out():
    def fail():
        raise RuntimeError("no such kernel\nand more")

    def leave_out():
        raise LeftOut("it is not installed")

    told = [checks.row("a check", check) for check in (lambda: (0.5, 0.5), lambda: (0.6, 0.5), fail, leave_out)]
    assert [one["result"] for one in told] == ["ok", "failed", "failed", "left out"]
    assert "no such kernel" in told[2]["why"]


def test_the_time_is_shared_by_weight():
    steps = [everything.Step("a", "a", 30), everything.Step("b", "b", 60), everything.Step("c", "c", 10)]
    assert everything.shares(steps, 100) == 30
    assert everything.shares(steps[2:], 25) == 25


def test_a_step_that_fails_or_takes_too_long_is_told(tmp_path):
    log = tmp_path / "log"
    run = [sys.executable, "-c"]
    assert everything.run_step([*run, "print('fine')"], 60, log)[0] == "ok"
    assert everything.run_step([*run, "raise SystemExit('broken')"], 60, log)[0] == "failed, exit code 1"
    assert everything.run_step([*run, "import time; time.sleep(60)"], 0.2, log)[0] == "the time was up"
    assert "fine" in log.read_text()
    assert "broken" in log.read_text()


def test_every_step_is_a_benchmark_and_what_comes_back_is_few_files():
    for step in everything.STEPS:
        assert (Path(everything.__file__).parent / f"{step.module}.py").is_file()
    line = everything.command(everything.STEPS[1], Path("out"), Path("work"), "cuda", 100.0, tiny=False)
    assert line[line.index("--budget-s") + 1] == "80"
    assert line[line.index("--json") + 1] == str(Path("out/engine.json"))


def test_the_figures_aimed_at_are_read_off_the_results():
    def row(engine, ms):
        setting = {"steps": 1, "batch": 1, "control": "no", "cfg": "off"}
        return {"engine": engine, **setting, "p50 ms": ms, "p95 ms": 1.2 * ms}

    rows = [row("ours", 9.0), row("ours, compiled", 5.0), row("diffusers img2img", 20.0)]
    crowd = [{"streams": 1, "sum of fps out": 30.0}, {"streams": 8, "sum of fps out": 60.0}]
    results = {"engine": rows, "streams": crowd}
    made = everything.figures({step: {"rows": each} for step, each in results.items()})
    told = {one["figure"]: (one["measured"], one["reached"]) for one in made}
    assert told["one step, times diffusers' pipeline"] == (pytest.approx(4.0), "no")
    assert told["one step, p95 / p50"] == (pytest.approx(1.2), "no")
    assert told["fps of 8 streams, times that of one"] == (2.0, "yes")
    assert told["SDXL, 4 steps, ms"] == (None, "not measured")
    assert "not measured" in report.table(made)


# What benchmarks.everything asks a bare machine to have, and what these packages bring along.
PRESENT = {
    *("torch", "transformers", "peft", "accelerate", "cv2", "prometheus_client", "PIL"),
    *("diffusers", "pydantic", "pydantic_core", "av"),
    *("numpy", "safetensors", "tokenizers", "huggingface_hub", "tqdm"),
}


def imported(module: str, known: set[str]) -> Iterator[str]:
    """The packages that a module of ours needs to be imported, those of our own modules among them."""
    file = ROOT / f"{module.replace('.', '/')}.py"
    file = file if file.is_file() else ROOT / module.replace(".", "/") / "__init__.py"
    if module in known or not file.is_file():
        return
    known.add(module)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.parse(file.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            first = name.split(".")[0]
            if (ROOT / first).exists() or (ROOT / f"{first}.py").exists():
                yield from imported(name, known)
            else:
                yield first


@pytest.mark.parametrize("module", sorted({step.module for step in everything.STEPS}))
def test_a_step_needs_no_package_that_a_bare_machine_lacks(module):
    packages = set(imported(f"benchmarks.{module}", set())) - sys.stdlib_module_names
    assert "numpy" in packages
    assert packages <= PRESENT
