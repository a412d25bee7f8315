"""What ties the units of one person's update to each other: measures, unit by unit.

*Laws.* For a hidden channel j with a positively homogeneous activation, the gradient g of any loss
on any data obeys, exactly,

    <W_in[j], g_in[j]> + b[j] g_b[j] = <W_out[j], g_out[j]>

(Du, Hu and Lee 2018, arXiv:1806.00900; Kunin et al. 2021, arXiv:2012.04728). Local training sums
such gradients at moving weights, so an update obeys the law up to the second order of the learning
rate: over the units of one person, contributions to a law sum to about zero. A normalization has no
law through it; a bias before it moves as the normalization's own biases do less their mean over
the group, up to a factor (our finding), which ties it to its layer.

*Lengths.* What feeds a channel becomes longer or shorter by training, and so does what reads it. If
a client rescales its model (see `rescaling`), the laws no longer hold, but the scale itself is in
both: what feeds the channel has become longer by its factor, what reads it shorter by the same.

*Shared features.* Where a layer is cut, its pieces have its output channels in common: a column of
a kernel moves by the sum over examples of an input times the channel's error, its bias by the sum
of errors. So the pieces' sums over inputs, channel by channel, and their lengths, go together. And
channels cut from one another have seen the same inputs: each column, turned by the sign of its
bias, points to what the person's inputs are on average.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mixjax import _axes
from mixjax import units as units_lib
from mixjax.attacks._sums import by_unit_and_channel
from mixjax.attacks.channels import Graph, Role
from mixjax.types import Params, widest

INPUTS = 64


class Couplings(NamedTuple):
    """What the units of one update have to do with each other.

    Attributes:
      laws: contributions that sum to about zero over the units of one person.
      shared: features that are alike in all units of one person that have them, up to a factor
        for each unit; zero where a unit has none.
      feeds: of each hidden channel, by how much what feeds it has become longer, in logarithms.
      reads: by how much what reads it has. Both are zero where a unit has nothing of a channel.
    """

    laws: Float[Array, "*clients units equations"]
    shared: Float[Array, "*clients units features"]
    feeds: Float[Array, "*clients units channels"]
    reads: Float[Array, "*clients units channels"]


def measure(graph: Graph, params: Params, units: units_lib.Units, update: Params) -> Couplings:
    """All couplings of one update.

    Args:
      graph: the model's channels; see `channels`.
      params: the model that the update starts from.
      units: the partition.
      update: of one client.
    """
    return Couplings(
        laws(graph, params, units, update),
        shared(graph, units, update),
        *lengths(graph, params, units, update),
    )


def equations(graph: Graph) -> int:
    """The number of laws: one a hidden channel, and one a channel of a normalization."""
    return graph.channels + sum(len(norm.groups) for norm in graph.norms)


def laws(
    graph: Graph, params: Params, units: units_lib.Units, update: Params
) -> Float[Array, "units equations"]:
    """What each unit of one update contributes to the laws: a measure.

    Linear in the update. Over the units of one person it sums to zero in the laws of channels.

    Args:
      graph: the model's channels; see `channels`.
      params: the model that the update starts from.
      units: the partition.
      update: of one client.
    """
    _axes.check_units(units)
    weights, moves = jax.tree.leaves(params), jax.tree.leaves(update)
    dtype, count = widest(update), len(units.names)

    def summed(product: Array, role: Role, size: int) -> Array:
        return by_unit_and_channel(product, role, units.labels[role.leaf], count, size)

    parts = [jnp.zeros((count, 0), dtype)]
    for hidden in graph.hidden:
        total = jnp.zeros((count, hidden.size), dtype)
        for sign, roles in ((1, hidden.feeds), (-1, hidden.reads)):
            for role in roles:
                product = weights[role.leaf].astype(dtype) * moves[role.leaf].astype(dtype)
                total += sign * summed(product, role, hidden.size)
        parts.append(total)
    for norm in graph.norms:
        size = len(norm.groups)
        bias = summed(moves[norm.before.leaf].astype(dtype), norm.before, size)
        shift = weights[norm.scale].astype(dtype) * moves[norm.shift].astype(dtype)
        ahead = summed(shift, Role(norm.shift, -1, tuple(range(size))), size)
        # a group's mean, unit by unit: linear, so it may be cut
        same = np.equal.outer(norm.groups, norm.groups).astype(dtype)
        mean = jnp.matmul(ahead, same / same.sum(axis=0), precision=jax.lax.Precision.HIGHEST)
        parts.append(bias - (ahead - mean))
    return jnp.concatenate(parts, axis=1)


def lengths(
    graph: Graph, params: Params, units: units_lib.Units, update: Params
) -> tuple[Float[Array, "units channels"], Float[Array, "units channels"]]:
    """By how much, in logarithms, what a unit has of a channel has become longer.

    A channel rescaled by a > 0 adds log a to the first and takes it from the second, exactly, in
    every unit that has part in it. Zero where either norm is.

    Args:
      graph: the model's channels; see `channels`.
      params: the model that the update starts from.
      units: the partition.
      update: of one client.
    """
    _axes.check_units(units)
    weights, moves = jax.tree.leaves(params), jax.tree.leaves(update)
    dtype, count = widest(update), len(units.names)

    def longer(roles: tuple[Role, ...], size: int) -> Array:
        before, after = jnp.zeros((2, count, size), dtype)
        for role in roles:
            weight, labels = weights[role.leaf].astype(dtype), units.labels[role.leaf]
            moved = weight + moves[role.leaf].astype(dtype)
            before += by_unit_and_channel(jnp.square(weight), role, labels, count, size)
            after += by_unit_and_channel(jnp.square(moved), role, labels, count, size)
        known = (before > 0) & (after > 0)
        return jnp.log(jnp.where(known, after, 1) / jnp.where(known, before, 1)) / 2

    none = jnp.zeros((count, 0), dtype)
    feeds = [longer(hidden.feeds, hidden.size) for hidden in graph.hidden]
    reads = [longer(hidden.reads, hidden.size) for hidden in graph.hidden]
    return jnp.concatenate([none, *feeds], axis=1), jnp.concatenate([none, *reads], axis=1)


def shared(graph: Graph, units: units_lib.Units, update: Params) -> Float[Array, "units features"]:
    """Features of each unit's part of every layer that is cut.

    Of each output channel the sum and the length of what the unit has of it; of each input what
    the unit's channels do with it, channels that move down turned up. Of more than 64 inputs their
    sums with random signs.

    Args:
      graph: of which the layers count.
      units: the partition.
      update: of one client.
    """
    _axes.check_units(units)
    moves, dtype, count = jax.tree.leaves(update), widest(update), len(units.names)
    parts = [jnp.zeros((count, 0), dtype)]
    for layer in graph.layers:
        if len({unit for role in layer for unit in np.unique(units.labels[role.leaf].array)}) < 2:
            continue
        size = 1 + max(channel for role in layer for channel in role.channels)
        shape = (count, size)
        total, square, biases = (jnp.zeros(shape, dtype) for _ in range(3))
        for role in layer:
            move, labels = moves[role.leaf].astype(dtype), units.labels[role.leaf]
            summed = by_unit_and_channel(move, role, labels, count, size)
            total += summed
            square += by_unit_and_channel(jnp.square(move), role, labels, count, size)
            biases += summed if move.ndim == 1 else jnp.zeros(shape, dtype)
        parts += [total, jnp.sqrt(square)]
        # inputs after a ReLU are positive: a channel's sum moves as its bias does
        signs = jnp.sign(jnp.where(biases != 0, biases, total))
        parts += [
            _by_input(moves[role.leaf].astype(dtype), role, units.labels[role.leaf], signs)
            for role in layer
            if moves[role.leaf].ndim > 1
        ]
    return jnp.concatenate(parts, axis=1)


def _by_input(
    move: Array, role: Role, labels: units_lib.Labels, signs: Float[Array, "units channels"]
) -> Float[Array, "units inputs"]:
    """Sums over the channels of a kernel, each with its sign, input by input, at length one."""
    axis = move.ndim + role.axis
    owner = np.moveaxis(np.broadcast_to(labels.array, labels.shape), axis, -1)
    owner = owner.reshape(-1, owner.shape[-1])
    flat = jnp.moveaxis(move, axis, -1).reshape(owner.shape)
    turned = flat * signs[owner, np.arange(owner.shape[1])]
    inputs, width = owner.shape[0], min(owner.shape[0], INPUTS)
    place = np.arange(inputs)
    if inputs > width:
        rng = np.random.default_rng(0)
        place = rng.integers(0, width, inputs)
        turned *= rng.choice([-1.0, 1.0], (inputs, 1)).astype(turned.dtype)
    ids = (owner * width + place[:, None]).ravel()
    sums = jax.ops.segment_sum(turned.ravel(), ids, len(signs) * width).reshape(-1, width)
    lengths = jnp.linalg.norm(sums, axis=1, keepdims=True)
    return sums / jnp.where(lengths > 0, lengths, 1)
