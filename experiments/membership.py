"""Membership: is a record in a participant's training data, told from the participant's update?

`python -m experiments.membership --dataset watch` trains for some rounds, then looks at one more
round behind each defence: the cosine between an update and each candidate record's descent
direction, for records that were trained on and held-out ones. It writes `membership.json` and
prints a table.
"""

from experiments import cli
from experiments.options import Membership as Config

if __name__ == "__main__":
    # wrong options are told before what takes seconds to import
    cli.read(Config, "experiments.membership")


import dataclasses
import functools
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress
import rich.table

import mixjax as mx
from experiments import conditions, provenance, results, tasks, training
from experiments.conditions import Case


def main(config: Config) -> None:
    """Run, write `membership.json` and print the table.

    Raises:
      InputError: for options that don't fit the data, or training that diverged.
    """
    started = time.perf_counter()
    cli.check_counts(config, ("rounds", "seeds", "records", "participants", "per_client"))
    if config.noise is None:
        config = dataclasses.replace(config, noise=tasks.TASKS[config.dataset].noise[-1:])
    task = tasks.resolve(config)
    console = rich.console.Console()
    dataset = tasks.load(config, task)
    setting = training.Setting(
        task.model(len(dataset.classes)), task, Case("none", "passive"), config.rounds
    )
    chosen = {
        case.label: case.build() for case in conditions.cases(config.defences, "passive", task)
    }
    for name, defence in chosen.items():
        if defence.summed:
            raise mx.InputError(
                f"expected --defences under which the server sees updates; behind {name} it sees "
                "the sum alone. Leave it out."
            )
    mesh = mx.sharding.clients_mesh()
    found: dict[str, list[Found]] = {name: [] for name in chosen}
    for seed in rich.progress.track(range(config.seeds), "seeds", console=console):
        if task.dealt and seed:
            dataset = tasks.load(config, task, seed=seed)
        split = training.split_people(dataset, seed, task.auxiliary, sweep=False)
        for name, values in one_seed(setting, chosen, split, seed, config.records, mesh).items():
            found[name].append(values)
    summary = {
        "config": results.config_dict(config, task),
        "data": provenance.of_data(dataset, config.data_dir),
        "environment": provenance.environment(),
        "seconds": round(time.perf_counter() - started, 1),
        "results": {
            name: {
                **{
                    share: mx.evaluation.student(
                        [getattr(one, share) for one in values], within=(0, 1)
                    )._asdict()
                    for share in ("auc", "true_positive_rate")
                },
                "excluded": sum(one.excluded for one in values),
            }
            for name, values in found.items()
        },
    }
    out = config.out or Path("results") / f"membership_{config.dataset}"
    out.mkdir(parents=True, exist_ok=True)
    results.write_json(out / "membership.json", summary)
    console.print(table(summary))
    for name, entry in summary["results"].items():
        if entry["excluded"]:
            print(
                f"warning: {name}: {entry['excluded']} updates were excluded as broken.",
                file=sys.stderr,
            )


class Found(NamedTuple):
    """What one seed shows of a defence.

    Attributes:
      auc: of all participants' records together.
      true_positive_rate: at 1 % false positives.
      excluded: broken updates, in the rounds of training and in the one that is looked at.
    """

    auc: float
    true_positive_rate: float
    excluded: int


