"""∇Sim with directions that are learned: a classifier of updates, trained on shadow people.

∇Sim compares an update with the one update that all auxiliary people of an attribute value make
together. A server can do more with the same people: it trains its model on each of them as a client
would, and fits a ridge regression of the attribute on their updates. The regression's weights are
directions like ∇Sim's, so the same terms are measured and commute with mixing. Updates are compared
with the mean of those received, which no mixing changes.
Source: property inference by a classifier on shadow models (Ganju et al. 2018; Melis et al. 2019,
arXiv:1805.04049); that its weights may stand for ∇Sim's directions is ours.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy.typing as npt
from jaxtyping import Array, Float, Int

from mixjax import _axes, _validate, cohort
from mixjax import units as units_lib
from mixjax.attacks import sim
from mixjax.attacks.base import Attack, Probe
from mixjax.client import LocalTraining
from mixjax.data import ClientData
from mixjax.observation import Observation
from mixjax.types import Active, Directions, Params, PRNGKey, Scalar, Updates, widest


def attack(
    shadows: ClientData,
    attribute: npt.ArrayLike,
    values: int,
    *,
    ridge: Scalar = 1.0,
    mesh: jax.sharding.Mesh | None = None,
) -> Attack:
    """The server that learns the attribute from its own people, and follows the protocol.

    Its findings are scores `S[slot, attribute]`: larger is likelier, and sums over rounds
    accumulate. Of a round's scores the mean over slots is zero: of a cohort that is all alike it
    tells nothing.

    >>> people = mx.data.stack([{"x": jnp.ones((4, 2))}] * 4)
    >>> server = attack(people, [0, 0, 1, 1], 2)

    Args:
      shadows: people who do not take part; `attacks.shadows.halves` makes more of them.
      attribute: of each, from 0; every value must be there.
      values: how many values the attribute has.
      ridge: see `directions`.
      mesh: spreads the server's own training over devices; see `cohort.fold`.

    Raises:
      InputError: for an attribute that does not fit the people, or a ridge that is not positive.
    """
    people = _axes.check_cohort(shadows, "the shadow people", axis="shadows")
    names = check_attribute(attribute, values, people)
    _validate.check_positive(ridge, "ridge")

    def prepare(key: PRNGKey, params: Params, local: LocalTraining) -> Probe:
        updates = cohort.run(key, params, shadows, local, mesh=mesh)
        known = shadows.active & (shadows.counts > 0)
        return Probe(params, directions(updates, names, values, ridge=ridge, active=known))

    return Attack(None, prepare, sim.measure, observe)


def directions(
    updates: Updates,
    attribute: npt.ArrayLike,
    values: int,
    *,
    ridge: Scalar = 1.0,
    active: Active | None = None,
) -> Directions:
    """The weights of a ridge regression of the attribute on the directions of updates.

    Updates at unit length, without their mean, are regressed on indicators of each value without
    theirs; in the dual, as people are few: it costs people squared times parameters.

    Args:
      updates: of the shadow people, any pytree with a leading axis.
      attribute: of each, from 0; every value must be there.
      values: how many values the attribute has.
      ridge: added to the Gram matrix, as a share of its mean diagonal.
      active: which of them count; all by default.

    Returns:
      A stacked tree `[values, ...]`, at unit length; zero where nothing can be learned.

    Raises:
      InputError: for an attribute that does not fit the people.
    """
    people = _axes.check_client_axis(updates, "the shadow people's updates", axis="shadows")
    names = check_attribute(attribute, values, people)
    active = jnp.ones(people, bool) if active is None else active
    dtype = widest(updates)
    whole = units_lib.partition(jax.tree.map(lambda leaf: leaf[0], updates), "model")
    squares = jax.vmap(units_lib.squared_norms, (None, 0))(whole, updates)[:, 0]
    known = active & jnp.isfinite(squares) & (squares > 0)
    weight = known.astype(dtype) / jnp.maximum(jnp.sum(known), 1).astype(dtype)
    lengths = jnp.sqrt(jnp.where(known, squares, 1)).astype(dtype)

    def centred(leaf: Array) -> Array:
        rows = leaf.astype(dtype).reshape(people, -1) / lengths[:, None]
        rows = jnp.where(known[:, None], rows, 0)
        return jnp.where(known[:, None], rows - _product(weight[None], rows), 0)

    rows = jax.tree.map(centred, updates)
    products = [_product(leaf, leaf.T) for leaf in jax.tree.leaves(rows)]
    gram = sum(products, jnp.zeros((people, people), dtype))
    wanted = (names[:, None] == jnp.arange(values, dtype=names.dtype)[None]).astype(dtype)
    wanted = jnp.where(known[:, None], wanted - _product(weight[None], wanted), 0)
    scale = jnp.sum(jnp.diagonal(gram) * weight)
    usable = scale > 0
    ridged = gram + jnp.where(usable, ridge * scale, 1).astype(dtype) * jnp.eye(people, dtype=dtype)
    dual = jnp.linalg.solve(ridged, wanted)
    # of unit length: rounds then count the same
    length = jnp.sqrt(jnp.maximum(jnp.sum(dual * _product(gram, dual), axis=0, keepdims=True), 0))
    dual = dual / jnp.where(length > 0, length, 1)
    return jax.tree.map(
        lambda leaf, like: _product(dual.T, leaf).reshape(values, *like.shape[1:]), rows, updates
    )


def observe(
    key: PRNGKey, probe: Probe, observation: Observation
) -> Float[Array, "clients attributes"]:
    """The scores of all slots, from ∇Sim's terms against the learned directions."""
    del key
    return scores(sim.Terms(*observation.measures), observation.active)


def scores(terms: sim.Terms, active: Active) -> Float[Array, "clients attributes"]:
    """Inner products of updates at unit length with the directions, less the mean over slots.

    Args:
      terms: of the slots; see `sim.measure`.
      active: which slots count.
    """
    summed = sim.Terms(
        jnp.sum(terms.dots, axis=-2, keepdims=True),
        jnp.sum(terms.squared_norms, axis=-1, keepdims=True),
    )
    return unit_scores(summed, active)[..., 0, :]


def unit_scores(terms: sim.Terms, active: Active) -> Float[Array, "clients units attributes"]:
    """The same of each unit alone.

    Args:
      terms: of the slots; see `sim.measure`.
      active: which slots count.
    """
    usable = (terms.squared_norms > 0)[..., None] & active[..., None, None]
    lengths = jnp.sqrt(jnp.where(terms.squared_norms > 0, terms.squared_norms, 1))[..., None]
    cosines = jnp.where(usable, terms.dots / lengths, 0)
    count = jnp.maximum(jnp.sum(usable, axis=0, keepdims=True), 1).astype(cosines.dtype)
    mean = jnp.sum(cosines, axis=0, keepdims=True) / count
    return jnp.where(usable, cosines - mean, 0)


def check_attribute(attribute: Any, values: Any, people: int) -> Int[Array, " people"]:
    """Whole numbers from 0, one for each of so many people, every value at least once.

    Of a traced attribute the shape is looked at alone.
    """
    _validate.check_positive(values, "values", integer=True)
    if not _validate.concrete(attribute) and attribute.shape == (people,):
        return attribute.astype(jnp.int32)
    names = _validate.host_array(attribute, "attribute", "iu")
    if names.shape != (people,) or sorted(set(names.tolist())) != list(range(values)):
        raise _validate.InputError(
            f"expected an attribute of 0..{values - 1} for each of {people} shadow people, every "
            f"value at least once; got {names.tolist()}."
        )
    return jnp.asarray(names, jnp.int32)


def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
