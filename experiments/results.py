"""What a run leaves: `rounds.jsonl`, a line each, and `summary.json` computed from it."""

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax

import mixjax as mx
from experiments.conditions import Case
from experiments.tasks import Task

# at which a defence's epsilon is given
DELTA = 1e-5

Row = dict[str, Any]
Rows = list[Row]


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add a line for each row, all or none, and wait until they are on the disk.

    Raises:
      OSError: when the disk is full; what was there before is kept.
    """
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
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
    """Mean and 95 % interval over seeds of one number a seed."""
    return mx.evaluation.bootstrap([value(rows) for rows in seeds.values()])


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
    rows: Rows, config: dict[str, Any], parameters: dict[str, int], seconds: float
) -> dict[str, Any]:
    """The contents of `summary.json`; every interval is over seeds."""
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
        epsilon = case.epsilon(config["rounds"], DELTA)
        if epsilon is not None:
            entry["epsilon"] = epsilon
        plain = cases.get(Case("none", case.attack))
        if plain is not None and plain.keys() == seeds.keys():
            difference = [
                seeds[seed][-1]["accuracy"] - plain[seed][-1]["accuracy"] for seed in seeds
            ]
            entry["accuracy_minus_none"] = mx.evaluation.bootstrap(difference)._asdict()
        results.append(entry)
    return {
        "config": config,
        "environment": environment(),
        "parameters": parameters,
        "seconds": round(seconds, 1),
        "chance": float(np.mean([row["chance"] for row in rows])),
        "results": results,
    }


def environment() -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        "mixjax": mx.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpus": os.cpu_count(),
    }


def best_unit(entry: dict[str, Any]) -> dict[str, float]:
    """The interval of the layer that alone tells most."""
    return max(entry["unit_level"].values(), key=lambda interval: interval["mean"])


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that appears complete or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


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
    """Mean and interval, in percent."""
    mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"
