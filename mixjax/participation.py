"""Who takes part in a round: client sampling, dropouts, stragglers.

A participation is `(key, number, data) -> active`: of the clients that are there in round
`number`, those that take part. A client's draws come from the round's key and its id, so neither
padding nor the order of the cohort changes who takes part.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, Int

from mixjax import _axes, _validate
from mixjax.cohort import client_key
from mixjax.data import ClientData
from mixjax.types import Active, PRNGKey, Scalar, floating


@runtime_checkable
class Participation(Protocol):
    """Draws who takes part in a round.

    Clients that come every third round, in turn:

    >>> import jax, jax.numpy as jnp, mixjax as mx
    >>> def in_turn(key, number, data):
    ...     return data.active & (data.ids % 3 == number % 3)
    >>> data = mx.data.stack([{"x": jnp.ones((1, 2))}] * 4)
    >>> in_turn(jax.random.key(0), 3, data).tolist()
    [True, False, False, True]
    >>> some = mx.participation.compose(in_turn, mx.participation.dropout(0.1))
    """

    def __call__(self, key: PRNGKey, number: Int[Array, ""], data: ClientData, /) -> Active:
        """Choose among the clients that are there.

        Args:
          key: the round's key for this choice.
          number: the round's number, from 0.
          data: the cohort; `active` holds for clients that are there and have examples.

        Returns:
          Who takes part. The federation drops whoever isn't active in `data`.
        """
        ...


Durations: TypeAlias = (
    npt.ArrayLike | Callable[[PRNGKey, Int[Array, ""], ClientData], Float[Array, " clients"]]
)
"""What each client's round takes: `[clients]`, or `(key, number, data) -> [clients]`."""


def everyone() -> Participation:
    """Every client that is there."""

    def participate(key: PRNGKey, number: Int[Array, ""], data: ClientData) -> Active:
        del key, number
        return data.active

    return participate


def uniform(count: int) -> Participation:
    """A uniformly random set of `count` clients, without replacement; all if there are fewer."""
    _validate.check_positive(count, "count", integer=True)

    def participate(key: PRNGKey, number: Int[Array, ""], data: ClientData) -> Active:
        del number
        return _first(key, data, count)

    return participate


def fraction(share: Scalar) -> Participation:
    """A uniformly random set of max(1, round(share n)) of the n clients that are there.

    Source: the client fraction of McMahan et al. 2017, arXiv:1602.05629.
    """
    _validate.check_share(share, "share")

    def participate(key: PRNGKey, number: Int[Array, ""], data: ClientData) -> Active:
        del number
        wanted = jnp.asarray(share, jnp.float32) * jnp.sum(data.active, dtype=jnp.float32)
        return _first(key, data, jnp.maximum(jnp.floor(wanted + 0.5), 1))

    return participate


def poisson(rate: Scalar) -> Participation:
    """Each client with probability `rate`, independently: Poisson sampling. It may be nobody."""
    _validate.check_share(rate, "rate")

    def participate(key: PRNGKey, number: Int[Array, ""], data: ClientData) -> Active:
        del number
        return data.active & (_draw(_uniform, key, data) < jnp.asarray(rate, jnp.float32))

    return participate


def dropout(rate: Scalar) -> Participation:
    """Each client stays away with probability `rate`, independently."""
    _validate.check_fraction(rate, "rate", 1.0)
    return poisson(1 - rate)


def schedule(mask: npt.ArrayLike) -> Participation:
    """Who takes part as the user says.

    Args:
      mask: bool `[clients]`, or `[rounds, clients]`; after its last round it starts again.
    """
    _check_schedule(mask)

    def participate(key: PRNGKey, number: Int[Array, ""], data: ClientData) -> Active:
        del key
        rows = jnp.atleast_2d(jnp.asarray(mask))
        _check_per_client(rows[0], data.active.shape[0], "the schedule")
        return data.active & rows[number % rows.shape[0]]

    return participate


def _check_schedule(mask: Any) -> None:
    array = mask if hasattr(mask, "dtype") else _validate.host_array(mask, "a schedule", None)
    if array.dtype != jnp.bool_ or array.ndim not in (1, 2) or 0 in array.shape:
        raise _validate.InputError(
            "expected a schedule of bool[clients] or bool[rounds, clients]; got "
            f"{array.dtype}{list(array.shape)}."
        )


