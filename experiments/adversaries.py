"""What protects, and what does not: every defence under every attack, and where attacks end.

`python -m experiments.adversaries --dataset watch` trains each scenario for a number of seeds under
a server that does all it can: it joins what was mixed, follows it from round to round, and asks
∇Sim and source inference of what it has. Beside it stand ∇Sim on slots, which takes slots for
people, and ∇Sim on the tracks of single units, which joins nothing. It prints tables, draws curves
and writes `adversaries.json` after each seed: a run that was stopped goes on.
"""

from experiments import cli
from experiments.options import Adversaries as Config

if __name__ == "__main__":
    # wrong options are told before what takes seconds to import
    cli.read(Config, "experiments.adversaries")


import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

import mixjax as mx
from experiments import (
    conditions,
    curves,
    provenance,
    results,
    scenarios,
    servers,
    strongest,
    tasks,
    training,
)
from experiments.scenarios import Scenario
from experiments.strongest import Plan

RECORDS = 10
"""Of each participant's training examples, and as many held out, whom inference is tried on."""
ASKED = 1000
"""Participants whose records these are, at most."""


@functools.partial(jax.jit, static_argnames="plan")
def train(
    plan: Plan, key: jax.Array, params: Any, split: training.Split, records: Any
) -> tuple[Any, ...]:
    """All rounds; of each the findings, origins, who was active, accuracies and losses."""
    clients = split.train.counts.shape[0]
    federation = mx.federation.fedavg(
        plan.scenario.local(plan.task, plan.model, plan.graph),
        defence=plan.scenario.defence(plan.task),
        participation=plan.scenario.participation(clients),
        attack=strongest.server(plan, split, records),
        granularity=plan.scenario.granularity,
        uploads=plan.scenario.uploads,
        aggregate=plan.scenario.aggregate(plan.task, clients),
        weighting="uniform" if plan.scenario.central else "examples",
        evaluate=training.accuracy_on(plan.model, split.test),
    )

    # the measures of many units and rounds would fill the memory: they aren't kept
    def step(state: Any, _: Any) -> tuple[Any, Any]:
        state, record = federation.step(key, state, split.train)
        there = ~jnp.isnan(record.loss)
        return state, (record.findings, record.truth.origins, there, record.metrics, record.stepped)

    start = federation.init(params, clients=clients)
    return jax.lax.scan(step, start, None, plan.rounds)[1]


def one_seed(
    scenario: Scenario, config: Config, task: tasks.Task, dataset: mx.data.Dataset, seed: int
) -> dict[str, Any]:
    """The figures of a scenario's seed."""
    if scenario.preferred is not None or (task.dealt and seed):
        preferred = config.preferred if scenario.preferred is None else scenario.preferred
        own = dataclasses.replace(config, preferred=preferred)
        dataset = tasks.load(own, task, seed=seed)
    task = scenario.task(task)
    split = training.split_people(dataset, seed, task.auxiliary, sweep=False)
    if scenario.people is not None:
        split = dealt(split, scenario.people, seed)
    model = scenario.network or task.model(len(dataset.classes))
    task = task._replace(batch_size=min(task.batch_size, split.train.examples.labels.shape[1]))
    graph = training.graph_of(model, split)
    init_key, run_key = jax.random.split(jax.random.key(seed))
    params = mx.models.initial(model, init_key, split.train.examples.inputs[0, :1])
    units = mx.units.partition(params, scenario.granularity)
    plan = Plan(scenario._replace(label=""), task, model, graph, units, config.rounds)
    records, record_owners, members = candidates(split)
    found = jax.device_get(train(plan, run_key, params, split, records))
    return figures_of(plan, split.truth, record_owners, members, *found)


