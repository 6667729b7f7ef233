"""Candidates for speed: that each has its row, that the right ones stay, and that they paint what the engine paints."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.attention import _cur_sdpa_kernel_backends

from benchmarks import candidates
from benchmarks.candidates import CANDIDATES, NOTHING, Candidate, Way
from benchmarks.checks import difference
from benchmarks.float8 import Float8Linear, to_float8
from pipeline import Controls, ModelSpec, load
from pipeline.stylizer import Stylizer
from tests import tiny

ONE_STEP = Controls(prompt="an oil painting", strength=0.5, steps=1)
BY_NAME = {candidate.name: candidate for candidate in CANDIDATES}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("candidates")


@pytest.fixture(scope="module")
def stylizer(work):
    base = tiny.checkpoint(work / "base", unet={**tiny.SMALLEST, "block_out_channels": (16, 32)})
    return load(ModelSpec(str(base), width=64, height=64, dtype="float32"), "cpu", compile=False)


def test_every_candidate_has_a_row_with_figures_or_a_reason(work, monkeypatch, capsys):
    file = work / "candidates.json"
    line = f"candidates --shape sd15 --tiny --work {work} --device cpu --frames 1 --json {file}"
    monkeypatch.setattr(sys, "argv", line.split())
    monkeypatch.setattr(candidates, "WARM_UP", 1)
    candidates.main()
    told = capsys.readouterr().out
    result = json.loads(file.read_text())
    rows = {row["candidate"]: row for row in result["rows"]}
    assert list(rows) == ["nothing", "transfers through pinned memory", *BY_NAME]
    assert all(f"| {name} |" in told for name in rows)
    assert result["compiled"] is False
    measured = {"nothing", "fused QKV", "float8 linear layers"}
    for name, row in rows.items():
        if name in measured:
            assert 0 < row["p50 ms"] <= row["p95 ms"]
            assert row["gain %"] == pytest.approx(100 * (1 - row["p50 ms"] / row["plain p50 ms"]))
        else:
            assert row["p50 ms"] is None
            reason = "it is a way to compile, and this run is --no-compile" if "autotune" in name else "it needs CUDA"
            assert row["verdict"] == f"left out: {reason}"
    assert rows["nothing"]["differs"] == 0


def test_what_fails_or_comes_too_late_is_named(stylizer, monkeypatch):
    def fail(unet):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(candidates, "CANDIDATES", (Candidate("broken", change=fail),))
    monkeypatch.setattr(candidates, "WARM_UP", 0)

    def last(budget_s: float) -> str:
        return list(candidates.rows(stylizer, ONE_STEP, False, 1, 1.0, budget_s))[-1]["verdict"]

    assert "no such kernel" in last(60)
    assert last(0) == "left out: the time was up"


@pytest.mark.parametrize(("noise", "least"), [(-1.0, [3, 15]), (-4.5, [4.5, 15]), (20.0, [20, 20])])
def test_a_candidate_has_to_gain_no_less_than_the_noise(stylizer, monkeypatch, noise, least):
    asked = []

    def measure(candidate, *_):
        asked.append(candidate.least_gain)
        return {"plain p50 ms": 10.0, "gain %": noise}

    monkeypatch.setattr(candidates, "measure", measure)
    list(candidates.rows(stylizer, ONE_STEP, False, 1, 1.0))
    assert asked == [None, *least], "the plain engine, fused QKV, float8"


@pytest.mark.parametrize(
    ("gain", "differs", "least", "expected"),
    [
        (3.0, 1.9, 3.0, "stays"),
        (2.9, 0.0, 3.0, "goes: it gains less than 3 %"),
        (14.9, 0.0, 15.0, "goes: it gains less than 15 %"),
        (15.0, 1.9, 15.0, "stays"),
        (50.0, 2.0, 15.0, "goes: its pictures differ by 2 or more"),
        (50.0, 0.0, None, "for comparison"),
    ],
)
def test_the_verdict(gain, differs, least, expected):
    assert candidates.verdict(gain, differs, least) == expected


def test_only_float8_has_to_gain_more_than_the_others():
    assert {name: each.least_gain for name, each in BY_NAME.items() if each.least_gain != 3} == {
        "float8 linear layers": 15
    }
    assert NOTHING.least_gain is None


def test_a_gain_is_of_a_whole_frame():
    row = candidates.row("an upload", [1.0, 2.0, 9.0], [4.0, 4.0, 5.0], frame_ms=50.0)
    assert (row["p50 ms"], row["p95 ms"], row["plain p50 ms"], row["gain %"]) == (2.0, 9.0, 4.0, 4.0)
    assert row["verdict"] == "stays"


def test_ways_take_turns_and_what_holds_for_one_holds_for_no_other(monkeypatch):
    monkeypatch.setattr(candidates, "WARM_UP", 1)
    said, holds = [], []

    @contextmanager
    def around():
        holds.append(True)
        yield
        holds.pop()

    ways = [Way(lambda frame: said.append(("a", frame, *holds))), Way(lambda frame: said.append(("b", *holds)), around)]
    times = candidates.times_ms(ways, ["first", "second"], 3, 60.0)
    assert said == [("a", "first"), ("b", True), ("a", "second"), ("b", True)] * 2
    assert [len(each) for each in times] == [3, 3]


@pytest.mark.parametrize(
    ("name", "owner", "flag"),
    [
        ("fp16 accumulation", torch.backends.cuda.matmul, "allow_fp16_accumulation"),
        ("TF32 products", torch.backends.cuda.matmul, "allow_tf32"),
        ("cudnn.benchmark", torch.backends.cudnn, "benchmark"),
    ],
)
def test_a_flag_is_set_for_its_candidate_alone(name, owner, flag):
    assert not getattr(owner, flag)
    with BY_NAME[name].around():
        assert getattr(owner, flag)
    assert not getattr(owner, flag)


def test_each_attention_backend_comes_first_for_its_candidate_alone():
    before = _cur_sdpa_kernel_backends(with_priority=True)
    found = []
    for candidate in (each for each in CANDIDATES if each.name.startswith("SDPA")):
        with candidate.around():
            found.append(_cur_sdpa_kernel_backends(with_priority=True)[0])
    assert [backend.name for backend in found] == ["CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"]
    assert _cur_sdpa_kernel_backends(with_priority=True) == before


def test_both_ways_of_a_transfer_bring_the_same():
    for transfer in candidates.transfers(torch.device("cpu"), 64, 48):
        assert torch.equal(transfer.pageable(), transfer.other())


@pytest.mark.parametrize(
    ("name", "replaced", "least", "most"),
    [("fused QKV", "to_qkv", 0.0, 0.01), ("float8 linear layers", "Float8Linear", 0.001, 0.3)],
)
def test_a_candidate_paints_the_same_and_leaves_the_engine_alone(stylizer, name, replaced, least, most):
    frame = candidates.pictures(64, 64)[0]
    before = stylizer(frame, ONE_STEP)
    own = candidates.prepared(BY_NAME[name], stylizer, compiled=False)
    ran = []
    for path, module in own.components.unet.named_modules():
        if path.endswith(replaced) or type(module).__name__ == replaced:
            module.register_forward_hook(lambda *_: ran.append(1))
    painted = own(frame, ONE_STEP)
    assert ran
    assert least <= difference(painted, before) <= most
    assert np.array_equal(stylizer(frame, ONE_STEP), before)
    ours, theirs = own.components.unet, stylizer.components.unet
    assert ours.conv_in is not theirs.conv_in
    assert ours.conv_in.weight.data_ptr() == theirs.conv_in.weight.data_ptr()


def test_what_is_timed_is_replayed_where_there_are_graphs(stylizer, monkeypatch):
    recorded = []

    def record(work):
        out = work()
        recorded.append(out)
        return lambda: out.copy_(work()), out

    monkeypatch.setattr("pipeline.stylizer.record_in_one_pool", lambda device: record)
    monkeypatch.setattr(candidates, "WARM_UP", 4)
    plain = Stylizer(stylizer.spec, stylizer.components, graphs=True)
    row = candidates.measure(BY_NAME["float8 linear layers"], plain, ONE_STEP, False, 1, 1.0)
    assert len(recorded) == 2, "the plain engine's frame, and the candidate's"
    assert 0.001 < row["differs"] < 0.3

    def refuse(work):
        raise RuntimeError("an operation is not permitted when a stream is capturing")

    monkeypatch.setattr("pipeline.stylizer.record_in_one_pool", lambda device: refuse)
    with pytest.raises(RuntimeError, match="cannot be recorded"):
        candidates.measure(BY_NAME["fused QKV"], plain, ONE_STEP, False, 1, 1.0)


@pytest.mark.parametrize("bias", [True, False])
def test_a_float8_layer_multiplies_what_was_quantized(bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 48, bias), torch.randn(2, 5, 32) * torch.tensor([[[1.0]], [[1000.0]]])
    with torch.no_grad():
        layer.weight *= torch.logspace(-3, 3, 48)[:, None]  # scales of their own for channels, and for rows
        plain, ours = layer(x), Float8Linear(layer)

        def rounded(rows):
            scale = rows.abs().amax(-1, keepdim=True) / 448
            return (rows / scale).to(torch.float8_e4m3fn).float() * scale

        expected = nn.functional.linear(rounded(x), rounded(layer.weight), layer.bias)
        assert torch.allclose(ours(x), expected, rtol=1e-4, atol=1e-5)
        error = (ours(x) - plain).norm(dim=1) / plain.norm(dim=1)
    assert 0.001 < error.max() < 0.1


def test_float8_asks_for_layers_of_fitting_sizes():
    with pytest.raises(ValueError, match="multiples of 16"):
        to_float8(UNet2DConditionModel(**tiny.SMALLEST))
