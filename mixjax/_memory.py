"""How much memory there is: for the check that refuses what can't fit before it is compiled."""

import contextlib
import os
from pathlib import Path

import jax

CGROUPS = Path("/sys/fs/cgroup")
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def total_bytes(mesh: jax.sharding.Mesh | None = None) -> int | None:
    """Memory of the devices that hold a cohort; None where nobody tells.

    It is what there is and not what is free, so that a run is refused only if it could never
    fit. CPU devices share the host's.
    """
    devices = jax.devices()[:1] if mesh is None else list(mesh.devices.flat)
    stats = [device.memory_stats() or {} for device in devices]
    limits = [own["bytes_limit"] for own in stats if "bytes_limit" in own]
    return sum(limits) if len(limits) == len(devices) else _host_bytes()


def _host_bytes() -> int | None:
    limits = [limit for name in LIMITS if (limit := _read_limit(CGROUPS / name)) is not None]
    with contextlib.suppress(AttributeError, OSError, ValueError):  # POSIX only
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def _read_limit(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
