"""The decisions, on a clock that exists only here."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stream.engine import scheduler
from stream.engine.scheduler import (
    BATCHES,
    MIN_SAMPLES,
    RAISE_AFTER_S,
    TRIALS,
    Dwell,
    EngineTimes,
    Quality,
    Rung,
    Waiting,
    batch_size,
    follow_at_s,
    gains_behind,
    ladder,
    next_quality,
    plan,
)
from stream.engine.turns import Turns
from tests.stream.engine.simulation import simulate

BUDGET_S = 1.0
times_s = st.floats(0, 100, allow_nan=False)


@st.composite
def lines(draw):
    count = draw(st.integers(0, 8))
    line = []
    for stream in range(count):
        since_s = draw(times_s)
        arrived_s, key, stands = draw(st.floats(since_s, since_s + 5)), draw(st.sampled_from("ab")), draw(st.booleans())
        line.append(Waiting(stream, arrived_s, since_s, key, stands, draw(st.sampled_from(["x", "y", None]))))
    return line


@given(lines(), times_s, st.integers(1, 4))
def test_a_plan_holds_what_it_promises(line, now_s, max_batch):
    chosen = plan(now_s, line, BUDGET_S, max_batch)
    by_stream = {waiting.stream: waiting for waiting in line}
    too_old = {w.stream for w in line if now_s - w.arrived_s > BUDGET_S}
    assert set(chosen.expired) == too_old
    standing = {w.stream for w in line if w.stands} - too_old
    assert set(chosen.standing) == standing
    assert not standing & set(chosen.batch)
    assert not too_old & set(chosen.batch)
    assert len(chosen.batch) <= max_batch
    assert len({by_stream[stream].shape_key for stream in chosen.batch}) <= 1
    fresh = [w for w in line if w.stream not in too_old | standing]
    assert bool(chosen.batch) == bool(fresh)
    if fresh:
        first = by_stream[chosen.batch[0]]
        assert first.since_s == min(w.since_s for w in fresh)
        fitting = sorted(w.since_s for w in fresh if w.shape_key == first.shape_key)
        assert [by_stream[stream].since_s for stream in chosen.batch] == fitting[: len(chosen.batch)]
        assert len(chosen.batch) == min(max_batch, len(fitting))


@given(lines(), times_s, st.integers(1, 4), times_s)
def test_weights_that_stand_go_first_and_where_nobody_wants_them_others_are_not_held_back(
    line, now_s, max_batch, until_s
):
    chosen = plan(now_s, line, BUDGET_S, max_batch, Dwell("x", until_s, holds_until_s=now_s))
    free = plan(now_s, line, BUDGET_S, max_batch)
    assert bool(chosen.batch) == bool(free.batch)
    preferred = plan(now_s, [w for w in line if w.weights != "y"], BUDGET_S, max_batch).batch
    assert chosen.batch == ((preferred if until_s > now_s else ()) or free.batch)


@given(lines(), times_s, st.integers(1, 4), times_s)
def test_while_weights_dwell_others_are_held_back_and_nothing_else_changes(line, now_s, max_batch, until_s):
    chosen = plan(now_s, line, BUDGET_S, max_batch, Dwell("x", until_s))
    free = plan(now_s, line, BUDGET_S, max_batch)
    assert (chosen.expired, chosen.standing) == (free.expired, free.standing)
    if until_s <= now_s:
        assert chosen == free
        return
    told = {*free.expired, *free.standing}
    held = [w for w in line if w.weights == "y" and w.stream not in told]
    assert chosen.again_s == (until_s if held else None)
    assert chosen.batch == plan(now_s, [w for w in line if w not in held], BUDGET_S, max_batch).batch


@given(
    st.lists(st.floats(2, 60), min_size=2, max_size=6),
    st.floats(0.02, 0.4),
    st.integers(1, 3),
    st.floats(0, 0.03),
    st.integers(0, 99),
)
@settings(max_examples=40)
def test_nobody_starves_and_every_frame_is_accounted_for(rates_hz, engine_s, max_batch, jitter_s, seed):
    played = simulate(
        engine_s, fps_in=rates_hz, duration_s=8, budget_s=60, max_batch=max_batch, jitter_s=jitter_s, seed=seed
    )
    for stream, rate_hz in enumerate(rates_hz):
        picks_s = [shown.picked_s for shown in played.shown if shown.stream == stream]
        waits_s = [later - earlier for earlier, later in pairwise(picks_s)]
        # Its next frame comes within an interval; then every other stream goes before it once at the most.
        assert max(waits_s, default=0) <= 1 / rate_hz + jitter_s + (len(rates_hz) + 1) * engine_s
        assert picks_s, "a stream that sends is shown"
        assert played.frames_in[stream] == len(picks_s) + played.dropped[stream] + played.in_flight[stream]
        assert played.in_flight[stream] <= 1
        arrivals_s = [shown.arrived_s for shown in played.shown if shown.stream == stream]
        assert arrivals_s == sorted(set(arrivals_s))


@pytest.mark.parametrize("engine_s", [0.010, 0.033, 0.066, 0.100, 0.300])
def test_age_at_the_output_is_one_engine_time_and_at_most_one_frame_interval(engine_s):
    shown = simulate(lambda dice: engine_s * dice.uniform(0.8, 1.2), fps_in=30, duration_s=20).shown
    assert max(frame.age_s for frame in shown) <= 1.2 * engine_s + 1 / 30
    # It does not grow: the last second looks like the first.
    assert max(f.age_s for f in shown if f.shown_s > 19) <= 1.2 * engine_s + 1 / 30
    assert len(shown) >= 20 / max(1.2 * engine_s + 1 / 30, 1 / 30)


@given(
    st.lists(st.sampled_from("ab"), min_size=2, max_size=5),
    st.floats(0.01, 0.1),
    st.floats(0.0, 0.2),
    st.integers(0, 99),
)
@settings(max_examples=40)
def test_writing_lora_weights_takes_a_bounded_share_and_nobody_waits_for_longer_than_a_dwell(
    weights, engine_s, rewrite_s, seed
):
    budget_s, duration_s = 2.0, 30.0
    played = simulate(
        engine_s,
        fps_in=[30] * len(weights),
        duration_s=duration_s,
        budget_s=budget_s,
        max_batch=8,
        weights=weights,
        rewrite_s=rewrite_s,
        seed=seed,
    )
    if len(set(weights)) == 1:
        assert played.rewriting_s <= rewrite_s
    # Before the first is known, while the engine keeps up, and where a frame comes later than weights are written, more
    # is written than that; no more than there would be else.
    if rewrite_s > 1 / 30:
        assert (
            played.rewriting_s <= scheduler.REWRITES_SHARE * (duration_s + scheduler.REWRITES_WITHIN_S) + 2 * rewrite_s
        )
    else:
        assert played.rewriting_s <= 0.5 * duration_s + 2 * rewrite_s
    turn_s = scheduler.DWELLS_SHARE * budget_s + rewrite_s
    for stream in range(len(weights)):
        picks_s = [0.0, *(shown.picked_s for shown in played.shown if shown.stream == stream), duration_s]
        # The other group's turn, the batch that was under way at its end, and a frame that is yet to come.
        assert max(later - earlier for earlier, later in pairwise(picks_s)) <= turn_s + 2 * engine_s + rewrite_s + 0.1
        assert played.dropped[stream] + played.in_flight[stream] + len(picks_s) - 2 == played.frames_in[stream]
    assert all(shown.picked_s - shown.arrived_s <= budget_s for shown in played.shown)


@given(st.lists(st.floats(2, 60), min_size=1, max_size=5), st.floats(0.01, 0.3), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=30)
def test_with_equal_lora_weights_nothing_is_held_back(rates_hz, engine_s, max_batch, seed):
    options = {"fps_in": rates_hz, "max_batch": max_batch, "seed": seed, "duration_s": 8}
    plain = simulate(engine_s, **options)
    alike = simulate(engine_s, **options, weights=["a"] * len(rates_hz))
    assert (alike.shown, alike.dropped, alike.in_flight) == (plain.shown, plain.dropped, plain.in_flight)


def test_a_cheap_rewrite_is_waited_for_as_briefly():
    """Two streams on a fast engine: where writing weights takes next to nothing, both have every frame."""
    played = simulate(0.005, fps_in=[30, 30], duration_s=20, weights="ab", rewrite_s=0.001)
    for stream in (0, 1):
        late = [shown for shown in played.shown if shown.stream == stream and shown.picked_s > 5]
        assert len(late) >= 0.95 * 15 * 30


@given(
    st.lists(st.sampled_from("abc"), min_size=2, max_size=5),
    st.floats(0.002, 0.02),
    st.floats(0.0, 0.02),
    st.floats(0, 0.03),
    st.integers(0, 99),
)
@settings(max_examples=60)
def test_an_engine_that_keeps_up_holds_nobody_back(weights, engine_s, rewrite_s, jitter_s, seed):
    """Where it could rewrite for every frame in turn, everybody has as many as without any dwell."""
    assume(len(weights) * (engine_s + rewrite_s) <= 0.9 / 30)
    options = {"fps_in": [30] * len(weights), "weights": weights, "rewrite_s": rewrite_s, "duration_s": 12}
    kept, free = (
        simulate(engine_s, **options, jitter_s=jitter_s, seed=seed, dwells=dwells) for dwells in (True, False)
    )
    for stream in range(len(weights)):
        with_s, without_s = ([one.shown_s for one in each.shown if one.stream == stream] for each in (kept, free))
        assert len([at for at in with_s if at > 2]) >= 0.95 * len([at for at in without_s if at > 2])
    assert kept.rewriting_s <= free.rewriting_s + rewrite_s


@given(st.floats(0.1, 1.0), st.floats(0.005, 0.03), st.integers(0, 99))
@settings(max_examples=30)
def test_a_rewrite_that_takes_longer_than_the_dwell_is_found_out_and_does_no_harm(rewrite_s, engine_s, seed):
    """From cold: what it takes is not known before a batch without one was seen."""
    options = {"fps_in": [30] * 8, "weights": "abababab", "rewrite_s": rewrite_s, "duration_s": 20, "max_batch": 8}
    kept, free = (simulate(engine_s, **options, seed=seed, dwells=dwells) for dwells in (True, False))
    turn_s = rewrite_s + engine_s
    dwell_s = min(scheduler.DWELLS_SHARE * BUDGET_S, 3 * rewrite_s)
    assert kept.rewriting_s <= 20 * rewrite_s / (dwell_s + turn_s) + 3 * turn_s
    assert len(kept.shown) >= 1.5 * len(free.shown)


def test_a_stream_whose_own_weights_change_waits_for_nobody():
    turns = Turns(BUDGET_S)
    for number in range(9):
        assert turns.dwell(float(number), {number, "other"}) is None
        turns.begin(float(number), number, rewrites=True)


@pytest.mark.parametrize(
    ("rewrite_s", "groups", "dwell_s"),
    [
        ([], 1, 0.0),
        ([0.1], 1, 0.0),
        ([], 2, 0.5),  # not known yet: as long as may be
        ([], 3, 0.25),
        ([0.02, 0.01, 0.03], 2, 0.06),
        ([9.0], 2, 0.5),
        ([-0.001], 2, 0.0),  # too little to be measured
    ],
)
def test_weights_dwell_for_three_times_what_writing_them_takes(rewrite_s, groups, dwell_s):
    assert scheduler.dwell_s(rewrite_s, groups, BUDGET_S) == pytest.approx(dwell_s)


def test_an_engine_is_started_again_twice_in_a_minute_at_most():
    assert scheduler.may_restart(100.0, [])
    assert scheduler.may_restart(100.0, [99.0])
    assert not scheduler.may_restart(100.0, [41.0, 99.0])
    assert scheduler.may_restart(101.0, [41.0, 99.0])
    assert scheduler.may_restart(1000.0, [1.0, 2.0, 3.0, 4.0])


def test_an_engine_slower_than_the_budget_still_shows_frames():
    played = simulate(3.0, fps_in=30, duration_s=30, budget_s=1.0)
    assert len(played.shown) >= 9
    assert max(frame.age_s for frame in played.shown) <= 3.0 + 1 / 30 + 1e-9


def test_a_frame_older_than_the_budget_is_dropped_and_not_shown():
    played = simulate(2.0, fps_in=[0.4, 30], duration_s=20, budget_s=0.5)
    assert all(frame.picked_s - frame.arrived_s <= 0.5 for frame in played.shown)
    assert played.dropped[0] > 0


SCALES = (1.0, 0.75, 0.5)
FOUR = ladder(4, SCALES)


def measured(seconds_by_rung):
    """By rung, or by steps at full size."""
    return {
        kind if isinstance(kind, Rung) else Rung(kind): [seconds] * MIN_SAMPLES
        for kind, seconds in seconds_by_rung.items()
    }


def test_the_ladder_takes_steps_off_first_and_then_size():
    assert ladder(3, SCALES) == (Rung(3), Rung(2), Rung(1), Rung(1, 0.75), Rung(1, 0.5))
    assert ladder(1) == (Rung(1),)
    assert FOUR[-5:] == ladder(3, SCALES)


def test_quality_stays_as_asked_while_the_budget_holds():
    assert next_quality(0, Quality(), FOUR, measured({4: 0.9}), BUDGET_S) == Quality()
    assert next_quality(0, Quality(), FOUR, {}, BUDGET_S) == Quality()


@pytest.mark.parametrize(
    ("seconds_by_rung", "rung"),
    [
        ({4: 1.6}, Rung(2)),  # 2 steps: 0.8 s
        ({4: 3.9}, Rung(1)),
        ({4: 99.0}, Rung(1)),  # nothing that is known to fit, and this takes least
    ],
)
def test_quality_goes_down_to_the_first_rung_that_fits(seconds_by_rung, rung):
    assert next_quality(0, Quality(), FOUR, measured(seconds_by_rung), BUDGET_S) == Quality(rung)


@pytest.mark.parametrize(
    ("seconds", "rung"),
    [
        (1.5, Rung(1, 0.75)),  # 9/16 of that: 0.84 s
        (2.5, Rung(1, 0.5)),
        (99.0, Rung(1, 0.5)),
    ],
)
def test_size_goes_when_a_single_step_does_not_fit(seconds, rung):
    assert next_quality(0, Quality(Rung(1)), FOUR, measured({4: 9.0, 1: seconds}), BUDGET_S) == Quality(rung)


def test_the_rung_stays_when_other_steps_are_asked_for_and_where_there_is_none_all_are_given():
    slow = measured({Rung(1, 0.75): 0.9})
    assert next_quality(0, Quality(Rung(1, 0.75)), ladder(2, SCALES), slow, BUDGET_S) == Quality(Rung(1, 0.75))
    assert next_quality(0, Quality(Rung(1, 0.75)), ladder(8, SCALES), slow, BUDGET_S) == Quality(Rung(1, 0.75))
    assert next_quality(0, Quality(Rung(3)), ladder(2, SCALES), measured({3: 0.9}), BUDGET_S) == Quality()
    assert next_quality(0, Quality(Rung(2)), ladder(2, SCALES), measured({2: 0.9}), BUDGET_S) == Quality()


def test_one_slow_frame_does_not_lower_the_quality():
    assert next_quality(0, Quality(), FOUR, {Rung(4): [0.3, 5.0, 0.3]}, BUDGET_S) == Quality()
    assert next_quality(0, Quality(), FOUR, {Rung(4): [5.0]}, BUDGET_S) == Quality()


def test_quality_comes_back_one_rung_at_a_time_after_lasting_headroom():
    fast = measured({Rung(1, 0.5): 0.1})
    lowest = Quality(Rung(1, 0.5))
    waiting = next_quality(10.0, lowest, FOUR, fast, BUDGET_S)
    assert waiting == Quality(Rung(1, 0.5), roomy_since_s=10.0)
    assert next_quality(10.0 + RAISE_AFTER_S / 2, waiting, FOUR, fast, BUDGET_S) == waiting
    assert next_quality(10.0 + RAISE_AFTER_S, waiting, FOUR, fast, BUDGET_S) == Quality(Rung(1, 0.75))
    # A moment without headroom starts the wait anew.
    assert next_quality(11.0, waiting, FOUR, measured({Rung(1, 0.5): 0.5}), BUDGET_S) == lowest
    assert next_quality(0, Quality(Rung(2), 0.0), FOUR, measured({2: 0.2}), BUDGET_S) == Quality(Rung(2), 0.0)
    assert next_quality(9, Quality(Rung(2), 0.0), FOUR, measured({2: 0.2}), BUDGET_S) == Quality(Rung(3))
    assert next_quality(9, Quality(Rung(3), 0.0), FOUR, measured({2: 0.2}), BUDGET_S) == Quality()


@given(st.floats(0.01, 2.0), st.floats(0.0, 2.0), st.integers(1, 8), st.sampled_from([(1.0,), SCALES]))
@settings(max_examples=60)
def test_a_steady_engine_makes_the_quality_settle(step_s, fixed_s, steps, scales):
    rungs = ladder(steps, scales)
    times_s = {rung: fixed_s + step_s * rung.work for rung in rungs}
    played = play(rungs, times_s.__getitem__)
    settled = Counter(played[-40:]).most_common(1)[0][0]
    assert set(played) <= set(rungs)
    if times_s[rungs[0]] <= BUDGET_S:
        assert set(played) == {rungs[0]}
    elif times_s[rungs[-1]] <= BUDGET_S:
        assert times_s[settled] <= BUDGET_S
        assert len(set(played[-20:])) <= 2, "it may try a better rung now and then, not swing"
    else:
        assert scheduler.WORTH_GOING * times_s[settled] <= times_s[rungs[-1]], "not where less would help"


def test_a_smaller_size_that_takes_longer_is_tried_and_not_kept():
    """As with code that was compiled for the full size alone."""
    compiled = {Rung(2): 2.2, Rung(1): 1.2, Rung(1, 0.75): 1.6, Rung(1, 0.5): 1.3}
    played = play(ladder(2, SCALES), compiled.__getitem__, frames=40)
    assert {Rung(1, 0.75), Rung(1, 0.5)} <= set(played)
    assert set(played[-10:]) == {Rung(1)}
    # One that is somewhat faster is kept, though it does not hold the budget either.
    played = play(ladder(2, SCALES), {**compiled, Rung(1, 0.5): 1.02}.__getitem__, frames=40)
    assert set(played[-10:]) == {Rung(1, 0.5)}


def play(rungs, engine_s, frames=200):
    """The rungs of frames that are painted one after the other."""
    quality, times, now_s, played = Quality(), EngineTimes(), 0.0, []
    for _ in range(frames):
        quality = next_quality(now_s, quality, rungs, times.recent(now_s), BUDGET_S)
        rung = quality.rung or rungs[0]
        now_s += engine_s(rung)
        times.add(now_s, rung, engine_s(rung))
        played.append(rung)
    return played


def test_old_measurements_are_forgotten_and_failures_later():
    times = EngineTimes()
    times.add(0.0, 4, 9.0)
    times.add(0.0, 4, math.inf)
    assert times.recent(scheduler.SAMPLE_LIFE_S)[4] == [9.0, math.inf]
    assert times.recent(scheduler.SAMPLE_LIFE_S + 1)[4] == [math.inf]
    assert times.recent(scheduler.FAILURE_LIFE_S + 1)[4] == times.of(4, scheduler.FAILURE_LIFE_S + 1) == []
    assert times.of("another", 0.0) == []


@given(st.lists(st.sampled_from([0.1, 0.9, math.inf]), max_size=5), st.integers(1, 4))
def test_a_failure_is_no_engine_time(times_s, steps):
    finite = [seconds for seconds in times_s if seconds < math.inf]
    assert follow_at_s(1.0, times_s, 0.1) == follow_at_s(1.0, finite, 0.1)
    for better in (Rung(steps), Rung(1)):
        seen = next_quality(0, Quality(), FOUR, {better: times_s}, BUDGET_S)
        assert seen == next_quality(0, Quality(), FOUR, {better: finite}, BUDGET_S)
    assert gains_behind(False, 2, times_s, [], BUDGET_S) == gains_behind(False, 2, finite, [], BUDGET_S)


@given(
    st.integers(1, 12),
    st.integers(1, 8),
    st.dictionaries(st.sampled_from(BATCHES), st.lists(st.floats(0.001, 3), max_size=5)),
)
def test_a_batch_is_no_more_than_waits_and_may_be_and_keeps_the_budget(count, largest, measured_s):
    size = batch_size(count, largest, measured_s, BUDGET_S)
    assert size in BATCHES
    assert size <= min(count, largest)
    if size > 1 and len(measured_s.get(size, [])) >= TRIALS:
        assert min(measured_s[size]) <= BUDGET_S


@given(st.integers(1, 12), st.dictionaries(st.sampled_from(BATCHES), st.lists(st.sampled_from([0.01, math.inf]))))
def test_a_size_that_failed_is_not_chosen_nor_one_as_large(count, measured_s):
    failed = [size for size, times in measured_s.items() if math.inf in times]
    size = batch_size(count, 8, measured_s, BUDGET_S)
    assert size == 1 or size < min(failed, default=9)


def test_a_size_that_fails_is_tried_once_and_again_when_that_is_long_ago():
    sizes = settle(lambda size: 0.1 if size < 4 else math.inf, seconds=60)
    assert (sizes.count(8), sizes.count(4)) == (1, 1)
    assert sizes[-1] == 2
    sizes = settle(lambda size: 0.1 if size < 8 else math.inf, seconds=scheduler.FAILURE_LIFE_S + 60)
    assert sizes.count(8) == 2


@pytest.mark.parametrize(
    ("fixed_s", "frame_s", "settled"),
    [
        (0.010, 0.001, 8),  # a GPU that is idle between launches: the more together the better
        (0.0, 0.1, 8),  # nothing gained, nothing lost
        (0.0, 0.3, 2),  # four would take longer than the budget
        (0.0, 1.5, 1),
    ],
)
def test_the_batch_size_settles_where_a_frame_takes_least(fixed_s, frame_s, settled):
    assert settle(lambda size: fixed_s + frame_s * size)[-1] == settled


def test_a_size_that_is_slower_per_frame_is_tried_and_left_and_tried_again_when_all_that_is_old():
    def engine_s(size):
        return 0.02 * size**1.5

    sizes = settle(engine_s)
    assert sizes[: 1 + 3 * TRIALS] == [1] + [8] * TRIALS + [4] * TRIALS + [2] * TRIALS
    assert set(sizes[1 + 3 * TRIALS :]) == {1}
    once_more = settle(engine_s, seconds=scheduler.SAMPLE_LIFE_S + 5)
    assert 8 in once_more[len(once_more) // 2 :]


def test_what_a_size_takes_while_it_warms_up_is_not_held_against_it():
    warming_s = {8: iter([9.0, 0.5, 2.0])}  # the first call, one as it is, the recording of a graph
    sizes = settle(lambda size: next(warming_s.get(size, iter(())), 0.01 + 0.001 * size))
    assert sizes[-1] == 8


def settle(engine_s, seconds=15.0):
    """The sizes chosen while eight frames wait at any time."""
    times, now_s, sizes = EngineTimes(), 0.0, []
    while now_s < seconds:
        sizes.append(batch_size(8, 8, times.recent(now_s), BUDGET_S))
        took_s = engine_s(sizes[-1])
        now_s += 0.1 if took_s == math.inf else took_s
        times.add(now_s, sizes[-1], took_s)
    return sizes


def known(seconds):
    return [seconds] * TRIALS


def test_steps_are_shared_where_that_takes_less_time_and_not_before_both_are_known():
    assert not gains_behind(False, 4, known(0.1)[1:], [], BUDGET_S)
    assert gains_behind(False, 4, known(0.1), [], BUDGET_S)
    assert gains_behind(True, 4, known(0.1), [0.3, 0.2, 0.2], BUDGET_S), "its first calls warm up"
    assert not gains_behind(True, 4, known(0.1), known(0.1), BUDGET_S)
    assert gains_behind(False, 4, known(0.1), known(0.05), BUDGET_S)
    assert not gains_behind(False, 1, known(0.1), [], BUDGET_S), "with one step there is nothing to share"


def test_steps_are_shared_only_within_the_latency_budget():
    assert not gains_behind(False, 4, known(0.26), [], BUDGET_S), "four calls would take 1.04 s"
    assert gains_behind(True, 4, known(0.3), known(0.2), BUDGET_S)
    assert not gains_behind(True, 4, known(0.3), known(0.2), 0.7)


def test_sharing_goes_on_at_a_gain_too_small_to_begin_for():
    alone_s, together_s = known(0.1), known(0.093)
    assert not gains_behind(False, 2, alone_s, together_s, BUDGET_S)
    assert gains_behind(True, 2, alone_s, together_s, BUDGET_S)


def test_sharing_that_failed_is_not_tried_again_at_once():
    assert not gains_behind(False, 2, known(0.1), [math.inf], BUDGET_S)


@pytest.mark.parametrize(("call_s", "settled"), [(0.4, True), (1.0, False), (1.3, False)])
def test_sharing_settles_on_what_gives_more_pictures(call_s, settled):
    """call_s: a call with four frames in it, of one frame's time alone."""
    alone, together, chosen, now_s = EngineTimes(), EngineTimes(), [], 0.0
    while len(chosen) < 400:
        is_sharing = bool(chosen) and chosen[-1]
        recent = alone.recent(now_s).get(4, ()), together.recent(now_s).get(4, ())
        chosen.append(gains_behind(is_sharing, 4, *recent, BUDGET_S))
        times, took_s = (together, 0.05 * call_s) if chosen[-1] else (alone, 0.05)
        now_s += took_s
        times.add(now_s, 4, took_s)
    assert chosen[: 2 * TRIALS] == [False] * TRIALS + [True] * TRIALS
    assert set(chosen[2 * TRIALS :]) == {settled}


def test_the_next_batch_is_launched_just_before_the_engine_would_have_nothing_to_do():
    assert follow_at_s(since_s=100.0, engine_s=[0.030, 0.020, 0.025], launch_s=0.002) == pytest.approx(100.017)
    assert follow_at_s(since_s=100.0, engine_s=[0.003], launch_s=0.2) < 100  # at once
    assert follow_at_s(since_s=100.0, engine_s=[], launch_s=0.002) is None
