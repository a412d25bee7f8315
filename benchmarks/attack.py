"""What attacking costs: ten thousand mixing draws of ∇Sim, and rounds with MixNN and ∇Sim.

The server's own reference training is that of one more client for each attribute value. Its
share of a round is taken off the ratio: it is no cost of mixing or of the statistics.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mixjax as mx
from benchmarks import timing, workloads
from benchmarks.workloads import ATTRIBUTES

DRAWS = 10_000
UNITS = 3


def rounds(workload: str, clients: int, repeats: int) -> dict[str, Any]:
    """Rounds with and without MixNN and passive ∇Sim, taking turns."""
    both = {
        name: workloads.compiled_round(workload, clients, attacked=name == "attacked")
        for name in ("plain", "attacked")
    }
    seconds = timing.alternate(
        {name: functools.partial(one.play, one.state) for name, one in both.items()}, repeats
    )
    ratio = seconds["attacked"] / seconds["plain"] - ATTRIBUTES / clients
    print(
        f"{workload}, C={clients:,}: a round with MixNN and ∇Sim takes {ratio:.2f} of a plain one"
    )
    return {"workload": workload, "clients": clients, "ratio": ratio} | seconds


def main() -> None:
    """Print and save a line for each measurement."""
    timing.keep_freed_memory()
    mx.sharding.use_host_devices()
    records: list[dict[str, Any]] = [
        rounds("cnn", 20, 15),
        rounds("cnn", 100, 7),
        rounds("mlp", 1000, 30),
        rounds("mlp", 10_000, 7),
    ]
    for clients in (20, 100, 1000):
        keys = jax.random.split(jax.random.key(0), 3)
        statistics = mx.attacks.sim.Statistics(
            dots=jax.random.normal(keys[0], (clients, UNITS, ATTRIBUTES)),
            squared_norms=1 + jax.random.uniform(keys[1], (clients, UNITS)),
            direction_squared_norms=jnp.ones((UNITS, ATTRIBUTES)),
        )
        truth = np.arange(clients) % ATTRIBUTES
        # one mix, built once, is one compiled program
        draw = functools.partial(
            mx.evaluation.attribution_over_draws,
            keys[2],
            statistics,
            truth,
            mx.mixing.full_round(),
            draws=DRAWS,
        )
        seconds = timing.alternate({"draws": draw}, repeats=3)["draws"]
        records.append({"clients": clients, "draws": DRAWS, "seconds": seconds})
        print(f"C={clients:5}: {DRAWS:,} draws in {seconds:.2f} s")
    timing.save("attack", records)


if __name__ == "__main__":
    main()
