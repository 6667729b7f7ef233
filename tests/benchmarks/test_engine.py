"""The engine's benchmark: rows from given numbers, who is left out and why, and that equal settings are equal work."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import engine, report
from benchmarks.engine import DIFFUSERS, GRID, OURS, LeftOut, Limits, Setting
from pipeline import Controls, LoadError, ModelSpec, load
from pipeline.stylizer import Stylizer
from tests import tiny

CONTROLS = Controls(prompt="a cat", strength=0.5, seed=3)


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> ModelSpec:
    base = tiny.checkpoint(tmp_path_factory.mktemp("shapes") / "sd15", unet=tiny.SMALLEST)
    return ModelSpec(str(base), width=64, height=64, dtype="float32")


@pytest.fixture(scope="module")
def stylizer(spec) -> Stylizer:
    return load(spec, "cpu", compile=False)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(engine, "LEAST_CALLS", 1)
    monkeypatch.setattr(engine, "WARM_UP", 0)


def test_a_row_says_what_its_times_are():
    row = engine.row("ours", False, Setting(steps=2, batch=4, cfg=True), [10.0] * 18 + [30.0, 50.0], 0.25)
    assert row == {
        "engine": "ours", "control": "no", "cfg": "on", "steps": 2, "batch": 4, "p50 ms": 10.0, "p95 ms": 30.0,
        "fps": 400.0, "x diffusers": None, "differs": 0.25, "calls": 20,
    }  # fmt: skip


def test_rows_are_compared_with_diffusers_at_the_same_setting_only():
    rows = [engine.row(name, False, Setting(steps=n), [ms]) for name, n, ms in ((OURS, 1, 5.0), (OURS, 2, 8.0))]
    rows.append(engine.row(DIFFUSERS, False, Setting(steps=1), [20.0]))
    engine.compare(rows)
    assert [one["x diffusers"] for one in rows] == [4.0, None, 1.0]


@pytest.mark.parametrize(("row_s", "calls"), [(3600, 25), (0, engine.LEAST_CALLS)])
def test_a_row_that_takes_too_long_has_fewer_calls(row_s, calls):
    seen = []
    assert len(engine.time_calls(seen.append, [0, 1], 25, row_s)) == calls
    assert len(seen) == calls + engine.WARM_UP


def test_the_grid_is_whole():
    assert len(GRID) == len(set(GRID)) == 3 * 4 * 2


def test_guidance_is_on_or_off_as_the_setting_says():
    assert Setting(cfg=True).applied(CONTROLS).guidance == engine.CFG_GUIDANCE
    assert Setting(cfg=True).applied(CONTROLS.merged({"guidance": 2.0})).guidance == 2.0
    assert Setting().applied(CONTROLS.merged({"guidance": 2.0})).guidance == 1.0


@pytest.mark.parametrize("setting", [Setting(1), Setting(2), Setting(2, cfg=True)], ids=str)
def test_diffusers_paints_the_same_picture(stylizer, setting):
    (frame,) = setting.frames(stylizer.spec, 1)
    one = engine.launched(stylizer, CONTROLS)(setting)(frame)
    assert report.difference(one, engine.diffusers_img2img(stylizer, CONTROLS)(setting)(frame)) < 0.1
    other = engine.launched(stylizer, CONTROLS.merged({"seed": 4}))(setting)(frame)
    assert report.difference(one, other) > 2, "the comparison can fail"


def test_a_run_keeps_rows_and_names_who_is_left_out(spec, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(engine, "SETTINGS", (Setting(1), Setting(1, batch=2)))
    monkeypatch.setattr(engine, "WITH_CONTROL", (Setting(1),))
    net = tiny.controlnet(tmp_path / "net", unet=tiny.SMALLEST)
    canny, grey = (replace(spec, controlnet=str(net), control=name) for name in ("canny", "grey"))
    limits = Limits(frames=1, compile=False, json=tmp_path / "out" / "engine.json")
    assert engine.run("tiny", [(one, CONTROLS) for one in (spec, canny, grey)], "cpu", limits) == 0
    result = json.loads(limits.json.read_text())
    rows = [(row["engine"], row["control"], row["batch"]) for row in result["rows"]]
    measured = (("no", 1), ("no", 2), ("yes", 1))
    assert rows[:6] == [(name, control, batch) for control, batch in measured for name in (OURS, DIFFUSERS)]
    assert rows[6:] == [(OURS, "yes", 1)]
    assert [line for line in result["left out"] if line.startswith(f"{DIFFUSERS}: left out, its guides")]


@pytest.mark.parametrize("idle", [{"bypass": True}, {"strength": 0.0}], ids=str)
def test_what_paints_nothing_is_not_measured(spec, idle):
    with pytest.raises(LoadError, match="nothing is painted"):
        engine.run("tiny", [(spec, CONTROLS.merged(idle))], "cpu", Limits())


def test_who_fails_is_named_and_the_others_are_measured(stylizer, quick, monkeypatch):
    def fail(stylizer):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(engine, "_pipeline", fail)
    results = engine.Results("a title", {"left out": []})
    engine.measure(stylizer, CONTROLS, [Setting(1)], Limits(frames=1, compile=False), results)
    assert [row["engine"] for row in results.rows] == [OURS]
    assert results.about["left out"] == [f"{DIFFUSERS}: left out, it failed (RuntimeError: no kernel for this)."]


def test_no_row_is_begun_after_the_time_is_up(stylizer):
    results = engine.Results("a title", {"left out": []})
    engine.measure(stylizer, CONTROLS, [Setting(1)], Limits(budget_s=-1, compile=False), results)
    assert results.rows == []
    assert f"{OURS}: some rows left out, the time was up." in results.about["left out"]


def test_what_runs_uncompiled_is_no_row_of_compiled_code(stylizer, monkeypatch):
    asked = []
    monkeypatch.setattr(
        engine.compiling, "compile_beside", lambda stylizer, report, put_in, batches: asked.append(batches)
    )
    way = engine.compiled(stylizer, CONTROLS)
    for setting in (Setting(1), Setting(2), Setting(1, batch=2)):
        with pytest.raises(LeftOut, match="no compiled code"):
            way(setting)
    assert asked == [False, True], "once for frames, once for batches"


def test_a_shape_is_written_once_into_the_work_folder(tmp_path):
    parser = argparse.ArgumentParser()
    engine.add_model_options(parser)
    options = parser.parse_args(["--shape", "sd15", "--tiny", "--device", "cpu", "--work", str(tmp_path / "work")])
    name, spec, _ = engine.chosen(options, tmp_path)
    assert (name, spec.width) == ("sd15 shape, random weights", 64)
    assert Path(spec.base) == tmp_path / "work" / "tiny" / "sd15"
    written = (Path(spec.base) / "model_index.json").stat().st_mtime_ns
    assert engine.chosen(options, tmp_path)[1] == spec
    assert (Path(spec.base) / "model_index.json").stat().st_mtime_ns == written
    assert [each.name for each in Path(spec.base).parent.iterdir()] == ["sd15"], "nothing half written is left"
