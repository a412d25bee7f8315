"""Membership inference: was a record used for an update?

A step of training moves against the gradients of its records, so the update of a client that
used a record tends to point along the record's own descent direction. The score is the cosine
between the two, the same one as ∇Sim's.
Source: the authors' first report on MixNN measured membership inference; this score is our
reading.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from mixjax import _axes, _validate, cohort
from mixjax import client as client_lib
from mixjax import units as units_lib
from mixjax.attacks import sim
from mixjax.attacks.sim import Statistics
from mixjax.client import LossFn
from mixjax.types import Params, PRNGKey, Updates


def scores(
    key: PRNGKey,
    loss_fn: LossFn,
    params: Params,
    updates: Updates,
    examples: PyTree[Any],
    *,
    chunk_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Float[Array, "clients records"]:
    """Cosine of each update with minus the gradient of the loss of each candidate record.

    Gradients exist for `chunk_size` records of one slot at a time; see `cohort.fold`.

    Args:
      key: of the loss, for each slot and record its own.
      loss_fn: the clients' own loss.
      params: the model the server sent, which the updates start from.
      updates: what the server sees, mixed or not: any pytree with a leading clients axis.
      examples: the candidates of each slot, a pytree of arrays `[clients, records, ...]`.
      chunk_size: records at once; it changes the result by rounding only.
      mesh: spreads the slots over devices.

    Returns:
      `S[slot, record]` in [-1, 1] up to rounding; zero where either vector is zero. Higher
      means likelier a member: judge it with `evaluation.membership_auc` and
      `evaluation.true_positive_rate`. Scores of padding mean nothing: leave them out there.

    Raises:
      InputError: for updates of another model, or candidates for another number of slots.
    """
    whole = units_lib.partition(params, "model")
    slots = (updates, examples)
    return _scores(sim.cosine, whole, key, loss_fn, params, *slots, chunk_size, mesh)


def unit_scores(
    key: PRNGKey,
    loss_fn: LossFn,
    params: Params,
    updates: Updates,
    examples: PyTree[Any],
    units: units_lib.Units,
    *,
    chunk_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Float[Array, "clients records units"]:
    """The score of each unit alone: what a mixed update still tells about its units' owners.

    A unit of a mixed update belongs to the client `origins[slot, unit]`. With every slot given
    the same candidates, `owners[record]` the client that used each or -1, the members are
    `owners[None, :, None] == origins[:, None, :]`. Judged so, the multiset of scores of members
    and that of the others are the same under any mixing.

    Args:
      key: see `scores`, as for the arguments not named here.
      units: the partition, as from `units.partition(params)`.

    Returns:
      `S[slot, record, unit]`; zero where either unit is zero.
    """
    slots = (updates, examples)
    cosines = _scores(sim.unit_cosine, units, key, loss_fn, params, *slots, chunk_size, mesh)
    return jnp.swapaxes(cosines, 1, 2)


def _scores(
    cosine: Callable[[Statistics], Array],
    units: units_lib.Units,
    key: PRNGKey,
    loss_fn: LossFn,
    params: Params,
    updates: Updates,
    examples: PyTree[Any],
    chunk_size: int | None,
    mesh: jax.sharding.Mesh | None,
) -> Array:
    """Cosines slot by slot, with the candidate records in the place of attributes."""
    _validate.check_key(key)
    clients = _check_candidates(params, updates, examples)

    def loss(params: Params, record: PyTree[Any], key: PRNGKey) -> Array:
        batch = jax.tree.map(lambda leaf: leaf[None], record)
        return client_lib.per_example_losses(loss_fn, params, batch, key, 1)[0]

    def of_record(shared: Any, candidate: Any) -> tuple[tuple[()], tuple[Array, Array]]:
        params, update, key = shared
        record, index = candidate
        gradient = jax.grad(loss)(params, record, jax.random.fold_in(key, index))
        descent = jax.tree.map(lambda leaf: -leaf[None], gradient)
        dots = units_lib.dots(units, update, descent)[:, 0]
        return (), (dots, units_lib.squared_norms(units, gradient))

    def of_slot(shared: Any, slot: Any) -> tuple[tuple[()], Array]:
        params, key = shared
        update, records, index = slot
        count = jax.tree.leaves(records)[0].shape[0]
        _, (dots, squares) = cohort.fold(
            of_record,
            (params, update, cohort.client_key(key, index)),
            (records, jnp.arange(count)),
            chunk_size=chunk_size,
        )
        own = units_lib.squared_norms(units, update)
        return (), cosine(Statistics(dots.T[None], own[None], squares.T))[0]

    slots = (updates, examples, jnp.arange(clients))
    _, cosines = cohort.fold(of_slot, (params, key), slots, chunk_size=1, mesh=mesh)
    return cosines


def _check_candidates(params: Any, updates: Any, examples: Any) -> int:
    """The number of slots of `updates`, for each of which `examples` holds candidate records."""
    clients = _axes.check_updates_of(params, updates)
    slots = _axes.check_client_axis(examples, "the candidate records")
    if slots != clients:
        raise _validate.InputError(
            f"expected candidate records for each of {clients} updates; got them for {slots}."
        )
    records = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[0], examples))
    _axes.check_client_axis(records, "each slot's candidates", axis="records")
    return clients
