"""Which of a publisher's layers is taken."""

from __future__ import annotations

import random

import pytest

from stream.webrtc.receiving.bitstream import coded_size
from stream.webrtc.receiving.jitter_buffer import read_payload
from stream.webrtc.receiving.layers import GONE_S, MAX_LAYERS, SILENT_S, Layers, retransmissions

from .test_jitter_buffer import KEYFRAMES

SIZES = {1: (320, 180), 2: (640, 360), 3: (1280, 720)}


def begin(layers: Layers, now_s: float = 10.0, ssrcs=(1, 2, 3)) -> None:
    """Each sends a keyframe, then the rest of it."""
    for ssrc in ssrcs:
        layers.take(ssrc, True, SIZES[ssrc], now_s)
        layers.take(ssrc, False, None, now_s)


@pytest.mark.parametrize(
    ("model", "taken"), [((256, 256), 2), ((320, 180), 1), ((512, 512), 3), ((2048, 2048), 3), (None, 3)]
)
@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
def test_the_layer_that_fits_the_model_best_is_taken(model, taken, order):
    layers = Layers(model)
    begin(layers, ssrcs=order)
    assert (layers.current, layers.ignored) == (taken, 2)
    assert [layers.take(ssrc, False, None, 10.1) for ssrc in (1, 2, 3)] == [ssrc == taken for ssrc in (1, 2, 3)]
    assert layers.ask(10.1) is None


def test_a_single_stream_is_taken_whatever_it_tells_of_itself():
    layers = Layers((512, 512))
    assert layers.take(7, False, None, 10.0)
    assert layers.take(7, True, (16, 16), 10.1)
    assert (layers.ignored, layers.ask(10.2)) == (0, None)


def test_a_better_layer_is_left_for_only_where_its_keyframe_begins():
    layers = Layers((512, 512))
    begin(layers, ssrcs=(1,))
    assert not layers.take(3, False, None, 10.0)
    assert layers.ask(10.0) == 3  # nobody knows yet how large it is
    assert layers.ask(10.1) is None
    assert not layers.take(3, False, None, 10.2)
    assert layers.take(3, True, SIZES[3], 10.3)
    assert not layers.take(1, True, SIZES[1], 10.3)


def test_a_layer_that_falls_silent_is_replaced_by_the_next_keyframe_of_another_and_taken_again_when_it_comes_back():
    layers = Layers(None)
    begin(layers)
    now_s = 10.0 + SILENT_S
    for part in range(1, 6):
        assert not layers.take(2, False, None, 10.0 + SILENT_S * part / 5)
    assert layers.ask(now_s) == 2
    assert layers.take(2, True, SIZES[2], now_s + 0.1)
    assert layers.current == 2
    assert layers.take(3, True, SIZES[3], now_s + 0.2)


def test_what_is_silent_is_ignored_no_more():
    layers = Layers(None)
    begin(layers)
    layers.take(3, False, None, 10.0 + GONE_S)
    layers.take(9, False, None, 10.0 + GONE_S)
    assert layers.ignored == 1


def test_any_number_of_streams_takes_little_memory():
    layers = Layers(None)
    taken = [ssrc for ssrc in range(1000) if layers.take(ssrc, False, None, 10.0)]
    assert taken == [0]
    assert layers.ignored < MAX_LAYERS


def test_it_ends_only_where_all_have_said_goodbye():
    layers = Layers(None)
    begin(layers)
    assert not layers.ends_with([3], 10.1)
    assert not layers.ends_with([77], 10.1)
    assert layers.ends_with([1, 2], 10.1)


def test_the_offer_tells_whose_retransmissions_are_whose():
    offer = "a=ssrc-group:SIM 1 2\r\na=ssrc-group:FID 1 11\r\na=ssrc-group:FID 2 12\r\na=ssrc:1 cname:x\r\n"
    assert retransmissions(offer) == {11: 1, 12: 2}
    assert retransmissions("v=0\r\n") == {}


@pytest.mark.parametrize("payloads", KEYFRAMES.values(), ids=KEYFRAMES)
def test_a_new_ssrc_of_h264_is_switched_to_however_its_keyframes_begin(payloads):
    layers, taken = Layers((512, 512)), []
    for ssrc, now_s in ((1, 10.0), (2, 11.0)):
        for payload in (read_payload("H264", payload) for payload in payloads):
            taken.append(layers.take(ssrc, payload.begins_key, coded_size("H264", payload.data), now_s))
        assert layers.current == ssrc
    assert taken[-1]


@pytest.mark.parametrize("fps", [1.0, 1.5, 2.0, 5.0, 30.0])
@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_layers_of_a_slow_picture_are_kept_apart_without_asking(fps, order):
    layers, wants_key, dice = Layers((512, 512)), set(SIZES), random.Random(1)
    taken, asked = [], 0
    for number in range(int(60 * fps)):
        for at, ssrc in enumerate(order):
            now_s = 10.0 + number / fps + at * 0.003 + dice.random() * 0.004
            key = ssrc in wants_key
            wants_key.discard(ssrc)
            for part in range(3):
                layers.take(ssrc, key and part == 0, SIZES[ssrc] if key and part == 0 else None, now_s)
                other = layers.ask(now_s)
                if other is not None:
                    asked += 1
                    wants_key.add(other)
            taken.append(layers.current)
    assert set(taken[6:]) == {3}
    assert asked <= 6
    assert layers.ignored == 2


def test_once_a_layer_fell_silent_the_best_of_the_others_is_found():
    layers, wants_key = Layers(None), set(SIZES)
    for number in range(150):
        for ssrc in (1, 2, 3) if number < 60 else (1, 2):
            now_s, key = 10.0 + number / 30, ssrc in wants_key
            wants_key.discard(ssrc)
            layers.take(ssrc, key, SIZES[ssrc] if key else None, now_s)
            if (other := layers.ask(now_s)) is not None:
                wants_key.add(other)
    assert layers.current == 2


def test_the_ssrc_before_is_no_ignored_layer():
    layers = Layers((512, 512))
    layers.take(1, True, SIZES[3], 10.0)
    layers.take(2, True, SIZES[3], 11.0)
    for number in range(30):
        layers.take(2, False, None, 11.0 + number / 10)
    assert (layers.current, layers.ignored) == (2, 0)
