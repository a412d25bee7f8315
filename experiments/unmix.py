"""MixNN unmixed: how many updates a server joins again in one round, and what it then infers.

`python -m experiments.unmix --dataset watch` trains behind MixNN under a server that joins the
layers of each person by the law of rescaled channels (`mixjax.attacks.unmix`), and asks ∇Sim of
the slots as they came and of the updates it joined. It prints a table and writes `unmix.json`.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import rich.console
import rich.table
import tyro

import mixjax as mx
from experiments import cli, provenance, results, tasks, training
from experiments.conditions import Case
from mixjax.attacks import channels, sim, unmix


@dataclasses.dataclass(frozen=True)
class Config(tasks.Options):
    """Unmix MixNN round by round, on each seed's own people and first model."""

    rounds: int = 10
    """Rounds of federated learning."""
    seeds: int = 10
    """Repetitions, each with its own people as participants."""
    per_client: int = 100
    """Training examples of each, where participants are dealt from a pool of images."""
    epochs: int | None = None
    """Local epochs a round; the dataset's by default, as all below."""
    learning_rate: float | None = None
    """Of local SGD."""
    momentum: float | None = None
    """Of local SGD."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where to write; results/DATASET-unmix by default."""


class Found(NamedTuple):
    """What the server concludes of a round.

    Attributes:
      assembly: which slots it joined.
      joined: ∇Sim's scores of what it joined.
      slots: ∇Sim's scores of the slots as they came.
    """

    assembly: unmix.Assembly
    joined: jax.Array
    slots: jax.Array


def unmixing_server(graph: channels.Graph, auxiliary: mx.data.ClientData) -> mx.attacks.Attack:
    """∇Sim on the updates that are joined in the same round; its findings are `Found`."""
    joiner, attribute = unmix.attack(graph), sim.passive(auxiliary)

    def measure(probe: mx.attacks.Probe, units: mx.units.Units, update: Any) -> Any:
        assert joiner.measure is not None
        return joiner.measure(probe, units, update), sim.measure(probe, units, update)

    def observe(key: Any, probe: mx.attacks.Probe, seen: mx.observation.Observation) -> Found:
        laws, terms = seen.measures
        assembly = joiner.observe(key, probe, seen._replace(measures=laws))
        joined = seen._replace(measures=mx.measures.mix(assembly.slots, terms))
        slots = seen._replace(measures=terms)
        return Found(assembly, sim.observe(key, probe, joined), sim.observe(key, probe, slots))

    return mx.attacks.Attack(None, attribute.prepare, measure, observe)


def run_seed(config: Config, task: tasks.Task, dataset: mx.data.Dataset, seed: int) -> Any:
    """The figures of one seed, means over rounds."""
    split = training.split_people(dataset, seed, task.auxiliary, sweep=False)
    model = task.model(len(dataset.classes))
    setting = training.Setting(model, task, Case("mixnn", "passive"), config.rounds)
    init_key, run_key = jax.random.split(jax.random.key(seed))
    params = training.initial(setting, init_key, split.train)
    inputs = split.train.examples.inputs[0, :1]
    graph = channels.trace(model, params, inputs)
    federation = mx.federation.fedavg(
        training.local_training(setting),
        defence=mx.defences.mixnn(),
        attack=unmixing_server(graph, split.rows()),
    )
    start = federation.init(params)
    _, records = jax.device_get(
        mx.federation.run(run_key, federation, start, split.train, config.rounds)
    )
    found, origins = records.findings, records.truth.origins
    active = records.observation.active
    sizes = mx.units.parameter_counts(mx.units.partition(params))
    largest = max(range(len(sizes)), key=list(sizes.values()).__getitem__)
    owner = mx.evaluation.owners(found.assembly.slots, origins)[..., largest]
    exact = mx.evaluation.exact_assemblies(found.assembly.slots, origins, active)
    joined = mx.evaluation.joined_share(found.assembly.slots, origins, sizes, active)
    slots, people = (
        mx.evaluation.attribution(mx.evaluation.guesses(scores), truth)
        for scores, truth in ((found.slots, split.truth), (found.joined, split.truth[owner]))
    )
    return {
        "seed": seed,
        "participants": len(split.truth),
        "units": len(sizes),
        "exact": exact.tolist(),
        "joined": joined.tolist(),
        "on_slots": slots.tolist(),
        "on_joined": people.tolist(),
        "chance": float(mx.evaluation.chance(split.truth)),
    }


def main(config: Config) -> None:
    """Run all seeds, write the figures and print the table."""
    cli.check_counts(config, ("rounds", "seeds", "participants", "per_client"))
    task = tasks.resolve(config)
    dataset = tasks.load(config, task)
    out = config.out or Path("results") / f"{config.dataset}-unmix"
    out.mkdir(parents=True, exist_ok=True)
    console = rich.console.Console()
    seeds = []
    for seed in range(config.seeds):
        with console.status(f"seed {seed + 1}/{config.seeds}"):
            seeds.append(run_seed(config, task, dataset, seed))
    data = provenance.of_data(dataset, config.data_dir)
    options = results.config_dict(config, task)
    results.write_json(out / "unmix.json", {"config": options, "data": data, "seeds": seeds})
    console.print(table(config, seeds, planted=data["planted"]))


def table(config: Config, seeds: list[Any], *, planted: bool) -> rich.table.Table:
    """Percent: mean over seeds and rounds, the least of all rounds, and chance."""
    count, units = seeds[0]["participants"], seeds[0]["units"]
    grid = rich.table.Table(
        title=f"{config.dataset} behind MixNN: {count} participants, {units} layers, "
        f"{config.rounds} rounds, {config.seeds} seeds",
        caption=("Planted data: says nothing about the real set. " if planted else "")
        + "Percent, each round on its own; least is over all rounds of all seeds.",
    )
    for column in ("", "mean", "least", "chance"):
        grid.add_column(column, justify="left" if not column else "right")
    chance = float(np.mean([seed["chance"] for seed in seeds]))
    for name, label, level in (
        ("exact", "whole updates joined exactly", f"{100 * count ** (1 - units):.4f}"),
        ("joined", "parameters joined with their owner's", ""),
        ("on_slots", "∇Sim on slots, for the participant", f"{100 * chance:.0f}"),
        ("on_joined", "∇Sim on what was joined, for its owner", f"{100 * chance:.0f}"),
    ):
        values = np.array([seed[name] for seed in seeds])
        grid.add_row(label, f"{100 * values.mean():.2f}", f"{100 * values.min():.2f}", level)
    return grid


if __name__ == "__main__":
    cli.command(main, Config, "experiments.unmix")
