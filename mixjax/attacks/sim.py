"""∇Sim: infer an attribute from the direction of an update.

The server holds auxiliary data of each attribute value. It trains its model on each, as a client
would, and compares the directions with the updates it receives. Cosine similarity is additive
over units: its measure is each unit's inner products and squared norm.
Source: Boutet et al. 2021, arXiv:2109.12550, our reading of it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mixjax import _axes, _validate, cohort, measures
from mixjax import units as units_lib
from mixjax.attacks.base import Attack, Probe
from mixjax.client import LocalTraining
from mixjax.data import ClientData
from mixjax.observation import Observation
from mixjax.types import Directions, Origins, Params, PRNGKey, Updates, widest


class Terms(NamedTuple):
    """The measure: what the cosines of an update are built from, unit by unit.

    Attributes:
      dots: inner product of the update's unit with each direction's.
      squared_norms: of each unit of the update.
    """

    dots: Float[Array, "*clients units attributes"]
    squared_norms: Float[Array, "*clients units"]


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


def statistics(updates: Updates, directions: Directions, units: units_lib.Units) -> Statistics:
    """The statistics of stacked updates against stacked directions, in one pass.

    Raises:
      InputError: when the two don't have the same structure and shapes below their first axes.
    """
    _axes.check_client_axis(updates)
    _axes.check_client_axis(directions, "directions", axis="attributes")
    _axes.check_same_model(updates, directions, "updates", "directions")
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
    _axes.check_client_axis(directions, "directions", axis="attributes")
    return jax.vmap(units_lib.squared_norms, (None, 0), out_axes=1)(units, directions)


def mix_statistics(origins: Origins, statistics: Statistics) -> Statistics:
    """The statistics of mixed updates, from those of the unmixed ones; see `measures.mix`."""
    _axes.check_statistics(statistics)
    dots, squares = measures.mix(origins, Terms(statistics.dots, statistics.squared_norms))
    return Statistics(dots, squares, statistics.direction_squared_norms)


def scores(updates: Updates, directions: Directions) -> Float[Array, "clients attributes"]:
    """Cosine of each update with each direction, in [-1, 1] up to rounding.

    Args:
      updates: forwarded updates, any pytree with a leading clients axis.
      directions: reference updates of the same model with a leading attributes axis; see
        `directions`.

    Returns:
      `S[slot, attribute]`; zero where either vector is zero, NaN where either is not finite, as
      the direction of a reference training that diverged: `evaluation.guesses` refuses it. The
      guess is the argmax over attributes. Sum over rounds to accumulate.
    """
    _axes.check_client_axis(directions, "directions", axis="attributes")
    whole = units_lib.partition(jax.tree.map(lambda leaf: leaf[0], directions), "model")
    return cosine(statistics(updates, directions, whole))


def cosine(statistics: Statistics) -> Float[Array, "clients attributes"]:
    """The cosines of whole updates, from their units' terms."""
    _axes.check_statistics(statistics)
    return _ratio(
        jnp.sum(statistics.dots, axis=-2),
        jnp.sum(statistics.squared_norms, axis=-1)[..., None],
        jnp.sum(statistics.direction_squared_norms, axis=-2),
    )


def unit_cosine(statistics: Statistics) -> Float[Array, "clients units attributes"]:
    """The cosine of each unit alone: an attack per layer, which no permutation weakens."""
    _axes.check_statistics(statistics)
    return _ratio(
        statistics.dots, statistics.squared_norms[..., None], statistics.direction_squared_norms
    )


def _ratio(dots: Array, squares: Array, direction_squares: Array) -> Array:
    squares = jnp.broadcast_to(squares, dots.shape)
    direction_squares = jnp.broadcast_to(direction_squares, dots.shape)
    # a NaN is not taken for a zero: the guess of whoever's score it is would be value 0
    usable = (squares != 0) & (direction_squares != 0)
    # the root's gradient at zero is infinite: keep zeros out of it, not only out of the result
    lengths = jnp.sqrt(jnp.where(usable, squares, 1)) * jnp.sqrt(
        jnp.where(usable, direction_squares, 1)
    )
    return jnp.where(usable, dots / lengths, 0)


def directions(
    key: PRNGKey,
    params: Params,
    auxiliary: ClientData,
    local: LocalTraining,
    *,
    mesh: jax.sharding.Mesh | None = None,
) -> Directions:
    """The update that local training makes of each attribute's auxiliary data.

    Args:
      key: a typed key.
      params: the model the clients start from.
      auxiliary: one row per attribute value; see `data.pool`.
      local: the clients' own local training.
      mesh: spreads the attribute values over devices; see `cohort.fold`.

    Raises:
      InputError: for NaN or infinite auxiliary data, or a row without examples.
    """
    _check_auxiliary(auxiliary)
    return cohort.run(key, params, auxiliary, local, mesh=mesh)


def passive(auxiliary: ClientData, *, mesh: jax.sharding.Mesh | None = None) -> Attack:
    """The server follows the protocol and only looks.

    Its findings are the scores `S[slot, attribute]` of `scores`.

    Args:
      auxiliary: one row per attribute value, of people who don't take part; see `data.pool`.
      mesh: spreads the server's own training over devices; see `cohort.fold`.

    Raises:
      InputError: for NaN or infinite auxiliary data, or a row without examples.
    """
    _check_auxiliary(auxiliary)

    def prepare(key: PRNGKey, params: Params, local: LocalTraining) -> Probe:
        return Probe(params, directions(key, params, auxiliary, local, mesh=mesh))

    return Attack(None, prepare, measure, observe)


