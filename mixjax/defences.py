"""Defences: what happens to updates between the clients and the server.

The order is fixed: clip, then noise, on the client; then weights; then mixing, at the proxy. A
mixed update must not be clipped again: its norm may exceed the bound though its parts don't.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from mixjax import _validate, mixing
from mixjax.types import Params, PRNGKey, Scalar, wide


@runtime_checkable
class Perturb(Protocol):
    """Changes one client's update before it leaves the client."""

    def __call__(self, key: PRNGKey, update: Params, /) -> Params: ...


class Defence(NamedTuple):
    """What happens to updates between the clients and the server.

    Attributes:
      perturb: `(key, update) -> update`, on each client.
      mix: `(key, active, units) -> origins`, at the proxy.
    """

    perturb: Perturb
    mix: mixing.Mix


def none() -> Defence:
    """Plain federated learning: the server sees each client's own update."""
    return Defence(_unchanged, mixing.keep())


def clipped(norm: Scalar) -> Defence:
    """Scale an update down to Euclidean norm `norm` where it is longer."""
    _validate.check_positive(norm, "clip norm")

    def perturb(key: PRNGKey, update: Params) -> Params:
        del key
        squares = [
            jnp.sum(jnp.square(leaf.astype(wide(leaf.dtype)))) for leaf in jax.tree.leaves(update)
        ]
        length = jnp.sqrt(sum(squares, jnp.zeros(())))
        factor = jnp.where(length > norm, norm / jnp.where(length > norm, length, 1), 1)
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), update)

    return Defence(perturb, mixing.keep())


def noisy_gradient(sigma: Scalar, clip_norm: Scalar | None = None) -> Defence:
    """Gaussian noise N(0, sigma²) on each coordinate of the update, clipped first if asked.

    Only with `clip_norm` does it have a privacy guarantee: the Gaussian mechanism at noise
    multiplier sigma / clip_norm for each round.

    Args:
      sigma: standard deviation in the units of the update; may be traced.
      clip_norm: bound on the update's Euclidean norm.
    """
    _validate.check_non_negative(sigma, "sigma")

    def perturb(key: PRNGKey, update: Params) -> Params:
        leaves, structure = jax.tree.flatten(update)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            leaf + jnp.asarray(sigma, leaf.dtype) * jax.random.normal(one, leaf.shape, leaf.dtype)
            for one, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy)

    noise = Defence(perturb, mixing.keep())
    return noise if clip_norm is None else combine(clipped(clip_norm), noise)


def shuffle() -> Defence:
    """The control: whole updates are shuffled, none is mixed."""
    return Defence(_unchanged, mixing.shuffle())


def mixnn(list_size: int | None = None) -> Defence:
    """MixNN: every unit is permuted between the clients on its own.

    Args:
      list_size: entries in each of the proxy's lists; None mixes the whole round at once.

    Source: Boutet, Lebrun, Aalmoes, Baud 2021, arXiv:2109.12550.
    """
    return Defence(
        _unchanged, mixing.full_round() if list_size is None else mixing.proxy(list_size)
    )


def combine(first: Defence, second: Defence) -> Defence:
    """Both: `second` perturbs what `first` perturbed, and mixes what `first` mixed.

    >>> private = combine(noisy_gradient(0.01, clip_norm=1.0), mixnn())
    """
    for part in (first, second):
        _validate.check_component(part, Defence._fields, "a defence such as defences.mixnn()")

    def perturb(key: PRNGKey, update: Params) -> Params:
        first_key, second_key = jax.random.split(key)
        return second.perturb(second_key, first.perturb(first_key, update))

    return Defence(perturb, mixing.compose(first.mix, second.mix))


def _unchanged(key: PRNGKey, update: Params) -> Params:
    del key
    return update
