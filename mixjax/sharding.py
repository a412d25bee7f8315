"""A mesh whose one axis is the clients'."""

import math
import os

import jax

from mixjax import _cgroups, _validate
from mixjax.types import CLIENTS


def clients_mesh(devices: int | None = None) -> jax.sharding.Mesh:
    """A mesh of the first `devices` devices, or all, with the one axis "clients".

    On CPU a process has one device unless told otherwise: see `use_host_devices`.
    """
    present = jax.devices()
    if devices is not None:
        _validate.check_positive(devices, "devices", integer=True)
    if devices is not None and devices > len(present):
        raise _validate.InputError(
            f"expected 1 to {len(present)} devices, as many as JAX sees; got {devices}. On CPU "
            "ask for more with sharding.use_host_devices(n) before JAX starts."
        )
    chosen = present[:devices]
    return jax.make_mesh(
        (len(chosen),), (CLIENTS,), axis_types=(jax.sharding.AxisType.Auto,), devices=chosen
    )


def _cores() -> int:
    """The cores that this process may use: a scheduler or container may give it a few of many."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    for folder in _cgroups.folders("cpu"):
        share = _cgroups.numbers(folder / "cpu.max") or _cgroups.numbers(
            folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
        )
        # microseconds of every so many; -1 for all
        if share and share[0] > 0:
            cores = min(cores, math.ceil(share[0] / share[1]))
    return cores


def use_host_devices(count: int | None = None) -> None:
    """Give this process one CPU device a core, so that `clients_mesh` uses every core.

    Call it before JAX starts. Each device runs its operations on one thread: a client's matrix
    products are too small to be worth splitting, and devices that share threads wait for each
    other (half the speed on two cores).

    Args:
      count: how many devices; by default the number of cores that the process may use.
    """
    flag = "--xla_cpu_multi_thread_eigen=false"
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
    jax.config.update("jax_num_cpu_devices", count or _cores())