def candidates(split: training.Split) -> tuple[Any, np.ndarray, np.ndarray]:
    """Records of everybody in one axis, whose each is, and which of them are trained on."""
    parts, people, members = [], [], []
    for data, member in ((split.train, True), (split.test, False)):
        count = min(RECORDS, int(np.min(np.asarray(data.counts))))
        parts.append(
            jax.tree.map(
                lambda leaf, count=count: leaf[:ASKED, :count].reshape(-1, *leaf.shape[2:]),
                data.examples,
            )
        )
        clients = min(data.counts.shape[0], ASKED)
        people.append(np.repeat(np.arange(clients), count))
        members.append(np.full(clients * count, member))
    records = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return records, np.concatenate(people), np.concatenate(members)


def dealt(split: training.Split, people: int, seed: int) -> training.Split:
    """So many participants: the split's, or dealt halves of their examples at random."""
    rng = np.random.default_rng(seed)
    clients = len(split.truth)
    if people <= clients:
        chosen = np.sort(rng.permutation(clients)[:people])
        train = mx.data.take(split.train, chosen)
        return split._replace(
            train=train, test=mx.data.take(split.test, chosen), truth=split.truth[chosen]
        )
    who = np.resize(rng.permutation(clients), people)
    counts = np.asarray(split.train.counts)[who] // 2
    width = int(counts.max())
    rows = np.stack([np.resize(rng.permutation(2 * n)[:n], width) for n in counts.tolist()])
    examples = jax.tree.map(lambda leaf: np.asarray(leaf)[who[:, None], rows], split.train.examples)
    parts = [
        jax.tree.map(lambda leaf, at=at: leaf[at, : counts[at]], examples) for at in range(people)
    ]
    # held-out data of few people are enough to judge one model
    return split._replace(train=mx.data.stack(parts), truth=split.truth[who])


def figures_of(
    plan: Plan,
    truth: np.ndarray,
    record_owners: np.ndarray,
    members: np.ndarray,
    found: Any,
    origins: np.ndarray,
    active: np.ndarray,
    accuracies: np.ndarray,
    stepped: np.ndarray,
) -> dict[str, Any]:
    """Shares in [0, 1]: of the whole run, and lists round by round."""
    largest, clients = servers.largest(plan.units), len(truth)
    owners = mx.evaluation.owners(found.slots, origins)
    here = np.take_along_axis(active, found.slots[..., largest], axis=1) & found.named
    names = np.broadcast_to(np.arange(clients), here.shape)
    sizes = mx.units.parameter_counts(plan.units)
    people = np.arange(clients)

    present = np.take_along_axis(
        active, np.broadcast_to(record_owners, (len(active), len(record_owners))), axis=1
    )
    known = here.any(axis=0) if plan.scenario.crafts else np.ones(clients, bool)

    def sensitive(scores: np.ndarray, who: np.ndarray) -> list[float]:
        """∇Sim's share right after each round, of scores summed up to it."""
        guesses = mx.evaluation.guesses(np.cumsum(scores, axis=0))
        return mx.evaluation.attribution(guesses, truth[who]).tolist()

    def source(rows: np.ndarray, owners: np.ndarray) -> float:
        """The share of records taken for their owner's, of those whose owner took part."""
        right = np.take_along_axis(owners, rows, axis=1) == record_owners
        return float(np.mean(right[present & members]))

    def membership(gain: np.ndarray) -> float:
        """How well a record's gain tells whether it was trained on: AUC, the mean over rounds."""
        aucs = mx.evaluation.membership_auc(gain, np.broadcast_to(members, gain.shape), present)
        return mean_of_any(aucs)

    def alone(at: int, unit: int) -> float:
        """∇Sim's share right of a unit that is followed alone."""
        slots, scores = found.unit_slots[..., at], found.unit_scores[:, :, at]
        who = np.take_along_axis(origins[..., unit], slots, axis=1)
        return sensitive(scores, servers.commonest(who, np.take_along_axis(active, slots, axis=1)))[
            -1
        ]

    moved = plan.scenario.moves == "units"
    within = owners[..., largest]
    return {
        "participants": clients,
        "units": len(sizes),
        "accuracy": float(accuracies[-1].mean()),
        "stepped": float(stepped.mean()),
        "chance": float(mx.evaluation.chance(truth)),
        "slots": sensitive(found.slot_scores, people),
        "tracks": sensitive(found.scores[:, known], servers.commonest(within, here)[known]),
        "alone": {plan.units.names[unit]: alone(at, unit) for at, unit in enumerate(plan.followed)},
        "exact": mean_of_any(mx.evaluation.exact_assemblies(found.slots, origins, here)),
        "joined": mean_of_any(mx.evaluation.joined_share(found.slots, origins, sizes, here)),
        "named": float(np.mean((owners == people[:, None])[here])) if here.any() else 0.0,
        "chance_named": float(1 / active.sum(axis=1).mean()),
        "chance_exact": float(active.sum(axis=1).mean() ** (1 - len(sizes))) if moved else 1.0,
        "purity": float(mx.evaluation.purity(names, within, here)),
        "chance_purity": float(mx.evaluation.chance_purity(names, within, here, seed=0)),
        "rand": float(mx.evaluation.adjusted_rand_index(names, within, here)),
        "source": source(found.source, within),
        "slot_source": source(found.slot_source, np.broadcast_to(people, within.shape)),
        "membership": membership(found.gain),
        "slot_membership": membership(found.slot_gain),
        "chance_source": float(1 / active.sum(axis=1).mean()),
    }


