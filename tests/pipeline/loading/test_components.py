"""Models as they lie on disk, and one clear sentence where they cannot be had."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, MotionAdapter, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline import PRESETS, Controls, LoadError, Lora, ModelSpec, capabilities, load
from pipeline.loading import loras
from pipeline.loading.checkpoints import called
from pipeline.loading.families import SD, Traits, traits
from pipeline.loading.hub import check
from pipeline.runtime.devices import compiling_pays_beside, pick_device, pick_dtype
from pipeline.settings import ControlNet
from tests import single_file, tiny

SIZE = {"width": 64, "height": 64, "dtype": "float32"}
FRAME = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
CONTROLS = Controls(prompt="a cat", guidance=1.5)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("loading") / "base")


@pytest.fixture(scope="module")
def picture(base) -> np.ndarray:
    return load(ModelSpec(str(base), **SIZE), "cpu")(FRAME, CONTROLS)


def told(base: Path) -> Traits:
    return traits(str(base), download=False, report=lambda detail, progress: None)


def test_few_step_models_are_told_from_others(base, tmp_path):
    assert told(base).few_step  # saved with an LCM scheduler
    other = tmp_path / "other"
    shutil.copytree(base, other)
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "PNDMScheduler"]}))
    assert not told(other).few_step
    full = tiny.checkpoint(tmp_path / "full", guidance_embedding=True)
    shutil.copy(other / "model_index.json", full / "model_index.json")
    assert told(full).few_step
    single_file.write(tiny.checkpoint(tmp_path / "kl", kl=True), tmp_path / "kl.safetensors")
    assert told(tmp_path / "kl.safetensors") == Traits(SD, False, None)  # no LCM-LoRA is known for a tiny one


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
        assert "lora" in stylizer.capabilities.features
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

    @pytest.mark.parametrize("text", [False, True], ids=["unet", "text encoder"])
    def test_weights_that_were_written_by_half_are_written_anew(self, base, text, tmp_path, monkeypatch):
        """Whichever are asked for next: those from before, or the new ones."""
        lora = Lora(str(tiny.lora(tmp_path, base, text=text)))
        stylizer, whole = (load(ModelSpec(str(base), loras=(lora,), **SIZE), "cpu") for _ in range(2))
        off = {"lora_weights": {lora.name: 0.0}}
        asked = [CONTROLS.merged({"prompt": str(i), **change}) for i, change in enumerate(({}, off, {}))]
        expected = [(each, whole(FRAME, each)) for each in asked]
        patches = len(stylizer.components.loras._patches)
        delta = loras._Patch.delta
        for controls, picture in expected:
            calls = itertools.count()

            def scarce(patch, weight, like, calls=calls):
                if next(calls) == patches // 2:
                    raise torch.OutOfMemoryError("out of memory")
                return delta(patch, weight, like)

            with monkeypatch.context() as half:
                half.setattr(loras._Patch, "delta", scarce)
                with pytest.raises(torch.OutOfMemoryError):
                    stylizer(FRAME, CONTROLS.merged({"lora_weights": {lora.name: 2.0}}))
            assert np.array_equal(stylizer(FRAME, controls), picture)

    def test_a_parameter_that_cannot_be_written_leaves_no_mixture(self):
        class Parameter(nn.Parameter):
            fails = False

            def copy_(self, *given):
                if self.fails:
                    raise RuntimeError("it cannot be written")
                return super().copy_(*given)

        weights = [Parameter(torch.ones(2, 2)) for _ in range(2)]
        patch = loras._Patch("ink", torch.ones(1, 2), torch.ones(2, 1), 1.0)
        lora_set = loras.LoraSet({one: [patch] for one in weights}, ("ink",), False, torch.device("cpu"))
        lora_set.apply({"ink": 0.5})
        weights[1].fails = True
        with pytest.raises(RuntimeError):
            lora_set.apply({"ink": 1.0})
        weights[1].fails = False
        lora_set.apply({"ink": 0.5})
        assert [one.tolist() for one in weights] == [[[1.5, 1.5], [1.5, 1.5]]] * 2

    @pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf"), 4.5, -5])
    def test_a_weight_that_is_none_is_refused(self, weight):
        with pytest.raises(ValueError, match="LoRA some/ink: a weight is from -4 to 4, not"):
            Lora("some/ink", weight)
        with pytest.raises(ValueError, match="ControlNet some/net: a weight is from -4 to 4, not"):
            ControlNet("some/net", weight=weight)
        with pytest.raises(ValueError, match="some/ink"):
            ModelSpec("base", loras=({"path": "some/ink", "weight": weight},))

    def test_one_that_fails_leaves_the_running_engine_as_it_was(self, base, two, tmp_path):
        running = load(ModelSpec(str(base), loras=(two[0],), **SIZE), "cpu")
        before = running(FRAME, CONTROLS)
        wide = tiny.checkpoint(tmp_path / "wide", unet={**tiny.UNET, "block_out_channels": (8, 8, 8, 16)})
        broken = Lora(str(tiny.lora(tmp_path / "lora", wide)))
        with pytest.raises(LoadError, match="pytorch_lora_weights"):
            load(ModelSpec(str(base), loras=(*two, broken), **SIZE), "cpu")
        assert running.loras == ("ink",)
        assert np.array_equal(running(FRAME, CONTROLS), before)

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
            capabilities.check(stylizer.capabilities, Controls(lora_weights={"silver": 1.0}))

    def test_a_lora_of_another_model_is_refused(self, base, tmp_path):
        wide = tiny.checkpoint(tmp_path / "wide", unet={**tiny.UNET, "block_out_channels": (8, 8, 8, 16)})
        lora = Lora(str(tiny.lora(tmp_path, wide)))
        with pytest.raises(LoadError, match="pytorch_lora_weights"):
            load(ModelSpec(str(base), loras=(lora,), **SIZE), "cpu")


def test_nothing_is_said_of_modules_kept_in_float32_where_there_are_none(base, tmp_path, monkeypatch):
    logger, said = logging.getLogger("diffusers.models.modeling_utils"), []
    handler = logging.Handler()
    handler.emit = said.append
    monkeypatch.setattr(logger, "handlers", [handler])
    logger.setLevel(logging.WARNING)
    try:
        logger.warning("There are modules in X that should be kept in float32: ['norm'].")
        load(ModelSpec(str(base), motion=str(tiny.motion(tmp_path / "motion")), **SIZE), "cpu")
    finally:
        logger.setLevel(logging.NOTSET)
    assert [capture.getMessage()[-9:] for capture in said] == ["['norm']."]


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

    @pytest.mark.parametrize(
        ("part", "make", "change"),
        [
            ("controlnet", tiny.controlnet, {"block_out_channels": [8, 8, 8, 8]}),
            ("adapter", tiny.adapter, {"channels": [8, 8, 8, 8]}),
            ("motion", tiny.motion, {"block_out_channels": [8, 8, 8, 8]}),
            ("vae", lambda folder: tiny.checkpoint(folder) / "vae", {"latent_channels": 8}),
            ("unet", lambda folder: tiny.checkpoint(folder) / "unet", {"cross_attention_dim": 24}),
        ],
    )
    def test_the_part_at_fault_is_named(self, base, tmp_path, part, make, change):
        """With weights that its config does not describe, and with a module of another class."""
        folder = make(tmp_path / "part")
        config = folder / "config.json"
        kept = json.loads(config.read_text())
        config.write_text(json.dumps({**kept, **change}))
        with pytest.raises(LoadError, match=rf"^The {called(part)} {folder} cannot be loaded: .*\.$"):
            load(ModelSpec(str(base), **{part: str(folder)}, **SIZE), "cpu")
        config.write_text(json.dumps({**kept, "_class_name": "Transformer2DModel"}))
        with pytest.raises(LoadError, match=rf"^{folder} is a Transformer2DModel"):
            load(ModelSpec(str(base), **{part: str(folder)}, **SIZE), "cpu")

    @pytest.mark.parametrize(
        ("part", "name", "found"),
        [
            ("vae", "unet.down_blocks.0.conv1.lora_A.weight", "a LoRA, not a VAE: name it with --lora"),
            ("controlnet", "lora_unet_down_blocks_0.hada_w1_a", "a LoRA, not a ControlNet"),
            ("adapter", "control_model.input_blocks.0.0.weight", "a ControlNet, not a T2I-Adapter: .*--controlnet"),
            ("controlnet", "adapter.body.0.in_conv.weight", "a T2I-Adapter, not a ControlNet: .*--adapter"),
            ("unet", "down_blocks.0.motion_modules.0.norm.weight", "a motion adapter, not a UNet: .*--motion"),
            ("motion", "model.diffusion_model.input_blocks.0.0.weight", "a UNet, not a motion adapter: .*--unet"),
            ("base", "model.diffusion_model.input_blocks.0.0.weight", "a UNet, not a model: .*--unet"),
            ("base", "first_stage_model.decoder.conv_in.weight", "a VAE, not a model: .*--vae"),
            ("unet", "cond_stage_model.transformer.text_model.final", "a model, not a UNet: .*--model"),
        ],
    )
    def test_a_file_of_another_kind(self, base, tmp_path, part, name, found):
        file = tmp_path / "file.safetensors"
        save_file({name: torch.zeros(1)}, file)
        with pytest.raises(LoadError, match=rf"{file} is {found}"):
            check(ModelSpec(**{"base": str(base), part: str(file)}))

    def test_a_folder_of_another_kind(self, base, two, tmp_path):
        (tmp_path / "lora").mkdir()
        shutil.copy(two[0].path, tmp_path / "lora" / "pytorch_lora_weights.safetensors")
        with pytest.raises(LoadError, match=r"is a LoRA, not a ControlNet: name it with --lora"):
            check(ModelSpec(str(base), controlnet=str(tmp_path / "lora")))
        with pytest.raises(LoadError, match=r"unet is not a diffusers model folder: it has no model_index\.json\.$"):
            check(ModelSpec(str(base / "unet")))

    def test_an_sdxl_refiner(self, tmp_path):
        """In one file it looks like SD1.5 to whoever only asks for SDXL's second text encoder."""
        file = tmp_path / "refiner.safetensors"
        names = ["conditioner.embedders.0.model.ln_final.weight", "model.diffusion_model.input_blocks.0.0.weight"]
        save_file({name: torch.zeros(1) for name in names}, file)
        for fails in (lambda: load(ModelSpec(str(file)), "cpu"), lambda: told(file)):
            with pytest.raises(LoadError, match=r"refiner\.safetensors is an SDXL refiner.*: name a base"):
                fails()

    def test_motion_adapters_of_another_family(self, base, tmp_path):
        MotionAdapter(
            block_out_channels=tiny.XL["block_out_channels"],
            motion_num_attention_heads=2,
            motion_norm_num_groups=4,
            use_motion_mid_block=False,
        ).save_pretrained(tmp_path / "xl-motion")
        with pytest.raises(LoadError, match=r"xl-motion was made for an SDXL UNet, of channels \[4, 8, 8\]: .* \[4, 8"):
            load(ModelSpec(str(base), motion=str(tmp_path / "xl-motion"), **SIZE), "cpu")
        inpainting = tiny.checkpoint(tmp_path / "mask", unet={**tiny.UNET, "in_channels": 9})
        with pytest.raises(LoadError, match="needs a base that takes no mask"):
            load(ModelSpec(str(inpainting), motion=str(tiny.motion(tmp_path / "motion")), **SIZE), "cpu")

    def test_a_folder_of_several_loras(self, base, two):
        folder = Path(two[0].path).parent
        with pytest.raises(LoadError, match=rf"holds 2 .* as {folder}/gold\.safetensors; .*gold.*, ink\.safetensors"):
            load(ModelSpec(str(base), loras=(Lora(str(folder)),), **SIZE), "cpu")

    def test_more_steps_than_the_schedule_holds(self, base, tmp_path):
        shutil.copytree(base, tmp_path / "short")
        config = tmp_path / "short" / "scheduler" / "scheduler_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "original_inference_steps": 4}))
        stylizer = load(ModelSpec(str(tmp_path / "short"), **SIZE), "cpu")
        capabilities.check(stylizer.capabilities, Controls(steps=4))
        with pytest.raises(ValueError, match="steps: this model's schedule holds 4"):
            capabilities.check(stylizer.capabilities, Controls(steps=5))

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


