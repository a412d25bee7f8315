"""Membership: is a record in a participant's training data, told from the participant's update?

`python -m experiments.membership --dataset vowels` trains each participant on a random half of its
records of each class, then looks at one more round behind each defence: by the cosine between an
update and each record's descent direction, and by a likelihood ratio over shadow federations that
were trained on other halves. It writes `rounds.jsonl`, a line for each seed and defence, and
`summary.json`, and prints a table.
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
from experiments import conditions, members, provenance, results, resume, tasks, training
from experiments.conditions import Case

DRAWS = 20
"""Mixings that figures are averaged over."""
FEW = 64
"""Shadow models below which all records share one deviation."""
# shadow federations at once: small models leave a core idle one by one
TOGETHER = 8


def main(config: Config) -> None:
    """Run, write the rows and their summary, and print the table.

    Raises:
      InputError: for options that don't fit the data, or training that diverged.
    """
    started = time.perf_counter()
    names = ("rounds", "seeds", "participants", "per_client")
    cli.check_counts(config, names)
    if config.shadows < 4 or config.shadows % 2:
        raise mx.InputError(
            "expected an even number of --shadows from 4, so that half of them and at least two "
            f"train on each record; got {config.shadows}."
        )
    if config.noise is None:
        config = dataclasses.replace(config, noise=tasks.TASKS[config.dataset].noise[-1:])
    task = tasks.resolve(config)
    console = rich.console.Console()
    dataset = tasks.load(config, task)
    model = task.model(len(dataset.classes))
    setting = training.Setting(model, task, Case("none", "passive"), config.rounds)
    chosen = conditions.cases(config.defences, "passive", task)
    rows: results.Rows = []
    for seed in rich.progress.track(range(config.seeds), "seeds", console=console):
        if task.dealt and seed:
            dataset = tasks.load(config, task, seed=seed)
        split = training.split_people(dataset, seed, task.auxiliary, sweep=False)
        rows += one_seed(setting, chosen, split, seed, config.shadows)
    session = {
        "environment": provenance.environment(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    options = results.config_dict(config, task)
    data = provenance.of_data(dataset, config.data_dir)
    summary = members.summarize(rows, options, data, [session])
    out = config.out or Path("results") / f"membership_{config.dataset}"
    out.mkdir(parents=True, exist_ok=True)
    results.write_text(out / resume.ROUNDS, "".join(results.dumps(row) + "\n" for row in rows))
    results.write_json(out / resume.SUMMARY, summary)
    console.print(table(summary))
    console.print(f"{out / resume.SUMMARY} ({summary['seconds']:.0f} s)", markup=False)
    for name, entry in summary["results"].items():
        if entry["excluded"]:
            print(
                f"warning: {name}: {entry['excluded']} updates were excluded as broken.",
                file=sys.stderr,
            )


class Records(NamedTuple):
    """All records of each participant, and which of them runs train on.

    Attributes:
      examples: `[clients, records, ...]`.
      rows: `[runs, clients, members]`, indices of the records that each run trains on, then -1.
      used: `[runs, clients, records]`, the same as a mask.
      candidates: `[clients, records]`, those that the first run is judged on: of each class as many
        that it used as others.
    """

    examples: mx.data.Examples
    rows: np.ndarray
    used: np.ndarray
    candidates: np.ndarray


def draw(seed: int, split: training.Split, runs: int) -> Records:
    """Draw half of each participant's records of each class.

    Of each two runs after the first the second has what the first left: half of them train on each
    record, as in the implementation of Carlini et al. 2022.

    Args:
      seed: of the draw.
      split: the participants; what was held out of their data counts as records too.
      runs: an odd number; the first is the one that is attacked.
    """
    rng = np.random.default_rng(seed)
    parts = [mx.data.unstack(part) for part in (split.train, split.test)]
    people = [
        jax.tree.map(lambda a, b: np.concatenate([a, b]), *pair)
        for pair in zip(*parts, strict=True)
    ]
    examples = mx.data.stack(people).examples
    used = np.zeros((runs, *examples.labels.shape), bool)
    candidates = np.zeros(used.shape[1:], bool)
    for client, own in enumerate(people):
        for label in np.unique(own.labels):
            where = np.flatnonzero(own.labels == label)
            half = len(where) // 2
            order = rng.permutation(where)
            used[0, client, order[:half]] = True
            candidates[client, order[: 2 * half]] = True
            for run in range(1, runs, 2):
                order = rng.permutation(where)
                used[run, client, order[:half]] = True
                used[run + 1, client, order[half:]] = True
    most = used.sum(axis=2).max()
    # those that are used come first
    order = np.argsort(~used, axis=2, kind="stable")[:, :, :most]
    rows = np.where(np.take_along_axis(used, order, axis=2), order, -1)
    return Records(examples, rows, used, candidates)


class Ran(NamedTuple):
    """A federation, and one more round, which the server looks at.

    Attributes:
      sent: the model of that round.
      after: the model that its sum makes.
      updates: what clients uploaded, `[clients, ...]`.
      stepped: which rounds took a step, `[rounds + 1]`.
      excluded: whose updates were broken, `[rounds + 1, clients]`.
    """

    sent: Any
    after: Any
    updates: Any
    stepped: jax.Array
    excluded: jax.Array

    def summed(self) -> "Ran":
        """As secure aggregation shows it: the same mean update in each slot."""

        def same(after: jax.Array, sent: jax.Array) -> jax.Array:
            return jnp.broadcast_to(after - sent, (self.excluded.shape[1], *sent.shape))

        return self._replace(updates=jax.tree.map(same, self.after, self.sent))


def one_seed(
    setting: training.Setting, chosen: list[Case], split: training.Split, seed: int, shadows: int
) -> results.Rows:
    """A row for each defence.

    Raises:
      InputError: naming seed and defence, for training that takes no step any more, or a round
        whose updates are all broken.
    """
    records = draw(seed, split, 1 + shadows)
    run_key, init_key, look_key = jax.random.split(jax.random.key(seed), 3)
    start = training.initial(setting, init_key, split.train)
    keys = jax.random.split(run_key, 1 + shadows)
    trained: dict[Any, tuple[Ran, Confidences]] = {}

    def judged(case: Case) -> results.Row:
        # a proxy changes no sum, and who sees the sum alone changes nothing either
        alone = case.perturbation().summed
        trained_as = case if case.perturbs and not alone else Case("none", "passive")
        same = (trained_as.row.perturb, trained_as.parameters)
        if same not in trained:
            ran = _run(setting, trained_as, keys[0], start, records.examples, records.rows[0])
            check(ran, f"seed {seed}, defence {case.label}")
            others = (keys[1:], start, records.examples, records.rows[1:])
            trained[same] = ran, _shadows(setting, trained_as, *others)
        ran, reference = trained[same]
        seen = ran.summed() if alone else ran
        cosines, observed = _looked(setting, case.mix(), look_key, seen, records.examples)
        known = reference.alone if alone else reference.local
        right = _right(setting, ran.after, records.examples)
        columns = figures(records, cosines, observed, known, right)
        excluded = {"excluded": int(ran.excluded.sum())}
        return {"seed": seed, "label": case.label} | columns | excluded

    return [judged(case) for case in chosen]


def figures(
    records: Records,
    cosines: jax.Array,
    observed: jax.Array,
    reference: jax.Array,
    right: jax.Array,
) -> dict[str, Any]:
    """The columns of a row.

    Args:
      records: the first run's are judged.
      cosines: of each candidate, `[draws, clients, records]`.
      observed: confidences, of the same shape.
      reference: confidences under shadow models, `[shadows, clients, records]`.
      right: which records the model tells right, `[clients, records]`.
    """
    candidates = records.candidates
    used = records.used[0] & candidates
    ratios = mx.attacks.lira.scores(
        observed, reference, jnp.asarray(records.used[1:]), pooled=len(reference) < FEW
    )
    told = np.asarray(right)
    row = {
        "members": int(used.sum()),
        "others": int((candidates & ~used).sum()),
        "accuracy_members": float(told[used].mean()),
        "accuracy_others": float(told[candidates & ~used].mean()),
    }
    for name, scores in (("cosine", cosines), ("lira", ratios)):
        shares = members.judged(np.asarray(scores), used, candidates)
        row |= {f"{name}_{figure}": share for figure, share in shares.items()}
    return row


def check(ran: Ran, where: str) -> None:
    """Refuse training that took no step in its last round, or a last look at broken updates."""
    if not ran.stepped[-2]:
        what = f"of {len(ran.stepped) - 1} rounds the last"
    elif ran.excluded[-1].all():
        what = "the round that is looked at"
    else:
        return
    raise mx.InputError(
        f"expected training that moves the model; {where}: {what} took no step, as all updates "
        "were not finite or too large. Nothing is written. Ask for less --noise, or fewer --rounds."
    )


@functools.partial(jax.jit, static_argnames=("setting", "case"))
def _run(
    setting: training.Setting,
    case: Case,
    key: jax.Array,
    start: Any,
    examples: mx.data.Examples,
    rows: jax.Array,
) -> Ran:
    """Train on the rows that are named, `[clients, members]`."""
    clients = rows.shape[0]
    own = jax.tree.map(lambda leaf: jax.vmap(lambda one, at: one[at])(leaf, rows), examples)
    active = jnp.ones(clients, bool)
    data = mx.data.ClientData(own, jnp.sum(rows >= 0, axis=1), jnp.arange(clients), active)
    local, defence = training.local_training(setting), case.perturbation()
    federation = mx.federation.fedavg(local, defence=defence)
    looked_at = mx.federation.fedavg(local, defence=defence, keep_updates=True)
    state, before = mx.federation.run(key, federation, federation.init(start), data, setting.rounds)
    after, last = looked_at.step(key, state, data)
    return Ran(
        state.params,
        after.params,
        last.observation.updates,
        jnp.append(before.stepped, last.stepped),
        jnp.concatenate([before.excluded, last.excluded[None]]),
    )


class Confidences(NamedTuple):
    """Of shadow models, `[shadows, clients, records]`.

    Attributes:
      local: of the models that each client's update makes.
      alone: of the models that sums make.
    """

    local: jax.Array
    alone: jax.Array


@functools.partial(jax.jit, static_argnames=("setting", "case"))
def _shadows(
    setting: training.Setting,
    case: Case,
    keys: jax.Array,
    start: Any,
    examples: mx.data.Examples,
    rows: jax.Array,
) -> Confidences:
    def one(shadow: tuple[jax.Array, jax.Array]) -> Confidences:
        key, own = shadow
        ran = _run(setting, case, key, start, examples, own)
        seen = (ran, ran.summed())
        return Confidences(
            *(_confidences(setting, each.sent, each.updates, examples) for each in seen)
        )

    return jax.lax.map(one, (keys, rows), batch_size=TOGETHER)


def _confidences(
    setting: training.Setting, sent: Any, updates: Any, examples: mx.data.Examples
) -> jax.Array:
    def one(update: Any, own: mx.data.Examples) -> jax.Array:
        params = jax.tree.map(jnp.add, sent, update)
        logits: Any = setting.model.apply({"params": params}, own.inputs)
        return mx.attacks.lira.confidence(logits, jnp.asarray(own.labels))

    return jax.vmap(one)(updates, examples)


@functools.partial(jax.jit, static_argnames="setting")
def _right(setting: training.Setting, params: Any, examples: mx.data.Examples) -> jax.Array:
    def one(own: mx.data.Examples) -> jax.Array:
        logits: Any = setting.model.apply({"params": params}, own.inputs)
        return jnp.argmax(logits, axis=-1) == own.labels

    return jax.vmap(one)(examples)


@functools.partial(jax.jit, static_argnames=("setting", "mix"))
def _looked(
    setting: training.Setting,
    mix: mx.mixing.Mix | None,
    key: jax.Array,
    ran: Ran,
    examples: mx.data.Examples,
) -> tuple[jax.Array, jax.Array]:
    """Cosines and confidences, `[draws, clients, records]`, behind draws of a mixing or none."""
    clients = ran.excluded.shape[1]
    units = mx.units.partition(ran.sent)
    loss = mx.models.cross_entropy(setting.model)

    def one(draw_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        updates = ran.updates
        if mix is not None:
            number = len(units.names)
            memory = () if mix.init is None else mix.init(clients, number)
            memory = jax.tree.map(jnp.asarray, memory)
            active = jnp.ones(clients, bool)
            _, origins = mx.rounds.forward(draw_key, mix, memory, active, number)
            updates = mx.mixing.apply(origins, updates, units)
        cosines = mx.attacks.membership.scores(key, loss, ran.sent, updates, examples)
        return cosines, _confidences(setting, ran.sent, updates, examples)

    return jax.lax.map(one, jax.random.split(key, 1 if mix is None else DRAWS))


def table(summary: dict[str, Any]) -> rich.table.Table:
    """Percent, mean over seeds and how far the 95 % interval reaches."""
    config = summary["config"]
    grid = rich.table.Table(
        title=f"{config['dataset']}: membership after {config['rounds']} rounds, "
        f"{config['seeds']} seeds",
        caption=results.planted_note(summary)
        + "Percent, mean over seeds ± how far the 95 % interval reaches. Accuracy on records that "
        "were trained on, and on others; AUC and true positives at 1 % false ones (TPR) of the "
        "cosine score and of the likelihood ratio. Chance: AUC 50, TPR 1.",
        box=None,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    grid.add_column("")
    for column in ("members", "others", "cosine", "TPR", "ratio", "TPR"):
        grid.add_column(column, justify="right", no_wrap=True)
    for name, entry in summary["results"].items():
        grid.add_row(name, *(results.short(entry[figure]) for figure in members.FIGURES))
    return grid


if __name__ == "__main__":
    cli.command(main, Config, "experiments.membership")
