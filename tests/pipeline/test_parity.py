"""Our float32 pictures equal those of diffusers' own pipelines on the same weights, prompt, seed and timesteps."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    LatentConsistencyModelImg2ImgPipeline,
    LCMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image

from pipeline import Controls, Lora, ModelSpec, load
from pipeline.pixels.annotators import as_tensors, canny
from tests import tiny

WIDTH, HEIGHT = 96, 64  # not square: a swapped side would show
PROMPT, NEGATIVE = "an oil painting of a cat", "blurry, grey"
TOLERANCE = 2  # of 255


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    base = tiny.checkpoint(folder / "base")
    return {
        "base": base,
        "velocity": tiny.checkpoint(folder / "velocity", prediction="v_prediction"),
        "full": tiny.checkpoint(folder / "full", guidance_embedding=True),
        "lora": tiny.lora(folder / "lora", base),
        "controlnet": tiny.controlnet(folder / "controlnet", gain=1.0),
    }


@pytest.fixture(scope="module")
def frames():
    """Three different pictures with edges in them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pictures = []
    for cx, cy, r in ((20, 20, 15), (60, 40, 20), (48, 32, 28)):
        disc = ((x - cx) ** 2 + (y - cy) ** 2 < r**2)[..., None]
        pictures.append(
            np.where(disc, rng.integers(120, 255, 3), rng.integers(0, 100, 3)) + (x // 8 % 2)[..., None] * 20
        )
    return np.stack(pictures).clip(0, 255).astype(np.uint8)


def spec(weights, base="base", **parts) -> ModelSpec:
    return ModelSpec(str(weights[base]), width=WIDTH, height=HEIGHT, dtype="float32", **parts)


@pytest.fixture(scope="module")
def once():
    """once(make, *arguments): what is only read is made once."""
    return cache(lambda make, *arguments: make(*arguments))


def lora_twin(base: Path, lora: Path) -> StableDiffusionImg2ImgPipeline:
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(base)
    pipe.load_lora_weights(str(lora))
    pipe.fuse_lora(lora_scale=0.9)
    return pipe


def controlnet_twin(base: Path, lora: Path, controlnet: Path) -> StableDiffusionControlNetImg2ImgPipeline:
    net = ControlNetModel.from_pretrained(controlnet)
    pipe = StableDiffusionControlNetImg2ImgPipeline.from_pretrained(base, controlnet=net)
    pipe.load_lora_weights(str(lora))
    return pipe


def diffusers_pictures(pipe, frames, **call) -> np.ndarray:
    """Each frame alone, as uint8, with the seed's noise from its start."""
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    control = call.pop("control", None)
    out = []
    for i, frame in enumerate(frames):
        if control is not None:
            call |= {"control_image": Image.fromarray(control[i]), "width": WIDTH, "height": HEIGHT}
        generator = torch.Generator("cpu").manual_seed(7)
        picture = pipe(image=Image.fromarray(frame), generator=generator, output_type="np", **call).images[0]
        out.append(np.round(picture * 255))
    return np.stack(out)


def assert_equal_and_telling(ours, theirs, source):
    """Equal within tolerance, and different enough between frames for that to mean something."""
    assert ours.dtype == np.uint8
    assert ours.shape == source.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE
    assert theirs.std() > 10
    assert np.abs(theirs[0] - theirs[1]).max() > 10 * TOLERANCE


@pytest.mark.parametrize("base", ["base", "velocity"])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(("guidance", "negative"), [(1.0, ""), (1.8, ""), (1.8, NEGATIVE)])
def test_lcm_lora(weights, once, frames, base, steps, guidance, negative):
    stylizer = once(load, spec(weights, base, loras=(Lora(str(weights["lora"]), 0.9),)), "cpu")
    ours = stylizer(
        frames, Controls(prompt=PROMPT, negative_prompt=negative, steps=steps, guidance=guidance, seed=7, strength=0.5)
    )
    pipe = once(lora_twin, weights[base], weights["lora"])
    # diffusers' convention keeps the last half of 2n timesteps where ours runs n (facts of LCMScheduler.set_timesteps)
    theirs = diffusers_pictures(
        pipe, frames, prompt=PROMPT, negative_prompt=negative, num_inference_steps=2 * steps, strength=0.5,
        guidance_scale=guidance,
    )  # fmt: skip
    assert_equal_and_telling(ours, theirs, frames)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_full_lcm(weights, once, frames, steps, strength, guidance):
    stylizer = once(load, spec(weights, "full"), "cpu")
    ours = stylizer(frames, Controls(prompt=PROMPT, steps=steps, strength=strength, guidance=guidance, seed=7))
    pipe = once(LatentConsistencyModelImg2ImgPipeline.from_pretrained, weights["full"])
    theirs = diffusers_pictures(
        pipe, frames, prompt=PROMPT, num_inference_steps=steps, strength=strength, guidance_scale=guidance
    )
    assert_equal_and_telling(ours, theirs, frames)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(("guidance", "negative"), [(1.0, ""), (1.5, NEGATIVE)])
def test_controlnet_canny(weights, once, frames, steps, guidance, negative):
    parts = {"loras": (Lora(str(weights["lora"])),), "controlnet": str(weights["controlnet"])}
    stylizer = once(load, spec(weights, **parts), "cpu")
    controls = Controls(
        prompt=PROMPT, negative_prompt=negative, steps=steps, guidance=guidance, seed=7, control_scale=0.8
    )
    ours = stylizer(frames, controls)
    pipe = once(controlnet_twin, weights["base"], weights["lora"], weights["controlnet"])

    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    edges = canny(pixels, as_tensors([Controls()] * len(frames), pixels.device))
    edges = (255 * edges).byte().permute(0, 2, 3, 1).numpy()

    def theirs_with(control):
        return diffusers_pictures(
            pipe, frames, control=control, prompt=PROMPT, negative_prompt=negative, num_inference_steps=2 * steps,
            strength=0.5, guidance_scale=guidance, controlnet_conditioning_scale=0.8,
        )  # fmt: skip

    assert_equal_and_telling(ours, theirs_with(edges), frames)
    shifted = np.roll(edges, 1, axis=2)
    assert np.abs(ours - theirs_with(shifted)).max() > 5 * TOLERANCE, "an edge map off by one pixel would not show"


def test_the_base_own_autoencoder_kl_takes_the_mode(tmp_path, frames):
    """A sampled posterior would flicker: the same frame gives the same latents, those of the distribution's mode."""
    base = tiny.checkpoint(tmp_path, kl=True)
    stylizer = load(ModelSpec(str(base), width=WIDTH, height=HEIGHT, dtype="float32"), "cpu")
    picture = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    vae = StableDiffusionImg2ImgPipeline.from_pretrained(base).vae
    with torch.inference_mode():
        expected = vae.encode(picture).latent_dist.mode() * vae.config.scaling_factor
        torch.testing.assert_close(stylizer.sampler.encode(picture), expected)
    controls = Controls(prompt=PROMPT)
    assert np.array_equal(stylizer(frames, controls), stylizer(frames, controls))