def mean_of_any(values: np.ndarray) -> float:
    """The mean of the rounds that have a value; NaN where none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def main(config: Config) -> None:
    """Run all scenarios of the studies, write the figures and print the tables."""
    if config.quick:
        config = dataclasses.replace(config, rounds=4, seeds=2)
    cli.check_counts(config, ("rounds", "seeds", "participants", "per_client"))
    task = tasks.resolve(config)
    dataset = tasks.load(config, task)
    out = config.out or Path("results") / f"adversaries_{config.dataset}"
    out.mkdir(parents=True, exist_ok=True)
    options = results.config_dict(dataclasses.replace(config, studies=()), task)
    data = provenance.of_data(dataset, config.data_dir)
    environment = provenance.identity(options, data)["environment"]
    identity = {"config": options, "data": data, "environment": environment}
    with mx.checkpoint.exclusive(out):
        run_studies(config, task, dataset, out, resumed(out / "adversaries.json", identity))


def run_studies(
    config: Config, task: tasks.Task, dataset: mx.data.Dataset, out: Path, content: dict[str, Any]
) -> None:
    """All seeds that `content` lacks; each is written as it comes."""
    console = rich.console.Console()
    for study in config.studies:
        chosen = scenarios.STUDIES[study](task, len(dataset.classes))
        if study == "architectures" and dataset.train.examples.inputs.ndim != 4:
            raise mx.InputError(
                f"expected recordings for the study of architectures; {config.dataset} has none."
            )
        rows = content["studies"].setdefault(study, {})
        for scenario in dict.fromkeys(chosen):
            for seed in range(len(rows.get(scenario.label, ())), config.seeds):
                with console.status(f"{study}: {scenario.label}, seed {seed + 1}/{config.seeds}"):
                    found = one_seed(scenario, config, task, dataset, seed)
                found["epsilon"] = scenario.epsilon(task, config.rounds, conditions.DELTA)
                rows.setdefault(scenario.label, []).append(found)
                results.write_json(out / "adversaries.json", content)
            jax.clear_caches()
        console.print(curves.table(content, study))
        results.write_text(out / f"{study}.md", curves.markdown(content, study) + "\n")
        if study in curves.AXES:
            curves.draw(content, study, out / f"{study}.png")


def resumed(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run with the same options left, or a fresh start.

    Raises:
      InputError: for a folder of other options, data or versions.
    """
    if not path.exists():
        return {**identity, "studies": {}}
    content = json.loads(path.read_bytes())
    for name, value in identity.items():
        if content[name] != json.loads(results.dumps(value)):
            raise mx.InputError(
                f"expected {path} of the same {name}; it has {content[name]} and not {value}. "
                "Give another --out, or remove the file."
            )
    return content


if __name__ == "__main__":
    cli.command(main, Config, "experiments.adversaries", devices=False)
