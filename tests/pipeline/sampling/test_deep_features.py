"""Deep features that are used again: exact where nothing changed, near where little did, and never another's."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import ControlNet, Controls, Lora, ModelSpec, load
from pipeline.runtime.graphs import Graphs
from pipeline.sampling.deep_features import Keeping, Shallow, part, reduced
from tests import tiny
from tests.pipeline.runtime.test_graphs import Recorder

SIZE = (96, 64)  # latents of 12 x 8, no multiple of what the UNets scale by
SMOOTH = np.kron(np.random.default_rng(0).integers(0, 256, (4, 8, 12, 3), np.uint8), np.ones((1, 8, 8, 1), np.uint8))
FRAME = SMOOTH[:1]
ALIKE = np.clip(FRAME.astype(int) + np.random.default_rng(1).integers(-5, 6, FRAME.shape), 0, 255).astype(np.uint8)
MASK = np.zeros((1, 64, 96), np.uint8)
MASK[:, :, 30:] = 255
LIVE = Controls(prompt="a cat", steps=2, reuse=2)


def model(base, **parts):
    spec = ModelSpec(str(base), width=SIZE[0], height=SIZE[1], dtype="float32", **parts)
    return load(spec, "cpu", compile=False)


SYSTEMS = {
    "sd15": lambda at: model(tiny.checkpoint(at)),
    "full LCM": lambda at: model(tiny.checkpoint(at, guidance_embedding=True)),
    "sdxl": lambda at: model(tiny.checkpoint(at, unet=tiny.XL)),
    "ssd-1b": lambda at: model(tiny.checkpoint(at, unet=tiny.SSD)),
    "inpainting": lambda at: model(tiny.checkpoint(at, unet={**tiny.UNET, "in_channels": 9})),
    "sdxl adapter": lambda at: model(
        tiny.checkpoint(at, unet=tiny.XL), adapter=str(tiny.adapter(at / "net", sdxl=True))
    ),
    "controlnet and adapter": lambda at: model(
        tiny.checkpoint(at), controlnet=str(tiny.controlnet(at / "a")), adapter=str(tiny.adapter(at / "b"))
    ),
}


def orders(stylizer, monkeypatch, frames, *controls: Controls):
    """What the painter is given for these controls."""
    seen = []
    with monkeypatch.context() as listening:
        listening.setattr(stylizer, "_paint", lambda order: seen.append(order) or stylizer.painter(order))
        for each in controls:
            stylizer(frames, each)
    return seen


@pytest.mark.parametrize("system", SYSTEMS)
def test_with_its_own_features_a_frame_is_painted_as_a_whole_call_does(system, tmp_path, monkeypatch):
    stylizer = SYSTEMS[system](tmp_path)
    unet, extras = stylizer.components.unet, stylizer.components.extras
    for order in orders(stylizer, monkeypatch, FRAME, Controls(steps=1), Controls(steps=1, guidance=3.0)):
        whole = stylizer.painter(order)
        for outer in (1, 2):
            monkeypatch.setattr(stylizer.painter, "keeping", Keeping(unet, extras, outer))
            monkeypatch.setattr(stylizer.painter, "shallow", Shallow(unet, extras, outer))
            pictures, deep = stylizer.painter.keep(order)
            assert np.array_equal(pictures, whole)
            with monkeypatch.context() as below:  # what lies there does not run
                for block in (*unet.down_blocks[outer:], *unet.up_blocks[:-outer]):
                    below.setattr(block, "forward", None)
                assert np.array_equal(stylizer.painter.reuse((order, deep)), whole)


@pytest.fixture(scope="module")
def stylizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reuse")
    base = tiny.checkpoint(folder / "base", unet=tiny.SMALLEST)
    return model(
        base,
        loras=(Lora(str(tiny.lora(folder, base)), name="style"),),
        controlnet=ControlNet(str(tiny.controlnet(folder / "net", unet=tiny.SMALLEST)), "canny"),
    )


def test_features_are_used_as_often_as_asked_then_made_anew(stylizer):
    memory, used = None, []
    for frame in (FRAME, ALIKE, ALIKE, ALIKE):
        (picture,), (memory,) = stylizer.remembering(frame, [LIVE], [memory])
        used.append(memory.used)
        is_whole = np.array_equal(picture, stylizer(frame, LIVE)[0])
        assert is_whole == (memory.used == 0)
    assert used == [0, 1, 2, 0]


def test_the_same_frame_gives_the_same_picture(stylizer):
    whole, memories = stylizer.remembering(FRAME, [LIVE], [None])
    again, (memory,) = stylizer.remembering(FRAME, [LIVE], memories)
    assert memory.used == 1
    assert np.array_equal(again, whole)
    assert np.array_equal(whole, stylizer(FRAME, LIVE))


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
    _, memories = stylizer.remembering(FRAME, [LIVE], [None])
    controls = LIVE.merged(change)
    pictures, (memory,) = stylizer.remembering(frame, [controls], memories, mask)
    assert memory.used == 0
    assert np.array_equal(pictures, stylizer(frame, controls, mask))


def test_a_slow_change_adds_up(stylizer):
    """Each frame is near the last, and the third is not near the one that the features are of."""
    memory, used, controls = None, [], LIVE.merged({"reuse": 8})
    for level in (100, 106, 112, 118):
        _, (memory,) = stylizer.remembering(np.full_like(FRAME, level), [controls], [memory])
        used.append(memory.used)
    assert used == [0, 1, 0, 1]


def test_a_masked_stream_reuses_while_its_mask_stays(stylizer):
    _, memories = stylizer.remembering(FRAME, [LIVE], [None], MASK)
    pictures, (memory,) = stylizer.remembering(FRAME, [LIVE], memories, MASK.copy())
    assert memory.used == 1
    assert np.array_equal(pictures, stylizer(FRAME, LIVE, MASK))


def test_video_as_it_came_is_served_too(stylizer):
    came = stylizer.live(FRAME, [LIVE])[1]  # any I420 will do
    whole, memories = stylizer.remembering(came, [LIVE], [None], live=True)
    again, (memory,) = stylizer.remembering(came, [LIVE], memories, live=True)
    assert memory.used == 1
    for ours, expected, plain in zip(again, whole, stylizer.live(came, [LIVE]), strict=True):
        assert np.array_equal(ours, expected)
        assert np.array_equal(ours, plain)
    _, (memory,) = stylizer.remembering(FRAME, [LIVE], [memory], live=True)
    assert memory.used == 0


def test_nothing_is_kept_of_what_is_not_painted(stylizer):
    controls = LIVE.merged({"bypass": True})
    pictures, memories = stylizer.remembering(FRAME, [controls], [None])
    assert memories == [None]
    assert np.array_equal(pictures, FRAME)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_streams_in_a_batch_keep_to_their_own_features(stylizer, guidance):
    each = [LIVE.merged({"prompt": p, "seed": s, "guidance": guidance}) for p, s in (("a cat", 1), ("a dog", 2))]
    first, second = SMOOTH[:2], np.concatenate([ALIKE, SMOOTH[1:2]])
    _, memories = stylizer.remembering(first, each, [None, None])
    together, _ = stylizer.remembering(second, each, memories)
    for i in range(2):
        _, alone = stylizer.remembering(first[i : i + 1], [each[i]], [None])
        picture, (memory,) = stylizer.remembering(second[i : i + 1], [each[i]], alone)
        assert memory.used == 1
        assert np.abs(picture[0].astype(int) - together[i]).max() <= 1
    swapped, _ = stylizer.remembering(second[::-1].copy(), each[::-1], memories[::-1])
    assert np.abs(swapped[::-1].astype(int) - together).max() <= 1
    # Where one needs new features, all get them.
    _, alone = stylizer.remembering(first[:1], each[:1], [None])
    _, renewed = stylizer.remembering(second, each, [alone[0], None])
    assert [memory.used for memory in renewed] == [0, 0]


def test_recorded_reuse_equals_the_plain_one(stylizer, monkeypatch):
    keeping, reusing = Recorder(), Recorder()
    controls = LIVE.merged({"steps": 1, "guidance": 2.0, "reuse": 1})
    frames = [FRAME, ALIKE] * 2

    def clip():
        memory = None
        for frame in frames:
            picture, (memory,) = stylizer.remembering(frame, [controls], [memory])
            yield picture

    plain = list(clip())
    monkeypatch.setattr(stylizer, "_keep", Graphs(stylizer.painter.keep, keeping))
    monkeypatch.setattr(stylizer, "_reuse", Graphs(stylizer.painter.reuse, reusing))
    list(clip())
    for graphs in (stylizer._keep, stylizer._reuse):
        assert graphs.record_next(1)
        assert not graphs.record_next(1)
    for ours, expected in zip(clip(), plain, strict=True):
        assert np.array_equal(ours, expected)
    assert keeping.count == reusing.count == 1


def test_a_batchs_features_fall_apart_into_each_pictures_own(stylizer, monkeypatch):
    (order,) = orders(stylizer, monkeypatch, SMOOTH[:3], LIVE.merged({"guidance": 2.0}))
    _, deep = stylizer.painter.keep(order)
    assert [len(step) for step in deep] == [2, 2]  # with CFG without and with the prompt
    assert {len(features) for step in part(deep, 1) for features in step} == {1}


def test_frames_are_compared_in_little():
    assert reduced(FRAME[0]).shape == (32, 32, 3)
    noise = np.random.default_rng(2).integers(-20, 21, (256, 256, 3))
    grey = np.full((256, 256, 3), 128, np.uint8)
    assert np.abs(reduced((grey + noise).astype(np.uint8)) - reduced(grey)).mean() < 2