def one_seed(
    setting: training.Setting,
    chosen: dict[str, mx.defences.Defence],
    split: training.Split,
    seed: int,
    records: int,
    mesh: jax.sharding.Mesh,
) -> dict[str, Found]:
    """What is found behind each defence.

    Raises:
      InputError: naming seed and defence, for training that takes no step any more, or a round
        whose updates are all broken.
    """
    train, test = (mx.data.pad(part, mesh.size) for part in (split.train, split.test))
    members, others = candidates(train, records), candidates(test, records)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), members[0], others[0])
    present = np.concatenate([members[1], others[1]], axis=1)
    is_member = np.concatenate([members[1], np.zeros_like(others[1])], axis=1)
    train_key, look_key = jax.random.split(jax.random.key(seed))
    init_key, run_key = jax.random.split(train_key)
    start = training.initial(setting, init_key, train)
    params, stepped, lost = jax.device_get(_trained(setting, mesh, run_key, start, train))
    if not stepped[-1]:
        raise _diverged(f"seed {seed}, before any defence: of {len(stepped)} rounds the last")
    values = {}
    for name, defence in chosen.items():
        scores, excluded = jax.device_get(
            _look(setting, mesh, defence, look_key, params, train, both)
        )
        if excluded[: len(split.truth)].all():
            raise _diverged(f"seed {seed}, defence {name}: the round that is looked at")
        pooled = (scores.ravel(), is_member.ravel(), present.ravel())
        values[name] = Found(
            float(mx.evaluation.membership_auc(*pooled)),
            float(mx.evaluation.true_positive_rate(*pooled)),
            int(lost + excluded.sum()),
        )
    return values


def _diverged(where: str) -> mx.InputError:
    return mx.InputError(
        f"expected training that moves the model; {where} took no step, as all updates were not "
        "finite or too large. Nothing is written. Ask for less --noise, or fewer --rounds."
    )


def candidates(data: mx.data.ClientData, records: int) -> tuple[Any, np.ndarray]:
    """The first records of each client, and which of them are there."""
    rows = np.arange(min(records, jax.tree.leaves(data.examples)[0].shape[1]))
    chosen = jax.tree.map(lambda leaf: leaf[:, : len(rows)], data.examples)
    return chosen, rows < np.asarray(data.counts)[:, None]


@functools.partial(jax.jit, static_argnames=("setting", "mesh"))
def _trained(
    setting: training.Setting,
    mesh: jax.sharding.Mesh,
    key: jax.Array,
    start: Any,
    train: mx.data.ClientData,
) -> tuple[Any, jax.Array, jax.Array]:
    """The model, which rounds took a step, and how many updates were excluded."""
    federation = mx.federation.fedavg(training.local_training(setting), mesh=mesh)
    state = federation.init(start)
    state, records = mx.federation.run(key, federation, state, train, setting.rounds)
    return state.params, records.stepped, jnp.sum(records.excluded)


@functools.partial(jax.jit, static_argnames=("setting", "mesh", "defence"))
def _look(
    setting: training.Setting,
    mesh: jax.sharding.Mesh,
    defence: mx.defences.Defence,
    key: jax.Array,
    params: Any,
    train: mx.data.ClientData,
    examples: Any,
) -> tuple[jax.Array, jax.Array]:
    """What the server sees of one round, scored against each slot's own candidates.

    Also returns whose updates were excluded.
    """
    federation = mx.federation.fedavg(
        training.local_training(setting), defence=defence, keep_updates=True, mesh=mesh
    )
    _, record = federation.step(key, federation.init(params), train)
    scores = mx.attacks.membership.scores(
        key,
        mx.models.cross_entropy(setting.model),
        params,
        record.observation.updates,
        examples,
        mesh=mesh,
    )
    return scores, record.excluded


def table(summary: dict[str, Any]) -> rich.table.Table:
    """Percent, mean over seeds and 95 % interval."""
    config = summary["config"]
    grid = rich.table.Table(
        title=f"{config['dataset']}: membership after {config['rounds']} rounds, "
        f"{config['seeds']} seeds",
        caption=results.planted_note(summary)
        + "Percent, mean over seeds and 95 % interval. Chance: AUC 50, true positives 1.",
    )
    for column in ("defence", "AUC", "true positives at 1 % false ones"):
        grid.add_column(column, justify="left" if column == "defence" else "right")
    for name, entry in summary["results"].items():
        shown = (entry["auc"], entry["true_positive_rate"])
        grid.add_row(name, *(results.percent(interval) for interval in shown))
    return grid


if __name__ == "__main__":
    cli.command(main, Config, "experiments.membership")
