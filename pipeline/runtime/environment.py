"""Settings of the process, made before torch is imported, and before threads are made."""

from __future__ import annotations

import ctypes
import os
import sys

DEFAULTS = {
    # The model libraries' notes are for developers; what a user must know, we say ourselves.
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    # Threads that wait for the others spin by default for milliseconds. Where a codec or a browser wants the same
    # cores, that multiplied the frame time of the bundled model on two cores (49 ms alone, 180 to 3000 ms beside a
    # busy process). A thousand spins are as fast alone and took 100 ms there; none at all took 73 ms alone.
    "GOMP_SPINCOUNT": "1000",
}


# mallopt's parameters (malloc.h) and what they are set to: bytes freed at the end of the heap that are kept, bytes from
# which an allocation is mapped by itself, heaps.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
MALLOC = {TRIM_THRESHOLD: 512 << 20, MMAP_THRESHOLD: 256 << 20, ARENA_MAX: 1}


def prepare() -> None:
    """Set what the user has not set."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def keep_freed_memory() -> None:
    """Have glibc keep what a frame frees: the next frame needs just as much. For who infers on a CPU.

    By default, more often than not, the bundled model's activations go back to the system after every frame on a CPU
    and come back as 2,400 page faults, some 6 ms of processor time of 80. Heaps of threads give memory back whatever
    the thresholds say, so there is one heap. It is for a process that has made no threads yet: glibc settles how many
    heaps there may be with the first thread that asks. Elsewhere than in glibc, and where the user has set something of
    the kind, nothing is done.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in MALLOC.items():
            mallopt(parameter, value)


def give_memory_back() -> None:
    """Have glibc give the system what is free between what is in use: sessions that end leave such holes, which
    `keep_freed_memory` keeps too, and one heap comes to hold ever more of them. It takes some ms, and the next frame
    some more; elsewhere than in glibc nothing is done."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def leave_a_core_free() -> None:
    """For a live server: inference on all cores but one, which codecs and a browser on this machine need.

    Each of a frame's hundreds of parallel sections waits for its slowest thread, so one thread that has to share its
    core holds up all: on two cores with a browser beside, one thread gave 12 frames a second and two gave 9.
    OMP_NUM_THREADS, where the user has set it, stands.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores - 1)))
