"""Source inference: whose record is it?

A model fits the records that it was trained on. The server computes the loss of a record that
somebody is known to have under each client's model, and guesses that it is whose loss is least.
Only whole updates tell: behind MixNN a slot's model is a chimera of several people's layers, and
once `unmix` has joined them it is one person's again.
Source: Hu et al. 2023, arXiv:2310.00222.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from mixjax import _axes, _validate, cohort
from mixjax import client as client_lib
from mixjax.client import LossFn
from mixjax.types import Params, PRNGKey, Updates


def record_losses(
    key: PRNGKey,
    loss_fn: LossFn,
    params: Params,
    updates: Updates,
    records: PyTree[Any],
    *,
    chunk_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Float[Array, "clients records"]:
    """The loss of each record under the model of each slot, `params + update`.

    The guess is the slot of the least loss:

    >>> loss_fn = lambda params, batch, key: (params["w"] - batch["x"]) ** 2
    >>> updates, records = {"w": jnp.array([1.0, 2.0])}, {"x": jnp.array([1.9, 0.8, 7.0])}
    >>> losses = record_losses(jax.random.key(0), loss_fn, {"w": jnp.zeros(())}, updates, records)
    >>> jnp.argmin(losses, axis=0).tolist()
    [1, 0, 1]

    Guarantees: a row follows from its update alone, to the bit, wherever its slot is.

    Args:
      key: of the loss, for each record its own, the same one under every model.
      loss_fn: the clients' own loss, a mean or one an example.
      params: the model the server sent, which the updates start from.
      updates: what the server sees, or has joined: any pytree with a leading clients axis.
      records: a pytree of arrays `[records, ...]`.
      chunk_size: records at once, of one slot; it changes the result by rounding only. See
        `cohort.fold`.
      mesh: spreads the slots over devices.

    Returns:
      `[slot, record]`. A slot that was not forwarded has the loss of `params` itself, one whose
      update is not finite whatever the loss makes of it: leave both out before you guess.

    Raises:
      InputError: for updates of another model, or arrays of different numbers of records.
    """
    _validate.check_key(key)
    _validate.check_callable(loss_fn, "a loss (params, batch, key)")
    _axes.check_updates_of(params, updates)
    _validate.check_real(updates)
    count = _axes.check_client_axis(records, "records", axis="records")

    def of_record(model: Any, candidate: Any) -> tuple[tuple[()], Array]:
        record, index = candidate
        batch = jax.tree.map(lambda leaf: leaf[None], record)
        own_key = cohort.client_key(key, index)
        return (), client_lib.per_example_losses(loss_fn, model, batch, own_key, 1)[0]

    def of_slot(shared: Any, update: Any) -> tuple[tuple[()], Array]:
        params, candidates = shared
        model = jax.tree.map(lambda leaf, move: leaf + move.astype(leaf.dtype), params, update)
        return cohort.fold(of_record, model, candidates, chunk_size=chunk_size)

    shared = (params, (records, jnp.arange(count)))
    _, losses = cohort.fold(of_slot, shared, updates, chunk_size=1, mesh=mesh)
    return losses
