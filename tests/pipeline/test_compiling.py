"""Compiled code takes over in a running stylizer and changes neither the picture nor what is live."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import Controls, LoadError, Lora, ModelSpec, compiling, load
from pipeline.runtime import native
from pipeline.runtime.packages import Compiled
from pipeline.stylizer import Stylizer
from tests import tiny
from tests.pipeline.calls import sharing_steps

# An inpainting UNet of one block, and a ControlNet of its shape.
UNET = {
    **tiny.SMALLEST,
    "block_out_channels": (4,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}
FRAME = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
MASK = np.zeros((1, 64, 64), np.uint8)
MASK[:, :, 24:] = 255


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiling")
    base = tiny.checkpoint(folder / "base", unet={**UNET, "in_channels": 9})
    return base, tiny.lora(folder, base), tiny.controlnet(folder / "canny", unet=UNET)


def spec(weights) -> ModelSpec:
    base, lora, controlnet = map(str, weights)
    return ModelSpec(base, loras=(Lora(lora),), controlnet=controlnet, width=64, height=64, dtype="float32")


NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="compiled CPU mode needs a C++ compiler")


@NEEDS_COMPILER
def test_single_frames_run_compiled_and_are_the_same(weights, tmp_path, monkeypatch):
    """The thin way; with batches, masks, control images and text it is walked by `make prove`."""
    monkeypatch.setenv("LCMIRROR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")
    base = tiny.checkpoint(tmp_path / "base", unet=UNET)
    stylizer = load(ModelSpec(str(base), width=64, height=64, dtype="float32"), "cpu", compile=False)
    settings = [Controls(prompt="a cat"), Controls(prompt="a dog", guidance=4.0, steps=3, strength=0.8, seed=3)]
    before = [stylizer(FRAME, one).astype(int) for one in settings]
    compiling.compile_beside(stylizer, lambda detail, progress: None, compiling.at_once)
    with monkeypatch.context() as uncompiled_forbidden:
        for name in compiling.STAGES:
            uncompiled_forbidden.setattr(getattr(stylizer.sampler, name), "module", None)
        after = [stylizer(FRAME, one).astype(int) for one in settings]
    np.testing.assert_allclose(after, before, atol=1)
    assert np.abs(before[0] - before[1]).max() > 5


@pytest.mark.prove
@NEEDS_COMPILER
def test_compiled_equals_uncompiled_and_weights_stay_live(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("LCMIRROR_CACHE", str(tmp_path))
    monkeypatch.setenv("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")  # half of the time would go there
    monkeypatch.setattr(Stylizer, "max_batch", 3)
    stylizer = load(spec(weights), "cpu", compile=False)
    settings = [
        Controls(prompt="a cat"),
        Controls(prompt="a dog", strength=0.8, steps=4, seed=3),
        Controls(prompt="a cat", guidance=8.0, negative_prompt="grey"),
        Controls(prompt="a cat", control_scale=0.3),
        Controls(prompt="a cat", lora_weights={"pytorch_lora_weights": 0.2}),
    ]

    def painted(one: Controls) -> list[np.ndarray]:
        """Whole, in part, and from text, whose latents lie otherwise in memory."""
        whole, part = stylizer(FRAME, one), stylizer(FRAME, one, mask=MASK)
        return [picture.astype(int) for picture in (whole, part, stylizer.imagine(one, control_frames=FRAME))]

    crowd = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), np.uint8)

    def together() -> list[np.ndarray]:
        """Batches: with one prompt, with one for each frame, with CFG, at different steps."""
        prompts = [Controls(prompt=prompt, seed=seed) for seed, prompt in enumerate(("a cat", "a dog", "a hen"))]
        pendings = [sharing_steps(stylizer, frame[None], settings[1]) for frame in (*crowd, *crowd[:2])]
        shared = pendings[1]().rgb  # its last steps with three others
        batches = [stylizer(crowd[:2], settings[0]), stylizer(crowd, prompts), stylizer(crowd, settings[2]), shared]
        return [picture.astype(int) for picture in batches]

    before, before_together = [painted(one) for one in settings], together()
    assert "reuse" not in stylizer.remarks(Controls(reuse=1))
    told = []
    swaps = []
    compiling.compile_beside(stylizer, lambda detail, progress: told.append(detail), swaps.append)
    assert type(stylizer.sampler.denoise) is not Compiled  # until the thread that runs frames says so
    assert len(swaps) == 2
    for swap in swaps:
        swap()
    assert {"Compiling", "Compiling for batches"} <= set(told)
    found = [runner for part in compiling.STAGES for runner in getattr(stylizer.sampler, part).runners.values()]
    # Else a call would hold the interpreter lock, and the server would stand still for as long as a frame takes.
    assert {type(runner.run) for runner in found} == {native.CompiledLibrary}
    assert "uncompiled" in stylizer.remarks(Controls(reuse=1))["reuse"]
    with monkeypatch.context() as uncompiled_forbidden:
        uncompiled_forbidden.setattr(
            torch.nn.Module, "__call__", lambda *a, **k: pytest.fail("ran uncompiled: a control recompiles")
        )
        for one in settings:  # every prompt is known, so the text encoder does not run either
            if not one.lora_weights:
                painted(one)
        together()
    np.testing.assert_allclose([painted(one) for one in settings], before, atol=1)
    for compiled, uncompiled in zip(together(), before_together, strict=True):
        np.testing.assert_allclose(compiled, uncompiled, atol=1)
    for other in before[1:]:  # every setting shows
        assert np.abs(np.subtract(before[0], other)).max(axis=(1, 2, 3, 4)).min() > 5

    told.clear()  # a second start finds the packages
    again = load(spec(weights), "cpu", compile=False)
    compiling.compile_beside(again, lambda detail, progress: told.append(detail), compiling.at_once)
    assert "Compiling" not in told
    assert np.abs(again(FRAME, settings[0]) - before[0][0]).max() <= 1


def test_a_child_that_fails_leaves_the_stylizer_as_it_was(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("LCMIRROR_CACHE", str(tmp_path))
    monkeypatch.setattr(compiling.sys, "executable", "/bin/false")
    stylizer = load(spec(weights), "cpu", compile=False)
    before = stylizer(FRAME, Controls())
    with pytest.raises(LoadError, match="uncompiled"):
        compiling.compile_beside(stylizer, lambda detail, progress: None, compiling.at_once)
    assert np.array_equal(stylizer(FRAME, Controls()), before)


def test_the_cache_key_depends_on_shape_and_not_on_weights(weights, tmp_path):
    first = compiling.cache_key(load(spec(weights), "cpu", compile=False))
    other = tiny.checkpoint(tmp_path, unet={**UNET, "in_channels": 9}, seed=9)
    assert compiling.cache_key(load(spec((other, *weights[1:])), "cpu", compile=False)) == first
    for change in ({"width": 128}, {"low_memory": True}):
        other = replace(spec(weights), **change)
        assert compiling.cache_key(load(other, "cpu", compile=False)) != first


def test_the_cache_key_covers_the_sources_that_are_exported(weights, monkeypatch):
    """Else a second start would run code of an older version."""
    stylizer = load(spec(weights), "cpu", compile=False)
    modules = [module for part in compiling.STAGES for module in getattr(stylizer.sampler, part).modules()]
    kinds = {kind for module in modules for kind in type(module).__mro__ if kind.__module__.startswith("pipeline.")}
    home = Path(compiling.__file__).parent
    assert {str(Path(inspect.getfile(kind)).relative_to(home)) for kind in kinds} <= {*compiling.EXPORTED_SOURCES}
    key = compiling.cache_key(stylizer)
    for name in compiling.EXPORTED_SOURCES:
        changed = lambda file, name=name, read=Path.read_text: read(file) + "#" * (file == home / name)  # noqa: E731
        with monkeypatch.context() as edited:
            edited.setattr(Path, "read_text", changed)
            assert compiling.cache_key(stylizer) != key, name
    assert compiling.cache_key(stylizer) == key


class Begun(Exception):
    pass


def test_where_the_model_does_not_fit_a_second_time_no_child_loads_it(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("LCMIRROR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling.subprocess, "Popen", lambda *a, **k: pytest.fail("was begun"))
    stylizer = load(spec(weights), "cpu", compile=False)
    before = stylizer(FRAME, Controls())
    held = [*stylizer.components.unet.parameters(), *stylizer.components.text_encoders[0].parameters()]
    least = compiling.MARGIN_BYTES["cpu"] + sum(weight.nbytes for weight in held)
    monkeypatch.setattr(compiling, "free_bytes", lambda device: least)
    with pytest.raises(LoadError, match=r"1\.1 GB of free memory on cpu, where 1\.1 GB are free: .* uncompiled"):
        compiling.compile_beside(stylizer, lambda detail, progress: None, compiling.at_once)
    assert np.array_equal(stylizer(FRAME, Controls()), before)
    monkeypatch.setattr(compiling, "free_bytes", lambda device: 2 * least)

    def begin(*arguments, **options):
        raise Begun

    monkeypatch.setattr(compiling.subprocess, "Popen", begin)
    with pytest.raises(Begun):
        compiling.compile_beside(stylizer, lambda detail, progress: None, compiling.at_once)


def test_a_child_that_nobody_waits_for_any_more_is_ended(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("LCMIRROR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "LOOK_EVERY_S", 0.01)
    children, popen, told = [], subprocess.Popen, []

    def begin(*arguments, **options):
        children.append(popen([sys.executable, "-c", "import time; time.sleep(600)"], **options))
        return children[-1]

    def report(detail, progress):
        told.append(detail)
        if len(told) == 4:
            raise Begun

    monkeypatch.setattr(compiling.subprocess, "Popen", begin)
    with pytest.raises(Begun):
        compiling.compile_beside(load(spec(weights), "cpu", compile=False), report, compiling.at_once)
    assert [child.poll() is not None for child in children] == [True]


def test_an_empty_variable_is_as_good_as_none(monkeypatch):
    for name in ("LCMIRROR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
    assert compiling.cache_folder() == (Path.home() / ".cache" / "lcmirror" / "compiled").resolve()
