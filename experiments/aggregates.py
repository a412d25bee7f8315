"""What mixing does to the aggregate of a round: nothing but round a sum in another order."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mixjax as mx
from experiments.conditions import Case
from experiments.training import Trajectory

# updates as whole numbers up to this: sums of a thousand are exact in float32
WHOLE = 2.0**13


def columns(
    case: Case, run: Trajectory, origins: Any, units: mx.units.Units, *, mixed: bool
) -> dict[str, list[Any]]:
    """What mixing does to the aggregate of each round; empty where it can't be told.

    Args:
      case: nothing is told of one that mixes nothing, or that another server looks at.
      run: a trajectory, with the updates that the server got.
      origins: `[rounds, clients, units]` of the case's mixing.
      units: the model's partition.
      mixed: whether the updates are mixed by the origins already.

    Returns:
      `aggregate_difference`: the mean of mixed updates less that of whole ones, relative to it; of
      the layer's kernel or bias where it is largest, in norms. `aggregate_exact`: whether both
      means are bit-equal of the same updates rounded to whole numbers.
    """
    updates = run.records.observation.updates
    if updates is None or case.mix() is None or case.server.adaptive:
        return {}
    found = [
        jax.device_get(
            _compare(units, jax.tree.map(lambda leaf, at=at: leaf[at], updates), own, mixed)
        )
        for at, own in enumerate(np.asarray(origins))
    ]
    difference, exact = zip(*found, strict=True)
    return {
        "aggregate_difference": [float(one) for one in difference],
        "aggregate_exact": [bool(one) for one in exact],
    }


@functools.partial(jax.jit, static_argnames=("units", "mixed"))
def _compare(
    units: mx.units.Units, updates: Any, origins: jax.Array, mixed: bool
) -> tuple[jax.Array, jax.Array]:
    moves = jnp.argsort(origins, axis=0).astype(origins.dtype) if mixed else origins

    def both(updates: Any) -> list[tuple[jax.Array, jax.Array]]:
        moved = mx.mixing.apply(moves, updates, units)
        pair = [mx.aggregation.mean(moved), mx.aggregation.mean(updates)]
        one, other = reversed(pair) if mixed else pair
        return list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))

    def whole(leaf: jax.Array) -> jax.Array:
        return jnp.round(leaf * (WHOLE / jnp.maximum(jnp.abs(leaf).max(), 1e-30)))

    def relative(one: jax.Array, other: jax.Array) -> jax.Array:
        length = jnp.linalg.norm(other.ravel())
        return jnp.linalg.norm((one - other).ravel()) / jnp.where(length > 0, length, 1)

    equal = [jnp.array_equal(*pair) for pair in both(jax.tree.map(whole, updates))]
    return jnp.stack([relative(*pair) for pair in both(updates)]).max(), jnp.stack(equal).all()
