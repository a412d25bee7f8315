"""A matcher learned on shadow participants: what goes together in one person's units.

The server has people of its own, such as auxiliary ones. It trains its model on their data as
clients do, and so sees units of which it knows that they belong together. From these it learns,
unit by unit, a linear map of the unit's features to a space that all units of one person share, by
a generalized canonical correlation analysis. Mapped so, the clients' units are joined as pieces of
one layer are (see `couplings`). It needs no law, so no model of special form; where there is a law
beside it, both count.
Source: canonical correlations of several sets, MAXVAR, Kettenring 1971, with a ridge and in the
dual, as shadow participants are few; its use and the features are our finding.
"""

import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped

from mixjax import _axes, _validate, cohort, measures
from mixjax import data as data_lib
from mixjax import units as units_lib
from mixjax.attacks import _descent, _then, couplings
from mixjax.attacks._sums import by_unit_and_channel
from mixjax.attacks.base import Attack, Probe
from mixjax.attacks.channels import Graph, Role, check_graph
from mixjax.attacks.couplings import Couplings
from mixjax.attacks.unmix import Assembly
from mixjax.client import LocalTraining
from mixjax.data import ClientData
from mixjax.observation import Observation
from mixjax.types import Active, Memory, Params, PRNGKey, Updates, widest

KINDS = 4

Shadows: TypeAlias = PyTree[Shaped[Array, "shadows ..."], " Model"]
"""Updates of shadow participants: the leaves of the model, each with a leading axis."""


class Pool(NamedTuple):
    """What is remembered of the shadow participants of earlier rounds.

    Attributes:
      rows: their features without the round's mean; zero where nothing is remembered yet.
      rounds: how many there were.
    """

    rows: Float[Array, "last shadows units kinds width"]
    rounds: Int[Array, ""]


class References(NamedTuple):
    """What the server prepares: this round's shadow participants, and what `then` prepares."""

    rows: Float[Array, "shadows units kinds width"]
    then: Any


def attack(
    data: ClientData,
    then: Attack | None = None,
    *,
    graph: Graph | None = None,
    granularity: units_lib.Granularity = "layer",
    width: int = 256,
    last: int = 20,
    components: int = 32,
    ridge: float = 0.1,
    mesh: jax.sharding.Mesh | None = None,
) -> Attack:
    """The server that joins what its shadow participants say; its findings are an `Assembly`.

    `then` sees each round in the order of assemblies: whole updates, as behind a shuffle.

    >>> people = mx.data.stack([{"x": jnp.ones((4, 2))}] * 3)
    >>> server = attack(halves(0, people, copies=2), then=mx.attacks.tracks.attack())

    Args:
      data: the shadow participants, people who do not take part; see `halves` for more of them.
      then: what looks at what was joined, by its measure.
      graph: the model's channels; what ties them counts too, see `couplings`.
      granularity: how the proxy cuts the model.
      width: of each kind of features; see `features`.
      last: of how many rounds shadow participants count. A server remembers last * shadows *
        units * 4 * width numbers.
      components: canonical correlations that count; fewer where shadow participants are few.
      ridge: added to the variance of each unit's features, as a share of its own.
      mesh: spreads the server's own training over devices; see `cohort.fold`.

    Raises:
      InputError: for less than two shadow participants, a number out of range, a `then` that
        reads whole updates, or a federation that cuts the model in another way.
    """
    _check_shadows(_axes.check_cohort(data, "the shadow participants"))
    _check_options(graph, width, components, ridge)
    _validate.check_positive(last, "last", integer=True)
    tied, inner = graph or Graph(()), _then.part(then)

    def init(params: Params, units: units_lib.Units, clients: int) -> tuple[Pool, Memory]:
        own = units_lib.partition(params, granularity).names
        if own != units.names:
            raise _validate.InputError(
                f"expected a federation that cuts the model into {len(own)} units, as the "
                f"attack's granularity does; got {len(units.names)}. Give both the same one."
            )
        shape = (last, data.counts.shape[0], len(own), KINDS, width)
        rows = jnp.zeros(shape, widest(params))
        return Pool(rows, jnp.int32(0)), inner.init(params, units, clients)

    def prepare(
        key: PRNGKey, memory: tuple[Pool, Memory], params: Params, local: LocalTraining
    ) -> Probe:
        own_key, then_key = jax.random.split(key)
        probe = inner.prepare(then_key, memory[1], params, local)
        sent, references = probe.params, probe.references
        updates = cohort.run(own_key, sent, data, local, mesh=mesh)
        units = units_lib.partition(params, granularity)
        known = data.active & (data.counts > 0)
        rows = _centred(_rows(sent, units, updates, width), known)
        return probe._replace(references=References(rows, references))

    def measure(probe: Probe, units: units_lib.Units, update: Params) -> Any:
        return (
            features(probe.params, units, update, width),
            couplings.measure(tied, probe.params, units, update),
            inner.measure(_inner(probe), units, update),
        )

    def observe(
        key: PRNGKey, memory: tuple[Pool, Memory], probe: Probe, observation: Observation
    ) -> tuple[tuple[Pool, Memory], Assembly]:
        own_key, then_key = jax.random.split(key)
        pool, own = memory
        rows = pool.rows.at[pool.rounds % last].set(probe.references.rows)
        clients, coupled, rest = observation.measures
        slots, confidence = _descent.called(
            functools.partial(_solve, tied, components, ridge),
            own_key,
            clients.shape[:2],
            (rows, clients, coupled, observation.active),
        )
        seen = _then.reordered(slots, observation, rest)
        own, findings = inner.observe(then_key, own, _inner(probe), seen)
        return (Pool(rows, pool.rounds + 1), own), Assembly(slots, confidence, findings)

    def send(probe: Probe, client: Any) -> Params:
        assert inner.send is not None
        return inner.send(_inner(probe), client)

    return Attack(init, prepare, measure, observe, send=inner.send and send)


