"""What protects, and what does not: every defence under every attack, and where attacks end.

`python -m experiments.adversaries --dataset watch` trains each scenario for a number of seeds under
a server that does all it can: it joins what was mixed, follows it from round to round, and asks
∇Sim and source inference of what it has. Beside it stand ∇Sim on slots, which takes slots for
people, and ∇Sim on the tracks of single units, which joins nothing. It prints tables, draws curves
and writes `adversaries.json` after each seed: a run that was stopped goes on.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import tyro
from flax import linen as nn

import mixjax as mx
from experiments import cli, curves, provenance, results, scenarios, servers, tasks, training
from experiments.scenarios import Scenario
from mixjax.attacks import Attack, Probe, channels, crafted, sim, tracks

RECORDS = 10
"""Of each participant's training examples, whose owner source inference looks for."""
FOLLOWED = 16
"""Units up to which each is followed alone."""
SPREADS = {"balanced": 0.0, "spread": 2.0}
"""Of the gauges that a server sends its model in."""
SCORE = Attack(None, None, sim.measure, sim.observe)


@dataclasses.dataclass(frozen=True)
class Config(tasks.Options):
    """Every defence against every attack, and curves of what attacks depend on."""

    studies: tuple[curves.StudyName, ...] = ("defences",)
    """What to compare; each is a table, and a curve of its own but for the defences."""
    rounds: int = 10
    """Rounds of federated learning."""
    seeds: int = 10
    """Repetitions, each with its own people, first model and mixing."""
    per_client: int = 100
    """Training examples of each, where participants are dealt from a pool of images."""
    quick: bool = False
    """Two seeds of four rounds: a look, and no result."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where to write; results/adversaries_DATASET by default."""


class Seen(NamedTuple):
    """What the server concludes of a round, row by row of its own order.

    Attributes:
      slots: `[rows, units]`, where each row's units were.
      scores: `[rows, values]`, ∇Sim's of its whole updates.
      unit_slots: `[rows, followed]`, where some units were, each followed alone.
      unit_scores: `[rows, followed, values]`, ∇Sim's of these units.
      slot_scores: `[clients, values]`, ∇Sim's of the slots as they came.
      source: `[records]`, the row that source inference takes for a record's owner.
      slot_source: `[records]`, the same of the slots as they came.
      named: `[rows]`, which rows the server takes for people in this round.
    """

    slots: jax.Array
    scores: jax.Array
    unit_slots: jax.Array
    unit_scores: jax.Array
    slot_scores: jax.Array
    source: jax.Array
    slot_source: jax.Array
    named: jax.Array


class Plan(NamedTuple):
    """What a scenario's program is compiled for; hashable."""

    scenario: Scenario
    task: tasks.Task
    model: nn.Module
    graph: channels.Graph
    units: mx.units.Units
    rounds: int

    @property
    def followed(self) -> tuple[int, ...]:
        """The units that are followed alone: all, or of many the largest."""
        count = len(self.units.names)
        return tuple(range(count)) if count <= FOLLOWED else (servers.largest(self.units),)


