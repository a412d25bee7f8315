"""What a run leaves: `rounds.jsonl`, a line each, and `summary.json` computed from it.

JSON has no word for a number that is not finite: it is written as null, and read as NaN.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import mixjax as mx
from experiments import people
from experiments.conditions import DELTA, Case
from experiments.tasks import Task

Row = dict[str, Any]
Rows = list[Row]


def dumps(content: Any, indent: int | None = None) -> str:
    """JSON, with null for numbers that are not finite."""
    return json.dumps(_replaced(content, _null_of_nan), indent=indent, allow_nan=False)


def with_nan(content: Any) -> Any:
    """Numbers as they were before `dumps`, each that was not finite as NaN."""
    return _replaced(content, lambda value: math.nan if value is None else value)


def read_summary(path: Path) -> dict[str, Any]:
    """The contents of `summary.json`, as `summarize` or `members.summarize` made them."""
    summary = json.loads(path.read_bytes())
    numbers = {"chance", "results"} & summary.keys()
    return summary | {name: with_nan(summary[name]) for name in numbers}


def _replaced(value: Any, replace: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(inner, replace) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(inner, replace) for inner in value]
    return replace(value)


def _null_of_nan(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add a line for each row, all or none, and wait until they are on the disk.

    Raises:
      OSError: when the disk is full; what was there before is kept.
    """
    lines = "".join(dumps(row) + "\n" for row in rows).encode()
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab", buffering=0) as file:
            written = 0
            while written < len(lines):
                written += file.write(lines[written:])
            os.fsync(file.fileno())
    except OSError as error:
        if path.exists():
            os.truncate(path, size)
        raise OSError(
            f"could not add to {path} ({error.strerror}); the {size:,} bytes before are kept. "
            "Make room or mend the disk, and continue with --resume."
        ) from error


def by_case(rows: Rows) -> dict[Case, dict[int, Rows]]:
    """Rows by case and seed, in order of rounds."""
    cases: dict[Case, dict[int, Rows]] = {}
    for row in rows:
        case = Case.of(row)
        cases.setdefault(case, {}).setdefault(row["seed"], []).append(row)
    return cases


def over_seeds(seeds: dict[int, Rows], value: Callable[[Rows], float]) -> mx.evaluation.Interval:
    """Mean and 95 % interval over seeds of one share a seed."""
    return mx.evaluation.student([value(rows) for rows in seeds.values()], within=(0, 1))


def last(name: str) -> Callable[[Rows], float]:
    """The value after the last round."""
    return lambda rows: rows[-1][name]


def average(name: str) -> Callable[[Rows], float]:
    """The mean over rounds."""
    return lambda rows: float(np.mean([row[name] for row in rows]))


def average_unit(unit: str) -> Callable[[Rows], float]:
    """The mean over rounds of one unit's accuracy."""
    return lambda rows: float(np.mean([row["unit_level"][unit] for row in rows]))


def last_unit(unit: str) -> Callable[[Rows], float]:
    """One unit's accuracy after the last round, its scores summed."""
    return lambda rows: rows[-1]["unit_accumulated"][unit]


FIGURES_OF_A_CASE: dict[str, Callable[[Rows], float]] = {
    "accuracy": last("accuracy"),
    "accuracy_outsiders": last("accuracy_outsiders"),
    "attribution": average("attribution"),
    "attribution_accumulated": last("attribution_accumulated"),
    "permuted_accumulated": last("permuted_accumulated"),
    "balanced_accuracy": average("balanced_accuracy"),
    "balanced_accuracy_accumulated": last("balanced_accuracy_accumulated"),
    "auc": average("auc"),
    "auc_accumulated": last("auc_accumulated"),
    "cohort": last("cohort"),
    "cohort_chance": last("cohort_chance"),
    "chance": last("chance"),
}


# whose differences between cases are tested, seed by seed
PAIRED = ("accuracy", "attribution", "attribution_accumulated", "chance")


def best_elsewhere(
    seeds: dict[int, Rows], values: dict[str, Callable[[Rows], float]]
) -> mx.evaluation.Interval:
    """The interval of whatever is best, each seed's chosen by the mean over all others.

    Choosing and judging on the same seeds would count luck as skill; a single seed has no others,
    and is NaN.
    """
    table = np.array([[value(rows) for value in values.values()] for rows in seeds.values()])
    if len(table) < 2:
        return mx.evaluation.student([math.nan])
    others = (table.sum(axis=0) - table) / (len(table) - 1)
    chosen = table[np.arange(len(table)), others.argmax(axis=1)]
    return mx.evaluation.student(chosen, within=(0, 1))


