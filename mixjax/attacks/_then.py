"""An attack as a part of another that first puts the round's units in another order."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from mixjax import _validate, measures
from mixjax.attacks import base
from mixjax.attacks.base import Attack, Measure, Probe
from mixjax.client import LocalTraining
from mixjax.observation import Observation
from mixjax.types import Memory, Params, PRNGKey
from mixjax.units import Units


class Part(NamedTuple):
    """An attack with all its functions but one that sends, and a memory, if only an empty one."""

    init: base.Init
    prepare: base.Prepare
    measure: Measure
    observe: Callable[[PRNGKey, Memory, Probe, Observation], tuple[Memory, PyTree[Any]]]
    send: base.Send | None


def part(attack: Attack | None) -> Part:
    """The attack as a part; of None one that finds nothing."""
    if attack is None:
        attack = Attack(None, None, None, _nothing)
    base.check(attack)
    if attack.updates:
        raise _validate.InputError(
            "expected an attack that looks at measures; got one that reads whole updates. Keep "
            "them with keep_updates=True and put them together with mixing.apply(slots, updates, "
            "units)."
        )
    own_prepare, own_observe = attack.prepare, attack.observe
    forgetful = attack.init is None

    def prepare(key: PRNGKey, memory: Memory, params: Params, local: LocalTraining) -> Probe:
        if own_prepare is None:
            return Probe(params)
        return own_prepare(key, *([] if forgetful else [memory]), params, local)

    def observe(
        key: PRNGKey, memory: Memory, probe: Probe, observation: Observation
    ) -> tuple[Memory, PyTree[Any]]:
        if forgetful:
            return memory, own_observe(key, probe, observation)
        return own_observe(key, memory, probe, observation)

    measure = attack.measure or _no_measure
    return Part(attack.init or _no_memory, prepare, measure, observe, attack.send)


def reordered(
    slots: Int[Array, "clients units"], observation: Observation, rest: PyTree[Any]
) -> Observation:
    """The observation with its units where `slots` says, and `rest` as its measures."""
    active = jnp.any(observation.active[slots], axis=1)
    moved = measures.mix(slots, rest) if jax.tree.leaves(rest) else rest
    return Observation(active, moved, None)


def _no_memory(params: Params, units: Units, clients: int) -> Memory:
    del params, units, clients
    return ()


def _no_measure(probe: Probe, units: Units, update: Params) -> tuple[()]:
    del probe, units, update
    return ()


def _nothing(key: PRNGKey, probe: Probe, observation: Observation) -> None:
    del key, probe, observation
