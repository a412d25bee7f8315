"""Additive shares: a client sends several messages that look like noise and sum to its update.

Shuffled with everybody's, no message is a person's, and the sum is what it was (arXiv:2207.05978
sends fragments so; sums of shuffled shares: Ishai et al. 2006). Here shares are real numbers, as
updates are: to sum to something small they must be correlated, and `join` finds them by that. Only
shares modulo a number hide all but the sum, as their count grows; what a server then sees is
`defences.secure_aggregation`. A client sends `count` times the bytes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from mixjax import _axes, _validate, mixing
from mixjax import units as units_lib
from mixjax.types import PRNGKey, Scalar, Updates, floating, threefry


def split(key: PRNGKey, updates: Updates, count: int, scale: Scalar) -> PyTree[Any]:
    """Every update as `count` shares: rows `client * count` to `client * count + count - 1`.

    Share j of x is x / count + scale (z_j - mean of z), z_j standard normal: each is noise of about
    this scale, together they are x up to rounding. Mix the result like any stack, unit by unit; its
    mean times `count` is the mean of updates.

    >>> shared = split(jax.random.key(0), {"w": jnp.array([1.0, -1.0])}, 3, 10.0)
    >>> shared["w"].shape, jnp.round(shared["w"].reshape(2, 3).sum(axis=1), 3).tolist()
    ((6,), [1.0, -1.0])

    Args:
      key: of the noise; the proxy must not have it.
      updates: any pytree with a leading clients axis.
      count: shares of each update, at least 2.
      scale: standard deviation of the noise, in the units of the update.

    Raises:
      InputError: for a count below 2 or a negative scale.
    """
    _validate.check_key(key)
    clients = _axes.check_client_axis(updates)
    _check_count(count)
    _validate.check_non_negative(scale, "scale")
    leaves, structure = jax.tree.flatten(updates)
    parts = []
    for one, leaf in zip(jax.random.split(threefry(key), len(leaves)), leaves, strict=True):
        dtype = floating(leaf.dtype)
        noise = jax.random.normal(one, (clients, count, *leaf.shape[1:]), dtype)
        noise = noise - jnp.mean(noise, axis=1, keepdims=True)
        rows = leaf.astype(dtype)[:, None] / count + jnp.asarray(scale, dtype) * noise
        parts.append(rows.reshape(clients * count, *leaf.shape[1:]))
    return jax.tree.unflatten(structure, parts)


def join(
    updates: Updates, count: int, *, granularity: units_lib.Granularity = "layer"
) -> tuple[Int[Array, "rows units"], PyTree[Any]]:
    """Find the shares that belong together, unit by unit, and sum them: what a server can do.

    Shares of one unit of one person have a correlation of -1 / (count - 1), those of different
    people none, up to the square root of one over the unit's size: groups are taken greedily, the
    most correlated first.

    Args:
      updates: shuffled or mixed shares, any pytree with a leading axis of clients * count rows.
      count: shares of each update.
      granularity: how the proxy cuts the model.

    Returns:
      `groups[row, unit]`, the number of the group that it belongs to, and the groups' sums, a
      stack of rows / count updates: their units are as mixed as groups are numbered, and
      `attacks.unmix.assemble` joins them.

    Raises:
      InputError: for a number of rows that is no multiple of the count.
    """
    rows = _axes.check_client_axis(updates, "shares", axis="shares")
    _check_count(count)
    if rows % count:
        raise _validate.InputError(
            f"expected a multiple of {count} shares; got {rows}. Pass all shares of all clients."
        )
    units = units_lib.partition(jax.tree.map(lambda leaf: leaf[0], updates), granularity)
    gram = jax.vmap(units_lib.dots, (None, 0, None))(units, updates, updates)
    gram = np.asarray(gram, np.float64)
    groups = np.stack([_groups(gram[:, at], count) for at in range(gram.shape[1])], axis=1)
    order = np.argsort(groups, axis=0, kind="stable").astype(np.int32)
    return jnp.asarray(groups), _summed(jnp.asarray(order), updates, units, count)


def _groups(gram: np.ndarray, count: int) -> np.ndarray:
    """Rows in groups of `count`, each time the free pair of least product and what goes with it."""
    rows = len(gram)
    gram = gram + np.diag(np.full(rows, np.inf))
    group = np.full(rows, -1, np.int32)
    for number in range(rows // count):
        free = np.flatnonzero(group < 0)
        own = gram[np.ix_(free, free)]
        members = [int(at) for at in np.unravel_index(int(np.argmin(own)), own.shape)]
        while len(members) < count:
            together = own[:, members].sum(axis=1)
            together[members] = np.inf
            members.append(int(np.argmin(together)))
        group[free[members]] = number
    return group


def _summed(order: Array, updates: Updates, units: units_lib.Units, count: int) -> PyTree[Any]:
    sorted_rows = mixing.apply(order, updates, units)
    return jax.tree.map(
        lambda leaf: jnp.sum(leaf.reshape(-1, count, *leaf.shape[1:]), axis=1), sorted_rows
    )


def _check_count(count: int) -> None:
    _validate.check_positive(count, "count", integer=True)
    if count < 2:
        raise _validate.InputError(f"expected at least 2 shares of each update; got {count}.")
