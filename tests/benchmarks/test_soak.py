"""A soak's verdicts follow from what was seen; nothing is started here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.soak import Sample, drift, growth, minutes_of, row, verdicts


def sample(minute: float, **changes) -> Sample:
    facts = {"memory_mb": 500.0, "threads": 9, "descriptors": 12, "latency_p50_ms": 50.0, "latency_p95_ms": 80.0}
    facts |= {"fps_out": 12.0, "in_flight": 2, "is_quiet": minute % 5 == 0}
    return Sample(at_s=60 * minute, **(facts | changes))


def soaked(**changes) -> SimpleNamespace:
    facts = {"samples": [sample(minute) for minute in range(11)], "looks": 40, "hostile": 9, "changes": 7, "films": 2}
    facts |= {"mixed_up": [], "answers_5xx": [], "failures": [], "server": SimpleNamespace(output=["ready: mini"])}
    return SimpleNamespace(**(facts | changes))


def failing(soak: SimpleNamespace, last: dict | None = None) -> list[str]:
    rows = [row(minute, samples) for minute, samples in minutes_of(soak.samples).items()]
    last = last or {"frames_in": 9, "frames_out": 4, "frames_dropped": 5}
    return [name for name, (holds, _) in verdicts(soak, rows, last).items() if not holds]


def test_a_run_in_which_nothing_changes_passes():
    assert failing(soaked()) == []


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"samples": [sample(m, memory_mb=500 + 6 * m) for m in range(11)]}, "memory"),
        ({"samples": [sample(m, threads=9 + (m == 10)) for m in range(11)]}, "threads"),
        ({"samples": [sample(m, descriptors=12 + m) for m in range(11)]}, "descriptors"),
        ({"samples": [sample(m, latency_p95_ms=80 + 5 * m) for m in range(11)]}, "latency"),
        ({"samples": [sample(m, in_flight=m) for m in range(11)]}, "in = out"),
        ({"server": SimpleNamespace(output=["Traceback (most recent call last):"])}, "no traceback"),
        ({"mixed_up": ["red: red 40, blue 200"]}, "no mix-up"),
        ({"looks": 0}, "no mix-up"),
        ({"answers_5xx": ["GET /: 500"]}, "no 5xx"),
        ({"failures": ["a viewer of red"]}, "all else"),
        ({"films": 0}, "all else"),
    ],
)
def test_what_went_wrong_fails_and_nothing_else(fault, named):
    (name,) = failing(soaked(**fault))
    assert name.startswith(named)


def test_a_frame_that_is_unaccounted_for_fails():
    assert failing(soaked(), {"frames_in": 9, "frames_out": 4, "frames_dropped": 4}) == [
        "in = out + dropped + in flight"
    ]


def test_memory_is_compared_with_minute_five_and_latency_third_by_third():
    rows = [{"MB": float(mb)} for mb in (1, 1, 1, 1, 2, 9, 9, 9, 9, 3, 3, 3)]
    assert growth(rows, "MB") == 1.5
    assert drift(rows, "MB") == 3
