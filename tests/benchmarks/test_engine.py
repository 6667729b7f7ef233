"""The engine's benchmark: rows from given numbers, who is left out and why, and that equal settings are equal work."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import engine, floor, shapes
from benchmarks.contenders import CFG_GUIDANCE, Contender, Diffusers, Ours, OursStreamBatch, applied
from benchmarks.plan import GRID, Plan, Setting
from benchmarks.streamdiffusion_peer import StreamDiffusionPeer, installed, peers
from pipeline import Controls, LoadError, ModelSpec, load
from pipeline.stylizer import Stylizer

CONTROLS = Controls(prompt="a cat", strength=0.5, seed=3)


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> ModelSpec:
    folder, shape = tmp_path_factory.mktemp("shapes") / "sd15", shapes.tiny(shapes.SD15)
    return ModelSpec(str(shapes.checkpoint(folder, shape)), width=shape.size, height=shape.size, dtype="float32")


@pytest.fixture(scope="module")
def stylizer(spec):
    return load(spec, "cpu", compile=False)


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)


def test_a_row_says_what_its_times_are():
    row = engine.row("ours", False, Setting(steps=2, batch=4, cfg=True), [10.0] * 18 + [30.0, 50.0], 2.5, 1, 0.25)
    assert row == {
        "engine": "ours", "control": "no", "cfg": "on", "steps": 2, "batch": 4, "p50 ms": 10.0, "p95 ms": 30.0,
        "fps": 400.0, "floor ms": 2.5, "x floor": 4.0, "x diffusers": None, "delay": 1, "differs": 0.25, "calls": 20,
    }  # fmt: skip


def test_rows_are_compared_with_diffusers_at_the_same_setting_only():
    def row(name, steps, ms):
        return engine.row(name, False, Setting(steps=steps), [ms], 1.0)

    rows = [row("ours", 1, 5.0), row("ours", 2, 8.0), row(Diffusers.name, 1, 20.0)]
    engine.compare(rows)
    assert [one["x diffusers"] for one in rows] == [4.0, None, 1.0]


@pytest.mark.parametrize(("row_s", "calls"), [(3600, 25), (0, engine.LEAST_CALLS)])
def test_a_row_that_takes_too_long_has_fewer_calls(row_s, calls):
    seen = []
    assert len(engine.time_calls(seen.append, [0, 1], 25, row_s)) == calls
    assert len(seen) == calls + engine.WARM_UP


def test_the_grid_is_whole():
    assert len(GRID) == len(set(GRID)) == 3 * 4 * 2


def test_operations_are_counted_as_known_of_stable_diffusion():
    """The SD1.5 UNet at 512x512: 0.803 TFLOP a step; nothing is computed on the meta device."""
    with torch.device("meta"):
        unet = shapes.UNet2DConditionModel(**shapes.SD15.unet)
        x, t, prompt = torch.zeros(1, 4, 64, 64), torch.zeros(1), torch.zeros(1, 77, 768)
        assert floor.flops(lambda: unet(x, t, encoder_hidden_states=prompt)) == pytest.approx(0.803e12, rel=1e-3)


def test_guidance_is_on_or_off_as_the_setting_says():
    assert applied(Setting(cfg=True), CONTROLS).guidance == CFG_GUIDANCE
    assert applied(Setting(cfg=True), CONTROLS.merged({"guidance": 2.0})).guidance == 2.0
    assert applied(Setting(), CONTROLS.merged({"guidance": 2.0})).guidance == 1.0


@pytest.mark.parametrize("setting", [Setting(1), Setting(2), Setting(2, cfg=True)], ids=str)
def test_diffusers_paints_the_same_picture(stylizer, setting):
    ours, theirs = Ours(stylizer, CONTROLS).call(setting), Diffusers(stylizer, CONTROLS).call(setting)
    one = ours(frames(1))
    assert np.abs(one.astype(int) - theirs(frames(1))).mean() < 0.1
    other = Ours(stylizer, CONTROLS.merged({"seed": 4})).call(setting)(frames(1))
    assert np.abs(one.astype(int) - other).mean() > 2  # the comparison can fail


@pytest.mark.skipif(not installed(), reason="an optional peer: pip install --no-deps streamdiffusion==0.1.1")
@pytest.mark.parametrize("setting", [Setting(1), Setting(4), Setting(2, cfg=True), Setting(1, batch=2)], ids=str)
def test_streamdiffusion_paints_the_same_picture_late(stylizer, setting):
    peer = StreamDiffusionPeer(stylizer, CONTROLS)
    call, pictures = peer.call(setting), frames(setting.batch)
    for _ in range(peer.delay(setting) + 1):
        painted = call(pictures)
    assert np.abs(painted.astype(int) - Ours(stylizer, CONTROLS).call(setting)(pictures)).mean() < 0.1


@pytest.mark.parametrize("setting", [Setting(2), Setting(4, cfg=True)], ids=str)
def test_our_stream_batch_paints_the_same_picture_late(stylizer, setting):
    shared = OursStreamBatch(Ours(stylizer, CONTROLS))
    assert shared.left_out(Setting(1)) is not None
    assert shared.delay(setting) == setting.steps - 1
    assert engine.picture_difference(shared, setting, frames(1)) < 0.1


def test_a_run_keeps_rows_and_names_who_is_left_out(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(floor, "matmul_rate", lambda device, dtype: 1e12)
    monkeypatch.setattr(engine, "LEAST_CALLS", 1)
    monkeypatch.setattr("benchmarks.streamdiffusion_peer.installed", lambda: False)
    monkeypatch.setattr(engine, "WARM_UP", 0)
    monkeypatch.setattr("benchmarks.plan.SETTINGS", (Setting(1), Setting(1, batch=2)))
    monkeypatch.setattr("benchmarks.plan.WITH_CONTROL", (Setting(1),))
    net = shapes.controlnet(tmp_path / "net", shapes.tiny(shapes.SD15))
    plan = Plan(frames=1, compile=False, json=tmp_path / "out" / "engine.json", picture=tmp_path / "engine.svg")
    plan.json.parent.mkdir()
    models = [(spec, CONTROLS), (replace(spec, controlnet=str(net)), CONTROLS)]
    assert engine.run("tiny", models, "cpu", plan) == 0
    result = json.loads(plan.json.read_text())
    rows = [(row["engine"], row["control"], row["batch"]) for row in result["rows"]]
    measured = (("no", 1), ("no", 2), ("yes", 1))
    assert rows == [(name, control, batch) for control, batch in measured for name in ("ours", Diffusers.name)]
    assert all(row["floor ms"] > 0 and row["x diffusers"] for row in result["rows"])
    told = [line for line in result["left out"] if line.startswith("StreamDiffusion:")]
    assert len(told) == 1
    assert "not installed" in told[0]
    assert plan.picture.read_text().startswith("<svg")


@pytest.mark.parametrize("idle", [{"bypass": True}, {"strength": 0.0}], ids=str)
def test_what_paints_nothing_is_not_measured(spec, idle):
    with pytest.raises(LoadError, match="nothing is painted"):
        engine.run("tiny", [(spec, CONTROLS.merged(idle))], "cpu", Plan())


def test_who_fails_is_named_and_the_others_are_measured(stylizer, monkeypatch):
    monkeypatch.setattr(engine, "LEAST_CALLS", 1)
    monkeypatch.setattr(engine, "WARM_UP", 0)

    def fail(self, setting):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(Diffusers, "call", fail)
    results = engine.Results("a title", {"matmul TFLOP/s": 1.0, "left out": []})
    engine._measure_model(stylizer, CONTROLS, [Setting(1)], Plan(frames=1, compile=False), results)
    assert "ours" in [row["engine"] for row in results.rows]
    assert f"{Diffusers.name}: left out, it failed (RuntimeError: no kernel for this)." in results.about["left out"]


def test_no_row_is_begun_after_the_time_is_up(stylizer):
    results = engine.Results("a title", {"matmul TFLOP/s": 1.0, "left out": []})
    engine._measure_model(stylizer, CONTROLS, [Setting(1)], Plan(budget_s=-1, compile=False), results)
    assert results.rows == []
    assert "ours: some rows left out, the time was up." in results.about["left out"]


def test_streamdiffusion_says_what_it_cannot_do(stylizer, monkeypatch):
    monkeypatch.setattr("benchmarks.streamdiffusion_peer.installed", lambda: True)
    plain, own, *compiled = peers(stylizer, CONTROLS, compiled=True, everything=True)
    assert plain.left_out(Setting(4)) is None
    assert "several" in plain.left_out(Setting(2, batch=2))
    assert own.left_out(Setting(1)) is not None
    assert own.left_out(Setting(1, cfg=True)) is None
    assert [peer.twin for peer in compiled] == [plain] * len(compiled)
    assert plain.delay(Setting(4)) == 3
    parts = stylizer.components
    sdxl = Stylizer(stylizer.spec, replace(parts, family=replace(parts.family, pooled=True)))
    assert "SDXL" in StreamDiffusionPeer(sdxl, CONTROLS).left_out(Setting(1))


class Brighter(Contender):
    """Paints the picture before last, `more` brighter than its twin."""

    def __init__(self, more: int, twin: Contender | None = None):
        self.more, self._twin = more, twin

    @property
    def twin(self):
        return self._twin or self

    def delay(self, setting):
        return 1

    def call(self, setting):
        seen = [np.zeros((1, 2, 2, 3), np.uint8)]
        return lambda frames: (seen.append(frames), seen[-2] + np.uint8(self.more))[1]


def test_compiled_pictures_are_compared_with_uncompiled_ones():
    frames = np.full((1, 2, 2, 3), 7, np.uint8)
    plain = Brighter(0)
    assert engine.picture_difference(plain, Setting(), frames) is None
    assert engine.picture_difference(Brighter(3, plain), Setting(), frames) == 3
