"""Models by their names, from the folders that ComfyUI and A1111 have."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import command_line
import main
import options
from pipeline import LoadError, Lora, ModelSpec
from pipeline.loading.library import Library
from pipeline.settings import ControlNet
from tests import single_file, tiny


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_comfyui(tmp_path):
    models = tmp_path / "ComfyUI" / "models"
    touch(models / "checkpoints" / "Dream.safetensors", models / "loras" / "style" / "old" / "ink.safetensors")
    touch(models / "checkpoints" / "old.ckpt", models / "vae" / "fine.safetensors")
    for folder in (models, tmp_path / "ComfyUI"):
        library = Library(folder)
        assert [file.name for file in library.entries("base")] == ["Dream.safetensors"]  # no pickles
        for name in ("Dream", "dream", "Dream.safetensors"):
            assert library.find("base", name) == str(models / "checkpoints" / "Dream.safetensors")
        assert library.find("lora", "style/old/ink") == library.find("lora", "old/ink") == library.find("lora", "ink")
        with pytest.raises(LoadError, match=r"no LoRA Dream in .*models --models-dir .* lists what there is"):
            library.find("lora", "Dream")
        with pytest.raises(LoadError, match="no LoRA nk"):
            library.find("lora", "nk")


@pytest.mark.parametrize(
    ("part", "places"),
    [
        ("unet", ["models/unet/x.safetensors", "models/diffusion_models/sub/x.safetensors"]),
        ("vae", ["models/vae/x.safetensors", "models/VAE/x.safetensors"]),
        ("controlnet", ["models/controlnet/x.safetensors", "extensions/sd-webui-controlnet/models/x.safetensors"]),
        ("adapter", ["models/t2i_adapter/x.safetensors", "models/controlnet/t2i/x/config.json"]),
        (
            "motion",
            [
                "models/animatediff_models/x.safetensors",
                "custom_nodes/ComfyUI-AnimateDiff-Evolved/models/x.safetensors",
                "extensions/sd-webui-animatediff/model/x.safetensors",
            ],
        ),
        ("base", ["models/checkpoints/a/x.safetensors", "models/diffusers/x/model_index.json"]),
    ],
)
def test_where_each_part_lies(tmp_path, part, places):
    for number, place in enumerate(places):
        file = tmp_path / str(number) / place
        touch(file)
        found = Library(tmp_path / str(number)).find(part, "x")
        assert found == str(
            file if file.suffix == ".safetensors" else file.parent
        )  # a diffusers folder goes by its name


def test_configs_beside_a_file_are_no_model_of_their_own(tmp_path):
    touch(tmp_path / "vae" / "fine.safetensors", tmp_path / "vae" / "fine" / "config.json")
    assert Library(tmp_path).find("vae", "fine") == str(tmp_path / "vae" / "fine.safetensors")


def test_a1111_and_two_of_a_name(tmp_path):
    touch(tmp_path / "Stable-diffusion" / "a" / "x.safetensors", tmp_path / "Stable-diffusion" / "b" / "x.safetensors")
    touch(tmp_path / "Lora" / "x.safetensors", tmp_path / "ControlNet" / "canny.safetensors")
    library = Library(tmp_path)
    with pytest.raises(LoadError, match=r"x could be .* or .*: give the path"):
        library.find("base", "x")
    assert library.find("base", "b/x") == str(tmp_path / "Stable-diffusion" / "b" / "x.safetensors")
    assert library.find("controlnet", "canny").endswith("canny.safetensors")


def test_every_option_takes_names(tmp_path):
    models = tmp_path / "models"
    single_file.write(tiny.checkpoint(tmp_path / "base", kl=True), at(models / "checkpoints" / "mine.safetensors"))
    shutil.copytree(tmp_path / "base", models / "checkpoints" / "mine")
    shutil.copytree(tmp_path / "base" / "unet", models / "unet" / "lcm")
    shutil.copytree(tmp_path / "base" / "vae", models / "vae" / "sub" / "fine")
    tiny.controlnet(models / "controlnet" / "canny")
    tiny.adapter(models / "t2i_adapter" / "sketch")
    tiny.motion(models / "animatediff_models" / "moves")
    tiny.lora(models / "loras", tmp_path / "base", name="ink.safetensors")
    words = "--model mine --unet lcm --vae sub/fine --controlnet canny:grey:0.5 --adapter sketch:tile --motion moves"
    command = ["render", "a.mp4", "b.mp4", "--models-dir", str(tmp_path), *words.split(), "--lora", "ink:0.7"]
    _, spec, _ = options.model_from(command_line.parsed(command))
    assert spec == ModelSpec(
        str(models / "checkpoints" / "mine.safetensors"),
        unet=str(models / "unet" / "lcm"),
        vae=str(models / "vae" / "sub" / "fine"),
        loras=(Lora(str(models / "loras" / "ink.safetensors"), 0.7),),
        controlnet=(ControlNet(str(models / "controlnet" / "canny"), "grey", 0.5),),
        adapter=str(models / "t2i_adapter" / "sketch"),
        control="tile",
        motion=str(models / "animatediff_models" / "moves"),
    )
    for option in ("--model", "--lora", "--unet", "--vae", "--controlnet", "--adapter", "--motion"):
        with pytest.raises(LoadError, match=r"There is no .* nothing in "):
            options.model_from(command_line.parsed([*command, option, "nothing"]))


def test_what_is_listed_is_found_by_its_name(tmp_path):
    """With as many folders as that takes, as what it holds and not as what its folder says."""
    for folder in ("a", "b"):
        tiny.lora(tmp_path / "loras" / folder, tiny.checkpoint(tmp_path / "base"), name="ink.safetensors")
    shutil.copy(tmp_path / "loras" / "a" / "ink.safetensors", at(tmp_path / "vae" / "stray.safetensors"))
    touch(tmp_path / "vae" / "broken.safetensors")
    tiny.controlnet(tmp_path / "controlnet" / "canny")
    listed = Library(tmp_path).listed()
    assert {(name, part) for name, part, _ in listed} == {
        ("a/ink", "lora"), ("b/ink", "lora"), ("stray", "lora"), ("broken", None), ("canny", "controlnet"),
    }  # fmt: skip
    for name, part, path in listed:
        if name in ("a/ink", "b/ink", "canny"):
            assert Library(tmp_path).find(part, name) == str(path)


def at(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def test_what_is_no_models_folder(tmp_path):
    with pytest.raises(LoadError, match="there is no folder"):
        Library(tmp_path / "none")
    with pytest.raises(LoadError, match="has none of the folders checkpoints"):
        Library(tmp_path)


def test_render_by_names(tmp_path, capsys):
    """A whole checkpoint in one file, its LoRA by name with a weight."""
    base = tiny.checkpoint(tmp_path / "base", kl=True)
    for folder in ("checkpoints", "loras"):
        (tmp_path / "models" / folder).mkdir(parents=True)
    single_file.write(base, tmp_path / "models" / "checkpoints" / "mine.safetensors")
    shutil.copytree(base, tmp_path / "models" / "checkpoints" / "mine")  # its configs
    lora = tiny.lora(tmp_path / "lora", base)
    shutil.copy(lora, tmp_path / "models" / "loras" / "fast.safetensors")
    command = ["render", "--text-to-image", "--models-dir", str(tmp_path / "models"), "--model", "mine"]
    command += ["--lora", "fast:0.8", "--size", "64x64", "--steps", "1"]
    assert main.main([*command, str(tmp_path / "out.png")]) == 0, capsys.readouterr().err
    from PIL import Image

    assert np.asarray(Image.open(tmp_path / "out.png")).std() > 1
    assert main.main(["models", "--models-dir", str(tmp_path / "models")]) == 0
    listed = capsys.readouterr().out
    assert "mine                   model " in listed
    assert "fast                   LoRA " in listed
