"""Materialized mixing and the mean over clients, against memory traffic of the same bytes."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mixjax as mx
from benchmarks import timing, workloads


def stacked(workload: str, clients: int) -> Any:
    """Updates of a cohort."""
    params = workloads.initial(workload)
    return jax.tree.map(lambda leaf: jnp.ones((clients, *leaf.shape)) * leaf[None], params)


def passes(updates: Any) -> dict[str, Callable[[], Any]]:
    """Mixing and mean, and the plain memory traffic they are held against."""
    clients = jax.tree.leaves(updates)[0].shape[0]
    units = mx.units.partition(jax.tree.map(lambda leaf: leaf[0], updates))
    origins = mx.mixing.full_round()(jax.random.key(0), jnp.ones(clients, bool), len(units.names))
    host = [np.array(leaf) for leaf in jax.tree.leaves(updates)]
    targets = [np.empty_like(leaf) for leaf in host]

    def copy() -> None:
        for target, leaf in zip(targets, host, strict=True):
            np.copyto(target, leaf)

    mix = jax.jit(lambda origins, updates: mx.mixing.apply(origins, updates, units))
    mean = jax.jit(mx.aggregation.mean)
    given = [jax.tree.map(jnp.copy, updates)]

    def mix_in_place() -> Any:
        given[0] = mx.mixing.apply_in_place(origins, given[0], units)
        return given[0]

    return {
        "memcpy": copy,
        "read": lambda: [np.max(leaf) for leaf in host],
        "mix": lambda: mix(origins, updates),
        "mix in place": mix_in_place,
        "mean": lambda: mean(updates),
    }


GRANULARITIES: dict[str, mx.units.Granularity] = {
    "layer": "layer",
    "neurons": "neurons",
    "chunks(2000)": mx.units.chunks(2000),
}


def granularities(updates: Any) -> list[dict[str, Any]]:
    """Seconds to compile and to mix, for units of different sizes."""
    first = jax.tree.map(lambda leaf: leaf[0], updates)
    clients = jax.tree.leaves(updates)[0].shape[0]
    programs, records, given = {}, [], [updates]
    for name, granularity in GRANULARITIES.items():
        units = mx.units.partition(first, granularity)
        count = len(units.names)
        origins = mx.mixing.full_round()(jax.random.key(0), jnp.ones(clients, bool), count)
        record: dict[str, Any] = {"granularity": name, "units": count}
        for way, function in (
            ("mix", jax.jit(mx.mixing.apply, static_argnames="units")),
            ("mix in place", mx.mixing.apply_in_place),
        ):
            started = time.perf_counter()
            program = function.lower(origins, updates, units=units).compile()
            record[f"{way}, compile"] = time.perf_counter() - started
            programs[name, way] = functools.partial(program, origins)
        records.append(record)

    def run(name: str, way: str) -> Any:
        mixed = programs[name, way](given[0])
        if way == "mix in place":
            given[0] = mixed
        return mixed

    keys = {f"{name} {way}": (name, way) for name, way in programs}
    seconds = timing.alternate({key: functools.partial(run, *own) for key, own in keys.items()})
    for record in records:
        for way in ("mix", "mix in place"):
            record[way] = seconds[f"{record['granularity']} {way}"]
    return records


def main() -> None:
    """Print and save a line for each workload, and for each granularity of the mlp."""
    timing.keep_freed_memory(one_arena=True)
    records = []
    for workload, clients in (("cnn", 200), ("mlp", 2000)):
        updates = stacked(workload, clients)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(updates))
        seconds = timing.alternate(passes(updates))
        rates = ", ".join(f"{name} {size / value / 1e9:.1f}" for name, value in seconds.items())
        print(f"{workload}, {clients} clients, {size / 1e6:.0f} MB, GB/s: {rates}")
        print(
            f"  mixing at {seconds['memcpy'] / seconds['mix']:.0%} of memcpy, "
            f"in place at {seconds['memcpy'] / seconds['mix in place']:.0%}, "
            f"mean at {seconds['read'] / seconds['mean']:.0%} of a read (NumPy's max)"
        )
        records.append({"workload": workload, "clients": clients, "bytes": size} | seconds)
        if workload == "mlp":
            for own in granularities(updates):
                rates = ", ".join(
                    f"{way} {size / own[way] / 1e9:.2f} GB/s, compiled in "
                    f"{own[f'{way}, compile']:.2f} s"
                    for way in ("mix", "mix in place")
                )
                print(f"  {own['granularity']}, {own['units']} units: {rates}")
                records.append({"workload": workload, "clients": clients, "bytes": size} | own)
    timing.save("mixing", records)


if __name__ == "__main__":
    main()
