"""Timing of functions inside one process: warmed up, alternating, waited for."""

import ctypes
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks import RESULTS


def keep_freed_memory(*, one_arena: bool = False) -> None:
    """Let glibc's malloc reuse large blocks instead of giving each back to the kernel.

    Otherwise a pass over fresh memory measures page faults. The peer programs do the same. XLA
    runs programs with loops on a thread of their own, which reuses memory if all threads share
    one arena.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 30)
        libc.mallopt(-1, 2**31 - 1)
        if one_arena:
            libc.mallopt(-8, 1)


def alternate(functions: dict[str, Callable[[], Any]], repeats: int = 9) -> dict[str, float]:
    """Median seconds of each function; they take turns, so that drift hits all alike."""
    for function in functions.values():
        jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def save(name: str, records: list[dict[str, Any]]) -> None:
    """Write `benchmarks/results/NAME.jsonl`, a line a record, with the environment."""
    device = jax.devices()[0].device_kind
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    lines = [record | {"device": device, "jax": jax.__version__} for record in records]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"wrote {path.relative_to(Path.cwd())}" if path.is_relative_to(Path.cwd()) else path)
