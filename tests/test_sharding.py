"""As many devices as the job may use cores, not as the machine has."""

import subprocess
import sys
from pathlib import Path

import pytest

from mixjax import _cgroups, sharding


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "300000 100000"}, 3),
        ({"job/cpu.max": "250000 100000"}, 3),
        ({"job/cpu.max": "20000 100000"}, 1),
        ({"cpu.max": "200000 100000", "job/cpu.max": "400000 100000"}, 2),
        ({"cpu.max": "6400000 100000"}, 8),
        ({"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/job/cpu.cfs_quota_us": "100000", "cpu/job/cpu.cfs_period_us": "50000"}, 2),
        ({"cpu/job/cpu.cfs_quota_us": "100000"}, 8),
    ],
)
def test_a_containers_share_of_the_cores_counts(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text("3:memory:/other\n2:cpu,cpuacct:/job\n0::/job\n")
    monkeypatch.setattr(_cgroups, "CGROUPS", tmp_path)
    monkeypatch.setattr(_cgroups, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert sharding._cores() == cores


def test_a_process_that_is_tied_to_a_core_gets_one_device() -> None:
    program = """
import os
import jax
import mixjax as mx
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
mx.sharding.use_host_devices()
print(mx.sharding.clients_mesh().size)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
