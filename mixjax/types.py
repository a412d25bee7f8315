"""Type names used throughout, and the name of the client axis."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from mixjax import _validate


def wide(dtype: Any) -> Any:
    """The dtype to sum in: floats of at least 32 bits as they are, float32 for the rest."""
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return dtype if inexact and jnp.dtype(dtype).itemsize >= 4 else jnp.dtype(jnp.float32)


def widest(*trees: Any) -> Any:
    """The dtype to sum all numbers of trees in: the widest of their leaves' `wide`."""
    sizes = [jnp.dtype(wide(leaf.dtype)).itemsize for leaf in jax.tree.leaves(trees)]
    return jnp.dtype(f"float{8 * max(sizes, default=4)}")


def floating(dtype: Any) -> Any:
    """The dtype of a fraction of a number: floats as they are, float32 for the rest."""
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.dtype(jnp.float32)


def times(leaf: jax.Array, factor: jax.Array) -> jax.Array:
    """A leaf times a number, or one for each row, in the leaf's dtype; integers become float32."""
    dtype = floating(leaf.dtype)
    return leaf.astype(dtype) * factor.astype(dtype)


def threefry(key: jax.Array) -> jax.Array:
    """The key as one of threefry, which draws for each key of a `vmap` on its own.

    Keys of threefry come back as they are. Of others (rbg) `vmap` draws from the first alone.
    """
    _validate.check_key(key)
    if jax.random.key_impl(key) == "threefry2x32":
        return key
    words = jax.random.key_data(key)
    first = jax.random.wrap_key_data(words[..., :2], impl="threefry2x32")
    for place in range(2, words.shape[-1]):
        first = jax.random.fold_in(first, words[place])
    return first


CLIENTS = "clients"
"""Name of the leading axis of stacked pytrees, and of the mesh axis that shards it."""

ParamShapes: TypeAlias = PyTree[Shaped[Array, "..."] | Shaped[jax.ShapeDtypeStruct, "..."]]
"""A model's parameters or their shapes."""

PRNGKey: TypeAlias = Key[Array, ""]
"""One typed key, from `jax.random.key`."""

Params: TypeAlias = PyTree[Shaped[Array, "..."], " Model"]
"""A model's parameters, or one client's update of them: any pytree of arrays."""

Updates: TypeAlias = PyTree[Shaped[Array, "clients ..."], " Model"]
"""One update per client: the leaves of `Params`, each with a leading `clients` axis."""

Directions: TypeAlias = PyTree[Shaped[Array, "attributes ..."], " Model"]
"""One reference update per attribute value: a leading `attributes` axis."""

Active: TypeAlias = Bool[Array, " clients"]
"""True for the rows that take part in the round; padding and dropouts are False."""

Origins: TypeAlias = Int[Array, "clients units"]
"""`origins[slot, unit]`: the client whose `unit` the update forwarded in `slot` carries."""

Weights: TypeAlias = Float[Array, " clients"]
"""A non-negative weight for each client."""

Scalar: TypeAlias = float | jax.Array
"""A Python number or a traced one."""

Memory: TypeAlias = PyTree[Any]
"""What a component keeps from round to round: any pytree of arrays of fixed shapes and dtypes."""
