"""From a trajectory's records to one JSON-ready row a round, for every mixing."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mixjax as mx
from experiments.conditions import Case, UnitScores
from experiments.knowledge import at_last, by_level, last_level
from experiments.training import Split, Trajectory

# mixings that attribution is averaged over: one draw's guesses are those of chance, plus luck
DRAWS = 200
RADII = tuple(round(0.1 * step, 1) for step in range(1, 31))
NEIGHBOUR_EVERY = 5


def behind_mix(key: jax.Array, case: Case, run: Trajectory, split: Split) -> Trajectory:
    """The same trajectory behind the case's proxy: fresh origins each round."""
    mix = case.mix()
    if mix is None:
        return run
    # the updates that the records may keep are the unmixed ones
    start, records = without_updates(run)
    observation, truth, findings = jax.device_get(
        _replay(observer(case, split), mix, key, start, records)
    )
    return Trajectory(
        start, records._replace(observation=observation, truth=truth, findings=findings)
    )


def observer(case: Case, split: Split) -> mx.attacks.Attack:
    """The case's attack once it is prepared: servers that look in the same way share a program."""
    return case.server.make(split.rows(), None)._replace(prepare=None)


def without_updates(run: Trajectory) -> Trajectory:
    """The trajectory without the updates that its records may keep."""
    observation = run.records.observation._replace(updates=None)
    return run._replace(records=run.records._replace(observation=observation))


@functools.partial(jax.jit, static_argnames=("attack", "mix"))
def _replay(
    attack: mx.attacks.Attack,
    mix: mx.mixing.Mix,
    key: jax.Array,
    start: mx.federation.FederationState,
    records: mx.federation.Record,
) -> tuple[Any, Any, Any]:
    rounds, _, levels = records.findings.shape[:3]
    keys = jax.random.split(key, rounds)
    _, seen = mx.records.replay(keys, by_level(attack, levels), start, records, mix)
    return seen.observation, seen.truth, seen.findings


@functools.partial(jax.jit, static_argnames=("attack", "mix"))
def _attribution_over_draws(
    attack: mx.attacks.Attack,
    mix: mx.mixing.Mix,
    key: jax.Array,
    start: mx.federation.FederationState,
    records: mx.federation.Record,
    truth: np.ndarray,
) -> tuple[jax.Array, jax.Array]:
    """Attribution of each round, and of scores summed up to it: means over mixings."""

    def one(key: jax.Array) -> list[jax.Array]:
        scores = at_last(_replay(attack, mix, key, start, records)[2], 2)[:, : truth.shape[0]]
        return [
            jnp.mean(jnp.argmax(part, axis=-1) == truth, axis=-1, dtype=jnp.float32)
            for part in (scores, jnp.cumsum(scores, axis=0))
        ]

    once, summed = jax.lax.map(one, jax.random.split(key, DRAWS), batch_size=50)
    return jnp.mean(once, axis=0), jnp.mean(summed, axis=0)


@functools.partial(jax.jit, static_argnames=("score", "units"))
def _unit_scores(
    score: UnitScores, units: mx.units.Units, probe: mx.attacks.Probe, measures: Any
) -> jax.Array:
    """Each unit's scores alone `[rounds, clients, units, values]`, of all that is known."""
    known = probe._replace(references=at_last(probe.references, 1))
    return jax.vmap(score, (0, None, 0))(known, units, at_last(measures, 3))


def rows(
    case: Case, seed: int, run: Trajectory, split: Split, units: mx.units.Units, key: jax.Array
) -> list[dict[str, Any]]:
    """One row for each round.

    Attribution of a mixed case is the mean over `DRAWS` mixings of the trajectory; whatever else
    depends on the mixing is of the one that the records have.

    Args:
      case: what was run.
      seed: which split of people.
      run: the trajectory behind the case's proxy; rows past the participants are padding.
      split: the participants and what the server knows.
      units: the model's partition.
      key: of the mixings.
    """
    record, truth, values = run.records, split.truth, split.values
    clients = len(truth)
    findings = np.asarray(record.findings)[:, :clients]
    scores = at_last(findings, 2)
    accumulated = np.cumsum(scores, axis=0)
    guesses = mx.evaluation.guesses(scores)
    unit_scores = _unit_scores(
        case.server.unit_scores, units, record.probe, record.observation.measures
    )[:, :clients]
    per_unit = mx.evaluation.unit_level(unit_scores, record.truth.origins[:, :clients], truth)
    background = [
        mx.evaluation.attribution(mx.evaluation.guesses(np.cumsum(level, axis=0)), truth)
        for level in np.moveaxis(findings, 2, 0)
    ]
    table = {
        "accuracy": record.metrics[:, :clients].mean(axis=1),
        "loss": _mean_of_known(np.asarray(record.loss)[:, :clients]),
        "attribution": mx.evaluation.attribution(guesses, truth),
        "attribution_accumulated": background[-1],
        "balanced_accuracy": mx.evaluation.balanced_accuracy(guesses, truth, values),
        "auc": mx.evaluation.auc(scores, truth),
        "auc_accumulated": mx.evaluation.auc(accumulated, truth),
        "set_level": mx.evaluation.set_level(guesses, truth, values),
    }
    mix = case.mix()
    if mix is not None:
        known = last_level(*without_updates(run))
        drawn = _attribution_over_draws(observer(case, split), mix, key, *known, truth)
        table["attribution"], table["attribution_accumulated"] = jax.device_get(drawn)
    chance = float(mx.evaluation.chance(truth))
    result = []
    for index in range(len(scores)):
        row: dict[str, Any] = {"seed": seed, **case.keys(), "round": index + 1}
        row |= {"granularity": "layer", "chance": chance}
        row["excluded"] = int(record.excluded[index, :clients].sum())
        row["stepped"] = bool(record.stepped[index])
        row |= {name: float(column[index]) for name, column in table.items()}
        row["unit_level"] = dict(zip(units.names, per_unit[index].tolist(), strict=True))
        row["participants"] = record.metrics[index, :clients].tolist()
        if len(background) > 1:
            row["background"] = {
                str(people): float(level[index])
                for people, level in zip(split.known, background, strict=True)
            }
        if record.observation.updates is not None and (index + 1) % NEIGHBOUR_EVERY == 0:
            row |= _neighbours(record.observation.updates, index, clients, units)
        result.append(row)
    return result


def _mean_of_known(losses: np.ndarray) -> np.ndarray:
    """The mean over the clients that have a loss; NaN in rounds where none has."""
    known = ~np.isnan(losses)
    total = np.where(known, losses, 0).sum(axis=1)
    return np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), np.nan)


def _neighbours(
    updates: Any, index: int, clients: int, units: mx.units.Units
) -> dict[str, dict[str, Any]]:
    current = jax.tree.map(lambda leaf: leaf[index, :clients], updates)
    previous = jax.tree.map(lambda leaf: leaf[index - 1, :clients], updates)
    within = mx.evaluation.neighbours(current, units, RADII).mean(axis=0)
    nearest_is_own = (mx.evaluation.relink_rank(previous, current, units) == 1).mean(axis=0)
    return {
        "neighbours": dict(zip(units.names, within.tolist(), strict=True)),
        "relinked": dict(zip(units.names, nearest_is_own.tolist(), strict=True)),
    }