def assemble(
    key: PRNGKey,
    params: Params,
    updates: Updates,
    shadows: Shadows,
    *,
    graph: Graph | None = None,
    active: Active | None = None,
    granularity: units_lib.Granularity = "layer",
    width: int = 256,
    components: int = 32,
    ridge: float = 0.1,
) -> Assembly:
    """Join the units of a stack of mixed updates, as any server with some data can.

    Args:
      key: breaks ties.
      params: the model that the updates start from.
      updates: what the server received: any pytree with a leading clients axis.
      shadows: what shadow participants made of the same model, whole: a pytree with an axis of
        their own.
      graph: see `attack`, as for what is not named here.
      active: whose rows were forwarded; all by default.

    Raises:
      InputError: for updates of another model or that are not finite, or less than two shadow
        participants. Of these, ones that are not finite do not count.
    """
    _validate.check_key(key)
    clients = _axes.check_updates_of(params, updates)
    _check_shadows(_axes.check_updates_of(params, shadows))
    _validate.check_real(updates)
    _validate.check_real(shadows, "updates of shadow participants")
    _check_options(graph, width, components, ridge)
    units = units_lib.partition(params, granularity)
    if active is None:
        active = jnp.ones(clients, bool)
    _axes.check_active(active, clients)
    rows = _rows(params, units, shadows, width)
    rows = _centred(rows, jnp.ones(rows.shape[0], bool))
    tied = graph or Graph(())
    coupled = jax.vmap(lambda update: couplings.measure(tied, params, units, update))(updates)
    seed = jax.random.bits(key, (), jnp.uint32)
    own = _rows(params, units, updates, width)
    _descent.check_finite(own, active)
    found = _solve(tied, components, ridge, seed, rows[None], own, coupled, active)
    return Assembly(*map(jnp.asarray, found))


def features(
    params: Params, units: units_lib.Units, update: Params, width: int = 256
) -> Float[Array, "units kinds width"]:
    """What the matcher looks at of each unit of one update, of any architecture: a measure.

    Four kinds of numbers: a sketch of the unit; and along each axis of each of its leaves, channel
    by channel, the sum of what the unit has there, its sum weighted by the sent model, and its
    length. Channels have places of their own as long as a unit has no more of them than `width`;
    else several share one, with random signs.

    Args:
      params: the model that the update starts from.
      units: the partition.
      update: of one client.
      width: numbers of each kind.
    """
    _validate.check_positive(width, "width", integer=True)
    sketch = measures.sketch(jax.random.key(0), units, update, width)
    dtype, count = widest(update), len(units.names)
    kinds = [jnp.zeros((count, width), dtype) for _ in range(KINDS - 1)]
    rng, before = np.random.default_rng(0), 0
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(update), units.labels, strict=True)
    for weight, leaf, labels in leaves:
        move = leaf.astype(dtype)
        weighted, squared = move * weight.astype(dtype), jnp.square(move)
        for axis, size in enumerate(leaf.shape):
            where = (before + np.arange(size)) % width
            signs = rng.choice([-1.0, 1.0], (1, size)).astype(dtype)
            before += size
            role = Role(-1, axis - leaf.ndim, tuple(range(size)))
            sums = [
                by_unit_and_channel(product, role, labels, count, size)
                for product in (move, weighted, squared)
            ]
            sums[-1] = jnp.sqrt(sums[-1])
            kinds = [
                kind.at[:, where].add(signs * own) for kind, own in zip(kinds, sums, strict=True)
            ]
    return jnp.stack([sketch, *kinds], axis=1)


