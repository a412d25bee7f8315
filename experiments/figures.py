"""The evaluation's figures, each a function from rows to a PNG of 800 pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import mixjax as mx
from experiments import results
from experiments.conditions import ATTACKS, DEFENCES, Case
from experiments.metrics import RADII

matplotlib.use("Agg")

STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.dpi": 100,
}
Cases = dict[Case, dict[int, results.Rows]]
LINES = ("-", "--", ":", "-.")


def draw_all(rows: results.Rows, folder: Path) -> list[Path]:
    """Draw every figure that the rows have data for.

    Returns:
      The files written.
    """
    cases = results.by_case(rows)
    attacks = [name for name in ATTACKS if any(case.attack == name for case in cases)]
    written = []
    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw(cases, attacks)
            if figure is None:
                continue
            path = folder / f"{name}.png"
            with mx.checkpoint.replacing(path) as file:
                figure.savefig(file, format="png")
            written.append(path)
    return written


def _panels(attacks: list[str], height: float = 4.2) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots(1, len(attacks), sharey=True, squeeze=False)[0]
    for axis, attack in zip(axes, attacks, strict=True):
        axis.set_title(ATTACKS[attack].label, fontsize=11)
    return figure, list(axes)


def _place(case: Case, cases: Cases) -> int:
    """Which one it is of the cases that differ in their parameters only."""
    alike = [c for c in cases if (c.defence, c.attack) == (case.defence, case.attack)]
    return sorted(alike).index(case)


def _line_style(case: Case, cases: Cases) -> dict[str, Any]:
    line = LINES[_place(case, cases) % len(LINES)]
    return {"color": case.row.color, "linestyle": line, "linewidth": 1.8}


def _band(axis: Axes, series: np.ndarray, name: str, style: dict[str, Any]) -> None:
    """Mean over seeds, the first axis, with its 95 % band."""
    intervals = [mx.evaluation.student(column, within=(0, 1)) for column in series.T]
    rounds = np.arange(1, len(intervals) + 1)
    axis.plot(rounds, [100 * one.mean for one in intervals], label=name, **style)
    axis.fill_between(
        rounds,
        [100 * one.low for one in intervals],
        [100 * one.high for one in intervals],
        color=style["color"],
        alpha=0.15,
        linewidth=0,
    )
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))


def _per_round(cases: Cases, attacks: list[str], name: str, ylabel: str, chance: bool) -> Figure:
    figure, axes = _panels(attacks, 4.6)
    for axis, attack in zip(axes, attacks, strict=True):
        for case, seeds in cases.items():
            if case.attack == attack:
                series = np.array([[row[name] for row in rows] for rows in seeds.values()])
                _band(axis, series, case.label, _line_style(case, cases))
        if chance:
            _chance_line(axis, cases)
        axis.set_xlabel("round")
    axes[0].set_ylabel(ylabel)
    _legend_below(figure, axes[0])
    return figure


def _means(intervals: list[mx.evaluation.Interval]) -> tuple[np.ndarray, np.ndarray]:
    """Means, and their distances to both ends, in percent."""
    mean, low, high = (
        100 * np.array([getattr(one, name) for one in intervals])
        for name in ("mean", "low", "high")
    )
    # a single seed has no interval
    return mean, np.nan_to_num([mean - low, high - mean])


def _unit_names(units: list[str]) -> list[str]:
    return [unit.split("/")[-1].replace("_", " ").lower() for unit in units]


def _chance_line(axis: Axes, cases: Cases) -> None:
    level = np.mean([rows[0]["chance"] for seeds in cases.values() for rows in seeds.values()])
    axis.axhline(100 * level, color="black", linestyle=(0, (1, 2)), linewidth=1.2, label="chance")


def _legend_below(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=10)


def _utility(cases: Cases, attacks: list[str]) -> Figure:
    return _per_round(cases, attacks, "accuracy", "test accuracy (%)", chance=False)


def _attack(cases: Cases, attacks: list[str]) -> Figure:
    return _per_round(cases, attacks, "attribution", "attribute guessed right (%)", chance=True)


def _attack_accumulated(cases: Cases, attacks: list[str]) -> Figure:
    name = "attribution_accumulated"
    return _per_round(cases, attacks, name, "guessed right, scores summed (%)", chance=True)


def _background(cases: Cases, attacks: list[str]) -> Figure | None:
    known = {c: s for c, s in cases.items() if "background" in next(iter(s.values()))[0]}
    if not known:
        return None
    figure, (axis,) = _panels(["passive"])
    for case, seeds in known.items():
        # splits that need more people to cover the attribute start later
        people = sorted({int(count) for s in seeds.values() for count in s[-1]["background"]})
        levels = [
            [s[-1]["background"][str(n)] for s in seeds.values() if str(n) in s[-1]["background"]]
            for n in people
        ]
        mean, spread = _means([mx.evaluation.student(level, within=(0, 1)) for level in levels])
        axis.errorbar(
            people,
            mean,
            spread,
            marker="o",
            capsize=4,
            label=case.label,
            color=case.row.color,
        )
    _chance_line(axis, cases)
    axis.set_xticks(people)
    axis.set_xlabel("people the server has auxiliary data of")
    axis.set_ylabel("guessed right, scores summed (%)")
    _legend_below(figure, axis)
    return figure


def _participants(cases: Cases, attacks: list[str]) -> Figure:
    figure, axes = _panels(attacks, 4.6)
    for axis, attack in zip(axes, attacks, strict=True):
        for case, seeds in cases.items():
            if case.attack != attack:
                continue
            values = np.sort([v for rows in seeds.values() for v in rows[-1]["participants"]])
            share = np.arange(1, len(values) + 1) / len(values)
            axis.step(
                100 * values,
                100 * share,
                where="post",
                label=case.label,
                **_line_style(case, cases),
            )
        axis.set_xlabel("participant's test accuracy,\nlast round (%)")
    axes[0].set_ylabel("participants at or below (%)")
    _legend_below(figure, axes[0])
    return figure


def _layers(cases: Cases, attacks: list[str]) -> Figure:
    figure, axes = _panels(attacks)
    for axis, attack in zip(axes, attacks, strict=True):
        chosen = [c for c in cases if c.attack == attack and not c.perturbs]
        for position, case in enumerate(chosen):
            seeds = cases[case]
            units = list(next(iter(seeds.values()))[0]["unit_level"])
            mean, spread = _means(
                [results.over_seeds(seeds, results.average_unit(unit)) for unit in units]
            )
            axis.bar(
                np.arange(len(units)) + (position - (len(chosen) - 1) / 2) * 0.8 / len(chosen),
                mean,
                0.8 / len(chosen),
                yerr=spread,
                color=case.row.color,
                label=case.label,
                error_kw={"elinewidth": 1},
            )
        _chance_line(axis, cases)
        axis.set_xticks(range(len(units)), _unit_names(units), rotation=30, ha="right")
        axis.grid(visible=False, axis="x")
        axis.set_ylim(0, 105)
    axes[0].set_ylabel("owner's attribute guessed\nfrom the layer alone (%)")
    _legend_below(figure, axes[0])
    return figure


def _neighbours(cases: Cases, attacks: list[str]) -> Figure | None:
    found = [
        row
        for seeds in cases.values()
        for seed_rows in seeds.values()
        for row in seed_rows
        if "neighbours" in row
    ]
    if not found:
        return None
    units = list(found[0]["neighbours"])
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(units)))
    names = _unit_names(units)
    for unit, name, shade in zip(units, names, shades, strict=True):
        counts = np.mean([row["neighbours"][unit] for row in found], axis=0)
        left.plot(RADII, counts, color=shade, label=name)
    left.set_xlabel("radius / rms norm of the layer's updates")
    left.set_ylabel("other updates within the radius")
    left.legend(fontsize=10)
    shares = [100 * np.mean([row["relinked"][unit] for row in found]) for unit in units]
    right.bar(range(len(units)), shares, color=shades)
    participants = len(found[0]["participants"])
    right.axhline(
        100 / participants, color="black", linestyle=(0, (1, 2)), linewidth=1.2, label="chance"
    )
    right.set_xticks(range(len(units)), names, rotation=30, ha="right")
    right.set_ylabel("nearest to its own update of\nthe round before (%)")
    right.grid(visible=False, axis="x")
    right.legend()
    return figure


def _frontier(cases: Cases, attacks: list[str]) -> Figure:
    figure, axes = _panels(attacks, 4.6)
    for axis, attack in zip(axes, attacks, strict=True):
        points: dict[str, list[tuple[float, ...]]] = {}
        for case, seeds in cases.items():
            if case.attack != attack:
                continue
            names = ("accuracy", "attribution_accumulated")
            means, spreads = _means(
                [results.over_seeds(seeds, results.last(name)) for name in names]
            )
            points.setdefault(case.defence, []).append(tuple(means))
            markers = case.row.markers
            axis.errorbar(
                *means,
                xerr=spreads[:, :1],
                yerr=spreads[:, 1:],
                fmt=markers[_place(case, cases) % len(markers)],
                color=case.row.color,
                label=case.label,
                capsize=3,
            )
        for name, line in points.items():
            axis.plot(*zip(*line, strict=True), color=DEFENCES[name].color, linewidth=1, zorder=0)
        _chance_line(axis, cases)
        axis.set_xlabel("test accuracy after the last round (%)")
    axes[0].set_ylabel("guessed right, scores summed (%)")
    _legend_below(figure, axes[0])
    return figure


FIGURES: dict[str, Callable[[Cases, list[str]], Figure | None]] = {
    "utility": _utility,
    "attack": _attack,
    "attack_accumulated": _attack_accumulated,
    "background": _background,
    "participants": _participants,
    "layers": _layers,
    "neighbours": _neighbours,
    "frontier": _frontier,
}
