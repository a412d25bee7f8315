"""The evaluation of the paper: utility, and how often the attack is right, for each defence.

`python -m experiments.evaluate --dataset watch` trains every defence under every attack for a
number of seeds, each with its own split of people into participants and auxiliary knowledge.
It writes `rounds.jsonl`, `summary.json` and figures, and prints a table. A run that was stopped
goes on with `--resume`.
"""

from experiments import cli
from experiments.options import Evaluate as Config

if __name__ == "__main__":
    # wrong options are told before what takes seconds to import
    cli.read(Config, "experiments.evaluate")


import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import rich.console
import rich.progress
import rich.table

import mixjax as mx
from experiments import (
    aggregates,
    conditions,
    metrics,
    provenance,
    results,
    resume,
    tasks,
    training,
)
from experiments.conditions import Case
from mixjax.attacks import channels


class Job(NamedTuple):
    """One trajectory to train, and the cases that follow from it.

    Attributes:
      trained: the case whose perturbation and attack it is trained under.
      mixed: whether it is trained through its really mixed tensors.
      cases: what is evaluated on it.
    """

    trained: Case
    mixed: bool
    cases: list[Case]

    @property
    def sweep(self) -> bool:
        """Whether the server also tries to know fewer people, and updates are kept to look at."""
        return self.trained.server.passive and not self.trained.perturbs


def plan(config: Config, task: tasks.Task) -> list[Job]:
    """The trajectories of one seed.

    Mixings are replayed on the trajectory without a defence, but for those that are measured
    under a server that only looks; see `conditions.Defence`. Servers that send the same model look
    at the same trajectories.
    """
    jobs = []
    rows = conditions.ATTACKS
    looking = [name for name in config.attacks if rows[name].passive]
    others = [[name] for name in config.attacks if not rows[name].passive]
    for together in ([looking] if looking else []) + others:
        passive = rows[together[0]].passive
        shared: list[Case] = []
        measured: list[Job] = []
        # what clients do to their updates decides the trajectory: a proxy behind it is replayed
        perturbed: dict[Any, Job] = {}
        for case in conditions.cases(config.defences, together[0], task):
            alike = [case._replace(attack=name) for name in together]
            if case.perturbs:
                key = (case.row.perturb, case.parameters)
                first = perturbed.setdefault(key, Job(case, False, []))
                first.cases.extend(alike)
            elif case.row.reverse:
                # a control of what is learned: who looks, and at what model, makes no difference
                measured += [Job(case, False, [case])] if passive else []
            elif case.row.measured and passive:
                measured.append(Job(case, True, alike))
            else:
                shared += alike
        if shared:
            jobs.append(Job(Case("none", together[0]), False, shared))
        jobs += [*measured, *perturbed.values()]
    return jobs


def main(config: Config) -> None:
    """Run the evaluation, write its files and print its table.

    Raises:
      InputError: for options that don't fit the data, or training that diverged.
    """
    started = time.perf_counter()
    task = tasks.resolve(config)
    check(config, task)
    console = rich.console.Console()
    with console.status(f"loading {config.dataset}"):
        dataset = tasks.load(config, task)
        first_split = training.split_people(dataset, 0, task.auxiliary, sweep=False)
    # matplotlib takes a second to import, which a refusal before this need not wait for
    from experiments import figures

    out = config.out or Path("results") / config.dataset
    out.mkdir(parents=True, exist_ok=True)
    options = results.config_dict(config, task)
    data = provenance.of_data(dataset, config.data_dir)
    jobs = plan(config, task)
    with mx.checkpoint.exclusive(out) as check_held:
        resume.open_folder(
            out,
            provenance.identity(options, data),
            resume=config.resume,
            overwrite=config.overwrite,
            figures=figures.FIGURES,
        )
        sessions = provenance.Sessions(out, started)
        model = task.model(len(dataset.classes))
        graph = training.graph_of(model, first_split)
        rows = train_all(config, task, dataset, graph, jobs, out, console, sessions, check_held)
        check_held()
        with console.status("drawing figures"):
            drawn = figures.draw_all(rows, out)
        shutil.rmtree(out / resume.CHECKPOINTS, ignore_errors=True)
        units = training.units(setting_of(config, task, dataset, graph, jobs[0]), first_split)
        counts = mx.units.parameter_counts(units)
        sessions.save()
        summary = results.summarize(rows, options, data, counts, sessions.listed())
        results.write_json(out / resume.SUMMARY, summary)
    console.print(table(summary))
    console.print(
        f"{len(rows):,} records, a summary and {len(drawn)} figures in {out}/ "
        f"({summary['seconds']:.0f} s on {summary['environment']['device']})",
        markup=False,
    )
    for line in results.warnings(summary):
        print(f"warning: {line}", file=sys.stderr)


