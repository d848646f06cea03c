import os
from pathlib import Path

import pytest

from compress.data import machine


@pytest.fixture
def cgroup(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    return tmp_path


def test_memory_is_that_of_the_machine_or_of_the_container(cgroup):
    physical = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    whole = pytest.approx(int(physical.split()[1]) / 2**20, rel=1e-3)
    assert machine.memory_gib() == whole
    (cgroup / "memory.max").write_text("max\n")
    assert machine.memory_gib() == whole
    (cgroup / "memory.max").write_text(f"{2**28}\n")
    assert machine.memory_gib() == 1 / 4


@pytest.mark.parametrize(("limit", "cores"), [("max 100000", 64), ("150000 100000", 2), ("50000 100000", 1)])
def test_cores_are_those_that_the_process_may_use(cgroup, monkeypatch, limit, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert machine.core_count() == 64
    (cgroup / "cpu.max").write_text(limit + "\n")
    assert machine.core_count() == cores
