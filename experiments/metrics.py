"""From a trajectory's records to one JSON-ready row a round, for every mixing."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mixjax as mx
from experiments import servers
from experiments.conditions import Case, UnitScores
from experiments.knowledge import at_last, last_level
from experiments.training import Split, Trajectory
from mixjax.attacks import channels

# mixings that attribution is averaged over: one draw's guesses are those of chance, plus luck
DRAWS = 200
RADII = tuple(round(0.1 * step, 1) for step in range(1, 31))
NEIGHBOUR_EVERY = 5


def behind_mix(
    key: jax.Array,
    case: Case,
    run: Trajectory,
    graph: channels.Graph,
    split: Split,
    *,
    mixed: bool = False,
) -> Trajectory:
    """The same trajectory behind the case's proxy, as the case's server sees it.

    Args:
      key: of the proxy's draws, fresh origins each round.
      case: the defence and the server.
      run: a trajectory of the case's perturbation, behind no proxy or the case's own.
      graph: the model's channels.
      split: what the server knows.
      mixed: whether it went through the case's proxy: it is then looked at as it was mixed.
    """
    mix = None if mixed else case.mix()
    if mix is None and case.undone == "nothing":
        return run
    # the updates that the records may keep are the unmixed ones
    start, records = without_updates(run)
    server = servers.looking(graph, servers.scoring(len(split.known)), case.undone)
    memory = ()
    if server.init is not None:
        clients = records.loss.shape[1]
        memory = server.init(start.params, mx.units.partition(start.params), clients)
    start = start._replace(memories=start.memories._replace(attack=memory))
    observation, truth, findings = jax.device_get(_replay(server, mix, key, start, records))
    return Trajectory(
        start, records._replace(observation=observation, truth=truth, findings=findings)
    )


def without_updates(run: Trajectory) -> Trajectory:
    """The trajectory without the updates that its records may keep."""
    observation = run.records.observation._replace(updates=None)
    return run._replace(records=run.records._replace(observation=observation))


@functools.partial(jax.jit, static_argnames=("attack", "mix"))
def _replay(
    attack: mx.attacks.Attack,
    mix: mx.mixing.Mix | None,
    key: jax.Array,
    start: mx.federation.FederationState,
    records: mx.federation.Record,
) -> tuple[Any, Any, Any]:
    """Observation, truth and findings under a mixing; None is the recorded one."""
    origins = records.truth.origins
    if mix is None:
        mix = mx.mixing.Mix(
            lambda key, number, active, units: (number + 1, origins[number]),
            init=lambda clients, units: jnp.int32(0),
        )
    keys = jax.random.split(key, len(origins))
    _, seen = mx.records.replay(keys, attack, start, records, mix)
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
        scores = _replay(attack, mix, key, start, records)[2][:, : truth.shape[0], -1]
        return [
            jnp.mean(jnp.argmax(part, axis=-1) == truth[None], axis=-1, dtype=jnp.float32)
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
    case: Case,
    seed: int,
    run: Trajectory,
    graph: channels.Graph,
    split: Split,
    units: mx.units.Units,
    key: jax.Array,
) -> list[dict[str, Any]]:
    """One row for each round.

    Attribution of a mixed case is the mean over `DRAWS` mixings of the trajectory, if the server
    takes slots for people; whatever else depends on the mixing is of the one that the records
    have. A server that adapts guesses for pseudonyms: its guess is judged for the owner of most of
    a pseudonym's largest layers.

    Args:
      case: what was run.
      seed: which split of people.
      run: the trajectory behind the case's proxy; rows past the participants are padding.
      graph: the model's channels.
      split: the participants and what the server knows.
      units: the model's partition.
      key: of the mixings.
    """
    record, values, clients = run.records, split.values, len(split.truth)
    origins = record.truth.origins
    rows_of, owners = np.arange(clients), np.arange(clients)
    if case.server.adaptive:
        rows_of, owners = _pseudonyms(record.findings.slots, np.asarray(origins), units, clients)
    truth = split.truth[owners]
    findings = np.asarray(record.findings.scores)[:, rows_of]
    scores = at_last(findings, 2)
    accumulated = np.cumsum(scores, axis=0)
    guesses = mx.evaluation.guesses(scores)
    unit_scores = _unit_scores(
        case.server.unit_scores, units, record.probe, servers.terms(record.observation.measures)
    )[:, :clients]
    per_unit = mx.evaluation.unit_level(unit_scores, origins[:, :clients], split.truth)
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
    if mix is not None and not case.server.adaptive:
        known = last_level(*_scored(run))
        drawn = _attribution_over_draws(servers.scoring(1), mix, key, *known, truth)
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


def _pseudonyms(
    slots: np.ndarray, origins: np.ndarray, units: mx.units.Units, clients: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are people, and who each is: the commonest owner of its largest layer."""
    owners = mx.evaluation.owners(slots, origins)[..., servers.largest(units)]
    rows = np.flatnonzero((owners < clients).all(axis=0))
    return rows, servers.commonest(owners[:, rows], owners[:, rows] < clients)


def _scored(run: Trajectory) -> Trajectory:
    """The trajectory as a server has it that measures ∇Sim's terms alone."""
    start, records = without_updates(run)
    observation, truth = records.observation, records.truth
    return Trajectory(
        start,
        records._replace(
            observation=observation._replace(measures=servers.terms(observation.measures)),
            truth=truth._replace(measures=servers.terms(truth.measures)),
            findings=records.findings.scores,
        ),
    )


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