def train_all(
    config: Config,
    task: tasks.Task,
    dataset: mx.data.Dataset,
    graph: channels.Graph,
    jobs: list[Job],
    out: Path,
    console: rich.console.Console,
    sessions: provenance.Sessions,
    check_held: Callable[[], None],
) -> results.Rows:
    """All rows, of the trajectories that the folder has and of those it lacks.

    Raises:
      InputError: for a trajectory that took no step, or none any more.
      OSError: where the folder can't be written to, or is no longer the one that was locked.
    """
    mesh = mx.sharding.clients_mesh()
    rounds_file = out / resume.ROUNDS
    rows, finished = resume.finished(
        rounds_file,
        (
            resume.row_keys(seed, job.cases, config.rounds)
            for seed in range(config.seeds)
            for job in jobs
        ),
    )
    results.check_trained(rows)
    leaving = "leaving after this trajectory"
    with _progress(console) as progress, mx.checkpoint.stop_on_signals(leaving) as stopped:
        bar = progress.add_task("", total=config.seeds * len(jobs) * config.rounds)
        for seed in range(config.seeds):
            if task.dealt and seed:
                dataset = tasks.load(config, task, seed=seed)
            split = training.split_people(dataset, seed, task.auxiliary, sweep=True)
            for number, job in enumerate(jobs, start=seed * len(jobs)):
                checkpoints = out / resume.CHECKPOINTS / f"{number:05d}"
                if number < finished:
                    shutil.rmtree(checkpoints, ignore_errors=True)
                    progress.advance(bar, config.rounds)
                    continue
                what = ", ".join(case.label for case in job.cases)
                progress.update(
                    bar,
                    description=f"seed {seed + 1}/{config.seeds}  {job.trained.attack}: {what}",
                )
                try:
                    fresh = run_job(
                        config, task, dataset, graph, split, seed, job, mesh, checkpoints
                    )
                    check_held()
                    results.append(rounds_file, fresh)
                    sessions.save()
                    results.check_trained(fresh)
                    shutil.rmtree(checkpoints, ignore_errors=True)
                    rows += fresh
                    progress.advance(bar, config.rounds)
                    if stopped():
                        raise SystemExit(128 + stopped())
                except SystemExit:
                    # leaving for the signal that was noted here too: it need not come again
                    stopped()
                    sessions.save()
                    progress.stop()
                    print(
                        f"stopped with {len(rows):,} records in {rounds_file}. "
                        "Run the same with --resume to continue.",
                        file=sys.stderr,
                    )
                    raise
        progress.update(bar, description="done")
    return rows


def check(config: Config, task: tasks.Task) -> None:
    """Refuse options that make no run."""
    cli.check_counts(config, ("rounds", "seeds", "participants", "per_client"))
    cli.check_counts(task, ("list_size", "auxiliary", "epochs", "batch_size"))
    if config.checkpoint_every < 0:
        raise mx.InputError(
            f"expected --checkpoint-every of at least 0; got {config.checkpoint_every}."
        )
    if not config.defences or not config.attacks:
        raise mx.InputError("expected at least one of --defences and one of --attacks.")
    if not task.clip_norm > 0:
        raise mx.InputError(f"expected --clip-norm greater than 0; got {task.clip_norm}.")
    if any(not sigma > 0 for sigma in task.noise):
        raise mx.InputError(
            f"expected standard deviations greater than 0 for --noise; got {task.noise}."
        )
    for name in config.defences:
        cases = conditions.cases([name], config.attacks[0], task)
        for case in cases:
            # refuses parameters out of range before anything is trained
            case.build()
        if not cases:
            raise mx.InputError(
                f"expected a value or more for the parameters of `{name}`; got none. "
                "Leave it out of --defences for a run without it."
            )


