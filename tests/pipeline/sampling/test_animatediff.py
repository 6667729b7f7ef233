"""Clips: equal to diffusers' AnimateDiff pipelines, text to video and video to video; longer ones in windows."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, AnimateDiffVideoToVideoPipeline, LCMScheduler, MotionAdapter
from PIL import Image
from safetensors.torch import save_file

from pipeline import Controls, LoadError, Lora, ModelSpec, load
from pipeline.pixels import color
from pipeline.sampling import animatediff
from tests import tiny

SIZE = (80, 64)
COUNT = 6


def motion_lora(file: Path, motion: Path) -> Path:
    """A LoRA of the motion module's attention, with the keys of guoyww's."""
    torch.manual_seed(6)
    tensors = {}
    for name, layer in MotionAdapter.from_pretrained(motion).named_modules():
        if isinstance(layer, torch.nn.Linear) and ".attn" in name:
            attention, _, which = name.removesuffix(".0").rpartition(".")
            key = f"unet.{attention}.processor.{which}_lora"
            tensors[f"{key}.down.weight"] = torch.randn(4, layer.in_features) * 0.3
            tensors[f"{key}.up.weight"] = torch.randn(layer.out_features, 4) * 0.3
    save_file(tensors, file)
    return file


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("animation")
    base, motion = tiny.checkpoint(folder / "base"), tiny.motion(folder / "motion")
    loras = {"lcm": tiny.lora(folder / "lora", base), "zoom": motion_lora(folder / "zoom.safetensors", motion)}
    return {"base": base, "motion": motion, **loras}


@pytest.fixture(scope="module")
def stylizer(weights):
    spec = ModelSpec(
        str(weights["base"]),
        loras=(Lora(str(weights["lcm"]), 0.55, "lcm"), Lora(str(weights["zoom"]), 1.2)),
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


@cache
def twin(kind, base, motion, lcm, zoom):
    pipe = kind.from_pretrained(base, motion_adapter=MotionAdapter.from_pretrained(motion))
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(lcm), adapter_name="lcm")
    pipe.load_lora_weights(str(zoom), adapter_name="zoom")
    pipe.set_adapters(["lcm", "zoom"], [0.55, 1.2])
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
    count = 24 if (steps, guidance) == (2, 1.25) else COUNT
    ours = stylizer.animate(Controls(prompt="a boat", steps=steps, guidance=guidance, seed=7), count=count)
    pipe = twin(AnimateDiffPipeline, **weights)
    theirs = pipe(
        "a boat", num_frames=count, width=SIZE[0], height=SIZE[1], num_inference_steps=steps, guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(7), output_type="np",
    ).frames[0]  # fmt: skip
    assert_equal(ours, theirs)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("guidance", [1.0, 1.25])
def test_video_to_video(stylizer, weights, frames, steps, guidance):
    ours = stylizer.animate(Controls(prompt="a boat", steps=steps, guidance=guidance, seed=7, strength=0.5), frames)
    pipe = twin(AnimateDiffVideoToVideoPipeline, **weights)
    theirs = pipe(
        video=[Image.fromarray(frame) for frame in frames], prompt="a boat", width=SIZE[0], height=SIZE[1],
        num_inference_steps=2 * steps, strength=0.5, guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(7), output_type="np",
    ).frames[0]  # fmt: skip
    assert_equal(ours, theirs)


def test_a_motion_lora_shows(stylizer, frames):
    """Else the equality above would prove nothing of it."""
    controls = Controls(prompt="a boat", steps=1, seed=7)
    still = controls.merged({"lora_weights": {"zoom": 0}})
    assert np.abs(stylizer.animate(controls, frames).astype(int) - stylizer.animate(still, frames)).max() > 20


def test_windows_cover_every_frame_and_blend():
    for count in (1, 5, 16, 17, 28, 29, 40, 100):
        pieces = list(animatediff.windows(range(count)))
        assert {frame for _, window in pieces for frame in window} == set(range(count))
        assert all(window == list(range(first, first + min(count, 16))) for first, window in pieces)
        x = list(torch.randn(count, 1, 2, 3, 3))
        torch.testing.assert_close(list(animatediff.predict(x, lambda part: part * 2)), [frame * 2 for frame in x])


@pytest.fixture(scope="module")
def long(frames):
    """Longer than the motion module can see at once, and than three windows: 16 frames, then 12 new ones in each."""
    return np.concatenate([frames, frames[::-1]] * 4)[:45]


def whole_clip(stylizer, controls, frames):
    """AnimateDiff with everything in memory: at every step all windows are cut out of one tensor and blended."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    source = stylizer.sampler.encode(color.to_model(pixels, torch.float32)).transpose(0, 1)[None]
    conditioning = stylizer.conditionings([controls], [False])
    noise = animatediff.endless_noise(controls.seed, controls.steps, stylizer.sizes.latents())
    begins = [*range(0, len(frames) - 16, 12), len(frames) - 16]
    nearest_end = torch.minimum(torch.arange(16) + 1, 16 - torch.arange(16)).clamp(max=4)[:, None, None]
    x = source
    for t, row, draws in zip(conditioning.timesteps, conditioning.rows, noise, strict=True):
        x = row[0, 0] * x + row[0, 1] * torch.stack([next(draws) for _ in frames], dim=2)
        said, weights = torch.zeros_like(x), torch.zeros(len(frames), 1, 1)
        for begin in begins:
            part = slice(begin, begin + 16)
            embeds = torch.cat(conditioning.embeds).repeat_interleave(16, dim=0)
            said[:, :, part] += nearest_end * stylizer.sampler.denoise(x[:, :, part], t, embeds, conditioning.guidance)
            weights[part] += nearest_end
        x = row[0, 2] * x + row[0, 3] * said / weights
    return color.to_frames(stylizer.sampler.decode(x[0].transpose(0, 1))).numpy()


