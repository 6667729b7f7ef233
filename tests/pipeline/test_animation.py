"""Clips: equal to diffusers' AnimateDiff pipelines, text to video and video to video; longer ones in windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, AnimateDiffVideoToVideoPipeline, LCMScheduler, MotionAdapter
from PIL import Image

from pipeline import Controls, LoadError, Lora, ModelSpec, animation, load
from tests import tiny

SIZE = (80, 64)
COUNT = 6


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("animation")
    base = tiny.checkpoint(folder / "base")
    return {"base": base, "motion": tiny.motion(folder / "motion"), "lora": tiny.lora(folder / "lora", base)}


@pytest.fixture(scope="module")
def stylizer(weights):
    spec = ModelSpec(
        str(weights["base"]),
        loras=(Lora(str(weights["lora"]), 0.55),),
        motion=str(weights["motion"]),
        width=SIZE[0],
        height=SIZE[1],
        dtype="float32",
    )
    return load(spec, "cpu", compile=False)


@pytest.fixture(scope="module")
def frames():
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    moving = [((x - 8 - 6 * n) ** 2 + (y - 20) ** 2 < 150)[..., None] * [200, 90, 40] for n in range(COUNT)]
    return (np.stack(moving) + (x // 8 % 2)[..., None] * 40).astype(np.uint8)


def twin(kind, weights):
    pipe = kind.from_pretrained(weights["base"], motion_adapter=MotionAdapter.from_pretrained(weights["motion"]))
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(weights["lora"]), adapter_name="lcm")
    pipe.set_adapters(["lcm"], [0.55])
    return pipe


def assert_equal(ours, theirs):
    theirs = np.round(theirs * 255)
    assert ours.dtype == np.uint8
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 2
    assert np.abs(np.diff(theirs, axis=0)).max() > 20  # it moves


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("guidance", [1.0, 1.25])
def test_text_to_video(stylizer, weights, steps, guidance):
    ours = stylizer.animate(Controls(prompt="a boat", steps=steps, guidance=guidance, seed=7), count=COUNT)
    pipe = twin(AnimateDiffPipeline, weights)
    theirs = pipe(
        "a boat", num_frames=COUNT, width=SIZE[0], height=SIZE[1], num_inference_steps=steps, guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(7), output_type="np",
    ).frames[0]  # fmt: skip
    assert_equal(ours, theirs)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("guidance", [1.0, 1.25])
def test_video_to_video(stylizer, weights, frames, steps, guidance):
    ours = stylizer.animate(Controls(prompt="a boat", steps=steps, guidance=guidance, seed=7, strength=0.5), frames)
    pipe = twin(AnimateDiffVideoToVideoPipeline, weights)
    theirs = pipe(
        video=[Image.fromarray(frame) for frame in frames], prompt="a boat", width=SIZE[0], height=SIZE[1],
        num_inference_steps=2 * steps, strength=0.5, guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(7), output_type="np",
    ).frames[0]  # fmt: skip
    assert_equal(ours, theirs)


def test_windows_cover_every_frame_and_blend():
    for count in (1, 5, 16, 17, 28, 29, 40, 100):
        pieces = list(animation.windows(count))
        assert {frame for first, behind in pieces for frame in range(first, behind)} == set(range(count))
        assert all(behind - first == min(count, animation.WINDOW) for first, behind in pieces)
        x = torch.randn(1, 2, count, 3, 3)
        torch.testing.assert_close(animation.predict(x, lambda part: part * 2), x * 2)


def test_a_clip_longer_than_a_window(stylizer, frames):
    long = np.concatenate([frames] * 4)
    out = stylizer.animate(Controls(prompt="a boat", steps=2, seed=7), long)
    assert out.shape == long.shape
    assert np.abs(out[:6].astype(int) - stylizer.animate(Controls(prompt="a boat", steps=2, seed=7), frames)).max() > 2


def test_what_does_not_fit_is_said(stylizer, weights, frames, tmp_path):
    with pytest.raises(ValueError, match="makes clips"):
        stylizer(frames, Controls())
    plain = load(ModelSpec(str(weights["base"]), width=64, height=64, dtype="float32"), "cpu", compile=False)
    with pytest.raises(ValueError, match="animate needs a motion adapter"):
        plain.animate(Controls())
    xl = tiny.checkpoint(tmp_path / "xl", unet=tiny.XL)
    with pytest.raises(LoadError, match=r"Motion adapter .*motion needs an SD1\.5 base: .*xl is SDXL"):
        load(ModelSpec(str(xl), motion=str(weights["motion"]), width=64, height=64), "cpu")
