"""Sums of a leaf's numbers by the channel, and by the unit, that they belong to."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mixjax import units as units_lib
from mixjax.attacks.channels import Role


def by_channel(product: Array, role: Role, size: int) -> Array:
    """`[size]`: sums over all axes but the channels'."""
    channels = np.array(role.channels)
    axis = product.ndim + role.axis
    row = jnp.sum(product, axis=tuple(at for at in range(product.ndim) if at != axis))
    # a number too large drops what belongs to no channel
    return jax.ops.segment_sum(row, np.where(channels < 0, size, channels), size + 1)[:-1]


def by_unit_and_channel(
    product: Array, role: Role, labels: units_lib.Labels, units: int, size: int
) -> Array:
    """`[units, size]`: the same, unit by unit."""
    if labels.whole:
        sums = by_channel(product, role, size)
        return jnp.zeros((units, size), product.dtype).at[labels.array.item()].set(sums)
    along = np.array(role.channels).reshape(-1, *[1] * (-1 - role.axis))
    ids = np.where(along < 0, units * size, labels.array * size + along)
    ids = np.broadcast_to(ids, product.shape).ravel()
    return jax.ops.segment_sum(product.ravel(), ids, units * size + 1)[:-1].reshape(units, size)
