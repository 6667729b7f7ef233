"""Compiled code takes over in a running stylizer and changes neither the picture nor what is live."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from pipeline import Controls, LoadError, Lora, ModelSpec, compiling, load
from tests import tiny

FRAME = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiling")
    base = tiny.checkpoint(folder / "base", unet=tiny.SMALLEST)
    return base, tiny.lora(folder, base)


def spec(weights, **changes) -> ModelSpec:
    base, lora = weights
    return ModelSpec(str(base), loras=(Lora(str(lora)),), width=64, height=64, dtype="float32", **changes)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiled CPU mode needs a C++ compiler")
def test_compiled_equals_uncompiled_and_weights_stay_live(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("LCMIRROR_CACHE", str(tmp_path))
    stylizer = load(spec(weights), "cpu", compile=False)
    settings = [
        Controls(prompt="a cat"),
        Controls(prompt="a dog", strength=0.8, steps=4, seed=3),
        Controls(prompt="a cat", guidance=1.8, negative_prompt="grey"),
        Controls(prompt="a cat", lora_weights={"pytorch_lora_weights": 0.2}),
    ]
    before = [stylizer(FRAME, one).astype(int) for one in settings]
    imagined = stylizer.imagine(settings[0]).astype(int)
    told = []
    compiling.compile_beside(stylizer, lambda detail, progress: told.append(detail))
    assert "Compiling" in told
    with monkeypatch.context() as uncompiled_forbidden:
        uncompiled_forbidden.setattr(
            torch.nn.Module, "__call__", lambda *a, **k: pytest.fail("ran uncompiled: a control recompiles")
        )
        for one in settings:  # every prompt is known, so the text encoder does not run either
            if not one.lora_weights:
                stylizer(FRAME, one)
    for one, expected in zip(settings, before, strict=True):
        assert np.abs(stylizer(FRAME, one) - expected).max() <= 1
    assert np.abs(stylizer.imagine(settings[0]) - imagined).max() <= 1
    assert np.abs(before[0] - before[3]).max() > 10

    told.clear()  # a second start finds the packages
    again = load(spec(weights), "cpu", compile=False)
    compiling.compile_beside(again, lambda detail, progress: told.append(detail))
    assert "Compiling" not in told
    assert np.abs(again(FRAME, settings[0]) - before[0]).max() <= 1


def test_a_child_that_fails_leaves_the_stylizer_as_it_was(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("LCMIRROR_CACHE", str(tmp_path))
    monkeypatch.setattr(compiling.sys, "executable", "/bin/false")
    stylizer = load(spec(weights), "cpu", compile=False)
    before = stylizer(FRAME, Controls())
    with pytest.raises(LoadError, match="uncompiled"):
        compiling.compile_beside(stylizer, lambda detail, progress: None)
    assert np.array_equal(stylizer(FRAME, Controls()), before)


def test_the_cache_key_depends_on_shape_and_not_on_weights(weights, tmp_path):
    base, _ = weights
    first = compiling.cache_key(load(spec(weights), "cpu", compile=False))
    other = tiny.checkpoint(tmp_path, unet=tiny.SMALLEST, seed=9)
    assert compiling.cache_key(load(spec((other, weights[1])), "cpu", compile=False)) == first
    larger = ModelSpec(str(base), width=128, height=64, dtype="float32")
    assert compiling.cache_key(load(larger, "cpu", compile=False)) != first
