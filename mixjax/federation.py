"""Federated averaging with a proxy and an attacker: init, step, run."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from mixjax import _axes, _begin, _validate, aggregation, defences, faults, mixing, rounds
from mixjax import participation as participation_lib
from mixjax import units as units_lib
from mixjax._play import Parts as Parts
from mixjax._play import play_round as play_round
from mixjax.attacks import base
from mixjax.client import LocalTraining
from mixjax.data import ClientData
from mixjax.faults import BrokenUpdateError
from mixjax.records import FederationState, Memories, Record
from mixjax.types import Params, PRNGKey, Scalar

WEIGHTINGS = ("examples", "uniform")
UPLOADS = ("updates", "models")


@runtime_checkable
class Init(Protocol):
    """Where a run starts."""

    def __call__(
        self,
        params: Params,
        /,
        clients: int | None = None,
        *,
        attack_seed: int | Array | None = None,
    ) -> FederationState:
        """Make the first state.

        Args:
          params: the first model.
          clients: how many rows the cohort has, padding included; needed where a component
            remembers.
          attack_seed: all that the attack draws follows from it. By default it is made of the
            model's bits, which the server has anyway: so no key of the run can be told from it.
        """
        ...


@runtime_checkable
class Step(Protocol):
    """One round."""

    def __call__(
        self, key: PRNGKey, state: FederationState, data: ClientData, /
    ) -> tuple[FederationState, Record]: ...


class Federation(NamedTuple):
    """A federated algorithm.

    Attributes:
      init: `(params, clients) -> state`.
      step: `(key, state, data) -> (state, record)`, one round. `key` is the run's: a round's
        keys are derived from it and the round's number (`rounds.round_keys`).
      play: `(key, state, data, rounds) -> (state, records)`, many rounds as one program.
      check: `(state, data, rounds)` refuses a cohort that `step` can't serve, and parts that break
        their contract, on the host, before anything is compiled.
      broken: what `run` does about broken updates; see `fedavg`.
    """

    init: Init
    step: Step
    play: Callable[..., tuple[FederationState, Record]]
    check: Callable[..., None]
    broken: str = "exclude"


def fedavg(
    local: LocalTraining,
    *,
    server_optimizer: optax.GradientTransformation | None = None,
    defence: defences.Defence | None = None,
    attack: base.Attack | None = None,
    aggregate: aggregation.Aggregation | aggregation.Reduce = aggregation.mean,
    weighting: str = "examples",
    uploads: str = "updates",
    participation: participation_lib.Participation | None = None,
    broken: str = "exclude",
    max_norm: Scalar | None = None,
    granularity: units_lib.Granularity = "layer",
    evaluate: Callable[[Params], PyTree[Any]] | None = None,
    keep_updates: bool = False,
    keep_probe: bool = False,
    chunk_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Federation:
    """Federated averaging (McMahan et al. 2017, arXiv:1602.05629) behind a proxy.

    Each round the server sends its model; active clients train, perturb their update and scale
    it by their relative weight; the proxy mixes; the server aggregates and takes a step along
    the aggregate with its optimizer. With an additive aggregation no stack of updates is made:
    they are summed as they come, and mixing permutes the attack's measures only.

    Faults: a client whose perturbed update has a NaN or infinite number, or a squared norm beyond
    float32, or a norm above `max_norm`, is excluded before weighting and mixing: it counts as
    inactive, and the weights are relative to those who remain. Where a single update remains and
    the defence mixes, it is not forwarded. A round that forwards nothing, or whose aggregate or
    new model is not finite, leaves the model and the optimizer's state as they were.

    `jax_debug_nans` is off inside: losses of absent clients are NaN on purpose, and a client whose
    training gives NaN is in `Record.excluded`; with `broken="raise"` it is named.

    Args:
      local: local training of one client.
      server_optimizer: takes minus the aggregate as gradient; `optax.sgd(1.0)` by default, which
        adds it to the model.
      defence: `defences.none()` by default.
      attack: what the server does on the side; nothing by default.
      aggregate: what the server makes of the forwarded updates; a plain
        `(updates, active) -> aggregate` will do.
      weighting: "examples" weights clients by their number of examples, "uniform" equally.
        Weights are applied before mixing.
      uploads: what clients send back: "updates", the difference to the model they got, or
        "models", from which the server subtracts what it has. It matters where an attack sends
        clients different models.
      participation: who takes part in a round, of the clients that are active in the data and
        have examples; `participation.everyone()` by default.
      broken: "exclude" leaves broken updates out and says so in the record. "raise" stops: the
        state stays as it was before the round, and `run` raises.
      max_norm: an update longer than this, before it is weighted, is broken.
      granularity: the units that the defence mixes and the attack's measures keep apart.
      evaluate: metrics of the model after each round.
      keep_updates: keep the forwarded updates in each record's observation. It changes memory and
        nothing else.
      keep_probe: keep what the attack prepared in each record, for `replay`.
      chunk_size: clients trained at once; see `cohort.fold`.
      mesh: spreads clients over devices; see `cohort.fold`.

    Returns:
      The federation. Build it once and reuse it: `run` compiles for each.

    Raises:
      InputError: for an unknown weighting or policy, or a part of another kind; on `run`, for a
        part that breaks its contract; on `step`, for bad data, keys or granularity.
    """
    _validate.check_choice(weighting, WEIGHTINGS, "weighting")
    _validate.check_choice(uploads, UPLOADS, "uploads")
    _validate.check_choice(broken, faults.BROKEN, "broken")
    if max_norm is not None:
        _validate.check_positive(max_norm, "max_norm")
    chosen = participation_lib.everyone() if participation is None else participation
    optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    defence = defences.none() if defence is None else defence
    _validate.check_optimizer(optimizer, "an optax optimizer as server_optimizer")
    if evaluate is not None:
        _validate.check_signature(evaluate, ("params",), "evaluate")
    _validate.check_mesh(mesh)
    _validate.check_component(defence, ("perturb", "mix"), "a defence such as defences.mixnn()")
    if attack is not None:
        base.check(attack)
    parts = Parts(
        local=_validate.check_signature(
            local, ("key", "params", "data"), "local training such as client.local_training(...)"
        ),
        optimizer=optimizer,
        perturb=_validate.check_signature(defence.perturb, ("key", "update"), "defence.perturb"),
        mix=mixing.as_mix(defence.mix),
        attack=attack,
        aggregate=aggregation.as_aggregation(aggregate),
        participation=_validate.check_signature(
            chosen, ("key", "number", "data"), "a participation such as participation.uniform(10)"
        ),
        summed=defence.summed,
        weighting=weighting,
        uploads=uploads,
        broken=broken,
        max_norm=max_norm,
        granularity=granularity,
        evaluate=evaluate,
        keep_updates=keep_updates,
        keep_probe=keep_probe,
        chunk_size=chunk_size,
        mesh=mesh,
    )
    if parts.summed and not parts.aggregate.additive:
        raise _validate.InputError(
            "expected an aggregation that needs the sum alone, as aggregation.mean, behind secure "
            "aggregation; got one that reads updates one by one."
        )
    remembers = [
        name
        for name, part in (
            ("attack", attack),
            ("defence", parts.mix),
            ("aggregate", parts.aggregate),
        )
        if part is not None and part.init is not None
    ]

    def init(
        params: Params, /, clients: int | None = None, *, attack_seed: int | Array | None = None
    ) -> FederationState:
        if remembers and clients is None:
            raise _validate.InputError(
                f"expected the number of clients, of which the {remembers[0]} remembers something; "
                "got none. Pass init(params, clients), the rows of the cohort with its padding."
            )
        if clients is not None:
            _validate.check_positive(clients, "clients", integer=True)
        if isinstance(params, FederationState):
            raise _validate.InputError(
                "expected the model's parameters; got a FederationState. Pass state.params, or go "
                "on from the state with federation.run."
            )
        _axes.check_params(params)
        units = units_lib.partition(params, granularity)
        if attack_seed is not None:
            _check_attack_seed(attack_seed)
        seed = rounds.seed_of_model(params) if attack_seed is None else jnp.uint32(attack_seed)
        memories = rounds.first_memories(
            attack, parts.mix, parts.aggregate, params, units, clients or 0, summed=parts.summed
        )
        start = jnp.zeros((), jnp.int32)
        return FederationState(params, optimizer.init(params), start, Memories(*memories), seed)

    # always traced: the masks that a round draws are never values to check
    @jax.jit
    def play(
        key: PRNGKey, state: FederationState, data: ClientData
    ) -> tuple[FederationState, Record]:
        return play_round(parts, key, state, data)

    def step(
        key: PRNGKey, state: FederationState, data: ClientData
    ) -> tuple[FederationState, Record]:
        _validate.check_key(key)
        _axes.check_cohort(data)
        # records mark absent clients with NaN, and broken updates are counted
        with jax.debug_nans(False):
            return play(key, state, data)

    # a program of this federation's own: it goes when the federation goes
    @functools.partial(jax.jit, static_argnames="rounds")
    def play_rounds(
        key: PRNGKey, state: FederationState, data: ClientData, rounds: int
    ) -> tuple[FederationState, Record]:
        return jax.lax.scan(lambda state, _: step(key, state, data), state, length=rounds)

    def check(state: FederationState, data: ClientData, rounds: int = 1) -> None:
        _begin.check(parts, state, data, rounds)

    return Federation(init, step, play_rounds, check, broken)


def _check_attack_seed(seed: Any) -> None:
    """One whole number of 32 bits; a traced one is looked at for its type alone."""
    dtype = getattr(seed, "dtype", type(seed))
    whole = getattr(seed, "shape", ()) == () and jnp.issubdtype(dtype, jnp.integer)
    if not whole or (_validate.concrete(seed) and not 0 <= int(seed) < 2**32):
        raise _validate.InputError(
            f"expected an attack_seed that is a whole number from 0 to 2**32 - 1; got {seed!r}."
        )


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
    with jax.debug_nans(False):
        state, records = federation.play(key, state, data, rounds)
    if federation.broken == "raise" and _validate.concrete(records.excluded):
        excluded = np.asarray(records.excluded)
        if excluded.any():
            done = int(state.round) - int(start)
            client = int(np.asarray(data.ids)[excluded[done]][0])
            with jax.debug_nans(False):
                before = jax.tree.map(lambda leaf: leaf[:done], records)
            raise BrokenUpdateError(client, int(state.round), state, before)
    return state, records
