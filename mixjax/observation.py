"""What the server sees of a round, as the few numbers that ∇Sim needs.

Cosine similarity is additive over units: it is built from per-unit inner products and squared
norms. They are computed once on the unmixed updates; mixing then permutes these numbers instead
of the updates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mixjax import _validate
from mixjax import units as units_lib
from mixjax.types import Active, Directions, Origins, Updates


class Statistics(NamedTuple):
    """Per-unit terms of the cosines between updates and directions.

    Attributes:
      dots: inner product of each update's unit with each direction's.
      squared_norms: of each unit of each update.
      direction_squared_norms: of each unit of each direction.
    """

    dots: Float[Array, "*clients units attributes"]
    squared_norms: Float[Array, "*clients units"]
    direction_squared_norms: Float[Array, "units attributes"]


class Observation(NamedTuple):
    """The server's whole view of a round: all that an attack may use.

    Attributes:
      active: which slots were forwarded.
      statistics: of the forwarded updates, slot by slot.
      updates: the forwarded updates, where the federation keeps them; else None.
    """

    active: Active
    statistics: Statistics | None
    updates: Updates | None


def statistics(updates: Updates, directions: Directions, units: units_lib.Units) -> Statistics:
    """The statistics of stacked updates against stacked directions, in one pass.

    Raises:
      InputError: when the two don't have the same structure and shapes below their first axes.
    """
    _validate.check_client_axis(updates)
    _validate.check_client_axis(directions, "directions", axis="attributes")
    _validate.check_same_model(updates, directions, "updates", "directions")
    dots = jax.vmap(units_lib.dots, (None, 0, None))(units, updates, directions)
    return Statistics(
        dots,
        jax.vmap(units_lib.squared_norms, (None, 0))(units, updates),
        direction_squared_norms(directions, units),
    )


def direction_squared_norms(
    directions: Directions, units: units_lib.Units
) -> Float[Array, "units attributes"]:
    """Squared norm of each unit of each direction."""
    _validate.check_client_axis(directions, "directions", axis="attributes")
    return jax.vmap(units_lib.squared_norms, (None, 0), out_axes=1)(units, directions)


def mix_statistics(origins: Origins, statistics: Statistics) -> Statistics:
    """The statistics of mixed updates, from those of the unmixed ones.

    Guarantees: bit-equal to the statistics of `mixing.apply(origins, updates)` computed in the
    same way, since each number belongs to one unit of one client.
    """
    _validate.check_statistics(statistics)
    dots, squares, direction_squares = statistics
    _validate.check_origins(origins, *squares.shape)
    return Statistics(
        jnp.take_along_axis(dots, origins[..., None], axis=0),
        jnp.take_along_axis(squares, origins, axis=0),
        direction_squares,
    )
