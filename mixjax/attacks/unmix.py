"""Unmixing: join the layers of one person again, within one round and without anybody's data.

The units of one person's update fit together (see `couplings`): what feeds a channel and what reads
it obey a law of conservation, and the pieces of a layer have features in common. The server
computes them unit by unit with the model it sent. Unmixing is finding permutations of the slots,
unit by unit, under which all of this fits.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from mixjax import _axes, _validate
from mixjax import units as units_lib
from mixjax.attacks import _descent, _then, couplings
from mixjax.attacks.base import Attack, Probe
from mixjax.attacks.channels import Graph, check_graph
from mixjax.observation import Observation
from mixjax.types import Active, Memory, Params, PRNGKey, Updates

LEAST = 0.3
"""Channels whose lengths correlate less are left out: they add noise."""


class Assembly(NamedTuple):
    """What belongs together, as the attack sees it.

    Attributes:
      slots: `slots[assembly, unit]`: the slot whose unit belongs to the assembly. A permutation of
        the active slots in each unit; other rows are their own. `mixing.apply(slots, updates,
        units)` puts the updates together, `measures.mix(slots, measures)` their measures.
      confidence: of each assembly, the share of its couplings that fits: 1 if every law holds
        exactly, about 0 for units of different people.
      then: findings of the attack that looks at what was joined.
    """

    slots: Int[Array, "clients units"]
    confidence: Float[Array, " clients"]
    then: PyTree[Any] = None


def attack(graph: Graph, then: Attack | None = None, *, gauge: float | None = None) -> Attack:
    """The server that unmixes each round on its own; its findings are an `Assembly`.

    `then` sees each round in the order of assemblies: whole updates, as behind a shuffle.

    >>> model = {"a": {"w": jnp.zeros((3, 4))}, "b": {"w": jnp.zeros((4, 2))}}
    >>> graph = mx.attacks.channels.of_pairs(model, [("a", "b")])
    >>> server = attack(graph, then=mx.attacks.tracks.attack())

    Args:
      graph: the model's channels; see `channels`.
      then: what looks at what was joined, by its measure.
      gauge: where clients rescale their models (see `rescaling`), the standard deviation of log a,
        which is public: bound / sqrt(3) of a uniform one, 0 of one that is a part of the way
        back. None where they don't.

    Raises:
      InputError: for a graph without channels, a negative gauge, or a `then` that reads whole
        updates.
    """
    check_graph(graph)
    _check_gauge(gauge)
    inner = _then.part(then)

    def measure(probe: Probe, units: units_lib.Units, update: Params) -> Any:
        coupled = couplings.measure(graph, probe.params, units, update)
        return coupled, inner.measure(probe, units, update)

    def observe(
        key: PRNGKey, memory: Memory, probe: Probe, observation: Observation
    ) -> tuple[Memory, Assembly]:
        own_key, then_key = jax.random.split(key)
        coupled, rest = observation.measures
        slots, confidence = _descent.called(
            functools.partial(_solve, graph, gauge),
            own_key,
            coupled.laws.shape[:2],
            (coupled, observation.active),
        )
        seen = _then.reordered(slots, observation, rest)
        memory, findings = inner.observe(then_key, memory, probe, seen)
        return memory, Assembly(slots, confidence, findings)

    return Attack(inner.init, inner.prepare, measure, observe, send=inner.send)


def assemble(
    key: PRNGKey,
    params: Params,
    updates: Updates,
    graph: Graph,
    *,
    active: Active | None = None,
    granularity: units_lib.Granularity = "layer",
    gauge: float | None = None,
) -> Assembly:
    """Join the units of a stack of mixed updates, as any server can.

    >>> model = mx.models.MLP(classes=2, hidden=(8, 8))
    >>> inputs = jax.random.normal(jax.random.key(0), (5, 10, 4))
    >>> params = mx.models.initial(model, jax.random.key(1), inputs[0])
    >>> def train(inputs):
    ...     loss = lambda params: jnp.mean(model.apply({"params": params}, inputs)[:, 0] ** 2)
    ...     return jax.tree.map(lambda leaf: -0.01 * leaf, jax.grad(loss)(params))
    >>> mixed = mx.mix(jax.random.key(2), jax.vmap(train)(inputs))
    >>> graph = mx.attacks.channels.trace(model, params, inputs[0])
    >>> assembly = assemble(jax.random.key(3), params, mixed, graph)
    >>> whole = mx.mixing.apply(assembly.slots, mixed, mx.units.partition(params))

    Args:
      key: breaks ties.
      params: the model that the updates start from.
      updates: what the server received: any pytree with a leading clients axis.
      graph: the model's channels; see `channels`.
      active: whose rows were forwarded; all by default.
      granularity: how the proxy cut the model.
      gauge: where clients rescale their models (see `rescaling`), the standard deviation of log a,
        which is public: bound / sqrt(3) of a uniform one, 0 of one that is a part of the way
        back. None where they don't.

    Raises:
      InputError: for updates of another model or that are not finite, or a negative gauge.
    """
    _validate.check_key(key)
    check_graph(graph)
    _check_gauge(gauge)
    clients = _axes.check_client_axis(updates)
    units = units_lib.partition(params, granularity)
    _axes.check_partition(updates, units)
    if active is None:
        active = jnp.ones(clients, bool)
    _axes.check_active(active, clients)

    rows = jax.vmap(lambda update: couplings.measure(graph, params, units, update))(updates)
    for rows_of in rows:
        _descent.check_finite(rows_of, active)
    found = _solve(graph, gauge, jax.random.bits(key, (), jnp.uint32), rows, active)
    return Assembly(*map(jnp.asarray, found))


def _solve(
    graph: Graph, gauge: float | None, seed: Any, coupled: couplings.Couplings, active: Any
) -> Any:
    laws, shared, feeds, reads = map(np.asarray, coupled)
    if gauge is not None:
        laws = _alike(feeds, reads, np.asarray(active), gauge)
    return _descent.solve(laws, shared, active, int(seed), graph.channels)


def _alike(feeds: np.ndarray, reads: np.ndarray, active: np.ndarray, gauge: float) -> np.ndarray:
    """`[clients, units, channels]`: lengths that sum to about zero over the units of one person.

    Training moves what feeds a channel and what reads it alike, a gauge moves them apart. The
    variance of each is of both, known slot by slot; so is their correlation, and its sign.
    """
    parts, variances = [], []
    for part in (feeds.astype(np.float64), reads.astype(np.float64)):
        count = np.maximum((part != 0).any(axis=0).sum(axis=0), 1)
        variance = part[active].var(axis=0).sum(axis=0) / count
        scale = np.sqrt(np.where(variance > 0, variance, 1)) * count
        parts.append(part / scale)
        variances.append(variance)
    own = np.prod([np.maximum(variance - gauge**2, 0) for variance in variances], axis=0)
    both = np.sqrt(np.prod(variances, axis=0))
    correlation = (np.sqrt(own) - gauge**2) / np.where(both > 0, both, 1)
    sign = np.where(np.abs(correlation) > LEAST, np.sign(correlation), 0)
    return np.abs(sign) * parts[0] - sign * parts[1]


def _check_gauge(gauge: float | None) -> None:
    if gauge is not None:
        _validate.check_non_negative(gauge, "gauge")
