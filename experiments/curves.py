"""Tables and curves of `experiments.adversaries`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import rich.table
from matplotlib.figure import Figure

import mixjax as mx
from experiments import figures

FEW = 4
"""Seeds below which an interval says nothing."""
LAST = ("slots", "tracks")
"""Lists round by round, of which the last counts."""
ATTRIBUTE = ("slots", "unit", "tracks")
"""The columns whose chance is of the attribute."""
COLUMNS = {
    "accuracy": "accuracy",
    "slots": "∇Sim slots",
    "unit": "∇Sim layer",
    "tracks": "∇Sim joined",
    "exact": "exact",
    "purity": "purity",
    "source": "source",
}
# a server that chooses what it sends has names, and no need of pseudonyms
OF_STUDY = {
    "core": {name: COLUMNS[name] for name in ("accuracy", "slots", "tracks", "exact", "purity")}
    | {"source": "source", "membership": "member"},
    "active": {name: COLUMNS[name] for name in ("accuracy", "slots", "tracks", "exact")}
    | {"named": "named", "source": "source"},
}
LINES = {
    "exact": ("whole updates joined", "#00798c", "o", "-"),
    "purity": ("purity of tracks", "#8f5aa8", "s", "--"),
    "tracks": ("∇Sim, joined and followed", "#d1495b", "^", "-"),
    "unit": ("∇Sim, best unit followed", "#edae49", "v", "-."),
    "slots": ("∇Sim on slots", "#7a7a7a", "x", ":"),
}
AXES = {
    "participants": "participants",
    "epochs": "local epochs",
    "learning_rates": "learning rate",
    "optimizers": "clients' optimizer",
    "architectures": "model",
    "noise": "σ of the noise, after clipping",
    "groups": "random groups of coordinates",
    "batch_sizes": "examples a local step",
    "widths": "width of two hidden layers",
    "shares": "participants in a round",
    "list_sizes": "entries in each of the proxy's lists",
    "preferences": "share of preferred classes",
}


def values(seeds: list[dict[str, Any]], name: str) -> np.ndarray:
    """One number a seed."""
    if name == "unit":
        # the unit that is best over all seeds: hindsight, in the attack's favour
        units = seeds[0]["alone"]
        best = max(units, key=lambda unit: np.mean([seed["alone"][unit] for seed in seeds]))
        return np.array([seed["alone"][best] for seed in seeds])
    # None stands for NaN on disk
    return np.array([seed[name][-1] if name in LAST else seed[name] for seed in seeds], float)


def columns_of(study: str, rows: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """The study's columns, of those that its records have."""
    first = next(iter(rows.values()))[0]
    chosen = OF_STUDY.get(study, COLUMNS)
    return {name: label for name, label in chosen.items() if name == "unit" or name in first}


def table(content: dict[str, Any], study: str) -> rich.table.Table:
    """Percent, means over seeds with half the width of their 95 % interval."""
    config, rows = content["config"], content["studies"][study]
    first = next(iter(rows.values()))
    chance = chance_of_attribute(rows)
    grid = rich.table.Table(
        title=f"{config['dataset']}, {study.replace('_', ' ')}: {config['rounds']} rounds, "
        f"{len(first)} seeds; chance of ∇Sim {chance:.0f} %",
        caption=(
            "Planted data: says nothing about the real set. " if content["data"]["planted"] else ""
        )
        + "Percent, mean over seeds ± half of the 95 % interval (Student). ∇Sim: scores summed "
        "over rounds, on slots for their participants, else for the owners of pseudonyms; layer: "
        "the best unit alone. Exact: all units one person's, in one round. Purity: of "
        "pseudonyms. Named: units of those the server names that are theirs. Source: whose record "
        "it is, by whole models; member: whether it was trained on (AUC).",
        padding=(0, 0),
    )
    grid.add_column("", max_width=20)
    columns = columns_of(study, rows)
    for label in columns.values():
        grid.add_column(label, justify="right", max_width=8)
    for label, seeds in rows.items():
        grid.add_row(label, *(percent(values(seeds, name)) for name in columns))
    grid.add_section()
    grid.add_row("chance, MixNN", *chances(rows, columns))
    return grid


def markdown(content: dict[str, Any], study: str) -> str:
    """The table for a page."""
    rows = content["studies"][study]
    columns = columns_of(study, rows)
    lines = [
        f"| {' | '.join(['', *columns.values(), 'ε'])} |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for label, seeds in rows.items():
        cells = [percent(values(seeds, name)) for name in columns]
        epsilon = seeds[0]["epsilon"]
        lines.append(
            f"| {' | '.join([label, *cells, '∞' if epsilon is None else f'{epsilon:.2g}'])} |"
        )
    lines.append(f"| *chance behind MixNN* | {' | '.join([*chances(rows, columns), ''])} |")
    return "\n".join(lines)


def chance_of_attribute(rows: dict[str, list[dict[str, Any]]]) -> float:
    """Percent, the mean over all seeds."""
    return 100 * float(np.mean([seed["chance"] for seeds in rows.values() for seed in seeds]))


def chances(rows: dict[str, list[dict[str, Any]]], columns: Iterable[str]) -> list[str]:
    """A cell for each column: percent, of the first scenario that mixes units."""
    last = list(rows.values())[-1]
    mixed = next((seeds for seeds in rows.values() if seeds[0]["chance_exact"] < 1), last)

    def cell(name: str) -> str:
        if name == "membership":
            return "50"
        if name in ATTRIBUTE:
            return f"{chance_of_attribute(rows):.0f}"
        return f"{100 * np.mean([seed[f'chance_{name}'] for seed in mixed]):.2g}"

    return ["" if name == "accuracy" else cell(name) for name in columns]


def percent(column: np.ndarray) -> str:
    """Mean and half the width of its interval."""
    interval = mx.evaluation.student(column)
    if np.isnan(interval.mean):
        return "–"
    if interval.n < FEW:
        return f"{100 * interval.mean:.1f}"
    return f"{100 * interval.mean:.1f} ±{50 * (interval.high - interval.low):.1f}"


def draw(content: dict[str, Any], study: str, path: Path) -> None:
    """A line for each attack over the study's scenarios."""
    rows = content["studies"][study]
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axis = figure.subplots()
        at = np.arange(len(rows))
        for name, (label, color, marker, line) in LINES.items():
            intervals = [mx.evaluation.student(values(seeds, name)) for seeds in rows.values()]
            mean, low, high = (
                100 * np.array([getattr(one, part) for one in intervals])
                for part in ("mean", "low", "high")
            )
            axis.plot(at, mean, color=color, marker=marker, linestyle=line, label=label)
            axis.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
        chance = chance_of_attribute(rows)
        axis.axhline(chance, color="black", linestyle=(0, (1, 2)), linewidth=1.2)
        axis.annotate(
            "chance of ∇Sim", (1.005, chance), xycoords=("axes fraction", "data"), va="center"
        )
        axis.set_xticks(at, list(rows))
        axis.set_xlabel(AXES[study])
        axis.set_ylabel("percent")
        axis.set_ylim(-3, 104)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figures.save(figure, path.with_suffix(""))