def deadline(limit: Scalar, durations: Durations) -> Participation:
    """Clients whose round takes longer than `limit` stay away.

    A straggler's training isn't simulated, for nothing of it arrives. A NaN duration is late.

    Args:
      limit: the deadline, in the units of `durations`.
      durations: one for each client, or a function that draws them, such as `log_normal`.
    """
    _validate.check_positive(limit, "limit")
    if callable(durations):
        _validate.check_signature(durations, ("key", "number", "data"), "durations")
    else:
        _check_durations(durations)

    def participate(key: PRNGKey, number: Int[Array, ""], data: ClientData) -> Active:
        taken = durations(key, number, data) if callable(durations) else jnp.asarray(durations)
        _check_per_client(taken, data.active.shape[0], "durations")
        _validate.check_real(taken, "durations")
        taken = taken.astype(floating(taken.dtype))
        return data.active & (taken <= jnp.asarray(limit, taken.dtype))

    return participate


def _check_per_client(values: Any, clients: int, what: str) -> None:
    if getattr(values, "shape", None) != (clients,):
        came = list(values.shape) if hasattr(values, "shape") else repr(values)
        raise _validate.InputError(
            f"expected one entry of {what} for each of {clients} clients; got {came}. "
            "Rows that data.pad adds count too."
        )


def _check_durations(durations: Any) -> None:
    if not _validate.concrete(durations):
        return
    values = _validate.host_array(durations, "durations")
    if values.ndim != 1 or not np.all(values >= 0):
        raise _validate.InputError(
            "expected durations >= 0 of shape [clients], or a function that draws them; got "
            f"{values!r}."
        )


def log_normal(
    median: Scalar, sigma: Scalar
) -> Callable[[PRNGKey, Int[Array, ""], ClientData], Float[Array, " clients"]]:
    """Durations median exp(sigma z), with a standard normal z for each client and round."""
    _validate.check_positive(median, "median")
    _validate.check_non_negative(sigma, "sigma")

    def durations(
        key: PRNGKey, number: Int[Array, ""], data: ClientData
    ) -> Float[Array, " clients"]:
        del number
        middle, spread = (jnp.asarray(value, jnp.float32) for value in (median, sigma))
        return middle * jnp.exp(spread * _draw(_normal, key, data))

    return durations


def compose(*parts: Participation) -> Participation:
    """One after the other: each chooses among those that the ones before left.

    >>> sampled_then_lost = compose(uniform(20), dropout(0.1))

    Args:
      parts: at least one.

    Raises:
      InputError: without a part, or for one that is no participation.
    """
    _validate.check_some(parts, "participation such as participation.uniform(10)")
    for part in parts:
        _validate.check_signature(
            part, ("key", "number", "data"), "a participation such as participation.uniform(10)"
        )

    def participate(key: PRNGKey, number: Int[Array, ""], data: ClientData) -> Active:
        for index, part in enumerate(parts):
            chosen = part(jax.random.fold_in(key, index), number, data)
            _axes.check_mask(chosen, data.active.shape[0])
            data = data._replace(active=data.active & chosen)
        return data.active

    return participate


# named dtypes: 64-bit mode draws the same
_uniform = functools.partial(jax.random.uniform, dtype=jnp.float32)
_normal = functools.partial(jax.random.normal, dtype=jnp.float32)
_bits = functools.partial(jax.random.bits, dtype=jnp.uint32)


def _draw(sampler: Callable[[PRNGKey], Array], key: PRNGKey, data: ClientData) -> Array:
    return jax.vmap(lambda client_id: sampler(client_key(key, client_id)))(data.ids)


def _first(key: PRNGKey, data: ClientData, count: Any) -> Active:
    """The first `count` active clients in a uniformly random order."""
    words = _draw(_bits, key, data) >> 1
    order = jnp.argsort(jnp.where(data.active, words, jnp.uint32(2**32 - 1)))
    ranks = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype))
    return data.active & (ranks < jnp.asarray(count).astype(order.dtype))
