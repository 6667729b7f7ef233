"""The schedule: diffusers' timesteps, and tables that say what its LCMScheduler computes step by step."""

from __future__ import annotations

import pytest
import torch
from diffusers import LCMScheduler
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_img2img import (
    LatentConsistencyModelImg2ImgPipeline,
)
from hypothesis import given
from hypothesis import strategies as st

from pipeline.loading.components import read_schedule
from pipeline.sampling import lcm

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def reference(prediction: str = "epsilon") -> LCMScheduler:
    return LCMScheduler(**CONFIG, prediction_type=prediction, set_alpha_to_one=False)


SCHEDULE = read_schedule(reference().config)


@pytest.mark.parametrize(
    ("steps", "strength", "expected"),
    [
        (1, 0.5, [499]),
        (2, 0.6, [599, 299]),
        (4, 0.3, [299, 239, 159, 79]),
        (4, 0.8, [799, 599, 399, 199]),
        (8, 0.5, [499, 439, 379, 319, 259, 199, 139, 79]),
        (4, 1.0, [999, 759, 499, 259]),
    ],
)
def test_timesteps_of_the_guides(steps, strength, expected):
    assert lcm.timesteps(SCHEDULE, steps, strength) == expected


@given(steps=st.integers(1, 8), strength=st.floats(0.2, 1.0))
def test_timesteps_equal_diffusers(steps, strength):
    scheduler = reference()
    scheduler.set_timesteps(steps, original_inference_steps=50, strength=strength)
    assert lcm.timesteps(SCHEDULE, steps, strength) == scheduler.timesteps.tolist()


@given(steps=st.integers(1, 8), strength=st.floats(0.0, 1.0))
def test_exactly_the_asked_steps_run_from_noisy_to_clean(steps, strength):
    run = lcm.timesteps(SCHEDULE, steps, strength)
    assert len(run) == steps
    assert run == sorted(set(run), reverse=True)
    assert run[-1] >= 0
    assert run[0] < 1000


def test_a_strength_too_small_is_raised_to_the_smallest_that_holds_the_steps():
    assert lcm.timesteps(SCHEDULE, 8, 0.01) == lcm.timesteps(SCHEDULE, 8, 8 / 50)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_table_says_what_the_scheduler_computes(prediction):
    scheduler = reference(prediction)
    schedule = read_schedule(scheduler.config)
    run = lcm.timesteps(schedule, 4, 0.6)
    rows = lcm.table(schedule, run).split(1)
    scheduler.set_timesteps(4, original_inference_steps=50, strength=0.6)
    generator = torch.Generator().manual_seed(3)
    x0 = torch.randn(2, 4, 8, 8, generator=generator)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    x = lcm.noised(x0, noise, rows[0])
    torch.testing.assert_close(x, scheduler.add_noise(x0, noise.expand_as(x0), torch.tensor([run[0]] * 2)))
    for t, row in zip(run, rows, strict=True):
        model_output = torch.randn(2, 4, 8, 8, generator=generator)
        expected = scheduler.step(model_output, t, x, generator=generator, return_dict=False)
        torch.testing.assert_close(lcm.denoised(x, model_output, row), expected[1], rtol=1e-4, atol=1e-4)
        x = expected[0]


@given(guidance=st.floats(1.0, 13.0))
def test_the_guidance_embedding_equals_diffusers(guidance):
    theirs = LatentConsistencyModelImg2ImgPipeline.get_guidance_scale_embedding(
        None, torch.tensor([guidance - 1.0]), embedding_dim=256
    )
    torch.testing.assert_close(lcm.guidance_embedding(guidance, 256), theirs, rtol=0, atol=2e-3)


def test_the_noise_of_a_seed_is_a_cpu_generator_in_order():
    draws = lcm.draw_noise(11, 3, (4, 8, 8))
    generator = torch.Generator("cpu").manual_seed(11)
    for draw in draws:
        assert torch.equal(draw, torch.randn(1, 4, 8, 8, generator=generator))