def setting_of(
    config: Config, task: tasks.Task, dataset: mx.data.Dataset, graph: channels.Graph, job: Job
) -> training.Setting:
    """What the job's trajectory is compiled for."""
    return training.Setting(
        model=task.model(len(dataset.classes)),
        task=task,
        # the control is the same program, of the same people in another order
        case=job.trained._replace(defence="none")
        if job.trained.row.reverse
        else job.trained.split_traced()[0],
        rounds=config.rounds,
        graph=graph,
        mixed=job.mixed,
        keep_updates=job.sweep,
    )


def run_job(
    config: Config,
    task: tasks.Task,
    dataset: mx.data.Dataset,
    graph: channels.Graph,
    split: training.Split,
    seed: int,
    job: Job,
    mesh: jax.sharding.Mesh,
    checkpoints: Path,
) -> results.Rows:
    """Train one trajectory and evaluate every case that follows from it."""
    setting = setting_of(config, task, dataset, graph, job)
    if not job.sweep:
        split = split.with_all_knowledge()
    if job.trained.row.reverse:
        split = split.reversed()
    # one key for training, another for the proxy, which no server may derive
    train_key, proxy_key = jax.random.split(jax.random.key(seed))
    run = training.trajectory(
        setting,
        train_key,
        split,
        job.trained.split_traced()[1],
        mesh,
        every=config.checkpoint_every,
        folder=checkpoints,
    )
    units = training.units(setting, split)
    fresh = []
    for index, case in enumerate(job.cases):
        mix_key, draws_key = jax.random.split(jax.random.fold_in(proxy_key, index))
        seen = metrics.behind_mix(mix_key, case, run, graph, mixed=job.mixed)
        origins, names = seen.records.truth.origins, dataset.attribute.values
        sums = aggregates.columns(case, run, origins, units, mixed=job.mixed)
        fresh += metrics.rows(case, seed, seen, graph, split, units, draws_key, names, sums)
    return fresh


COLUMNS = {
    "accuracy": "accuracy",
    "outsiders": "accuracy_outsiders",
    "per round": "attribution",
    "summed": "attribution_accumulated",
    "cohort": "cohort",
    "layer": "best_unit_level",
}


def table(summary: dict[str, Any]) -> rich.table.Table:
    """The summary as a table of 80 columns, in percent with 95 % intervals over seeds."""
    config = summary["config"]
    blind = summary["results"][0]["cohort_chance"]["mean"]
    grid = rich.table.Table(
        title=f"{config['dataset']}: {config['rounds']} rounds, {config['seeds']} seeds",
        caption=results.planted_note(summary)
        + (
            "Percent, mean over seeds ± how far the 95 % interval reaches. Accuracy on the "
            "participants' held-out data, and on outsiders'. Per round, and with scores summed "
            "over rounds: is the guess for a slot its participant's attribute, or the adaptive "
            "server's for a pseudonym its owner's? "
            f"Chance {100 * summary['chance']:.0f}. Cohort: how much of the attribute's histogram "
            f"single layers tell; a guess without them {100 * blind:.0f}. Layer: the layer that "
            "tells most on other seeds, judged for its owner. All seeds of the page of results: "
            "python -m experiments.reproduce."
        ),
        box=None,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    grid.add_column("")
    for column in COLUMNS:
        grid.add_column(column, justify="right", no_wrap=True)
    entries = results.by_entry(summary)
    for name, server in conditions.ATTACKS.items():
        of_server = {case: entry for case, entry in entries.items() if case.attack == name}
        if of_server:
            grid.add_row(f"[bold]{server.label}[/bold]")
        for case, entry in of_server.items():
            grid.add_row(case.label, *(results.short(entry[field]) for field in COLUMNS.values()))
    return grid


def _progress(console: rich.console.Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.BarColumn(bar_width=24),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("rounds"),
        rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
        rich.progress.TextColumn("[dim]{task.description}"),
        console=console,
    )


if __name__ == "__main__":
    cli.command(main, Config, "experiments.evaluate")