def halves(seed: int, data: ClientData, copies: int) -> ClientData:
    """The people, and `copies` random halves of the examples of each, as people of their own.

    From few people it makes more shadow participants, which differ less.

    Args:
      seed: of the halves.
      data: people, on the host.
      copies: halves of each person.

    Raises:
      InputError: for a number out of range.
    """
    _validate.check_seed(seed)
    _validate.check_positive(copies, "copies", integer=True)
    _axes.check_cohort(data)
    rng = np.random.default_rng(seed)
    capacity = jax.tree.leaves(data.examples)[0].shape[1]
    whole = data_lib.unstack(data)
    people = list(whole)
    for _ in range(copies):
        for own in whole:
            count = jax.tree.leaves(own)[0].shape[0]
            rows = rng.permutation(count)[: (count + 1) // 2]
            people.append(jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], own))
    return data_lib.stack(people, capacity=capacity)


def _inner(probe: Probe) -> Probe:
    return probe._replace(references=probe.references.then)


def _rows(params: Params, units: units_lib.Units, updates: Updates, width: int) -> Array:
    return jax.vmap(lambda update: features(params, units, update, width))(updates)


def _centred(rows: Array, known: Array) -> Array:
    """Without the mean of the known rows; zero for the others, and for those of broken updates."""
    known = known & jnp.all(jnp.isfinite(rows), axis=(1, 2, 3))
    weight = known[:, None, None, None]
    rows = jnp.where(weight, rows, 0)
    mean = jnp.sum(rows, axis=0, keepdims=True) / jnp.maximum(jnp.sum(known), 1).astype(rows.dtype)
    return jnp.where(weight, rows - mean, 0)


def _solve(
    graph: Graph,
    components: int,
    ridge: float,
    seed: Any,
    rows: Any,
    clients: Any,
    coupled: Couplings,
    active: Any,
) -> Any:
    rows, clients = np.asarray(rows, np.float64), np.asarray(clients, np.float64)
    rows = rows.reshape(-1, *rows.shape[2:])
    rows = rows[(rows != 0).any(axis=(1, 2, 3))]
    learned = _mapped(rows, clients, components, ridge)
    shared = np.concatenate([coupled.shared, learned], axis=2)
    return _descent.solve(coupled.laws, shared, active, int(seed), graph.channels)


def _mapped(rows: np.ndarray, clients: np.ndarray, components: int, ridge: float) -> np.ndarray:
    """`[clients, units, components]`: clients' features in the space that units share.

    Args:
      rows: `[shadows, units, kinds, width]`, centred.
      clients: `[clients, units, kinds, width]`.
      components: of the space, at most.
      ridge: see `attack`.
    """
    count, units = rows.shape[:2]
    if count == 0:
        return np.zeros((*clients.shape[:2], 0))
    # every kind counts the same, and a row's square is one on average
    spread = np.sqrt(np.mean(np.sum(rows**2, axis=3, keepdims=True), axis=0))
    kinds = np.maximum(np.sum(spread > 0, axis=1, keepdims=True), 1)
    scale = np.where(spread > 0, spread * np.sqrt(kinds), np.inf)
    rows, clients = (
        np.moveaxis(part / scale, 1, 0).reshape(units, len(part), -1) for part in (rows, clients)
    )
    # in the dual: ridge regression on a unit leaves ridge * inverse of a direction
    turned = rows.swapaxes(1, 2)
    inverse = np.linalg.inv(rows @ turned + ridge * np.eye(count))
    _, vectors = np.linalg.eigh(inverse.sum(axis=0))
    common = vectors[:, : max(min(components, count - 1), 1)]
    return np.moveaxis(clients @ (turned @ (inverse @ common)), 0, 1)


def _check_shadows(count: int) -> None:
    if count < 2:
        raise _validate.InputError(
            f"expected at least two shadow participants; got {count}. Split one with "
            "shadows.halves(seed, data, copies)."
        )


def _check_options(graph: Any, width: Any, components: Any, ridge: Any) -> None:
    if graph is not None:
        check_graph(graph)
    _validate.check_positive(width, "width", integer=True)
    _validate.check_positive(components, "components", integer=True)
    _validate.check_positive(ridge, "ridge")