def active(
    auxiliary: ClientData, *, every: int | None = None, mesh: jax.sharding.Mesh | None = None
) -> Attack:
    """The server sends a model equidistant from the attributes' models, and looks.

    The directions then point from the sent model to each attribute's own, so that training
    pulls an update visibly towards one of them.

    Args:
      auxiliary: see `passive`.
      every: the rounds whose number it divides are those of the crafted model: the server keeps its
        own aside, and learns nothing; in the others it is passive. With None every round's model
        is crafted and learned from: updates then start from the sent model, so the attack changes
        what is learned, for its auxiliary people's good.
      mesh: see `passive`.

    Raises:
      InputError: as `passive`, and for a number of rounds out of range.
    """
    _check_auxiliary(auxiliary)
    if every is not None:
        _validate.check_positive(every, "every", integer=True)

    def craft(
        key: PRNGKey, params: Params, local: LocalTraining, crafts: Array | bool = True
    ) -> Probe:
        offsets = directions(key, params, auxiliary, local, mesh=mesh)
        center = circumcenter(offsets)
        center = jax.tree.map(lambda mid: jnp.where(crafts, mid, jnp.zeros_like(mid)), center)
        sent = jax.tree.map(lambda a, b: a + b.astype(a.dtype), params, center)
        return Probe(sent, jax.tree.map(lambda row, mid: row - mid[None], offsets, center))

    if every is None:
        return Attack(None, lambda key, params, local: craft(key, params, local), measure, observe)

    def init(params: Params, units: units_lib.Units, clients: int) -> Array:
        del params, units, clients
        return jnp.zeros((), jnp.int32)

    def prepare(key: PRNGKey, memory: Array, params: Params, local: LocalTraining) -> Probe:
        crafts = memory % every == 0
        return craft(key, params, local, crafts)._replace(learns=~crafts)

    def count(
        key: PRNGKey, memory: Array, probe: Probe, observation: Observation
    ) -> tuple[Array, Array]:
        return memory + 1, observe(key, probe, observation)

    return Attack(init, prepare, measure, count)


def _check_auxiliary(auxiliary: Any) -> None:
    _axes.check_cohort(auxiliary, "auxiliary data", axis="attributes")
    _check_finite(auxiliary.examples, "auxiliary data")
    if _validate.concrete(auxiliary.counts):
        empty = np.flatnonzero(np.asarray(auxiliary.counts) == 0)
        if empty.size:
            raise _validate.InputError(
                f"expected auxiliary examples of every attribute value; value {empty[0]} has "
                "none. Add auxiliary people with this value."
            )


def _check_finite(tree: Any, what: str) -> None:
    for name, leaf in _validate.named_leaves(tree):
        if not _validate.concrete(leaf) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        values = np.asarray(leaf)
        # a finite sum proves it without a mask the size of the data; an overflow takes the slow way
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(values.sum(dtype=np.float64)):
                continue
        bad = int(np.size(values) - np.isfinite(values).sum())
        if bad:
            raise _validate.InputError(
                f"expected finite numbers in {what}; got {bad} NaN or infinite values at {name}. "
                "Remove or repair those rows first."
            )


def measure(probe: Probe, units: units_lib.Units, update: Params) -> Terms:
    """The terms of one update against the probe's references, which are the directions."""
    return Terms(
        units_lib.dots(units, update, probe.references), units_lib.squared_norms(units, update)
    )


def observe(
    key: PRNGKey, probe: Probe, observation: Observation
) -> Float[Array, "clients attributes"]:
    """The scores of all slots, from their terms."""
    del key
    whole = units_lib.partition(probe.params, "model")
    lengths = direction_squared_norms(probe.references, whole)
    dots, squares = observation.measures
    total = (jnp.sum(dots, axis=-2, keepdims=True), jnp.sum(squares, axis=-1, keepdims=True))
    return cosine(Statistics(*total, lengths))


def circumcenter(points: Directions) -> Params:
    """The point of the points' affine hull at the same distance from each.

    p_1 + sum_{a>1} c_a (p_a - p_1) with G c = diag(G) / 2, G the Gram matrix of the differences;
    for two points the midpoint. Points must be affinely independent; of coinciding points the
    result is their mean.
    """
    count = _axes.check_client_axis(points, "points", axis="attributes")
    _validate.check_real(points, "points")
    points = jax.tree.map(
        lambda leaf: leaf if _inexact(leaf) else jnp.asarray(leaf, jnp.float32), points
    )
    if count < 2:
        raise _validate.InputError(
            f"expected points of at least two attribute values; got {count}."
        )
    first = jax.tree.map(lambda leaf: leaf[0], points)
    differences = jax.tree.map(lambda leaf: leaf[1:] - leaf[:1], points)
    dtype = widest(differences)
    gram = sum(
        jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
        for rows in (
            leaf.reshape(leaf.shape[0], -1).astype(dtype) for leaf in jax.tree.leaves(differences)
        )
    )
    weights = jnp.linalg.lstsq(gram, jnp.diagonal(gram) / 2)[0]

    def move(start: Array, rows: Array) -> Array:
        return start + jnp.tensordot(weights.astype(rows.dtype), rows, 1)

    return jax.tree.map(move, first, differences)


def _inexact(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)
