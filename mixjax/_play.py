"""One round of a federation: its parts, in the order of things."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from mixjax import _validate, aggregation, defences, faults, mixing, rounds
from mixjax import measures as measures_lib
from mixjax import participation as participation_lib
from mixjax import units as units_lib
from mixjax.attacks import base
from mixjax.client import LocalTraining
from mixjax.data import ClientData
from mixjax.observation import Observation
from mixjax.records import FederationState, Memories, Record, Truth
from mixjax.types import Params, PRNGKey, Scalar


class Parts(NamedTuple):
    """The components of a federation and its options, as `play_round` uses them; see `fedavg`."""

    local: LocalTraining
    optimizer: optax.GradientTransformation
    perturb: defences.Perturb
    mix: mixing.Mix
    attack: base.Attack | None
    aggregate: aggregation.Aggregation
    participation: participation_lib.Participation
    summed: bool
    weighting: str
    uploads: str
    broken: str
    max_norm: Scalar | None
    granularity: units_lib.Granularity
    evaluate: Callable[[Params], PyTree[Any]] | None
    keep_updates: bool
    keep_probe: bool
    chunk_size: int | None
    mesh: jax.sharding.Mesh | None

    @property
    def stacked(self) -> bool:
        """Whether a round stacks its updates."""
        asked = self.attack is not None and self.attack.updates
        return not self.summed and (self.keep_updates or asked or not self.aggregate.additive)


def play_round(
    parts: Parts, key: PRNGKey, state: FederationState, data: ClientData
) -> tuple[FederationState, Record]:
    """One round: the order of things, each of which is a function of `rounds` or `faults`.

    Args:
      parts: the components.
      key: the run's.
      state: before the round.
      data: the cohort.

    Returns:
      The state after the round, and its record.
    """
    units = units_lib.partition(state.params, parts.granularity)
    keys = rounds.round_keys(key, state.round)
    attack_keys = rounds.attack_keys(state.attack_seed, state.round)
    memories, attack = state.memories, parts.attack

    probe = base.Probe(state.params, learns=jnp.ones((), bool))
    if attack is not None:
        probe = rounds.prepare(
            attack_keys.prepare, attack, memories.attack, state.params, parts.local
        )
    data = rounds.choose(keys.participation, parts.participation, state.round, data)
    weights = rounds.weigh(data, parts.weighting)
    trained = rounds.train(
        keys.clients,
        parts.local,
        parts.perturb,
        attack,
        units,
        probe,
        data,
        weights,
        summed=parts.aggregate.additive,
        stacked=parts.stacked,
        uploads=parts.uploads,
        max_norm=parts.max_norm,
        chunk_size=parts.chunk_size,
        mesh=parts.mesh,
    )
    remaining = faults.leave_out(weights, data.active, trained.sound, parts.mix.least)

    mix_memory, origins = rounds.forward(
        keys.mix, parts.mix, memories.mix, remaining.active, len(units.names)
    )
    own = rounds.zero_rows(remaining.active, trained.measures)
    updates = None
    if parts.stacked:
        updates = mixing.apply(origins, rounds.zero_rows(remaining.active, trained.updates), units)
    observation = Observation(
        remaining.active, None if own is None else measures_lib.mix(origins, own), updates
    )

    aggregate_memory, mean = rounds.aggregate(
        keys.aggregate, parts.aggregate, memories.aggregate, trained.total, updates, remaining
    )
    if parts.summed:
        observation = rounds.only_sum(attack, probe, units, mean, remaining.active)
    params, opt_state = rounds.take_step(parts.optimizer, probe.params, state.opt_state, mean)
    stepped = jnp.any(remaining.active) & rounds.all_finite(mean, params) & probe.learns
    params, opt_state, aggregate_memory = rounds.choose_tree(
        stepped,
        (params, opt_state, aggregate_memory),
        (state.params, state.opt_state, memories.aggregate),
    )

    attack_memory, findings = memories.attack, None
    if attack is not None:
        attack_memory, findings = rounds.observe(
            attack_keys.observe, attack, memories.attack, probe, observation
        )
    after = FederationState(
        params,
        opt_state,
        state.round + 1,
        Memories(attack_memory, mix_memory, aggregate_memory),
        state.attack_seed,
    )
    metrics = None if parts.evaluate is None else parts.evaluate(params)
    _validate.check_returned(metrics, "evaluate")
    record = Record(
        loss=trained.loss,
        observation=observation if parts.keep_updates else observation._replace(updates=None),
        findings=findings,
        truth=Truth(origins, own),
        metrics=metrics,
        excluded=remaining.excluded,
        stepped=stepped,
        probe=probe if parts.keep_probe and attack is not None else None,
    )
    if parts.broken == "raise":
        # the round is not done: played again, it stops again
        after = rounds.choose_tree(jnp.any(remaining.excluded), state, after)
    return after, record
