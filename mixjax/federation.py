"""Federated averaging with a proxy and an attacker: init, step, run."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from mixjax import _validate, aggregation, cohort, defences, mixing
from mixjax import observation as observation_lib
from mixjax import participation as participation_lib
from mixjax import units as units_lib
from mixjax.attacks.base import Attack, Probe
from mixjax.client import LocalTraining
from mixjax.data import ClientData
from mixjax.observation import Observation, Statistics
from mixjax.types import Active, Origins, Params, PRNGKey, Scalar

WEIGHTINGS = ("examples", "uniform")
BROKEN = ("exclude", "raise")
# any number that isn't one of the three keys a round is split into
PARTICIPATION = 0x9A57


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
      loss: each client's mean training loss; NaN for clients that stayed away or were excluded.
      observation: the server's view; its `active` tells whose updates were forwarded.
      scores: the attack's, `[slots, attributes]`; None without an attack.
      truth: the simulation's own knowledge.
      metrics: what `evaluate` returned for the new model; None without it.
      excluded: clients that trained and sent a broken update.
      stepped: whether the server took a step. False where too few updates remained, or their
        aggregate was not finite: the model is then the one of the round before.
    """

    loss: Float[Array, " clients"]
    observation: Observation
    scores: Float[Array, "clients attributes"] | None
    truth: Truth
    metrics: PyTree[Any]
    excluded: Bool[Array, " clients"]
    stepped: Bool[Array, ""]


