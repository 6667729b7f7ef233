"""The LCM-LoRA distillation on a base of the user's own and a folder of pictures."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from pipeline import Controls, Lora, ModelSpec, load


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 255, (72, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    (folder / "0.txt").write_text("a caption")
    return folder


@pytest.fixture
def distilled(stage, base, pictures, tmp_path):
    """(LoRA folder, a function that trains it up to a number of steps)."""
    out = tmp_path / "my-lora"

    def train(steps: int) -> None:
        options = ["--base", base, "--images", pictures, "--out", out, "--data", tmp_path, "--float32", "--rank", 4]
        options += ["--threads", 1]  # on so small a base others would only wait for each other
        stage("distill", *options, "--steps", steps, "--batch", 2, "--size", 64, "--lr", 0.02, "--decay", 0)

    train(2)
    return out, train


def test_the_lora_loads_in_diffusers_and_here_and_paints(distilled, base):
    out, train = distilled
    train(12)
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(base, local_files_only=True)
    pipe.load_lora_weights(out)
    assert pipe.get_active_adapters()

    frames = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
    loras = (Lora(str(out), name="mine"),)
    engine = load(ModelSpec(str(base), loras=loras, width=64, height=64), device="cpu", compile=False)
    with_it = engine(frames, Controls(prompt="ink", strength=0.8, steps=1))
    without = engine(frames, Controls(prompt="ink", strength=0.8, steps=1, lora_weights={"mine": 0}))
    assert np.abs(with_it.astype(int) - without).max() > 2


def test_an_interrupted_run_goes_on_where_it_was_saved(distilled, capsys):
    out, train = distilled
    capsys.readouterr()
    train(4)
    assert "at step 2" in capsys.readouterr().out
    assert [file.suffix for file in out.iterdir()] == [".safetensors"]


def test_the_student_is_the_identity_at_timestep_0():
    from distill import consistency

    x, x0 = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    assert torch.equal(consistency(x0, x, torch.tensor([0, 0])), x)
    torch.testing.assert_close(consistency(x0, x, torch.tensor([999, 999])), x0, atol=1e-3, rtol=1e-3)


def test_a_perfect_teacher_step_lands_on_the_same_picture_less_noised(base):
    from common.bases import Base

    it = Base(base, torch.device("cpu"))
    x0, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    t = torch.tensor([499])
    a, s = it.abar[t].sqrt(), (1 - it.abar[t]).sqrt()
    for prediction, output in (("epsilon", noise), ("v_prediction", a * noise - s * x0), ("sample", x0)):
        it.prediction = prediction
        found = it.x0_and_noise(output, a * x0 + s * noise, t)
        torch.testing.assert_close(found, (x0, noise), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("index", "unet", "reason"),
    [
        (None, {}, "not a diffusers folder"),
        ({"_class_name": "StableDiffusionXLPipeline", "text_encoder": 1, "text_encoder_2": 1}, {}, "XL"),
        ({"_class_name": "FluxPipeline", "text_encoder": 1}, None, "FluxPipeline"),
        ({"text_encoder": 1}, {"in_channels": 9, "out_channels": 4}, "repaints no latents"),
        ({"text_encoder": 1}, {"time_cond_proj_dim": 256}, "full LCM already"),
    ],
)
def test_a_base_of_another_shape_is_refused(refusal, tmp_path, pictures, index, unet, reason):
    folder = tmp_path / "other"
    (folder / "unet").mkdir(parents=True)
    if index is not None:
        (folder / "model_index.json").write_text(json.dumps(index))
    if unet is not None:
        (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel", **unet}))
    said = refusal("distill", "--base", folder, "--images", pictures, "--data", tmp_path)
    assert reason in said
    assert str(folder) in said


def test_a_folder_without_pictures_is_refused(refusal, base, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no pictures" in refusal("distill", "--base", base, "--images", empty, "--data", tmp_path)
