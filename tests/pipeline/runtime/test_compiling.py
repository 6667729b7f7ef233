"""Compiled code takes over in a running stylizer and changes neither the picture nor what is live."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import Controls, LoadError, Lora, ModelSpec, compiling, load
from pipeline.runtime import devices, native
from pipeline.stylizer import Stylizer
from tests import tiny

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
        for name in compiling.PARTS:
            uncompiled_forbidden.setattr(getattr(stylizer.painter, name), "module", None)
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
        stages = stylizer.stream_batch()
        steps = [stages(frame[None], settings[1]) for frame in (*crowd, *crowd[:2])]
        batches = [stylizer(crowd[:2], settings[0]), stylizer(crowd, prompts), stylizer(crowd, settings[2]), steps[-1]]
        return [picture.astype(int) for picture in batches]

    before, before_together = [painted(one) for one in settings], together()
    assert "reuse" not in stylizer.remarks(Controls(reuse=1))
    told = []
    swaps = []
    compiling.compile_beside(stylizer, lambda detail, progress: told.append(detail), swaps.append)
    assert type(stylizer.painter.denoise) is not compiling.Compiled  # until the thread that runs frames says so
    assert len(swaps) == 2
    for swap in swaps:
        swap()
    assert {"Compiling", "Compiling for batches"} <= set(told)
    found = [runner for part in compiling.PARTS for runner in getattr(stylizer.painter, part).runners.values()]
    # Else a call would hold the interpreter lock, and the server would stand still for as long as a frame takes.
    assert {type(runner.run) for runner in found} == {native.Library}
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


CGROUP_2 = {"memory.max": "9000\n", "memory.current": "7000\n", "memory.stat": "anon 5\ninactive_file 2500\n"}
CGROUP_1 = {
    "memory/memory.limit_in_bytes": "9000\n",
    "memory/memory.usage_in_bytes": "8000\n",
    "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
}


@pytest.mark.parametrize(
    ("container", "free"),
    [({}, 20 * 1024), (CGROUP_2, 4500), (CGROUP_1, 1500), (CGROUP_2 | {"memory.max": "max\n"}, 20 * 1024)],
    ids=["no container", "version 2", "version 1", "no limit"],
)
def test_free_memory_is_what_another_process_could_have(container, free, tmp_path):
    cpu = torch.device("cpu")
    assert devices.free_bytes(cpu, tmp_path) is None
    for name, text in {"proc/meminfo": "MemFree:  3 kB\nMemAvailable:   20 kB\n"}.items() | {
        (f"sys/fs/cgroup/{name}", text) for name, text in container.items()
    }:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert devices.free_bytes(cpu, tmp_path) == free


def test_free_memory_of_a_card_is_what_its_driver_says(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 80) if device.index == 1 else None)
    assert devices.free_bytes(torch.device("cuda:1")) == 7


@pytest.mark.parametrize(
    ("beside", "runs_alone"),
    [([], True), (["m/x.wrapper_metadata.json"], True), (["m/x.wrapper.json"], False), (["m/y.so"], False)],
    ids=["library", "and its metadata", "and operators for the loader", "two libraries"],
)
def test_only_a_library_that_needs_no_loader_is_taken_out_of_its_package(tmp_path, beside, runs_alone):
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as package:
        for name in ("m/x.wrapper.so", *beside):
            package.writestr(name, name)
    assert native.extract(tmp_path / "x.pt2", tmp_path / "x.so") == runs_alone
    assert (tmp_path / "x.so").exists() == runs_alone


def test_a_library_that_is_none_is_an_error_that_compiling_again_mends(tmp_path):
    (tmp_path / "x.so").write_bytes(b"no library")
    with pytest.raises(compiling.LOADING_FAILS):
        native.Library(tmp_path / "x.so", {})


@pytest.fixture
def cuda_homes(tmp_path, monkeypatch):
    """Where CUDA's headers may be, in order of preference; none is there."""
    site = tmp_path / "site-packages"
    homes = [tmp_path / "nvcc", tmp_path / "toolkit", site / "nvidia" / "cu13", site / "nvidia" / "cu12"]
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(homes[0]))
    monkeypatch.setattr(compiling, "CUDA_TOOLKIT", homes[1])
    monkeypatch.setattr(compiling.torch, "__file__", str(site / "torch" / "__init__.py"))
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name)
    monkeypatch.setattr(compiling, "_cuda_driver", lambda folder: {})
    return homes


def write_headers(home, *names):
    for name in names:
        file = home / "include" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.mark.parametrize("whole", range(4))
def test_cuda_code_is_compiled_with_the_first_headers_that_are_complete(cuda_homes, whole):
    """A compiler called through a script misleads, and CUDA 13's wheels come without some."""
    for home in cuda_homes[:whole]:
        write_headers(home, "cuda.h", "cuda_fp16.h")
    for home in cuda_homes[whole:]:
        write_headers(home, *compiling.CUDA_HEADERS)
    assert compiling._cuda_toolkit(torch.device("cuda")) == {"CUDA_HOME": str(cuda_homes[whole])}


def test_without_cuda_headers_there_is_a_sentence(cuda_homes):
    with pytest.raises(LoadError, match="CUDA_HOME"):
        compiling._cuda_toolkit(torch.device("cuda"))
    assert compiling._cuda_toolkit(torch.device("cpu")) == {}


def test_the_linker_finds_the_driver_that_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("LIBRARY_PATH", "elsewhere")
    driver = tmp_path / "libcuda.so.580.1"
    driver.touch()
    maps = tmp_path / "maps"
    maps.write_text(f"7f00-7f01 r--p 00000000 00:1f 1 /usr/lib/libc.so.6\n7f02-7f03 r-xp 00000000 00:1f 2 {driver}\n")
    for _ in range(2):
        found = compiling._cuda_driver(tmp_path / "links", maps)
        assert found == {"LIBRARY_PATH": f"{tmp_path / 'links'}:elsewhere"}
        assert (tmp_path / "links" / "libcuda.so").samefile(driver)
    maps.write_text("")
    assert compiling._cuda_driver(tmp_path / "links", maps) == {}


def test_an_empty_variable_is_as_good_as_none(monkeypatch):
    for name in ("LCMIRROR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
    assert compiling.cache_folder() == (Path.home() / ".cache" / "lcmirror" / "compiled").resolve()
