"""A publisher's timestamps on our clock, by arrivals and by sender reports; all times are made up here."""

from __future__ import annotations

import random

import pytest

from stream.clocks import EXPLAINED_S, REANCHOR_S, MediaClock

BEHIND_S = 1000.0  # our clock when the sender's stamps begin at zero


def test_jitter_of_the_network_does_not_move_the_times():
    clock, dice = MediaClock(), random.Random(3)
    for number in range(200):
        clock.captured_s(number / 30, BEHIND_S + number / 30 + 0.02 + dice.random() * 0.08)
    spaced = [clock.captured_s(n / 30, BEHIND_S + n / 30 + 0.02 + dice.random() * 0.08) for n in range(200, 400)]
    for number, captured_s in enumerate(spaced, 200):
        assert captured_s == pytest.approx(BEHIND_S + 0.02 + number / 30, abs=0.004)


@pytest.mark.parametrize("parts_per_million", [-100, 100])
def test_a_clock_that_drifts_is_followed(parts_per_million):
    clock = MediaClock()
    for second in range(4 * 3600):
        arrived_s = BEHIND_S + second
        captured_s = clock.captured_s(second * (1 + parts_per_million / 1e6), arrived_s)
        assert captured_s == pytest.approx(arrived_s, abs=0.001)


def test_a_clock_that_jumps_begins_anew():
    clock = MediaClock()
    clock.captured_s(5.0, BEHIND_S)
    assert clock.captured_s(70_000.0, BEHIND_S + 1) == BEHIND_S + 1
    assert clock.captured_s(70_000.5, BEHIND_S + 1.6) == pytest.approx(BEHIND_S + 1.5, abs=0.001)


def test_once_reports_of_both_have_come_sound_is_placed_by_them():
    """A picture takes 90 ms from lens to us, sound 30 ms. By arrivals alone the sound would seem 60 ms later."""
    wall = {"picture": None, "sound": None}
    picture = MediaClock(lambda: wall["picture"])
    sound = MediaClock(lambda: wall["sound"], leader=picture)
    seen_s = picture.captured_s(2.0, BEHIND_S + 0.09)  # what happens now, stamped 2 by the one and 7 by the other
    assert sound.captured_s(7.0, BEHIND_S + 0.03) == pytest.approx(seen_s - 0.06)
    wall["sound"] = 5e8 - 7.0
    assert sound.captured_s(7.0, BEHIND_S + 0.03) == pytest.approx(seen_s - 0.06)
    wall["picture"] = 5e8 - 2.0
    assert sound.captured_s(7.0, BEHIND_S + 0.03) == pytest.approx(seen_s)
    assert sound.captured_s(8.0, BEHIND_S + 1.03) == pytest.approx(seen_s + 1)
    for lie_s, taken_s in ((0.49, EXPLAINED_S), (-0.49, -EXPLAINED_S)):  # it is believed as far as it can be so
        wall["sound"] = 5e8 - 7.0 + lie_s
        assert sound.captured_s(8.5, BEHIND_S + 1.53) == pytest.approx(BEHIND_S + 1.53 + taken_s, abs=0.001)
    wall["sound"] += 10 * REANCHOR_S  # a clock that is wrong is not believed
    assert sound.captured_s(9.0, BEHIND_S + 2.03) == pytest.approx(BEHIND_S + 2.03, abs=0.001)