@pytest.mark.parametrize("guidance", [1.0, 1.25])
def test_a_long_clip_in_windows_equals_all_of_it_at_once(stylizer, long, guidance):
    controls = Controls(prompt="a boat", steps=2, seed=7, guidance=guidance)
    ours = stylizer.animate(controls, long)
    with torch.inference_mode():
        theirs = whole_clip(stylizer, controls, long)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs.astype(int)).max() <= 1
    assert np.abs(ours[:16] - stylizer.animate(controls, long[:16]).astype(int)).max() > 2  # later frames show


@pytest.mark.parametrize(("steps", "begin", "done"), [(2, 12, 33), (2, 24, 43), (1, 24, 39)])
def test_a_clip_goes_on_in_the_middle(stylizer, long, steps, begin, done):
    controls = Controls(prompt="a boat", steps=steps, seed=7)
    assert stylizer.animation_restart(controls, done) == begin
    assert stylizer.animation_restart(controls, done - 1) < begin
    clip = long[: done + 1]  # the last window reaches back farthest
    rest = list(stylizer.animate_stream(controls, clip[begin:], first=begin))
    assert np.abs(rest[-1] - stylizer.animate(controls, clip)[-1].astype(int)).max() <= 1


def test_of_a_clip_only_some_windows_are_held(stylizer, frames):
    taken = 0

    def endless(count):
        nonlocal taken
        for taken in range(count):
            yield frames[taken % COUNT]

    ahead = {}
    for count in (64, 88):
        pictures = stylizer.animate_stream(Controls(prompt="a boat", steps=1), endless(count))
        ahead[count] = max(taken - number for number, _ in enumerate(pictures))
        assert taken == count - 1
    assert ahead[64] == ahead[88] < 60


def test_what_does_not_fit_is_said(stylizer, weights, frames, tmp_path):
    with pytest.raises(ValueError, match="makes clips"):
        stylizer(frames, Controls())
    plain = load(ModelSpec(str(weights["base"]), width=64, height=64, dtype="float32"), "cpu", compile=False)
    with pytest.raises(ValueError, match="animate needs a motion adapter"):
        plain.animate(Controls())
    xl = tiny.checkpoint(tmp_path / "xl", unet=tiny.XL)
    with pytest.raises(LoadError, match=r"Motion adapter .*motion needs an SD1\.5 base: .*xl is SDXL"):
        load(ModelSpec(str(xl), motion=str(weights["motion"]), width=64, height=64), "cpu")
