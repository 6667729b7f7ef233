"""A frame by stage, from given traces and from a real one."""

from __future__ import annotations

import pytest

from benchmarks import breakdown
from pipeline import Controls, ModelSpec, load
from pipeline.pixels import color
from tests import tiny


def note(name: str, start: float, end: float) -> dict:
    return {"cat": "user_annotation", "name": name, "ts": start, "dur": end - start, "tid": 1}


def launched(number: int, at: float, start: float, end: float, cat: str = "kernel", name: str = "k", by="cudaLaunch"):
    return [
        {"cat": "cuda_runtime", "name": by, "ts": at, "dur": 1, "tid": 1, "args": {"correlation": number}},
        {"cat": cat, "name": name, "ts": start, "dur": end - start, "tid": 7, "args": {"correlation": number}},
    ]


def test_kernels_count_for_the_stage_that_launched_them():
    events = [
        note("frame", 0, 10_000),
        note("encode", 1000, 2000),
        note("UNet", 2000, 3000),
        *launched(1, 100, 1000, 1500, "gpu_memcpy", "Memcpy HtoD (Pinned -> Device)"),
        *launched(2, 1100, 2000, 4000),
        *launched(3, 2100, 4000, 7000),
        *launched(4, 2200, 6000, 7500),  # beside the one before
        *launched(5, 3500, 8000, 8250),  # 0.5 ms of nothing before it
        *launched(6, 3600, 8250, 9250, "gpu_memcpy", "Memcpy DtoH (Device -> Pageable)"),
        *launched(7, 20_000, 20_000, 21_000),  # of no frame
    ]
    (times,) = breakdown.stage_times(events)
    assert {stage: ms for stage, ms in times.items() if ms} == pytest.approx(
        {"upload": 0.5, "encode": 2, "UNet": 4.5, "other": 0.25, "download": 1, "gaps": 1, "host": 1.75, "frame": 10}
    )


def test_a_cuda_graph_of_several_stages_is_told_as_one():
    events = [note("frame", 0, 1000), *launched(1, 10, 100, 300, by="cudaGraphLaunch")]
    events += [{**launched(1, 10, 300, 900)[1]}]  # all its kernels have the launch's number
    (times,) = breakdown.stage_times(events)
    assert times["graph"] == pytest.approx(0.8)
    assert times["gaps"] == 0


def test_on_a_cpu_stages_are_their_ranges():
    events = [note("frame", 0, 100), note("UNet", 10, 60), note("UNet", 60, 80), note("frame", 200, 260)]
    first, second = breakdown.stage_times(events)
    assert (first["UNet"], first["gaps"], first["frame"]) == pytest.approx((0.07, 0.03, 0.1))
    assert (second["UNet"], second["gaps"]) == pytest.approx((0, 0.06))


def test_rows_are_of_what_took_time():
    frame = dict.fromkeys((*breakdown.STAGES, "gaps", "host", "frame"), 0.0)
    rows = breakdown.rows("ours", [{**frame, "UNet": 3.0, "frame": 4.0}, {**frame, "UNet": 1.0, "frame": 4.0}])
    told = [(row["stage"], row["p50 ms"], row["share"]) for row in rows]
    assert told == [("UNet", 1.0, "25 %"), ("frame", 4.0, "100 %")]


def test_every_stage_of_a_real_frame_is_seen(tmp_path):
    spec = ModelSpec(str(tiny.checkpoint(tmp_path / "base")), width=64, height=64)
    stylizer, plain = load(spec, "cpu", compile=False), color.to_model
    (times,) = breakdown.watch(stylizer, Controls(steps=1), count=1)
    assert all(times[stage] > 0 for stage in ("colour", "encode", "noise", "UNet", "decode", "gaps"))
    assert sum(times[stage] for stage in (*breakdown.STAGES, "gaps", "host")) == pytest.approx(times["frame"])
    assert color.to_model is plain
