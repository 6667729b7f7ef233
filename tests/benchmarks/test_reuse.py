"""What the benchmark of reuse makes of given pictures, and that it counts what does not run."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import reuse
from pipeline.loading.families import SDXL


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


def test_the_fewer_blocks_run_the_less_there_is_to_compute():
    rows = reuse.operations("sdxl")
    assert [row["outer blocks"] for row in rows if row["chosen"]] == [SDXL.outer]
    shares = [row["of the UNet"] for row in rows]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1
