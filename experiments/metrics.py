"""From a trajectory's records to one JSON-ready row a round, for every mixing."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mixjax as mx
from experiments import people, servers
from experiments.conditions import Case, UnitScores
from experiments.knowledge import at_last
from experiments.training import Split, Trajectory
from mixjax.attacks import channels

# mixings that figures are averaged over: one draw's guesses are those of chance, plus luck
DRAWS = 200
# cohorts that an estimate of the attribute's histogram is judged on
COHORTS = 200
RADII = tuple(round(0.1 * step, 1) for step in range(1, 31))
NEIGHBOUR_EVERY = 5


def behind_mix(
    key: jax.Array, case: Case, run: Trajectory, graph: channels.Graph, *, mixed: bool = False
) -> Trajectory:
    """The same trajectory behind the case's proxy.

    What a server that takes slots for people makes of one mixing is chance: that is left to `rows`,
    and origins alone are drawn. A server that adapts concludes anew, of all that it knows.

    Args:
      key: of the proxy's draws, fresh origins each round.
      case: the defence and the server.
      run: a trajectory of the case's perturbation, behind no proxy or the case's own.
      graph: the model's channels.
      mixed: whether it went through the case's proxy: origins are then those it has.
    """
    mix = None if mixed else case.mix()
    start, records = run
    if mix is not None:
        truth = records.truth
        active, units = records.observation.active, truth.origins.shape[-1]
        origins = jax.device_get(_origins(mix, key, active, units))
        records = records._replace(truth=truth._replace(origins=origins))
    if case.undone == "nothing":
        return Trajectory(start, records)
    start, records = _all_knowledge(*without_updates(Trajectory(start, records)))
    server = servers.looking(graph, servers.scoring(1), case.undone)
    memory = ()
    if server.init is not None:
        clients = records.loss.shape[1]
        memory = server.init(start.params, mx.units.partition(start.params), clients)
    start = start._replace(memories=start.memories._replace(attack=memory))
    findings = jax.device_get(_concluded(server, start, records, records.truth.origins))
    return Trajectory(start, records._replace(findings=findings))


def without_updates(run: Trajectory) -> Trajectory:
    """The trajectory without the updates that its records may keep."""
    observation = run.records.observation._replace(updates=None)
    return run._replace(records=run.records._replace(observation=observation))


def _all_knowledge(
    start: mx.federation.FederationState, records: mx.federation.Record
) -> Trajectory:
    """The trajectory of a server that looks with all it knows; its one level stays an axis."""

    def keep(tree: Any, axis: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[(slice(None),) * axis + (slice(-1, None),)], tree)

    probe, truth = records.probe, records.truth
    couplings, (sketches, terms) = truth.measures
    return Trajectory(
        start,
        records._replace(
            probe=probe and probe._replace(references=keep(probe.references, 1)),
            truth=truth._replace(measures=(couplings, (sketches, keep(terms, 3)))),
        ),
    )


# programs for each mixing are small ones: what a server concludes is compiled once for all
@functools.partial(jax.jit, static_argnames=("mix", "units"))
def _origins(mix: mx.mixing.Mix, key: jax.Array, active: jax.Array, units: int) -> jax.Array:
    """Of each round `[rounds, clients, units]`."""

    def one(memory: Any, at: tuple[jax.Array, jax.Array]) -> Any:
        return mx.rounds.forward(at[0], mix, memory, at[1], units)

    memory = () if mix.init is None else mix.init(active.shape[1], units)
    keys = jax.random.split(key, len(active))
    return jax.lax.scan(one, jax.tree.map(jnp.asarray, memory), (keys, active))[1]


@functools.partial(jax.jit, static_argnames="attack")
def _concluded(
    attack: mx.attacks.Attack,
    start: mx.federation.FederationState,
    records: mx.federation.Record,
    origins: jax.Array,
) -> Any:
    """An attack's findings behind a mixing that was drawn."""
    mix = mx.mixing.Mix(
        lambda key, number, active, units: (number + 1, origins[number]),
        init=lambda clients, units: jnp.int32(0),
    )
    unused = jax.random.split(jax.random.key(0), len(origins))
    return mx.records.replay(unused, attack, start, records, mix)[1].findings


