"""The process is prepared before torch comes in: what a frame frees stays for the next one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# 48 buffers of 4 MB, as a frame's activations come and go, in a thread as the engine's; prints page faults per round.
FAULTS = """
import resource, sys, threading
from pipeline import environment
environment.prepare()
import torch
assert "diffusers" not in sys.modules

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


def faults(**environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="glibc's malloc")
def test_freed_memory_is_kept_unless_the_user_says_otherwise():
    assert 4 * faults() < faults(MALLOC_ARENA_MAX="4")
