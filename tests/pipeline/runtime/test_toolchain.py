"""Where the compiler of CUDA code finds headers and driver."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline import LoadError
from pipeline.runtime import toolchain


@pytest.fixture
def cuda_homes(tmp_path, monkeypatch):
    """Where CUDA's headers may be, in order of preference; none is there."""
    site = tmp_path / "site-packages"
    homes = [tmp_path / "nvcc", tmp_path / "toolkit", site / "nvidia" / "cu13", site / "nvidia" / "cu12"]
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(homes[0]))
    monkeypatch.setattr(toolchain, "CUDA_TOOLKIT", homes[1])
    monkeypatch.setattr(toolchain.torch, "__file__", str(site / "torch" / "__init__.py"))
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: name)
    monkeypatch.setattr(toolchain, "cuda_driver", lambda links: {})
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
        write_headers(home, *toolchain.CUDA_HEADERS)
    assert toolchain.cuda_toolkit(torch.device("cuda"), Path()) == {"CUDA_HOME": str(cuda_homes[whole])}


def test_without_cuda_headers_there_is_a_sentence(cuda_homes):
    with pytest.raises(LoadError, match="CUDA_HOME"):
        toolchain.cuda_toolkit(torch.device("cuda"), Path())
    assert toolchain.cuda_toolkit(torch.device("cpu"), Path()) == {}


def test_the_linker_finds_the_driver_that_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("LIBRARY_PATH", "elsewhere")
    driver = tmp_path / "libcuda.so.580.1"
    driver.touch()
    maps = tmp_path / "maps"
    maps.write_text(f"7f00-7f01 r--p 00000000 00:1f 1 /usr/lib/libc.so.6\n7f02-7f03 r-xp 00000000 00:1f 2 {driver}\n")
    for _ in range(2):
        found = toolchain.cuda_driver(tmp_path / "links", maps)
        assert found == {"LIBRARY_PATH": f"{tmp_path / 'links'}:elsewhere"}
        assert (tmp_path / "links" / "libcuda.so").samefile(driver)
    maps.write_text("")
    assert toolchain.cuda_driver(tmp_path / "links", maps) == {}
