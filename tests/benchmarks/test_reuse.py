"""What the benchmark of reuse makes of given pictures, and of a clip."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import reuse
from pipeline import Controls, ModelSpec, load
from tests import tiny
from tests.paths import CARPHONE


def test_only_reused_frames_are_compared_and_a_pulse_shows():
    whole = np.stack([np.full((2, 2, 3), level, np.uint8) for level in (0, 10, 20, 30, 40)])
    pulsing = np.stack([np.full((2, 2, 3), level, np.uint8) for level in (0, 4, 20, 24, 40)])
    told = reuse.against(whole, pulsing, np.array([False, True, False, True, False]))
    assert told == {
        "reused": 0.4, "differs": 6.0, "differs p95": 6.0,
        "change reused": pytest.approx(0.4), "change new": pytest.approx(1.6),
    }  # fmt: skip
    same = reuse.against(whole, whole, np.array([False, False, False, False, False]))
    assert (same["reused"], same["differs"], same["change reused"], same["change new"]) == (0, None, None, 1)


def test_a_clip_has_a_row_for_each_number_of_steps_and_each_reuse(tmp_path, monkeypatch):
    monkeypatch.setattr(reuse, "CALLS", 1)
    monkeypatch.setattr(reuse, "WARM_UP", 0)
    spec = ModelSpec(str(tiny.checkpoint(tmp_path / "base", unet=tiny.SMALLEST)), width=64, height=64)
    stylizer = load(spec, "cpu", compile=False)
    rows = reuse.filmed(stylizer, Controls(prompt="a cat"), CARPHONE, 4)
    assert [(row["steps"], row["reuse"]) for row in rows] == [(s, r) for s in reuse.STEPS for r in reuse.REUSES]
    assert [row["reused"] for row in rows] == [0.5, 0.5, 0.75] * 2
    assert len(reuse.timed(stylizer, Controls(prompt="a cat"))) == len(reuse.STEPS)
