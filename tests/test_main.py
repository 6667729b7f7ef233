"""The command line as a user types it: exit codes, one sentence on stderr, no traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "/nonexistent"},
    )


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 2, result
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nonsense"], ["nonsense", "preset"]),
        (["--model", "missing.safetensors"], ["missing.safetensors"]),
        (["--model", "some/checkpoint.ckpt"], ["pickle", "safetensors"]),
        (["--model", "nobody/nothing"], ["nobody/nothing", "mini"]),
        (["--model", "sd15"], ["dreamshaper-7"]),
        (["--size", "100x100"], ["multiple of 8"]),
        (["--size", "big"], ["512x512"]),
        (["--strength", "1.5"], ["--strength", "1"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--port", "70000"], ["70000"]),
        (["--host", "0.0.0.0"], ["--token"]),
        (["--device", "tpu"], ["tpu"]),
        (["--from", "one"], ["--virtual-camera", "--from"]),
        (["--virtual-camera"], ["--virtual-camera", "--from"]),
        (["--virtual-camera", "--from", "Not_a_name"], ["--from", "Not_a_name"]),
        (["--virtual-camera", "/dev/video98", "--from", "one"], ["/dev/video98"]),
        (["camera", "--camera", "99"], ["amera 99"]),
        (["camera", "--camera", "missing.mp4"], ["missing.mp4"]),
        (["camera", "--camera", "tests/data/carphone.mp4", "--virtual-camera", "/dev/video98"], ["/dev/video98"]),
        (["camera", "--strength", "1.5"], ["--strength"]),
        (["paint"], ["paint"]),
        (["models", "pull", "nonsense"], ["nonsense", "sd15"]),
    ],
)
def test_bad_usage_is_one_sentence_and_code_2(arguments, words):
    assert_refused(run(*arguments), *words)


def test_a_broken_checkpoint_is_named(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not json at all, really")
    assert_refused(run("--model", str(broken)), "broken.safetensors", "again")


def test_a_folder_of_pickles_is_refused_by_name(tmp_path):
    base = tiny.checkpoint(tmp_path / "base")
    for weights in base.rglob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    assert_refused(run("--model", str(base)), "pickle", "safetensors")


def test_a_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(run("--model", "mini", "--port", str(port)), str(port), "--port")


def test_models_lists_every_preset():
    result = run("models")
    assert result.returncode == 0
    for name in ("mini", "mini-canny", "sd15", "sd15-canny", "lcm-dreamshaper"):
        assert name in result.stdout
