"""Models as they lie on disk, and one clear sentence where they cannot be had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from pipeline import Controls, LoadError, Lora, ModelSpec, load
from pipeline.devices import pick_device, pick_dtype
from pipeline.families import traits
from pipeline.fetching import check
from tests import tiny

SIZE = {"width": 64, "height": 64, "dtype": "float32"}
FRAME = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
CONTROLS = Controls(prompt="a cat", guidance=1.5)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("loading") / "base")


@pytest.fixture(scope="module")
def picture(base) -> np.ndarray:
    return load(ModelSpec(str(base), **SIZE), "cpu")(FRAME, CONTROLS)


def few_step(base: Path) -> bool:
    return traits(str(base), download=False, report=lambda detail, progress: None).few_step


def test_few_step_models_are_told_from_others(base, tmp_path):
    assert few_step(base)  # saved with an LCM scheduler
    other = tmp_path / "other"
    shutil.copytree(base, other)
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "PNDMScheduler"]}))
    assert not few_step(other)
    full = tiny.checkpoint(tmp_path / "full", guidance_embedding=True)
    shutil.copy(other / "model_index.json", full / "model_index.json")
    assert few_step(full)


@pytest.fixture(scope="module")
def two(base, tmp_path_factory) -> list[Lora]:
    folder = tmp_path_factory.mktemp("loras")
    return [
        Lora(str(tiny.lora(folder, base, name=f"{name}.safetensors", seed=seed)), 0.7)
        for name, seed in (("ink", 3), ("gold", 4))
    ]


class TestLoras:
    def test_weights_are_live_and_exact(self, base, picture, two):
        stylizer = load(ModelSpec(str(base), loras=tuple(two), **SIZE), "cpu")
        assert stylizer.loras == ("ink", "gold")
        assert "lora" in stylizer.features
        both = stylizer(FRAME, CONTROLS)
        off = stylizer(FRAME, CONTROLS.merged({"lora_weights": {"ink": 0.0, "gold": 0.0}}))
        assert np.array_equal(off, picture)
        assert np.array_equal(stylizer(FRAME, CONTROLS), both)
        assert np.abs(both.astype(int) - off).max() > 20

    def test_equal_to_diffusers_adapters(self, base, two):
        pipe = StableDiffusionPipeline.from_pretrained(base)
        for lora in two:
            pipe.load_lora_weights(lora.path, adapter_name=lora.name)
        pipe.set_adapters(["ink", "gold"], [0.4, 1.1])
        pipe.fuse_lora(adapter_names=["ink", "gold"])
        stylizer = load(ModelSpec(str(base), loras=tuple(two), **SIZE), "cpu")
        stylizer(FRAME, CONTROLS.merged({"lora_weights": {"ink": 0.4, "gold": 1.1}}))
        theirs = {name.replace(".base_layer", ""): p for name, p in pipe.unet.named_parameters()}
        for name, ours in stylizer.components.unet.named_parameters():
            torch.testing.assert_close(ours, theirs[name], rtol=1e-4, atol=1e-5)

    def test_a_lora_of_the_text_encoder_changes_what_prompts_mean(self, base, picture, tmp_path):
        lora = Lora(str(tiny.lora(tmp_path, base, text=True)))
        stylizer = load(ModelSpec(str(base), loras=(lora,), **SIZE), "cpu")
        with_it = stylizer(FRAME, CONTROLS)
        off = stylizer(FRAME, CONTROLS.merged({"lora_weights": {lora.name: 0.0}}))
        assert np.array_equal(off, picture)
        assert np.abs(with_it.astype(int) - off).max() > 10
        assert np.array_equal(stylizer(FRAME, CONTROLS), with_it)

    def test_two_of_one_name_are_refused(self, base, two):
        with pytest.raises(ValueError, match="same name"):
            ModelSpec(str(base), loras=(two[0], Lora(two[1].path, name="ink")))

    def test_a_dora_is_refused(self, base, two, tmp_path):
        tensors = load_file(two[0].path)
        tensors["unet.mid_block.attentions.0.proj_in.dora_scale"] = torch.ones(4)
        save_file(tensors, tmp_path / "dora.safetensors")
        with pytest.raises(LoadError, match="DoRA"):
            load(ModelSpec(str(base), loras=(Lora(str(tmp_path / "dora.safetensors")),), **SIZE), "cpu")

    def test_an_unknown_name_is_refused(self, base, two):
        stylizer = load(ModelSpec(str(base), loras=tuple(two), **SIZE), "cpu")
        with pytest.raises(ValueError, match=r"'silver'.*ink, gold"):
            stylizer.check(Controls(lora_weights={"silver": 1.0}))

    def test_a_lora_of_another_model_is_refused(self, base, tmp_path):
        wide = tiny.checkpoint(tmp_path / "wide", unet={**tiny.UNET, "block_out_channels": (8, 8, 8, 16)})
        lora = Lora(str(tiny.lora(tmp_path, wide)))
        with pytest.raises(LoadError, match="pytorch_lora_weights"):
            load(ModelSpec(str(base), loras=(lora,), **SIZE), "cpu")


class TestRefusals:
    def test_a_controlnet_of_another_width(self, base, tmp_path):
        net = ControlNetModel.from_pretrained(tiny.controlnet(tmp_path / "net"))
        wide = ControlNetModel.from_config({**net.config, "cross_attention_dim": 32})
        wide.save_pretrained(tmp_path / "wide")
        with pytest.raises(LoadError, match=r"wide.*32.*16"):
            load(ModelSpec(str(base), controlnet=str(tmp_path / "wide"), **SIZE), "cpu")

    def test_a_vae_of_other_channels(self, tmp_path):
        odd = tiny.checkpoint(tmp_path / "odd", unet={**tiny.UNET, "in_channels": 5})
        with pytest.raises(LoadError, match="5 channels"):
            load(ModelSpec(str(odd), **SIZE), "cpu")

    def test_a_pipeline_of_another_kind(self, base, tmp_path):
        shutil.copytree(base, tmp_path / "refiner")
        index = json.loads((base / "model_index.json").read_text())
        index |= {"_class_name": "SomethingElsePipeline", "text_encoder": [None, None]}
        (tmp_path / "refiner" / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(LoadError, match="SomethingElsePipeline"):
            load(ModelSpec(str(tmp_path / "refiner"), **SIZE), "cpu")

    def test_a_lora_of_another_family(self, base, tmp_path):
        xl = tiny.checkpoint(tmp_path / "xl", unet=tiny.XL)
        file = tiny.lora(tmp_path / "lora", xl)
        with pytest.raises(LoadError, match=r"was made for prompts of width 48, and this model's have 16"):
            load(ModelSpec(str(base), loras=(Lora(str(file)),), **SIZE), "cpu")

    def test_extras_of_another_family(self, base, tmp_path):
        adapter = tiny.adapter(tmp_path / "adapter", sdxl=True)
        with pytest.raises(LoadError, match=r"T2I-Adapter .*full_adapter_xl.* does not fit the SD1\.5 UNet"):
            load(ModelSpec(str(base), adapter=str(adapter), **SIZE), "cpu")
        with pytest.raises(LoadError, match="There is no control image 'depth'"):
            load(ModelSpec(str(base), adapter=str(adapter), control="depth", **SIZE), "cpu")

    def test_weights_cut_off_in_the_middle(self, base, tmp_path):
        shutil.copytree(base, tmp_path / "cut")
        weights = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(LoadError, match="broken or cut off"):
            check(ModelSpec(str(tmp_path / "cut")))

    def test_a_folder_without_a_model(self, tmp_path):
        with pytest.raises(LoadError, match=r"model_index\.json"):
            check(ModelSpec(str(tmp_path)))

    def test_a_missing_part_is_said_not_thrown(self, base, tmp_path):
        shutil.copytree(base, tmp_path / "part")
        shutil.rmtree(tmp_path / "part" / "text_encoder")
        with pytest.raises(LoadError, match="part"):
            load(ModelSpec(str(tmp_path / "part"), **SIZE), "cpu")

    def test_a_device_that_is_not_here(self):
        with pytest.raises(LoadError, match="tpu"):
            pick_device("tpu")
        if not torch.cuda.is_available():
            with pytest.raises(LoadError, match="cuda"):
                pick_device("cuda")


def test_the_dtype_follows_the_hardware(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert pick_dtype("auto", gpu) is torch.float16
    assert pick_dtype("float32", gpu) is torch.float32
    for capable, expected in (({"avx512_bf16": True}, torch.bfloat16), ({}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capable=capable: capable)
        assert pick_dtype("auto", cpu) is expected
