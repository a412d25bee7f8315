"""Federated averaging with a proxy and an attacker: init, step, run."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from mixjax import _validate, aggregation, cohort, defences, mixing
from mixjax import observation as observation_lib
from mixjax import units as units_lib
from mixjax.attacks.base import Attack, Probe
from mixjax.client import LocalTraining
from mixjax.data import ClientData
from mixjax.observation import Observation, Statistics
from mixjax.types import Origins, Params, PRNGKey

WEIGHTINGS = ("examples", "uniform")


class FederationState(NamedTuple):
    """What the next round needs.

    Attributes:
      params: the server's model.
      opt_state: the server optimizer's state.
      round: the number of rounds done.
    """

    params: Params
    opt_state: PyTree[Any]
    round: Int[Array, ""]


class Truth(NamedTuple):
    """What only the simulation knows. No attack gets it; `evaluation` joins it with scores.

    Attributes:
      origins: whose units each slot carried.
      statistics: of the updates before mixing, client by client; None without an attack. Any
        other mixing of the same round follows from them (`observation.mix_statistics`).
    """

    origins: Origins
    statistics: Statistics | None


class Record(NamedTuple):
    """What people look at after a round.

    Attributes:
      loss: each client's mean training loss; NaN for clients that stayed away.
      observation: the server's view.
      scores: the attack's, `[slots, attributes]`; None without an attack.
      truth: the simulation's own knowledge.
      metrics: what `evaluate` returned for the new model; None without it.
    """

    loss: Float[Array, " clients"]
    observation: Observation
    scores: Float[Array, "clients attributes"] | None
    truth: Truth
    metrics: PyTree[Any]


@runtime_checkable
class Init(Protocol):
    """Where a run starts."""

    def __call__(self, params: Params, /) -> FederationState: ...


@runtime_checkable
class Step(Protocol):
    """One round."""

    def __call__(
        self, key: PRNGKey, state: FederationState, data: ClientData, /
    ) -> tuple[FederationState, Record]: ...


class Federation(NamedTuple):
    """A federated algorithm.

    Attributes:
      init: `params -> state`.
      step: `(key, state, data) -> (state, record)`, one round. `key` is the run's: a round's
        keys are derived from it and the round's number, a client's from these and its id.
      check: refuses a cohort that `step` can't serve, on the host, before anything is compiled.
    """

    init: Init
    step: Step
    check: Callable[[FederationState, ClientData], None]


def fedavg(
    local: LocalTraining,
    *,
    server_optimizer: optax.GradientTransformation | None = None,
    defence: defences.Defence | None = None,
    attack: Attack | None = None,
    aggregate: aggregation.Aggregation = aggregation.mean,
    weighting: str = "examples",
    granularity: units_lib.Granularity = "layer",
    evaluate: Callable[[Params], PyTree[Any]] | None = None,
    keep_updates: bool = False,
    chunk_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Federation:
    """Federated averaging (McMahan et al. 2017, arXiv:1602.05629) behind a proxy.

    Each round the server sends its model; active clients train, perturb their update and scale
    it by their relative weight; the proxy mixes; the server aggregates and takes a step along
    the aggregate with its optimizer. With `aggregation.mean` no stack of updates is made: they
    are summed as they come, and mixing permutes per-unit statistics only.

    Args:
      local: local training of one client.
      server_optimizer: takes minus the aggregate as gradient; `optax.sgd(1.0)` by default, which
        adds it to the model.
      defence: `defences.none()` by default.
      attack: what the server does on the side; nothing by default.
      aggregate: `(updates, active) -> aggregate` over forwarded updates.
      weighting: "examples" weights clients by their number of examples, "uniform" equally.
        Weights are applied before mixing.
      granularity: the units that the defence mixes and the attack's statistics keep apart.
      evaluate: metrics of the model after each round.
      keep_updates: keep the forwarded updates in each record's observation.
      chunk_size: clients trained at once; see `cohort.fold`.
      mesh: spreads clients over devices; see `cohort.fold`.

    Returns:
      The federation. Build it once and reuse it: `run` compiles for each.

    Raises:
      InputError: for an unknown weighting; on `step`, for bad data, keys or granularity.
    """
    _validate.check_choice(weighting, WEIGHTINGS, "weighting")
    optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    defence = defences.none() if defence is None else defence
    # the mean is the same mixed or not: only other aggregations need the updates themselves
    stacked = keep_updates or aggregate is not aggregation.mean

    def init(params: Params) -> FederationState:
        units_lib.partition(params, granularity)
        return FederationState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def client_round(shared: Any, client: Any) -> tuple[Any, Any]:
        units, key, probe = shared
        data, weight, takes_part = client
        train_key, perturb_key = jax.random.split(cohort.client_key(key, data.ids))
        result = local(train_key, probe.params, data)
        update = defence.perturb(perturb_key, result.update)
        update = jax.tree.map(lambda leaf: leaf * weight.astype(leaf.dtype), update)
        update = cohort.zero_unless(takes_part, update)
        terms = None
        if attack is not None:
            terms = (
                units_lib.dots(units, update, probe.directions),
                units_lib.squared_norms(units, update),
            )
        loss = jnp.where(takes_part, result.loss, jnp.nan)
        return (() if stacked else update), (loss, terms, update if stacked else None)

    def step(
        key: PRNGKey, state: FederationState, data: ClientData
    ) -> tuple[FederationState, Record]:
        _validate.check_key(key)
        _validate.check_cohort(data)
        units = units_lib.partition(state.params, granularity)
        clients_key, mix_key, attack_key = jax.random.split(jax.random.fold_in(key, state.round), 3)
        probe = Probe(state.params, None)
        if attack is not None:
            probe = attack.prepare(attack_key, state.params, local)

        active = data.active & (data.counts > 0)
        count = jnp.sum(active)
        weights = active.astype(jnp.float32)
        if weighting == "examples":
            weights = aggregation.relative_weights(data.counts.astype(jnp.float32), active)
        total, (loss, terms, updates) = cohort.fold(
            lambda shared, client: client_round((units, *shared), client),
            (clients_key, probe),
            (data, weights, active),
            chunk_size=chunk_size,
            mesh=mesh,
        )

        origins = defence.mix(mix_key, active, len(units.names))
        forwarded = mixing.apply(origins, updates, units) if stacked else None
        if stacked:
            mean = aggregate(forwarded, active)
        else:
            mean = jax.tree.map(lambda leaf: leaf / jnp.maximum(count, 1).astype(leaf.dtype), total)
        gradient = jax.tree.map(lambda leaf, like: -leaf.astype(like.dtype), mean, probe.params)
        steps, opt_state = optimizer.update(gradient, state.opt_state, probe.params)
        params = optax.apply_updates(probe.params, steps)

        own, seen, scores = None, None, None
        if attack is not None:
            norms = observation_lib.direction_squared_norms(probe.directions, units)
            dots, squares = terms
            own = Statistics(dots, squares, norms)
            seen = observation_lib.mix_statistics(origins, own)
        observation = Observation(active, seen, forwarded if keep_updates else None)
        if attack is not None:
            scores = attack.score(observation)
        record = Record(
            loss=loss,
            observation=observation,
            scores=scores,
            truth=Truth(origins, own),
            metrics=None if evaluate is None else evaluate(params),
        )
        return FederationState(params, opt_state, state.round + 1), record

    def check(state: FederationState, data: ClientData) -> None:
        _validate.check_participants(data)
        units = units_lib.partition(state.params, granularity)
        active = data.active & (data.counts > 0)
        # tracing it lets the mix see the concrete mask, and costs no draw
        jax.eval_shape(lambda key: defence.mix(key, active, len(units.names)), jax.random.key(0))

    return Federation(init, step, check)


def run(
    key: PRNGKey, federation: Federation, state: FederationState, data: ClientData, rounds: int
) -> tuple[FederationState, Record]:
    """Run rounds as one compiled program.

    Args:
      key: the run's key. With the same key, data and state the records are bit-equal.
      federation: compiled once for each; see `fedavg`.
      state: where to start.
      data: the cohort, the same in each round.
      rounds: how many.

    Returns:
      The last state, and the records with a leading rounds axis. May be `vmap`ped over keys,
      states and data.

    Raises:
      InputError: for a bad key or cohort.
    """
    _validate.check_key(key)
    _validate.check_positive(rounds, "rounds", integer=True)
    federation.check(state, data)
    return _run(key, federation, state, data, rounds)


@functools.partial(jax.jit, static_argnames=("federation", "rounds"))
def _run(
    key: PRNGKey, federation: Federation, state: FederationState, data: ClientData, rounds: int
) -> tuple[FederationState, Record]:
    def body(state: FederationState, _: None) -> tuple[FederationState, Record]:
        return federation.step(key, state, data)

    return jax.lax.scan(body, state, length=rounds)
