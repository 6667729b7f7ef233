"""Deep features that are used again: exact where nothing changed, near where little did, and never another's."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import Controls, Lora, ModelSpec, load
from pipeline.runtime.graphs import Graphs
from pipeline.sampling.reuse import MOST_STREAMS, coarse, part
from pipeline.settings import ControlNet
from pipeline.stylizer import Stylizer
from tests import tiny
from tests.pipeline.calls import sharing_steps, submitted
from tests.pipeline.recorders import Recorder
from tests.pipeline.sampling.test_deep_features import orders

SIZE = (96, 64)  # latents of 12 x 8, no multiple of what the UNets scale by
SMOOTH = np.kron(np.random.default_rng(0).integers(0, 256, (4, 8, 12, 3), np.uint8), np.ones((1, 8, 8, 1), np.uint8))
FRAME = SMOOTH[:1]
ALIKE = np.clip(FRAME.astype(int) + np.random.default_rng(1).integers(-5, 6, FRAME.shape), 0, 255).astype(np.uint8)
MASK = np.zeros((1, 64, 96), np.uint8)
MASK[:, :, 30:] = 255
LIVE = Controls(prompt="a cat", steps=2, reuse=2)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reuse")
    base = tiny.checkpoint(folder / "base", unet=tiny.SMALLEST)
    spec = ModelSpec(
        str(base),
        loras=(Lora(str(tiny.lora(folder, base)), name="style"),),
        controlnet=ControlNet(str(tiny.controlnet(folder / "net", unet=tiny.SMALLEST)), "canny"),
        width=SIZE[0],
        height=SIZE[1],
        dtype="float32",
    )
    return load(spec, "cpu", compile=False)


@pytest.fixture
def stylizer(loaded):
    loaded.forget()
    return loaded


def painted(stylizer, frame, controls=LIVE, stream="a", **more):
    """The next frame of a stream."""
    return submitted(stylizer, frame, controls, streams=(stream,), **more)


def test_features_are_used_as_often_as_asked_then_made_anew(stylizer):
    kinds = []
    for frame in (FRAME, ALIKE, ALIKE, ALIKE):
        pictures = painted(stylizer, frame)
        kinds.append(pictures.kind)
        is_whole = np.array_equal(pictures.rgb, stylizer(frame, LIVE))
        assert is_whole == (pictures.kind == "anew")
    assert kinds == ["anew", "again", "again", "anew"]


def test_the_same_frame_gives_the_same_picture(stylizer):
    whole, again = painted(stylizer, FRAME), painted(stylizer, FRAME)
    assert again.kind == "again"
    assert np.array_equal(again.rgb, whole.rgb)
    assert np.array_equal(whole.rgb, stylizer(FRAME, LIVE))


@pytest.mark.parametrize(
    ("frame", "change", "mask"),
    [
        (SMOOTH[1:2], {}, None),
        (FRAME, {}, MASK),
        *(
            (FRAME, change, None)
            for change in (
                {"prompt": "a dog"},
                {"strength": 0.9},
                {"steps": 1},
                {"guidance": 2.0},
                {"seed": 3},
                {"lora_weights": {"style": 0.2}},
                {"control_scale": 0.3},
                {"canny_high": 250},
            )
        ),
    ],
)
def test_any_change_starts_afresh(stylizer, frame, change, mask):
    painted(stylizer, FRAME)
    controls = LIVE.merged(change)
    pictures = painted(stylizer, frame, controls, mask=mask)
    assert pictures.kind == "anew"
    assert np.array_equal(pictures.rgb, stylizer(frame, controls, mask))


def test_a_slow_change_adds_up(stylizer):
    """Each frame is near the last, and the third is not near the one that the features are of."""
    controls = LIVE.merged({"reuse": 8})
    levels = (100, 106, 112, 118)
    kinds = [painted(stylizer, np.full_like(FRAME, level), controls).kind for level in levels]
    assert kinds == ["anew", "again", "anew", "again"]


def test_a_masked_stream_reuses_while_its_mask_stays(stylizer):
    painted(stylizer, FRAME, mask=MASK)
    pictures = painted(stylizer, FRAME, mask=MASK.copy())
    assert pictures.kind == "again"
    assert np.array_equal(pictures.rgb, stylizer(FRAME, LIVE, MASK))


def test_video_as_it_came_is_served_too(stylizer, monkeypatch):
    monkeypatch.setattr(Stylizer, "takes_i420", True)
    came = submitted(stylizer, FRAME, LIVE).i420  # any I420 will do
    whole, again, plain = painted(stylizer, came), painted(stylizer, came), submitted(stylizer, came, LIVE)
    assert (whole.kind, again.kind, plain.kind) == ("anew", "again", None)
    for ours, expected, alone in zip(*((one.rgb, one.i420) for one in (again, whole, plain)), strict=True):
        assert np.array_equal(ours, expected)
        assert np.array_equal(ours, alone)
    assert painted(stylizer, FRAME).kind == "anew"


def test_nothing_is_kept_of_what_is_not_painted(stylizer):
    painted(stylizer, FRAME)
    pictures = painted(stylizer, FRAME, LIVE.merged({"bypass": True}))
    assert pictures.kind is None
    assert np.array_equal(pictures.rgb, FRAME)
    assert painted(stylizer, FRAME).kind == "anew"


def test_without_a_stream_or_with_other_control_frames_nothing_is_reused(stylizer):
    for more in ({}, {"streams": ("a",), "control_frames": SMOOTH[1:2]}):
        for _ in range(2):
            assert submitted(stylizer, FRAME, LIVE, **more).kind is None


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_streams_in_a_batch_keep_to_their_own_features(stylizer, guidance):
    each = [LIVE.merged({"prompt": p, "seed": s, "guidance": guidance}) for p, s in (("a cat", 1), ("a dog", 2))]
    first, second = SMOOTH[:2], np.concatenate([ALIKE, SMOOTH[1:2]])
    submitted(stylizer, first, each, streams=("a", "b"))
    together = submitted(stylizer, second, each, streams=("a", "b"))
    assert together.kind == "again"
    for i in range(2):
        painted(stylizer, first[i : i + 1], each[i], stream=f"{i} alone")
        pictures = painted(stylizer, second[i : i + 1], each[i], stream=f"{i} alone")
        assert pictures.kind == "again"
        assert np.abs(pictures.rgb[0].astype(int) - together.rgb[i]).max() <= 1
    swapped = submitted(stylizer, second[::-1].copy(), each[::-1], streams=("b", "a"))
    assert swapped.kind == "again"
    assert np.abs(swapped.rgb[::-1].astype(int) - together.rgb).max() <= 1
    # Where one needs new features, all get them.
    painted(stylizer, first[:1], each[0], stream="c")
    assert submitted(stylizer, second, each, streams=("c", "d")).kind == "anew"
    assert submitted(stylizer, second, each, streams=("c", "d")).kind == "again"


def test_streams_are_forgotten_when_there_are_many_others_or_when_told(stylizer):
    controls = LIVE.merged({"steps": 1})
    painted(stylizer, FRAME, controls)
    for number in range(MOST_STREAMS - 1):
        painted(stylizer, FRAME, controls, stream=number)
    assert painted(stylizer, FRAME, controls).kind == "again"
    painted(stylizer, FRAME, controls, stream="one more")
    assert painted(stylizer, FRAME, controls, stream=0).kind == "anew"
    stylizer.forget()
    assert painted(stylizer, FRAME, controls).kind == "anew"


def test_frames_with_reuse_share_no_steps(stylizer):
    pending = sharing_steps(stylizer, FRAME, LIVE)
    assert pending.is_there()
    assert pending().kind == "anew"


def test_captured_reuse_equals_the_plain_one(stylizer, monkeypatch):
    keeping, reusing = Recorder(), Recorder()
    controls = LIVE.merged({"steps": 1, "guidance": 2.0, "reuse": 1})
    frames = [FRAME, ALIKE] * 2

    def clip():
        stylizer.forget()
        return [painted(stylizer, frame, controls).rgb for frame in frames]

    plain = clip()
    keep, reuse = Graphs(stylizer.sampler.keep, keeping), Graphs(stylizer.sampler.reuse, reusing)
    monkeypatch.setattr(stylizer._reuse, "_keep", keep)
    monkeypatch.setattr(stylizer._reuse, "_reuse", reuse)
    clip()
    for graphs in (keep, reuse):
        assert graphs.capture_next(1)
        assert not graphs.capture_next(1)
    for ours, expected in zip(clip(), plain, strict=True):
        assert np.array_equal(ours, expected)
    assert keeping.count == reusing.count == 1


def test_a_batchs_features_fall_apart_into_each_pictures_own(stylizer, monkeypatch):
    (order,) = orders(stylizer, monkeypatch, SMOOTH[:3], LIVE.merged({"guidance": 2.0}))
    _, deep = stylizer.sampler.keep(order)
    assert [len(step) for step in deep] == [2, 2]  # with CFG without and with the prompt
    assert {len(features) for step in part(deep, 1) for features in step} == {1}


def test_frames_are_compared_in_little():
    assert coarse(FRAME[0]).shape == (32, 32, 3)
    noise = np.random.default_rng(2).integers(-20, 21, (256, 256, 3))
    grey = np.full((256, 256, 3), 128, np.uint8)
    assert np.abs(coarse((grey + noise).astype(np.uint8)) - coarse(grey)).mean() < 2
