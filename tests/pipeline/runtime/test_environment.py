"""The process is prepared before it makes threads: where a CPU infers, what a frame frees stays for the next one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import main
from pipeline import LoadError
from pipeline.runtime import devices, environment
from tests.paths import ROOT

# 48 buffers of 4 MB, as a frame's activations come and go, in a thread as the engine's; prints page faults per round.
FAULTS = """
import resource, sys, threading
from pipeline.runtime import environment
environment.prepare()
import torch
from pipeline.runtime import devices
assert "diffusers" not in sys.modules
if sys.argv[1] == "cuda":
    devices.pick_device = lambda name: torch.device("cuda")
devices.prepared(sys.argv[1])

def rounds(count):
    for _ in range(count):
        kept = [torch.ones(1 << 20) for _ in range(48)]

def measure():
    rounds(3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    rounds(10)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)

thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


def faults(device: str = "cpu", **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, device],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="glibc's malloc")
def test_freed_memory_is_kept_unless_the_user_says_otherwise():
    kept = faults()
    assert 4 * kept < faults(MALLOC_ARENA_MAX="4")
    assert 4 * kept < faults("cuda")  # its memory is not the host's: nothing is set


def test_commands_that_infer_nothing_leave_memory_alone(monkeypatch, capsys):
    kept = []
    monkeypatch.setattr(environment, "keep_freed_memory", lambda: kept.append(True))
    assert main.main(["models"]) == 0
    assert not kept
    devices.prepared("cpu")
    assert kept


CARDS = [(0, 0, "auto or cpu"), (1, 0, "auto, cuda or cpu"), (2, 1, "auto, cuda, mps, cpu, cuda:0 or cuda:1")]


@pytest.mark.parametrize(("cards", "mps", "here"), CARDS)
def test_a_device_that_is_not_here_is_refused_with_those_that_are(cards, mps, here, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cards > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: cards)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps > 0)
    for name in ("cuda:9", "cuda:-1", "cuda:x", "cuda:", "cuda:01", "mps:3", "cpu:1", "tpu"):
        lacking = {"cuda": cards, "mps": mps}.get(name.partition(":")[0]) == 0
        with pytest.raises(LoadError, match="finds no" if lacking else f"^There is no device '{name}' here: .* {here}"):
            devices.pick_device(name)
    for name in ("auto", "cpu", "cpu:0", *(f"cuda:{number}" for number in range(cards)), *["mps:0"] * mps):
        assert devices.pick_device(name).type in ("cpu", "cuda", "mps")
    assert str(devices.pick_device("cpu:0")) == "cpu"
