"""What can be chosen, as rows: the presets, what lies in --models-dir, and the command that starts each."""

from __future__ import annotations

import argparse
import shlex

import pytest
import torch
from safetensors.torch import save_file

import command_line
from choices import library_rows, preset_rows
from pipeline.loading.library import Library
from pipeline.presets import TABLE
from pipeline.settings import Lora, ModelSpec


@pytest.fixture
def models(tmp_path):
    tensors = {  # by their names it is told what a file is
        "checkpoints/x": "cond_stage_model.w",
        "checkpoints/b/x": "cond_stage_model.w",
        "loras/ink wash": "lora_unet_w.lora_down.weight",
        "controlnet/lines": "control_model.w",
        "controlnet/sketch": "adapter.body.0.w",
        "vae/fine": "first_stage_model.w",
        "loras/no model": "w",
    }
    for name, tensor in tensors.items():
        file = tmp_path / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({tensor: torch.zeros(1)}, file)
    return tmp_path


def parsed(row: dict) -> argparse.Namespace:
    words = shlex.split(row["command"])
    assert words[:2] == ["python", "main.py"]
    return command_line.parsed(["serve", *words[2:]])


def test_each_file_comes_with_the_command_that_takes_it(models):
    spec = ModelSpec("somewhere", loras=(Lora("hub/lcm", 0.9),))
    rows = library_rows(models, "sd15", spec)
    called = {(row["kind"], row["name"]): parsed(row) for row in rows}
    assert set(called) == {
        ("base", "checkpoints/x"),  # two have the name: the folder tells them apart
        ("base", "b/x"),
        ("lora", "ink wash"),
        ("controlnet", "lines"),
        ("adapter", "sketch"),
        ("vae", "fine"),
    }
    assert {options.models_dir for options in called.values()} == {models}
    assert called["base", "b/x"].model == "b/x"
    assert called["lora", "ink wash"].lora == ["hub/lcm:0.9", "ink wash"], "the model's own stay beside it"
    assert called["controlnet", "lines"].controlnet == ["lines"]
    assert called["vae", "fine"].vae == "fine"
    assert {options.model for (kind, _), options in called.items() if kind != "base"} == {"sd15"}
    find = Library(models).find
    for kind, name in called:
        assert find(kind, name).endswith(".safetensors")


def test_without_a_folder_there_are_the_presets():
    assert library_rows(None, "mini", TABLE["mini"].spec) == []
    rows = {row["name"]: row for row in preset_rows()}
    assert set(rows) == set(TABLE)
    assert {name: parsed(row).model for name, row in rows.items()} == {name: name for name in TABLE}
    imagining = {name for name, row in rows.items() if row["imagines"]}
    assert {"sd15", "sdxl", "lcm-sdxl"} <= imagining
    assert imagining.isdisjoint({"mini", "mini-canny", "sd15-canny", "sdxl-canny-adapter"})