class BrokenUpdateError(RuntimeError):
    """A client sent a broken update, in a federation with `broken="raise"`.

    Attributes:
      client: the client's id.
      round: the number of the round, from 0.
      state: the state before that round.
      records: the records of the rounds before it.
    """

    def __init__(self, client: int, round: int, state: FederationState, records: Record) -> None:
        super().__init__(
            f"expected finite updates within max_norm; client {client} sent another in round "
            f"{round}. The state before it and the records up to it are in this error: look at "
            'the client, then go on from `state`, or build the federation with broken="exclude".'
        )
        self.client, self.round, self.state, self.records = client, round, state, records


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
      check: `(state, data, rounds)` refuses a cohort that `step` can't serve, on the host, before
        anything is compiled.
      broken: what `run` does about broken updates; see `fedavg`.
    """

    init: Init
    step: Step
    check: Callable[..., None]
    broken: str = "exclude"


def fedavg(
    local: LocalTraining,
    *,
    server_optimizer: optax.GradientTransformation | None = None,
    defence: defences.Defence | None = None,
    attack: Attack | None = None,
    aggregate: aggregation.Aggregation = aggregation.mean,
    weighting: str = "examples",
    participation: participation_lib.Participation | None = None,
    broken: str = "exclude",
    max_norm: Scalar | None = None,
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

    Faults: a client whose perturbed update has a NaN or infinite number, or a squared norm beyond
    float32, or a norm above `max_norm`, is excluded before weighting and mixing: it counts as
    inactive, and the weights are relative to those who remain. Where a single update remains and
    the defence mixes, it is not forwarded. A round that forwards nothing, or whose aggregate is
    not finite, leaves the model and the optimizer's state as they were.

    Args:
      local: local training of one client.
      server_optimizer: takes minus the aggregate as gradient; `optax.sgd(1.0)` by default, which
        adds it to the model.
      defence: `defences.none()` by default.
      attack: what the server does on the side; nothing by default.
      aggregate: `(updates, active) -> aggregate` over forwarded updates.
      weighting: "examples" weights clients by their number of examples, "uniform" equally.
        Weights are applied before mixing.
      participation: who takes part in a round, of the clients that are active in the data and
        have examples; `participation.everyone()` by default.
      broken: "exclude" leaves broken updates out and says so in the record. "raise" stops: the
        state stays as it was before the round, and `run` raises.
      max_norm: an update longer than this, before it is weighted, is broken.
      granularity: the units that the defence mixes and the attack's statistics keep apart.
      evaluate: metrics of the model after each round.
      keep_updates: keep the forwarded updates in each record's observation.
      chunk_size: clients trained at once; see `cohort.fold`.
      mesh: spreads clients over devices; see `cohort.fold`.

    Returns:
      The federation. Build it once and reuse it: `run` compiles for each.

    Raises:
      InputError: for an unknown weighting or policy; on `step`, for bad data, keys or granularity.
    """
    _validate.check_choice(weighting, WEIGHTINGS, "weighting")
    _validate.check_choice(broken, BROKEN, "broken")
    if max_norm is not None:
        _validate.check_positive(max_norm, "max_norm")
    if participation is None:
        participation = participation_lib.everyone()
    _validate.check_callable(participation, "a participation such as participation.uniform(10)")
    optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    defence = defences.none() if defence is None else defence
    for part, fields, what in (
        (optimizer, ("init", "update"), "an optax optimizer as server_optimizer"),
        (defence, defences.Defence._fields, "a defence such as defences.mixnn()"),
        (attack, Attack._fields, "an attack such as attacks.sim.passive(auxiliary)"),
    ):
        if part is not None:
            _validate.check_component(part, fields, what)
    _validate.check_callable(local, "local training such as client.local_training(...)")
    _validate.check_callable(aggregate, "an aggregation such as aggregation.mean")
    # the mean is the same mixed or not: only other aggregations need the updates themselves
    stacked = keep_updates or aggregate is not aggregation.mean

    def init(params: Params) -> FederationState:
        units_lib.partition(params, granularity)
        return FederationState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def client_round(shared: Any, client: Any) -> tuple[Any, Any]:
        units, bound, key, probe = shared
        data, weight, takes_part = client
        train_key, perturb_key = jax.random.split(cohort.client_key(key, data.ids))
        # local training skips the steps of a client without examples
        counts = jnp.where(takes_part, data.counts, 0)
        result = local(train_key, probe.params, data._replace(counts=counts))
        update = defence.perturb(perturb_key, result.update)
        squares = units_lib.squared_norms(units, update)
        kept = takes_part & (jnp.sum(squares) <= bound)
        terms = None
        if attack is not None:
            dots = units_lib.dots(units, update, probe.directions)
            scale = weight.astype(dots.dtype)
            terms = cohort.zero_unless(kept, (dots * scale, squares * scale**2))
        update = jax.tree.map(lambda leaf: leaf * weight.astype(leaf.dtype), update)
        update = cohort.zero_unless(kept, update)
        loss = jnp.where(kept, result.loss, jnp.nan)
        return (() if stacked else update), (loss, kept, terms, update if stacked else None)

    # always traced: the masks that a round draws are never values to check
    @jax.jit
    def play(
        key: PRNGKey, state: FederationState, data: ClientData
    ) -> tuple[FederationState, Record]:
        units = units_lib.partition(state.params, granularity)
        round_key = jax.random.fold_in(key, state.round)
        clients_key, mix_key, attack_key = jax.random.split(round_key, 3)
        probe = Probe(state.params, None)
        if attack is not None:
            probe = attack.prepare(attack_key, state.params, local)

        data = data._replace(active=data.active & (data.counts > 0))
        chosen = participation(jax.random.fold_in(round_key, PARTICIPATION), state.round, data)
        _validate.check_active(chosen, data.active.shape[0])
        chosen = chosen & data.active
        weights = _relative_weights(data.counts if weighting == "examples" else chosen, chosen)
        # NaN compares as False; a relative weight is at most C, so no weighted norm overflows
        bound = jnp.float32(jnp.finfo(jnp.float32).max / chosen.shape[0] ** 2)
        if max_norm is not None:
            bound = jnp.minimum(bound, jnp.square(jnp.float32(max_norm)))
        total, (loss, kept, terms, updates) = cohort.fold(
            lambda shared, client: client_round((units, bound, *shared), client),
            (clients_key, probe),
            (data, weights, chosen),
            chunk_size=chunk_size,
            mesh=mesh,
        )

        excluded = chosen & ~kept
        least = mixing.least_clients(defence.mix, chosen.shape[0], len(units.names))
        active = kept & (jnp.sum(kept) >= least)
        forwards = jnp.any(active)
        count = jnp.maximum(jnp.sum(active), 1).astype(jnp.float32)
        # the weights were relative to all who trained; exactly `count` if nobody was excluded
        weight_sum = jnp.where(jnp.any(excluded), jnp.sum(jnp.where(active, weights, 0)), count)
        correction = jnp.where(active, count / weight_sum, 0)

        origins = defence.mix(mix_key, active | ~forwards, len(units.names))
        origins = jnp.where(forwards, origins, jnp.arange(active.shape[0])[:, None])
        forwarded = None
        if stacked:
            forwarded = mixing.apply(origins, _scale_rows(updates, correction), units)
            mean = aggregate(forwarded, active)
        else:
            mean = jax.tree.map(lambda leaf: leaf / weight_sum.astype(leaf.dtype), total)
        stepped = forwards & _all_finite(mean)
        gradient = jax.tree.map(lambda leaf, like: -leaf.astype(like.dtype), mean, probe.params)
        steps, opt_state = optimizer.update(gradient, state.opt_state, probe.params)
        params = optax.apply_updates(probe.params, steps)

        own, seen, scores = None, None, None
        if attack is not None:
            norms = observation_lib.direction_squared_norms(probe.directions, units)
            dots, squares = terms
            dots, squares = _scale_rows(dots, correction), _scale_rows(squares, correction**2)
            own = Statistics(dots, squares, norms)
            seen = observation_lib.mix_statistics(origins, own)
        observation = Observation(active, seen, forwarded if keep_updates else None)
        if attack is not None:
            scores = attack.score(observation)
        after = FederationState(params, opt_state, state.round + 1)
        after = _choose(stepped, after, state._replace(round=state.round + 1))
        record = Record(
            loss=loss,
            observation=observation,
            scores=scores,
            truth=Truth(origins, own),
            metrics=None if evaluate is None else evaluate(after.params),
            excluded=excluded,
            stepped=stepped,
        )
        if broken == "raise":
            # the round is not done: played again, it stops again
            after = _choose(jnp.any(excluded), state, after)
        return after, record

    def step(
        key: PRNGKey, state: FederationState, data: ClientData
    ) -> tuple[FederationState, Record]:
        _validate.check_key(key)
        _validate.check_cohort(data)
        return play(key, state, data)

    def check(state: FederationState, data: ClientData, rounds: int = 1) -> None:
        _validate.check_participants(data)
        units = units_lib.partition(state.params, granularity)
        active = data.active & (data.counts > 0)
        _validate.check_stack_memory(
            state.params,
            active.shape[0],
            chunk_size,
            mesh,
            stacks=stacked * (1 + (rounds if keep_updates else 1)),
            advice="aggregation.mean without keep_updates makes no stack of updates. Or run fewer "
            "rounds at once, or fewer clients.",
        )
        # tracing it lets the mix see the concrete mask, and costs no draw
        jax.eval_shape(lambda key: defence.mix(key, active, len(units.names)), jax.random.key(0))

    return Federation(init, step, check, broken)


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
      BrokenUpdateError: in a federation with `broken="raise"`, for the first broken update, after
        the program. Under a transformation, which can't raise, `Record.excluded` tells.
    """
    _validate.check_key(key)
    _validate.check_positive(rounds, "rounds", integer=True)
    federation.check(state, data, rounds)
    start = state.round
    state, records = _run(key, federation, state, data, rounds)
    if federation.broken == "raise" and _validate.concrete(records.excluded):
        excluded = np.asarray(records.excluded)
        if excluded.any():
            done = int(state.round) - int(start)
            client = int(np.asarray(data.ids)[excluded[done]][0])
            before = jax.tree.map(lambda leaf: leaf[:done], records)
            raise BrokenUpdateError(client, int(state.round), state, before)
    return state, records


@functools.partial(jax.jit, static_argnames=("federation", "rounds"))
def _run(
    key: PRNGKey, federation: Federation, state: FederationState, data: ClientData, rounds: int
) -> tuple[FederationState, Record]:
    def body(state: FederationState, _: None) -> tuple[FederationState, Record]:
        return federation.step(key, state, data)

    return jax.lax.scan(body, state, length=rounds)


def _relative_weights(weights: Array, active: Active) -> Float[Array, " clients"]:
    """`aggregation.relative_weights`, and zeros where nobody is active."""
    weights = jnp.where(active, weights.astype(jnp.float32), 0)
    return weights * (jnp.sum(active, dtype=jnp.float32) / jnp.maximum(jnp.sum(weights), 1))


def _scale_rows(tree: Any, factors: Float[Array, " clients"]) -> Any:
    """Each row times its factor. Zero rows stay zero, and a factor of one changes no bit."""
    return jax.tree.map(
        lambda leaf: leaf * factors.reshape(-1, *[1] * (leaf.ndim - 1)).astype(leaf.dtype), tree
    )


def _all_finite(tree: Any) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _choose(condition: Array, first: Any, second: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)
