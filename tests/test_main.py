"""The command line as a user types it: exit codes, one sentence on stderr, no traceback."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import pytest

import main
from command_line import parsed
from tests.paths import ROOT

from . import tiny

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "/nonexistent"}
HUGE = 5000 * "9"
BAD_USAGE = [
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
    (["--token", ""], ["--token", "empty", "variable"]),
    (["--host", "0.0.0.0", "--token", " \t"], ["--token", "empty"]),
    (["--token", "s3cret "], ["--token", "space"]),
    (["--host", "", "--token", "s3cret"], ["--host", "empty"]),
    (["--recordings", ""], ["--recordings", "empty"]),
    (["--allow-origin", ""], ["--allow-origin", "https://"]),
    (["--allow-origin", "friend.example"], ["friend.example", "scheme"]),
    (["--allow-origin", "https://friend.example/page"], ["friend.example/page", "alone"]),
    (["--device", "tpu"], ["tpu", "auto", "cpu"]),
    *((["--device", name], [name, "auto", "cpu"]) for name in ("cpu:x", "cpu:1", "cpu:", "cpu:-1", "cpu:\u0663", ":")),
    (["--device", "cpu:" + 9 * "9", "--model", "nobody/nothing"], ["cpu:999999999"]),
    (["camera", "--device", "cpu:x"], ["cpu:x"]),
    (["bench", "--device", "cpu:x"], ["cpu:x"]),
    (["render", "tests/data/carphone.mp4", "nowhere.mp4", "--device", "cpu:x"], ["cpu:x"]),
    (["--device", "cpu", "--graphs"], ["--graphs", "CUDA"]),
    *((["--lora", f"ink:{weight}"], ["--lora", "ink", "-4 to 4"]) for weight in ("nan", "inf", "-inf", "1e400", "5")),
    *((["--controlnet", f"net:{weight}"], ["--controlnet", "net"]) for weight in ("nan", "canny:inf", "1e9")),
    *((["--model", "mini-canny", "--strength", number], ["--strength"]) for number in ("nan", "inf", "1e400")),
    (["--lora-weights", "lcm=nan"], ["--lora-weights", "finite"]),
    (["--steps", HUGE], ["--steps"]),
    (["--seed", "nan"], ["--seed"]),
    (["--guidance", "-inf"], ["--guidance"]),
    (["--port", HUGE], ["--port"]),
    (["--port", "-1"], ["--port"]),
    (["--size", f"{HUGE}x512"], ["512x512"]),
    (["--size", "\u00b2x\u00b2"], ["512x512"]),
    (["--max-latency-ms", HUGE], ["--max-latency-ms"]),
    (["--max-latency-ms", "nan"], ["--max-latency-ms"]),
    (["camera", "--camera", HUGE], ["no camera '999"]),
    (["bench", "--budget-s", HUGE], ["--budget-s"]),
    (["bench", "--row-s", "inf"], ["--row-s"]),
    *(
        (["render", "tests/data/carphone.mp4", "nowhere.mp4", option, value], [option])
        for option, value in {
            "--start": "1e999999999",
            "--end": "nan",
            "--fps": "1e999999999",
            "--quality": HUGE,
            "--feather": "inf",
            "--count": HUGE,
        }.items()
    ),
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
]
# Runs each list of arguments on stdin; on stderr a line "= CODE" follows what was said. What gets out of main() is told
# as by the interpreter.
ONE_AFTER_THE_OTHER = """
import json, sys, traceback, main
for arguments in json.load(sys.stdin):
    try:
        code = main.main(arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    print("=", code, file=sys.stderr, flush=True)
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT,
    )


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 2, result
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert len(result.stderr) < 1000
    assert "Traceback" not in result.stderr + result.stdout
    for word in words:
        assert word in result.stderr


@pytest.fixture(scope="module")
def refusals() -> list[subprocess.CompletedProcess]:
    """Of each BAD_USAGE, from one process: each of its own would spend seconds on imports."""
    script = [sys.executable, "-c", ONE_AFTER_THE_OTHER]
    asked = json.dumps([arguments for arguments, _ in BAD_USAGE])
    done = subprocess.run(script, cwd=ROOT, input=asked, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert "Traceback" not in done.stdout
    said = re.findall(r"(.*?)^= (\d+)$", done.stderr, flags=re.M | re.S)
    return [subprocess.CompletedProcess(script, int(code), "", stderr) for stderr, code in said]


@pytest.mark.parametrize("case", range(len(BAD_USAGE)), ids=[" ".join(arguments)[:60] for arguments, _ in BAD_USAGE])
def test_bad_usage_is_one_sentence_and_code_2(refusals, case):
    assert_refused(refusals[case], *BAD_USAGE[case][1])


@pytest.mark.parametrize(
    ("arguments", "word"), [(["--model", "nonsense"], "nonsense"), (["camera", "--camera", "99"], "amera 99")]
)
def test_so_it_is_for_a_command_by_itself(arguments, word):
    assert_refused(run(*arguments), word)


def test_how_the_engine_is_loaded_may_be_told_anew(monkeypatch):
    """After a CUDA graph broke off: without graphs, whatever was asked for."""
    asked = []
    monkeypatch.setattr(main, "load", lambda spec, device, **options: asked.append((device, options["graphs"])))
    monkeypatch.setattr(main.environment, "leave_a_core_free", lambda: None)
    for given in ([], ["--no-graphs"]):
        for command in ("serve", "camera"):
            _, live = main._live(parsed([command, "--device", "cpu", *given]))
            live["load"](lambda detail, progress: None)
            live["load"](lambda detail, progress: None, graphs=False)
    assert asked == [("cpu", None), ("cpu", False)] * 2 + [("cpu", False)] * 4


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