def server(plan: Plan, split: training.Split, records: Any) -> Attack:
    """Everything at once; its findings are `Seen`."""
    knowing, scenario = sim.passive(split.rows()), plan.scenario
    as_people = servers.looking(plan.graph, SCORE, "nothing")
    undoing = servers.looking(plan.graph, SCORE, scenario.moves, scenario.gauge())
    loss_fn = mx.models.cross_entropy(plan.model)
    craft = scenario.craft(knowing, split.train.ids)
    measured = servers.measure(plan.graph, SCORE)
    people = len(split.truth)

    def init(params: Any, units: mx.units.Units, clients: int) -> Any:
        whole = () if undoing.init is None else undoing.init(params, units, clients)
        crafting = () if craft is None or craft.init is None else craft.init(params, units, people)
        return whole, tracks.start(clients, len(plan.followed)), crafting

    def prepare(key: Any, memory: Any, params: Any, local: Any) -> Probe:
        assert knowing.prepare is not None
        if craft is not None and craft.prepare is not None:
            return craft.prepare(key, memory[2], params, local)
        return knowing.prepare(key, params, local)

    def measure(probe: Probe, units: mx.units.Units, update: Any) -> Any:
        own = measured(inner(probe), units, update)
        return own, craft and craft.measure and craft.measure(probe, units, update)

    def inner(probe: Probe) -> Probe:
        return probe if craft is None else probe._replace(references=probe.references.then)

    def observe(key: Any, memory: Any, probe: Probe, seen: mx.observation.Observation) -> Any:
        whole, alone, crafting = memory
        whole_key, alone_key, source_key = jax.random.split(key, 3)
        by_craft = seen._replace(measures=seen.measures[1], updates=None)
        found = None
        if craft is not None:
            crafting, found = craft.observe(key, crafting, probe, by_craft)
        probe, seen = inner(probe), seen._replace(measures=seen.measures[0])
        _, (sketches, terms) = seen.measures
        own, slot_scores = as_people.observe(key, probe, seen)
        named = seen.active
        if isinstance(found, crafted.Isolated):
            rows = jnp.arange(people)[:, None]
            named = rows[:, 0] == found.client
            slots = jnp.where(named[:, None], found.slots, rows)
            scores = jnp.where(named[:, None], found.then, 0)
        elif found is not None:
            slots, scores = found.slots, found.then
        elif undoing.init is None:
            slots, scores = own, slot_scores
        else:
            whole, (slots, scores) = undoing.observe(whole_key, whole, probe, seen)
        units_alone = list(plan.followed)
        places = own[:, units_alone]
        if scenario.moves != "nothing":
            rows = sketches[:, units_alone]
            alone, places = tracks.follow(alone_key, alone, rows, seen.active, each_unit=True)
        lengths = sim.direction_squared_norms(probe.references, plan.units)
        dots, squares = terms
        cosines = sim.unit_cosine(sim.Statistics(dots, squares, lengths))[:, units_alone]
        losses = functools.partial(
            mx.attacks.source.record_losses, source_key, loss_fn, probe.params
        )
        joined = (
            seen.updates if scenario.summed else mx.mixing.apply(slots, seen.updates, plan.units)
        )
        result = Seen(
            slots,
            scores,
            places,
            jnp.take_along_axis(cosines, places[..., None], axis=0),
            slot_scores,
            jnp.argmin(losses(joined, records), axis=0),
            jnp.argmin(losses(seen.updates, records), axis=0),
            named,
        )
        if scenario.summed:
            result = of_the_sum(result, craft is not None, people)
        return (whole, alone, crafting), result

    send = None if craft is None else craft.send
    attack = Attack(init, prepare, measure, observe, updates=True, send=send)
    if scenario.crafts in SPREADS:
        return crafted.regauge(plan.graph, attack, spread=SPREADS[scenario.crafts])
    return attack


def of_the_sum(seen: Seen, isolating: bool, people: int) -> Seen:
    """What a server that sees the sum alone says of everybody, who all look alike to it.

    Where it isolates somebody, the sum is that person's.
    """
    rows = jnp.arange(people, dtype=jnp.int32)[:, None]

    def all_alike(leaf: jax.Array) -> jax.Array:
        return jnp.broadcast_to(leaf, (people, *leaf.shape[1:]))

    return seen._replace(
        slots=jnp.broadcast_to(rows, (people, seen.slots.shape[1])),
        scores=all_alike(seen.scores),
        unit_slots=jnp.broadcast_to(rows, (people, seen.unit_slots.shape[1])),
        unit_scores=all_alike(seen.unit_scores),
        slot_scores=all_alike(seen.slot_scores),
        named=seen.named if isolating else jnp.zeros(people, bool),
    )


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
        attack=server(plan, split, records),
        granularity=plan.scenario.granularity,
        uploads=plan.scenario.uploads,
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
    task = scenario.task(task)
    split = training.split_people(dataset, seed, task.auxiliary, sweep=False)
    if scenario.people is not None:
        split = dealt(split, scenario.people, seed)
    clients = len(split.truth)
    model = scenario.network or task.model(len(dataset.classes))
    task = task._replace(batch_size=min(task.batch_size, split.train.examples.labels.shape[1]))
    graph = training.graph_of(model, split)
    init_key, run_key = jax.random.split(jax.random.key(seed))
    params = mx.models.initial(model, init_key, split.train.examples.inputs[0, :1])
    units = mx.units.partition(params, scenario.granularity)
    plan = Plan(scenario._replace(label=""), task, model, graph, units, config.rounds)
    records = jax.tree.map(lambda leaf: leaf[:, :RECORDS], split.train.examples)
    count = jax.tree.leaves(records)[0].shape[1]
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), records)
    found = jax.device_get(train(plan, run_key, params, split, flat))
    return figures_of(plan, split.truth, np.repeat(np.arange(clients), count), *found)


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

    known = here.any(axis=0) if plan.scenario.crafts else np.ones(clients, bool)

    def sensitive(scores: np.ndarray, who: np.ndarray) -> list[float]:
        """∇Sim's share right after each round, of scores summed up to it."""
        guesses = mx.evaluation.guesses(np.cumsum(scores, axis=0))
        return mx.evaluation.attribution(guesses, truth[who]).tolist()

    def source(rows: np.ndarray, owners: np.ndarray) -> float:
        """The share of records taken for their owner's, of those whose owner took part."""
        present = np.take_along_axis(active, np.broadcast_to(record_owners, rows.shape), axis=1)
        return float(np.mean((np.take_along_axis(owners, rows, axis=1) == record_owners)[present]))

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
                found["epsilon"] = scenario.epsilon(task, config.rounds, results.DELTA)
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
