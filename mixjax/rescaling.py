"""Function-preserving rescaling: a client sends its model in another gauge.

What feeds a hidden channel of a ReLU network times a > 0, what reads it divided by a: the function
is the same (see `attacks.channels`), the update is not. After local training a client may so choose
one number a channel. That breaks the conservation law by which `attacks.unmix` joins layers, and
changes what the server averages: models that compute alike, in gauges that differ.
Source: the rescaling symmetry (Neyshabur, Salakhutdinov and Srebro 2015, arXiv:1506.02617); as a
defence it is ours.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mixjax import _validate
from mixjax.attacks._sums import by_channel
from mixjax.attacks.channels import Graph, Hidden, check_graph, rescaled
from mixjax.client import LocalResult, LocalTraining
from mixjax.data import ClientData
from mixjax.types import Params, PRNGKey, Scalar, floating, threefry, widest

_Gauge: TypeAlias = Callable[[PRNGKey, Hidden, list[Array], list[Array]], Float[Array, " channels"]]
"""`(key, hidden, received, trained) -> log a` of each channel, from the leaves of two models."""

_GAUGE = 0x67617567
"""Sets the gauge's key apart from those that local training splits off the same key."""


def to_received(
    local: LocalTraining, graph: Graph, *, strength: Scalar = 1.0, bound: Scalar | None = None
) -> LocalTraining:
    """Local training whose hidden channels keep the norm of what feeds them.

    a = (|received| / |trained|) ** strength for the norms of all that feeds the channel, layer
    after layer in the graph's order, and |log a| <= bound. The radial moves go on to what reads
    the channel, in the end to the last layer.

    Guarantees: the trained function is kept up to rounding. Bound 0 sends the same bits as
    `local`. A channel that is fed zeros before or after training is left as it is.

    >>> params = {"a": {"w": jnp.ones((1, 2))}, "b": {"w": jnp.ones((2, 1))}}
    >>> graph = mx.attacks.channels.of_pairs(params, [("a", "b")])
    >>> def local(key, params, data):
    ...     return mx.client.LocalResult(jax.tree.map(jnp.ones_like, params), jnp.float32(0))
    >>> data = mx.data.take(mx.data.stack([{"x": jnp.ones((1, 1))}]), 0)
    >>> update = to_received(local, graph)(jax.random.key(0), params, data).update
    >>> update["a"]["w"].tolist(), update["b"]["w"].tolist()
    ([[0.0, 0.0]], [[3.0], [3.0]])

    Args:
      local: what trains.
      graph: the model's channels.
      strength: in (0, 1], of the way back to the received norm, in logarithms.
      bound: at least 0, of |log a|; None for none.

    Raises:
      InputError: for no local training, no graph, or a number out of range.
    """
    _validate.check_share(strength, "strength")
    if bound is not None:
        _validate.check_non_negative(bound, "bound")

    def gauge(key: PRNGKey, hidden: Hidden, received: list[Array], trained: list[Array]) -> Array:
        del key
        before, after = (_squares(leaves, hidden) for leaves in (received, trained))
        fed = (before > 0) & (after > 0)
        ratio = jnp.where(fed, before, 1) / jnp.where(fed, after, 1)
        log = jnp.asarray(strength / 2, ratio.dtype) * jnp.log(ratio)
        limit = jnp.asarray(jnp.inf if bound is None else bound, ratio.dtype)
        return jnp.clip(log, -limit, limit)

    return _wrapped(local, graph, gauge)


def at_random(local: LocalTraining, graph: Graph, *, bound: Scalar) -> LocalTraining:
    """Local training whose hidden channels are rescaled at random.

    log a is uniform in [-bound, bound], independent for each channel, client and round.

    Guarantees: the trained function is kept up to rounding. Bound 0 sends the same bits as `local`.

    The mean of models in different gauges is not a model in a mean gauge: it computes a function
    larger by about (sinh(bound) / bound) ** 2 a hidden layer, round by round.

    Args:
      local: what trains; its own randomness does not change.
      graph: the model's channels.
      bound: at least 0.

    Raises:
      InputError: for no local training, no graph, or a negative bound.
    """
    _validate.check_non_negative(bound, "bound")

    def gauge(key: PRNGKey, hidden: Hidden, received: list[Array], trained: list[Array]) -> Array:
        del received
        dtype = widest(trained)
        limit = jnp.asarray(bound, dtype)
        return limit * jax.random.uniform(key, (hidden.size,), dtype, -1, 1)

    return _wrapped(local, graph, gauge)


def _wrapped(local: LocalTraining, graph: Graph, gauge: _Gauge) -> LocalTraining:
    _validate.check_callable(local, "local training such as client.local_training(...)")
    check_graph(graph)

    def train(key: PRNGKey, params: Params, data: ClientData) -> LocalResult:
        result = local(key, params, data)
        own = jax.random.fold_in(threefry(key), _GAUGE)
        update = _regauged(own, graph, gauge, params, result.update)
        return LocalResult(update, result.loss)

    return train


def _regauged(key: PRNGKey, graph: Graph, gauge: _Gauge, params: Params, update: Params) -> Params:
    """The update to the trained model in its new gauge."""
    received, structure = jax.tree.flatten(params)
    moves = jax.tree.leaves(update)
    scales = [jnp.ones(leaf.shape, floating(leaf.dtype)) for leaf in moves]
    for number, hidden in enumerate(graph.hidden):
        # what the layers before have passed on counts
        trained = [
            scale * (leaf + move).astype(scale.dtype)
            for scale, leaf, move in zip(scales, received, moves, strict=True)
        ]
        log = gauge(jax.random.fold_in(key, number), hidden, received, trained)
        scales = rescaled(scales, hidden.feeds, jnp.exp(log))
        scales = rescaled(scales, hidden.reads, jnp.exp(-log))
    # not the difference of models: scales of 1 leave every bit as it is
    sent = [
        scale * move.astype(scale.dtype) + (scale - 1) * leaf.astype(scale.dtype)
        for scale, leaf, move in zip(scales, received, moves, strict=True)
    ]
    return jax.tree.unflatten(structure, sent)


def _squares(leaves: Sequence[Array], hidden: Hidden) -> Float[Array, " channels"]:
    """Squared norms of all that feeds each channel."""
    total = jnp.zeros(hidden.size, widest(leaves))
    for role in hidden.feeds:
        square = jnp.square(leaves[role.leaf].astype(total.dtype))
        total += by_channel(square, role, hidden.size)
    return total
