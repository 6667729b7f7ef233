"""What comes out of a receiver, whatever the network does to its packets: on a made-up clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.webrtc.receiving.jitter_buffer import MAX_PACKETS, read_payload
from stream.webrtc.receiving.nack import NackList, RoundTrip
from stream.webrtc.receiving.receiver import DEAF_S, PLI_EVERY_S, Actions, VideoReceiver

from .senders import Network, Run, Sender

FRAME_S = 1 / 30
CODECS = pytest.mark.parametrize("codec", ["VP8", "H264"])


@CODECS
@pytest.mark.parametrize("fps", [2.0, 5.0, 30.0])
def test_a_frame_leaves_with_its_last_packet_whatever_the_frame_rate(codec, fps):
    run = Run(Sender(codec, fps=fps), Network(one_way_s=0.005))
    run.until(5)
    assert len(run.left) >= 5 * fps - 1
    assert max(run.ages_s()) == pytest.approx(0.005)
    assert run.plis == []
    assert run.receiver.statistics().nacks == 0


@CODECS
def test_a_sender_that_never_sets_the_marker_bit_is_a_frame_late_and_no_more(codec):
    run = Run(Sender(codec, marks=False), Network())
    run.until(3)
    run.check()
    assert len(run.left) >= 88
    assert max(run.ages_s()) == pytest.approx(FRAME_S + 0.005, abs=0.001)
    assert run.receiver.statistics().nacks == 0


@CODECS
@pytest.mark.parametrize("round_trip_s", [0.01, 0.05, 0.15])
def test_a_lost_packet_costs_10_ms_and_a_round_trip_and_no_keyframe(codec, round_trip_s):
    run = Run(Sender(codec), Network(one_way_s=round_trip_s / 2))
    run.drops = {31}
    run.until(3)
    run.check()
    assert run.numbers() == list(range(len(run.left)))
    assert max(run.ages_s()) <= 1.5 * round_trip_s + 0.011 + 0.001
    assert run.plis == []
    told = run.receiver.statistics()
    assert (told.packets_lost, told.freezes) == (1, 0)
    assert told.round_trip_ms == pytest.approx(1000 * round_trip_s, abs=1)


@CODECS
@pytest.mark.parametrize("fps", [2.0, 30.0])
def test_a_lost_last_packet_is_not_waited_for_until_the_next_frame(codec, fps):
    run = Run(Sender(codec, fps=fps), Network())
    run.drops = {8 if codec == "VP8" else 9}
    run.until(3)
    run.check()
    assert run.numbers() == list(range(len(run.left)))
    assert max(run.ages_s()) <= 0.045


@CODECS
@pytest.mark.parametrize("round_trip_s", [0.01, 0.05, 0.15])
def test_a_packet_lost_for_good_freezes_for_half_a_second_and_a_round_trip_at_most(codec, round_trip_s):
    run = Run(Sender(codec), Network(one_way_s=round_trip_s / 2))
    run.until(2)
    sequence = run.sender.sequence + 1
    lost = run.sender.answer
    run.sender.answer = lambda outcome: [packet for packet in lost(outcome) if packet[0] != sequence]
    run.drops = {run._count + 1}
    run.until(6)
    run.check()
    gap_s = max(after - before for (before, _), (after, _) in zip(run.left, run.left[1:], strict=False))
    assert 0.2 < gap_s < 0.5 + round_trip_s
    assert len(run.plis) <= 2
    assert run.receiver.statistics().freezes == 1
    assert run.numbers()[-1] >= len(run.sender.frames) - 6


@CODECS
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("round_trip_s", [0.01, 0.15])
def test_after_three_seconds_of_30_percent_loss_pictures_are_back_within_a_second(codec, seed, round_trip_s):
    run = Run(Sender(codec), Network(one_way_s=round_trip_s / 2, seed=seed), packets=5)
    run.until(2)
    run.network.loss = 0.3
    run.until(5)
    run.network.loss = 0.0
    run.until(9)
    run.check()
    back_s = next(at_s for at_s, frame in run.left if at_s > run.began_s + 5) - run.began_s - 5
    assert back_s < 1.0
    late = [age_s for (at_s, _), age_s in zip(run.left, run.ages_s(), strict=True) if at_s > run.began_s + 6]
    assert max(late) < 0.01 + round_trip_s
    assert len(run.left) > 9 * 30 * 0.6


@CODECS
def test_five_percent_of_loss_costs_the_95th_percentile_less_than_60_ms(codec):
    run = Run(Sender(codec), Network(loss=0.05, one_way_s=0.005, seed=1), packets=5)
    run.until(60)
    run.check()
    assert sorted(run.ages_s())[len(run.left) * 95 // 100] < 0.005 + 0.060
    assert run.receiver.statistics().freezes == 0
    assert run.plis == []


def test_packets_that_come_half_a_second_late_raise_latency_for_no_longer_than_they_come():
    run = Run(Sender(), Network(), packets=1)
    run.until(2)
    run.network.one_way_s = 0.5
    run.until(3)
    run.network.one_way_s = 0.005
    run.until(6)
    run.check()
    late = [age_s for (at_s, _), age_s in zip(run.left, run.ages_s(), strict=True) if at_s > run.began_s + 4]
    assert max(late) == pytest.approx(0.005)
    assert len(late) >= 58


def test_a_sender_that_sends_no_keyframe_is_shown_smeared_after_a_while_and_then_sooner():
    run = Run(Sender(listens=False), Network())
    run.until(1)
    for second in range(1, 9):
        lost = {run.sender.sequence + 1}
        answer = Sender.answer
        run.sender.answer = lambda outcome, lost=lost, answer=answer: [
            packet for packet in answer(run.sender, outcome) if packet[0] not in lost
        ]
        run.drops = {run._count + 1}
        run.until(1 + 3 * second)
    run.check(smeared=True)
    gaps_s = [after - before for (before, _), (after, _) in zip(run.left, run.left[1:], strict=False)]
    long_s = [gap_s for gap_s in gaps_s if gap_s > 0.2]
    assert long_s[0] == pytest.approx(DEAF_S, abs=0.1)
    assert max(long_s[1:]) < 0.4


def test_plis_are_not_sent_more_often_than_each_300_ms():
    run = Run(Sender(listens=False), Network())
    run.drops = {0}
    run.sender.history.clear()
    run.network.loss = 0.5
    run.until(2)
    assert len(run.plis) > 1
    assert min(after - before for before, after in zip(run.plis, run.plis[1:], strict=False)) >= PLI_EVERY_S - 1e-9


@CODECS
@pytest.mark.parametrize("sequence", [0, 65_530, 40_000])
@pytest.mark.parametrize("seconds", [5, 3600])
def test_counts_that_go_round_and_timestamps_that_jump_disturb_nothing(codec, sequence, seconds):
    run = Run(Sender(codec, sequence=sequence, timestamp=2**32 - 4000), Network(loss=0.02, seed=2))
    run.until(2)
    run.sender.timestamp = (run.sender.timestamp + seconds * 90_000) & 0xFFFFFFFF
    run.until(4)
    run.check()
    assert run.numbers() == list(range(len(run.left)))


@CODECS
@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_a_sender_that_starts_anew_is_followed(codec, loss):
    run = Run(Sender(codec, sequence=60_000), Network(loss=loss, seed=6))
    run.until(2)
    run.sender.sequence, run.sender.timestamp, run.sender.wants_key = 20_000, 77, True
    run.sender.history.clear()
    at_s = run.now_s
    run.until(4)
    run.check()
    first_s = next(when_s for when_s, frame in run.left if frame.timestamp < 1_000_000 and when_s > at_s)
    assert first_s - at_s < (1.0 if loss else 0.05)


def test_padding_between_and_within_frames_is_no_frame():
    sender, receiver, left = Sender(), VideoReceiver(), []
    for number in range(20):
        for packet in [*sender.next_frame(3), *([sender.padding()] * 1 if number % 2 else [])]:
            left += receiver.receive(*packet[:6], 100 + number * FRAME_S, packet[6]).frames
    assert [frame.data for frame in left] == [whole for whole, _ in sender.frames]
    assert receiver.due_s() is None


def test_packets_that_cannot_be_read_cost_their_frame_and_no_more():
    run = Run(Sender(), Network())
    run.until(1)
    packet = run.sender._packet(True, b"\x90")  # a descriptor that ends too early
    run.receiver.receive(*packet[:6], run.now_s, False)
    run.until(3)
    numbers = run.numbers()
    assert numbers == sorted(set(numbers))
    assert len(numbers) > 75


def test_markers_on_every_packet_are_seen_through():
    sender, receiver, left = Sender(), VideoReceiver(), []
    for number in range(60):
        sender.wants_key = number % 10 == 0
        for packet in sender.next_frame(3):
            about = (*packet[:2], True, *packet[3:6])
            left += receiver.receive(*about, 100 + number * FRAME_S, False).frames
    assert [frame.data for frame in left[-45:]] == [whole for whole, _ in sender.frames[-46:-1]]


def test_a_frame_that_never_ends_does_not_fill_the_memory():
    receiver = VideoReceiver()
    for number in range(3 * MAX_PACKETS):
        payload = read_payload("VP8", b"\x90\x80\x01" + b"\x10\x00\x00\x9d\x01\x2a" + bytes(1000))
        receiver.receive(number & 0xFFFF, 5, False, "VP8", 96, payload, 100 + number / 1000)
        assert len(receiver._buffer._packets) <= MAX_PACKETS


def test_whole_seconds_of_loss_are_not_asked_for_again():
    run = Run(Sender(), Network(), packets=20)
    run.until(1)
    run.network.loss = 1.0
    run.until(4)
    asked = run.receiver.statistics().nacks
    run.network.loss = 0.0
    run.until(6)
    run.check()
    assert run.receiver.statistics().nacks - asked <= 2
    back_s = next(at_s for at_s, _ in run.left if at_s > run.began_s + 4) - run.began_s - 4
    assert back_s < 0.15
    assert run.receiver.statistics().packets_lost >= 1700


def fuzzed(seed: int) -> Run:
    """Whatever a network may do to a few frames, and then nothing for a second."""
    dice = random.Random(seed)
    sender = Sender(dice.choice(["VP8", "H264"]), dice.randrange(1 << 16), dice.randrange(1 << 32))
    sender.has_rtx, sender.marks = dice.random() < 0.8, dice.random() < 0.9
    network = Network(
        dice.choice([0.0, 0.05, 0.3, 0.9]),
        dice.choice([0.0, 0.005, 0.08]),
        dice.choice([0.0, 0.03, 0.6]),
        dice.choice([0.0, 0.3]),
        seed,
    )
    run = Run(sender, network, packets=dice.randrange(1, 5))
    run.until(0.35)
    if dice.random() < 0.2:  # it starts anew; packets of before come no later than a little
        network.jitter_s = min(network.jitter_s, 0.03)
        run.until(1.0)
        sender.sequence, sender.timestamp = dice.randrange(1 << 16), dice.randrange(1 << 32)
        sender.history.clear()
        run.until(1.3)
    network.loss = network.jitter_s = network.doubled = 0.0
    run.until(run.now_s - run.began_s + 1.5)
    return run


def newest_comes_out(seed: int) -> None:
    run = fuzzed(seed)
    numbers = run.numbers()
    assert numbers == sorted(set(numbers)), seed
    assert numbers, seed
    assert numbers[-1] >= len(run.sender.frames) - (5 if run.network.one_way_s > 0.05 else 2) - (
        not run.sender.marks
    ), seed


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_in_any_order_with_any_loss_the_newest_frame_comes_out_at_the_end(seed):
    newest_comes_out(seed)


@pytest.mark.prove
def test_ten_thousand_sequences_end_with_the_newest_frame():
    for seed in range(10_000):
        newest_comes_out(seed)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.1, 0.3]), st.sampled_from(["VP8", "H264"]))
def test_frames_leave_in_order_never_half_never_twice(seed, loss, codec):
    run = Run(Sender(codec), Network(loss, 0.02, 0.04, 0.1, seed))
    run.until(1.9)  # before anything is smeared
    run.check()


def test_units_of_h264_that_say_nothing_cost_nothing():
    sender, receiver, left = Sender("H264"), VideoReceiver(), []
    for number in range(10):
        *packets, last = sender.next_frame(2)
        rest = (last[1], True, *last[3:6])
        end = ((last[0] + 1) & 0xFFFF, last[1], True, "H264", 96, read_payload("H264", b"\x0a"))  # end of sequence
        for packet in (*packets, (last[0], last[1], False, *rest[2:]), end):
            left += receiver.receive(*packet[:6], 100 + number * FRAME_S).frames
        sender.sequence = (sender.sequence + 1) & 0xFFFF
    assert [frame.data for frame in left] == [whole for whole, _ in sender.frames]


def test_a_slow_picture_with_padding_between_does_not_freeze():
    sender, receiver = Sender(fps=2.0), VideoReceiver()
    for number in range(10):
        for packet in sender.next_frame(3):
            receiver.receive(*packet[:6], 100 + number / 2)
        packet = sender.padding()
        receiver.receive(*packet[:6], 100 + number / 2 + 0.25)
    assert receiver.statistics().freezes == 0


def test_a_slow_picture_that_loses_a_frame_freezes_once():
    run = Run(Sender(fps=2.0, has_rtx=False), Network())
    run.sender.answer = lambda outcome: Sender.answer(run.sender, Actions(pli=outcome.pli))
    run.drops = {9, 10, 11}
    run.until(8)
    assert run.receiver.statistics().freezes == 1


def test_a_sender_that_fell_silent_is_asked_for_nothing_until_it_sends_again():
    receiver, plis, now_s = VideoReceiver(), [], 100.0
    middle = read_payload("VP8", b"\x00\x01\x01")
    for number in range(3):
        receiver.receive(number, 3000 * number, True, "VP8", 96, middle, now_s)
    while (due_s := receiver.due_s()) is not None and due_s < now_s + 60:
        if receiver.tick(due_s).pli:
            plis.append(due_s)
    assert 0 < len(plis) <= 7
    assert not receiver.tick(now_s + 50).pli
    assert receiver.receive(3, 9000, True, "VP8", 96, middle, now_s + 60).pli


@CODECS
@pytest.mark.parametrize("jump", [300, 1970, 2990, -1970])
def test_a_sender_that_starts_anew_nearby_has_lost_nothing(codec, jump):
    run = Run(Sender(codec, sequence=10_000, timestamp=5_000_000), Network())
    run.until(2)
    run.sender.sequence, run.sender.timestamp, run.sender.wants_key = run.sender.sequence + jump, 3_000_000_000, True
    run.sender.history.clear()
    run.until(4)
    assert run.receiver.statistics().packets_lost == 0
    assert len(run.left) >= 118


def test_packets_nobody_asked_for_in_time_do_not_hide_those_that_are_due():
    nacks = NackList(RoundTrip())
    nacks.miss([5], 100.0)
    nacks.miss([9], 100.3)
    assert nacks.due_s(100.3) == pytest.approx(100.31)


def test_markers_are_trusted_again_after_a_restart():
    receiver, left = VideoReceiver(), []
    for sender, lies in ((Sender(), True), (Sender(sequence=9000, timestamp=7), False)):
        for number in range(10):
            for packet in sender.next_frame(3):
                about = (*packet[:2], packet[2] or lies, *packet[3:6])
                left += receiver.receive(*about, 100 + number * FRAME_S).frames
        if lies:
            receiver.restart()
    assert left[-1].data == sender.frames[-1][0]
