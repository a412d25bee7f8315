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
from experiments.conditions import Case
from experiments.tasks import Task

# at which a defence's epsilon is given
DELTA = 1e-5

Row = dict[str, Any]
Rows = list[Row]


def dumps(content: Any, indent: int | None = None) -> str:
    """JSON, with null for numbers that are not finite."""
    return json.dumps(_replaced(content, _null_of_nan), indent=indent, allow_nan=False)


def with_nan(content: Any) -> Any:
    """Numbers as they were before `dumps`, each that was not finite as NaN."""
    return _replaced(content, lambda value: math.nan if value is None else value)


def read_summary(path: Path) -> dict[str, Any]:
    """The contents of `summary.json`, as `summarize` made them."""
    summary = json.loads(path.read_bytes())
    return summary | {name: with_nan(summary[name]) for name in ("chance", "results")}


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


FIGURES_OF_A_CASE: dict[str, Callable[[Rows], float]] = {
    "accuracy": last("accuracy"),
    "attribution": average("attribution"),
    "attribution_accumulated": last("attribution_accumulated"),
    "balanced_accuracy": average("balanced_accuracy"),
    "auc": average("auc"),
    "auc_accumulated": last("auc_accumulated"),
    "set_level": average("set_level"),
}


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
        entry["unit_level"] = {
            unit: over_seeds(seeds, average_unit(unit))._asdict()
            for unit in next(iter(seeds.values()))[0]["unit_level"]
        }
        own = [row for rows in seeds.values() for row in rows]
        entry["updates"] = sum(len(row["participants"]) for row in own)
        entry["excluded"] = sum(row["excluded"] for row in own)
        entry["rounds_without_step"] = sum(not row["stepped"] for row in own)
        epsilon = case.epsilon(config["rounds"], DELTA)
        if epsilon is not None:
            entry["epsilon"] = epsilon
        plain = cases.get(Case("none", case.attack))
        if plain is not None and plain.keys() == seeds.keys():
            difference = [
                seeds[seed][-1]["accuracy"] - plain[seed][-1]["accuracy"] for seed in seeds
            ]
            entry["accuracy_minus_none"] = mx.evaluation.student(difference)._asdict()
        results.append(entry)
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


def check_trained(rows: Rows) -> None:
    """Refuse results of models that nothing, or no more, moved: they say nothing of a defence.

    Raises:
      InputError: naming the seed, the defence and the attack.
    """
    for case, seeds in by_case(rows).items():
        for seed, own in seeds.items():
            if own[-1]["stepped"]:
                continue
            steps = [row["round"] for row in own if row["stepped"]]
            when = f"after round {steps[-1]}" if steps else "in any round"
            raise mx.InputError(
                f"expected training that goes on to the last round; seed {seed}, defence "
                f"{case.label}, attack {case.attack}: of {len(own)} rounds none took a step "
                f"{when}, as updates or models were not finite or too large. Its rows are kept; "
                "no figures are drawn. Lower --learning-rate or --momentum, and start afresh."
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


def best_unit(entry: dict[str, Any]) -> dict[str, float]:
    """The interval of the layer that alone tells most."""
    return max(entry["unit_level"].values(), key=lambda interval: interval["mean"])


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
