"""What is computed from one unit of one update, and commutes with mixing.

A measure is a function of the round's probe and *one* client's update that returns arrays with a
leading units axis; see `attacks.Measure`. Mixing permutes its rows exactly as it would permute
the tensors: measure(mix(updates)) = mix(measure(updates)), bit for bit. So an attack needs no
stack of updates, and any other mixing of a recorded round follows from its measures.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped

from mixjax import _axes, _validate
from mixjax import units as units_lib
from mixjax.types import Directions, Origins, Params, ParamShapes, PRNGKey, Updates


def mix(origins: Origins, measures: PyTree[Any]) -> PyTree[Any]:
    """The measures of mixed updates, from those of the unmixed ones.

    Guarantees: bit-equal to the measures of `mixing.apply(origins, updates)` computed in the same
    way, since each row belongs to one unit of one client.

    Args:
      origins: the matrix drawn by a mix.
      measures: any pytree of arrays `[clients, units, ...]`.

    Raises:
      InputError: for measures or origins of other shapes. Under `jit`, where values can't be
        checked, origins are clipped to the cohort.
    """
    clients = _axes.check_client_axis(measures, "measures")
    units = (getattr(origins, "shape", None) or (0,))[-1]
    for name, leaf in _validate.named_leaves(measures):
        if leaf.shape[1:2] != (units,):
            raise _validate.InputError(
                f"expected measures [clients, units, ...] for origins of {units} units; got "
                f"{name}: {tuple(leaf.shape)}."
            )
    _axes.check_origins(origins, clients, units)

    def permute(leaf: Array) -> Array:
        rows = origins.reshape(*origins.shape, *[1] * (leaf.ndim - 2))
        return jnp.take_along_axis(jnp.asarray(leaf), rows, axis=0, mode="clip")

    return jax.tree.map(permute, measures)


def of(
    measure: Callable[[Any, units_lib.Units, Params], PyTree[Any]],
    probe: Any,
    units: units_lib.Units,
    updates: Updates,
) -> PyTree[Shaped[Array, "clients units ..."]]:
    """A measure of each of stacked updates: for a stack that exists anyway.

    Args:
      measure: see `attacks.Measure`.
      probe: what the measure compares with; see `attacks.Probe`.
      units: the partition.
      updates: any pytree of arrays with a leading clients axis.
    """
    _validate.check_callable(measure, "a measure (probe, units, update)")
    _axes.check_client_axis(updates)
    return jax.vmap(lambda update: measure(probe, units, update))(updates)


def random_directions(key: PRNGKey, params: ParamShapes, count: int) -> Directions:
    """Directions of independent signs: their inner products are a random projection.

    Inner products with K of them, divided by the root of K, keep the inner products and
    distances of units up to relative errors of about the root of 2/K.
    Source: Achlioptas 2003, Database-friendly random projections.

    Args:
      key: a typed key.
      params: one model's parameters, or their shapes.
      count: how many.

    Returns:
      A pytree like `params` of -1 and 1 with a leading axis of `count`.
    """
    _validate.check_key(key)
    _axes.check_params(params)
    _validate.check_positive(count, "count", integer=True)
    leaves, structure = jax.tree.flatten(params)
    signs = [
        jnp.where(jax.random.bits(one, (count, *leaf.shape), jnp.uint8) < 128, 1, -1).astype(
            jnp.float32
        )
        for one, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, signs)
