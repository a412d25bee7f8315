"""How much memory there is: for the check that refuses what can't fit before it is compiled."""

import contextlib
import os
from typing import Any

import jax

from mixjax import _cgroups, _validate

LIMITS = ("memory.max", "memory.limit_in_bytes")


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
    files = (folder / name for folder in _cgroups.folders("memory") for name in LIMITS)
    limits = [limit for path in files for limit in _cgroups.numbers(path) or ()]
    with contextlib.suppress(AttributeError, OSError, ValueError):  # POSIX only
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(ImportError, OSError):  # POSIX only
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                limits.append(soft)
    return min(limits, default=None)


def tree_bytes(tree: Any) -> int:
    shapes = jax.eval_shape(lambda tree: tree, tree)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def check_memory(needed: int, what: str, advice: str, mesh: jax.sharding.Mesh | None) -> None:
    """Refuse what can't fit, before it is compiled; `needed` is a lower bound."""
    total = total_bytes(mesh)
    if total is not None and needed > total:
        raise _validate.InputError(
            f"expected a run that fits the memory of {total:,} bytes; {what} needs at least "
            f"{needed:,}. {advice}"
        )


def check_stack_memory(
    params: Any,
    clients: int,
    chunk_size: int | None,
    mesh: jax.sharding.Mesh | None,
    *,
    updates: int,
    beside: int,
    advice: str,
) -> None:
    """Refuse stacks of updates, or a chunk of clients' parameters and gradients, that can't fit.

    Args:
      params: the model.
      clients: of the cohort.
      chunk_size: see `cohort.fold`.
      mesh: see `cohort.fold`.
      updates: bytes of stacked updates at the run's peak.
      beside: bytes of all that is there throughout, such as the cohort.
      advice: the way out of too large a stack.
    """
    if chunk_size is not None:
        _validate.check_positive(chunk_size, "chunk_size", integer=True)
    model = tree_bytes(params)
    check_memory(
        updates + beside,
        f"a run of {clients} clients x {model:,} bytes of updates, {updates:,} bytes at its peak, "
        f"and {beside:,} of cohort, state and origins,",
        advice,
        mesh,
    )
    chunk = min(chunk_size or 1, clients)
    check_memory(
        min(updates, clients * model) + beside + 2 * chunk * model,
        f"training {chunk} clients of {model:,} bytes at once",
        "Pass a smaller chunk_size.",
        mesh,
    )
