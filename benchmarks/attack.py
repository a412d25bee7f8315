"""Ten thousand mixing draws of ∇Sim's attribution, from statistics alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import mixjax as mx
from benchmarks import timing

DRAWS = 10_000
UNITS, ATTRIBUTES = 3, 2


def main() -> None:
    """Print and save a line for each number of clients."""
    records = []
    for clients in (20, 100, 1000):
        keys = jax.random.split(jax.random.key(0), 3)
        statistics = mx.observation.Statistics(
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
