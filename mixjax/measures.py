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
from jaxtyping import Array, Float, PyTree, Shaped

from mixjax import _axes, _validate
from mixjax import units as units_lib
from mixjax.types import Origins, Params, PRNGKey, Updates, widest


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


def sketch(
    key: PRNGKey, units: units_lib.Units, update: Params, width: int
) -> Float[Array, "units width"]:
    """A short image of each unit of one update that keeps inner products: a count sketch.

    Every coordinate gets a random sign and is added to one of `width` sums, drawn at random: a
    linear map, the same one for the same key. The inner product of two units' sketches has their
    own as its mean, and a deviation of at most sqrt(2 / width) times the product of their lengths.
    It costs one pass over the update, whatever the width.
    Source: Charikar, Chen and Farach-Colton 2002; Weinberger et al. 2009, arXiv:0902.2206.

    >>> model = {"a": {"w": jnp.ones(1000)}, "b": {"w": jnp.zeros(3)}}
    >>> rows = sketch(jax.random.key(0), mx.units.partition(model), model, 16)
    >>> rows.shape, rows[1].tolist() == [0.0] * 16
    ((2, 16), True)

    Args:
      key: of the signs. Sketches made with the same key can be compared.
      units: the partition.
      update: of one client.
      width: the number of sums.

    Raises:
      InputError: for another model than the one that was partitioned.
    """
    _validate.check_key(key)
    _validate.check_positive(width, "width", integer=True)
    _axes.check_update(units, update, "the update")
    dtype, count = widest(update), len(units.names)
    total = jnp.zeros((count, width), dtype)
    for place, (leaf, labels) in enumerate(zip(jax.tree.leaves(update), units.labels, strict=True)):
        bits = jax.random.bits(jax.random.fold_in(key, place), (leaf.size,), jnp.uint32)
        flat = leaf.astype(dtype).ravel()
        ids = labels.flat() * width + (bits // 2 % width).astype(jnp.int32)
        sums = jax.ops.segment_sum(jnp.where(bits % 2 == 0, flat, -flat), ids, count * width)
        total += sums.reshape(count, width)
    return total