@functools.partial(jax.jit, static_argnames="attack")
def _scores_over_draws(
    attack: mx.attacks.Attack,
    start: mx.federation.FederationState,
    records: mx.federation.Record,
    origins: jax.Array,
) -> jax.Array:
    """∇Sim's scores under many mixings `[draws, rounds, clients, levels, values]`."""
    one = functools.partial(_concluded, attack, start, records)
    return jax.lax.map(one, origins, batch_size=50)


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
    names: Sequence[str],
    aggregates: dict[str, list[Any]],
) -> list[dict[str, Any]]:
    """One row for each round.

    Where a server takes mixed slots for people, all that depends on the mixing is the mean over
    `DRAWS` mixings of the trajectory. A server that adapts guesses for pseudonyms: its guess is
    judged for the owner of most of a pseudonym's largest layers, behind one mixing a seed.

    Args:
      case: what was run.
      seed: which split of people.
      run: the trajectory behind the case's proxy; rows past the participants are padding.
      graph: the model's channels.
      split: the participants and what the server knows.
      units: the model's partition.
      key: of the mixings.
      names: of the attribute's values.
      aggregates: more columns; see `aggregates.columns`.
    """
    record, values, clients = run.records, split.values, len(split.truth)
    rows_of, owners = np.arange(clients), np.arange(clients)
    summed = case.perturbation().summed
    adaptive = case.server.adaptive and not summed
    if adaptive:
        slots, origins = record.findings.slots, np.asarray(record.truth.origins)
        rows_of, owners = _pseudonyms(slots, origins, units, clients)
    truth = split.truth[owners]
    mix, measured = case.mix(), record.truth.measures
    if summed:
        # all that the server sees is one and the same for everybody
        rows_of = np.zeros(clients, int)
        measured = jax.tree.map(lambda leaf: leaf[:, rows_of], record.observation.measures)
    if mix is None or adaptive:
        drawn = np.asarray(record.findings.scores)[None, :, rows_of]
    else:
        draw = functools.partial(_origins, mix)
        active, units_of = record.observation.active, len(units.names)
        many = jax.vmap(draw, (0, None, None))(jax.random.split(key, DRAWS), active, units_of)
        scoring = servers.scoring(len(split.known), case.server.observe)
        drawn = np.asarray(_scores_over_draws(scoring, *_scored(run), many))[:, :, :clients]
    # [rounds, draws, clients, levels, values]
    levels = np.swapaxes(drawn, 0, 1)
    scores, summed = levels[..., -1, :], np.cumsum(levels, axis=0)
    # whose unit it is decides, not the slot it came in: no mixing changes these
    own = np.asarray(
        _unit_scores(case.server.unit_scores, units, record.probe, servers.terms(measured))[
            :, :clients
        ]
    )
    table = {
        "accuracy": record.metrics.participants[:, :clients].mean(axis=1),
        "accuracy_outsiders": record.metrics.outsiders[:, : len(split.outsiders.counts)].mean(
            axis=1
        ),
        "loss": _mean_of_known(np.asarray(record.loss)[:, :clients]),
        **_attack(scores, truth, values, ""),
        **_attack(summed[..., -1, :], truth, values, "_accumulated"),
        **_cohort(seed, own, split.truth, values),
    }
    per_unit, per_unit_summed = (
        _where_known(lambda seen: _of_owners(seen, split.truth), units_of)
        for units_of in (own, np.cumsum(own, axis=0))
    )
    background = [
        _where_known(lambda level: _attribution(level, truth), summed[..., level, :])
        for level in range(levels.shape[-2])
    ]
    learns = np.ones(len(scores)) if record.probe is None else np.asarray(record.probe.learns)
    diverged = _not_finite(record.probe and record.probe.references, names)
    result = []
    for index in range(len(scores)):
        row: dict[str, Any] = {"seed": seed, **case.keys(), "round": index + 1}
        row |= {"granularity": "layer", "chance": float(mx.evaluation.chance(split.truth))}
        row["excluded"] = int(record.excluded[index, :clients].sum())
        # a round that nothing is meant to be learned from is no round without a step
        row["stepped"] = bool(record.stepped[index] or not learns[index])
        row["diverged"] = diverged[index]
        row |= {name: float(column[index]) for name, column in table.items()}
        row |= {name: column[index] for name, column in aggregates.items()}
        row["unit_level"] = dict(zip(units.names, per_unit[index].tolist(), strict=True))
        row["unit_accumulated"] = dict(
            zip(units.names, per_unit_summed[index].tolist(), strict=True)
        )
        row["participants"] = record.metrics.participants[index, :clients].tolist()
        if len(background) > 1 and not case.row.reverse:
            row["background"] = {
                str(people): float(level[index])
                for people, level in zip(split.known, background, strict=True)
            }
        updates = record.observation.updates
        plain = mix is None and not case.row.reverse
        if updates is not None and plain and (index + 1) % NEIGHBOUR_EVERY == 0:
            row |= _neighbours(updates, index, clients, units)
        result.append(row)
    ids = np.asarray(split.train.ids)[:clients]
    result[-1] |= people.columns(summed[-1, ..., -1, :], owners, split.truth, ids)
    return result


