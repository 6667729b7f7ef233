"""With low_memory less lies on the device, and every picture is the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from pipeline import Controls, Lora, ModelSpec, load
from tests import lora_files, tiny

SIZE = {"width": 64, "height": 64}
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
SETTINGS = [
    Controls(prompt="a cat", guidance=1.5),
    Controls(prompt="a dog", steps=1, lora_weights={"ink": 0.3}),
    Controls(prompt="a cat"),
]


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> ModelSpec:
    """SDXL-shaped, with its own AutoencoderKL and a LoRA of the UNet and both text encoders."""
    folder = tmp_path_factory.mktemp("low")
    base = tiny.checkpoint(folder / "base", kl=True, unet=tiny.XL)
    lora = lora_files.write(folder / "ink.safetensors", lora_files.factors(base), "peft")
    return ModelSpec(str(base), loras=(Lora(str(lora), 0.8),), dtype="float32", **SIZE)


@pytest.fixture
def visits(monkeypatch) -> list[int]:
    """Pictures in each call of the decoder's network."""
    counts = []
    decode = AutoencoderKL._decode

    def counted(self, latents, *args, **kwargs):
        counts.append(len(latents))
        return decode(self, latents, *args, **kwargs)

    monkeypatch.setattr(AutoencoderKL, "_decode", counted)
    return counts


def test_pictures_are_equal(spec, visits):
    usual, low = (load(one, "cpu", compile=False) for one in (spec, low_memory(spec)))
    for controls in SETTINGS:
        visits.clear()
        expected = usual(FRAMES, controls).astype(int)
        assert visits == [3]
        visits.clear()
        ours = low(FRAMES, controls)
        assert visits == [1, 1, 1]
        assert np.abs(ours - expected).max() <= 1
        assert expected.std() > 5


def low_memory(spec: ModelSpec) -> ModelSpec:
    return ModelSpec(**{**vars(spec), "low_memory": True})


def test_a_text_encoder_only_visits(spec):
    """CPU number 0 is a device of its own to torch: what goes there is copied, as to a GPU."""
    stylizer = load(spec, "cpu", compile=False)
    prompts, encoders = stylizer.conditionings.prompts, stylizer.components.text_encoders
    at_home = prompts("a cat")
    prompts.forget()
    before = [weight.data_ptr() for encoder in encoders for weight in encoder.parameters()]
    seen = []
    for encoder in encoders:
        encoder.register_forward_pre_hook(
            lambda module, args: seen.extend(weight.data_ptr() for weight in module.parameters())
        )
    prompts.device = torch.device("cpu", 0)
    abroad = prompts("a cat")
    assert len(seen) == len(before)
    assert set(seen).isdisjoint(before)
    assert [weight.data_ptr() for encoder in encoders for weight in encoder.parameters()] == before
    torch.testing.assert_close(abroad.states, at_home.states)
    torch.testing.assert_close(abroad.pooled, at_home.pooled)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_less_lies_on_the_gpu(spec):
    def held(one: ModelSpec) -> tuple[int, np.ndarray]:
        before = torch.cuda.memory_allocated()
        stylizer = load(one, "cuda", compile=False)
        picture = stylizer(FRAMES, SETTINGS[0]).astype(int)
        assert {encoder.device.type for encoder in stylizer.components.text_encoders} == {
            "cpu" if one.low_memory else "cuda"
        }
        return torch.cuda.memory_allocated() - before, picture

    (usual, expected), (low, ours) = held(spec), held(low_memory(spec))
    assert low < usual
    assert np.abs(ours - expected).max() <= 2