def summarize(
    rows: Rows,
    config: dict[str, Any],
    data: dict[str, Any],
    parameters: dict[str, int],
    sessions: list[dict[str, Any]],
) -> dict[str, Any]:
    """The contents of `summary.json`; every interval is over seeds.

    Args:
      rows: all rows.
      config: the options; see `config_dict`.
      data: what data it is; see `provenance.of_data`.
      parameters: the size of each unit.
      sessions: the processes that made the rows, the last one last.
    """
    cases = by_case(rows)
    results = []
    for case, seeds in cases.items():
        entry: dict[str, Any] = case.keys()
        for name, value in FIGURES_OF_A_CASE.items():
            entry[name] = over_seeds(seeds, value)._asdict()
        # what paired tests are of, seed by seed
        entry["by_seed"] = {
            name: [FIGURES_OF_A_CASE[name](rows) for rows in seeds.values()] for name in PAIRED
        }
        units = list(next(iter(seeds.values()))[0]["unit_level"])
        for name, value in (("unit_level", average_unit), ("unit_accumulated", last_unit)):
            entry[name] = {unit: over_seeds(seeds, value(unit))._asdict() for unit in units}
            entry[f"best_{name}"] = best_elsewhere(seeds, {u: value(u) for u in units})._asdict()
        own = [row for rows in seeds.values() for row in rows]
        entry["updates"] = sum(len(row["participants"]) for row in own)
        entry["excluded"] = sum(row["excluded"] for row in own)
        entry["rounds_without_step"] = sum(not row["stepped"] for row in own)
        epsilon = case.epsilon(config["rounds"], DELTA)
        if epsilon is not None:
            entry["epsilon"] = epsilon
        if "aggregate_difference" in own[0]:
            entry["aggregate_difference"] = max(row["aggregate_difference"] for row in own)
            entry["aggregate_exact"] = all(row["aggregate_exact"] for row in own)
        results.append(entry | people.summarize(seeds))
    return {
        "config": config,
        "data": data,
        "environment": sessions[-1]["environment"],
        "parameters": parameters,
        "seconds": round(sum(session["seconds"] for session in sessions), 1),
        "sessions": sessions,
        "chance": float(np.mean([row["chance"] for row in rows])),
        "results": results,
    }


def by_entry(summary: dict[str, Any]) -> dict[Case, dict[str, Any]]:
    """The summary's entries by what was run."""
    return {Case.of(entry): entry for entry in summary["results"]}


def chance_of_slots(entry: dict[str, Any]) -> float:
    """What accumulated attribution is by chance: where slots are mixed, what permuting leaves."""
    case = Case.of(entry)
    mixed = case.mix() is not None and not case.server.adaptive
    return entry["permuted_accumulated" if mixed else "chance"]["mean"]


def check_trained(rows: Rows) -> None:
    """Refuse results of models that nothing, or no more, moved: they say nothing of a defence.

    Noise that ends training is a result; see `warnings`.

    Raises:
      InputError: naming the seed, the defence and the attack.
    """
    for case, seeds in by_case(rows).items():
        if case.row.epsilon is not None:
            continue
        for seed, own in seeds.items():
            where = f"seed {seed}, defence {case.label}, attack {case.attack}"
            if own[-1]["stepped"]:
                check_references(own, where)
                continue
            steps = [row["round"] for row in own if row["stepped"]]
            when = f"after round {steps[-1]}" if steps else "in any round"
            raise mx.InputError(
                f"expected training that goes on to the last round; {where}: of {len(own)} rounds "
                f"none took a step {when}, as updates or models were not finite or too large. "
                "Its rows are kept; no figures are drawn. Lower --learning-rate or --momentum, and "
                "start afresh."
            )


def check_references(rows: Rows, where: str) -> None:
    """Refuse an attack whose own training diverged: a guess from it would be none.

    Raises:
      InputError: naming the attribute's value and the round.
    """
    for row in rows:
        if row["diverged"]:
            raise mx.InputError(
                f"expected finite updates of the server's reference training; {where}: in round "
                f"{row['round']} that for {' and '.join(row['diverged'])} diverged. Its rows are "
                "kept; no figures are drawn. Lower --learning-rate or --momentum, or give "
                "--auxiliary other people, and start afresh."
            )


def warnings(summary: dict[str, Any]) -> list[str]:
    """A line for each case of which updates were excluded, or rounds took no step."""
    return [
        f"{Case.of(entry).label}, {entry['attack']}: {entry['excluded']:,} of "
        f"{entry['updates']:,} updates were excluded as broken, and "
        f"{entry['rounds_without_step']:,} rounds took no step."
        for entry in summary["results"]
        if entry["excluded"] or entry["rounds_without_step"]
    ]


def planted_note(summary: dict[str, Any]) -> str:
    """What a table of synthetic data begins its caption with."""
    return "Planted data: says nothing about the real set. " if summary["data"]["planted"] else ""


def short(interval: dict[str, float]) -> str:
    """Mean and how far its interval reaches, in percent, for a terminal."""
    mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
    if math.isnan(mean):
        return "–"
    return f"{mean:.1f}" if math.isnan(low) else f"{mean:.1f}±{max(mean - low, high - mean):.1f}"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that appears complete or not at all."""
    write_text(path, dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file that appears complete or not at all."""
    with mx.checkpoint.replacing(path) as file:
        file.write(text.encode())


def config_dict(config: Any, task: Task) -> dict[str, Any]:
    """The options that decide the results, as plain JSON values: folders may be moved.

    What `config` leaves to the dataset is the task's.
    """
    own = {name: getattr(task, name, value) for name, value in dataclasses.asdict(config).items()}
    options = json.loads(json.dumps(own, default=str))
    aside = ("resume", "overwrite", "out", "data_dir")
    return {name: options[name] for name in options if name not in aside}


def percent(interval: dict[str, float]) -> str:
    """Mean and interval, in percent; no interval of a single seed, a dash where there is none."""
    if math.isnan(interval["mean"]):
        return "–"
    if math.isnan(interval["low"]):
        return f"{100 * interval['mean']:.1f}"
    mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"
