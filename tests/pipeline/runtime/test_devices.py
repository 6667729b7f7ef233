"""What is free of a device's memory."""

from __future__ import annotations

import pytest
import torch

from pipeline.runtime import devices

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
