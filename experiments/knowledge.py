"""Levels of the server's knowledge: an axis of its own, beside the attribute's values."""

from typing import Any

import jax
import jax.numpy as jnp

import mixjax as mx
from mixjax.attacks import Attack, Probe


def by_level(attack: Attack, levels: int) -> Attack:
    """The same attack for several levels of knowledge at once, in one trajectory.

    Args:
      attack: made with the auxiliary rows of all levels, `levels * values`. Each of its references
        must follow from its own row alone, and the model it sends from none; with one level
        nothing is asked.
      levels: how many.

    Returns:
      An attack whose references have axes `[levels, values, ...]`, its measures
      `[units, levels, ...]`, its findings `[clients, levels, ...]` and its memory `[levels, ...]`.
    """
    first_memory, own_prepare, own_measure = attack.init, attack.prepare, attack.measure

    def init(params: Any, units: mx.units.Units, clients: int) -> Any:
        memory = () if first_memory is None else first_memory(params, units, clients)
        return jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * levels), memory)

    def prepare(key: jax.Array, *rest: Any) -> Probe:
        *memory, params, local = rest
        if own_prepare is None:
            return Probe(params)
        probe = own_prepare(key, *(at_last(one, 0) for one in memory), params, local)
        return probe._replace(references=jax.tree.map(split, probe.references))

    def split(rows: jax.Array) -> jax.Array:
        return rows.reshape(levels, -1, *rows.shape[1:])

    def measure(probe: Probe, units: mx.units.Units, update: Any) -> Any:
        def one(references: Any) -> Any:
            return own_measure and own_measure(probe._replace(references=references), units, update)

        return jax.vmap(one, out_axes=1, axis_size=levels)(probe.references)

    def observe(key: jax.Array, *rest: Any) -> Any:
        *memory, probe, observation = rest

        def one(references: Any, measures: Any, *memory: Any) -> Any:
            seen = observation._replace(measures=measures)
            return attack.observe(key, *memory, probe._replace(references=references), seen)

        return jax.vmap(
            one,
            in_axes=(0, 2, *[0] * len(memory)),
            out_axes=(0, 1) if memory else 1,
            axis_size=levels,
        )(probe.references, observation.measures, *memory)

    return Attack(
        first_memory and init, prepare, own_measure and measure, observe, updates=attack.updates
    )


def at_last(tree: Any, axis: int) -> Any:
    """Arrays at the last level of this axis: all that the server knows."""
    return jax.tree.map(lambda leaf: leaf[(slice(None),) * axis + (-1,)], tree)
