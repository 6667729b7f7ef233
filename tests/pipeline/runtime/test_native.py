"""Compiled code that is called without PyTorch's loader."""

from __future__ import annotations

import zipfile

import pytest

from pipeline.runtime import native, packages


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
    with pytest.raises(packages.LOADING_FAILS):
        native.CompiledLibrary(tmp_path / "x.so", {})