@pytest.mark.parametrize("name", PRESETS)
def test_specs_survive_json(name):
    """As the process that compiles beside this one gets them."""
    spec = PRESETS[name]
    assert ModelSpec(**json.loads(json.dumps(asdict(spec)))) == spec
    changed = replace(spec, low_memory=True, controlnet=(ControlNet("a/b", "grey", 0.5), ControlNet("c/d")))
    assert ModelSpec(**json.loads(json.dumps(asdict(changed)))) == changed


def test_the_dtype_follows_the_hardware(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert pick_dtype("auto", gpu) is torch.float16
    assert pick_dtype("float32", gpu) is torch.float32
    for capable, expected in (({"avx512_bf16": True}, torch.bfloat16), ({}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capable=capable: capable)
        assert pick_dtype("auto", cpu) is expected


@pytest.mark.parametrize(
    ("preset", "device", "system", "compiler", "pays"),
    [
        ("mini", "cpu", "linux", "/usr/bin/g++", True),
        ("mini-canny", "cpu", "linux", "/usr/bin/g++", True),
        ("mini", "cpu", "linux", None, False),
        ("mini", "cpu", "darwin", "/usr/bin/g++", False),
        ("sd15", "cpu", "linux", "/usr/bin/g++", False),
        ("sd15", "cuda", "linux", None, True),
        ("mini", "mps", "darwin", "/usr/bin/g++", False),
    ],
)
def test_a_server_compiles_unasked_where_that_pays(monkeypatch, preset, device, system, compiler, pays):
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("shutil.which", lambda name: compiler)
    assert compiling_pays_beside(PRESETS[preset], torch.device(device)) is pays