def _where_known(figure: Callable[[np.ndarray], np.ndarray], scores: np.ndarray) -> np.ndarray:
    """A figure of each round, the first axis; NaN in rounds without scores."""
    known = ~np.isnan(scores).any(axis=tuple(range(1, scores.ndim)))
    some = figure(scores[known])
    result = np.full((len(scores), *some.shape[1:]), np.nan)
    result[known] = some
    return result


def _attribution(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return mx.evaluation.attribution(mx.evaluation.guesses(scores), truth).mean(axis=1)


def _attack(scores: np.ndarray, truth: np.ndarray, values: int, suffix: str) -> dict[str, Any]:
    """Figures of ∇Sim's scores `[rounds, draws, clients, values]`, means over draws."""

    def balanced(scores: np.ndarray) -> np.ndarray:
        guesses = mx.evaluation.guesses(scores)
        return mx.evaluation.balanced_accuracy(guesses, truth, values).mean(axis=1)

    def permuted(scores: np.ndarray) -> np.ndarray:
        guesses = mx.evaluation.guesses(scores)
        return mx.evaluation.permuted_attribution(guesses, truth, values).mean(axis=1)

    figures = {
        "attribution": lambda scores: _attribution(scores, truth),
        "permuted": permuted,
        "balanced_accuracy": balanced,
        "auc": lambda scores: mx.evaluation.auc(scores, truth).mean(axis=1),
    }
    return {name + suffix: _where_known(figure, scores) for name, figure in figures.items()}


def _of_owners(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The share of each unit's instances told right, of `[rounds, clients, units, values]`."""
    clients, units = scores.shape[1:3]
    own = np.broadcast_to(np.arange(clients)[:, None], (clients, units))
    return mx.evaluation.unit_level(scores, own, truth)


def _cohort(seed: int, unit_scores: np.ndarray, truth: np.ndarray, values: int) -> dict[str, Any]:
    """How much of a cohort's histogram single units tell, and what a guess without them tells.

    Estimates are means over all rounds so far. Cohorts are halves of the participants, whose
    composition is drawn (`mx.evaluation.subcohorts`); a guess without evidence is its mean.
    """
    members = mx.evaluation.subcohorts(seed, truth, values, max(len(truth) // 2, 1), COHORTS)
    known = mx.evaluation.histogram(truth, values, members)

    def told(scores: np.ndarray) -> np.ndarray:
        rounds = mx.evaluation.histogram_of_units(scores[:, None], members)
        count = np.arange(1, len(rounds) + 1)[:, None, None]
        return mx.evaluation.overlap(np.cumsum(rounds, axis=0) / count, known).mean(axis=1)

    blind = float(mx.evaluation.overlap(known.mean(axis=0), known).mean())
    return {
        "cohort": _where_known(told, unit_scores),
        "cohort_chance": np.full(len(unit_scores), blind),
    }


def _not_finite(references: Any, names: Sequence[str]) -> list[list[str]]:
    """For each round the attribute values, of any level, whose reference is not finite."""
    finite = [
        np.isfinite(leaf).reshape(*np.shape(leaf)[:3], -1).all(axis=(1, 3))
        for leaf in map(np.asarray, jax.tree.leaves(references))
    ]
    return [
        [name for name, good in zip(names, round_, strict=True) if not good]
        for round_ in np.logical_and.reduce(finite)
    ]


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
