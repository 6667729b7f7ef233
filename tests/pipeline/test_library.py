"""Models by their names, from the folders that ComfyUI and A1111 have."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import main
from pipeline import LoadError
from pipeline.library import Library
from tests import single_file, tiny


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_comfyui(tmp_path):
    models = tmp_path / "ComfyUI" / "models"
    touch(models / "checkpoints" / "Dream.safetensors", models / "loras" / "style" / "ink.safetensors")
    touch(models / "checkpoints" / "old.ckpt", models / "vae" / "fine.safetensors")
    for folder in (models, tmp_path / "ComfyUI"):
        library = Library(folder)
        assert [file.name for file in library.files("checkpoint")] == ["Dream.safetensors"]  # no pickles
        for name in ("Dream", "dream", "Dream.safetensors"):
            assert library.find("checkpoint", name) == str(models / "checkpoints" / "Dream.safetensors")
        assert library.find("lora", "style/ink") == library.find("lora", "ink")
        assert library.find("lora", "Dream") is None


def test_a1111_and_two_of_a_name(tmp_path):
    touch(tmp_path / "Stable-diffusion" / "a" / "x.safetensors", tmp_path / "Stable-diffusion" / "b" / "x.safetensors")
    touch(tmp_path / "Lora" / "x.safetensors", tmp_path / "ControlNet" / "canny.safetensors")
    library = Library(tmp_path)
    with pytest.raises(LoadError, match=r"x could be .* or .*: give the path"):
        library.find("checkpoint", "x")
    assert library.find("checkpoint", "b/x") == str(tmp_path / "Stable-diffusion" / "b" / "x.safetensors")
    assert library.find("controlnet", "canny") is not None


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
    assert "mine                   checkpoint" in listed
    assert "fast                   lora" in listed
