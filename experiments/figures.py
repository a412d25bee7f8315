"""The evaluation's figures, each a function from rows to a picture, as SVG and PNG.

Where several defences can't be told apart, they are one line under all their names.
"""

import textwrap
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
    "savefig.dpi": 200,
    # the same numbers give the same file
    "svg.hashsalt": "mixjax",
}
Cases = dict[Case, dict[int, results.Rows]]
CHANCE = {"color": "#555555", "linestyle": (0, (1, 2)), "linewidth": 1.2}
SAME = 1.5
"""Percent points below which lines can't be told apart."""


def draw_all(rows: results.Rows, folder: Path) -> list[Path]:
    """Draw every figure that the rows have data for.

    Returns:
      The files written.
    """
    cases = {case: own for case, own in results.by_case(rows).items() if case.row.drawn}
    attacks = [name for name in ATTACKS if any(case.attack == name for case in cases)]
    written = []
    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw(cases, attacks)
            if figure is None:
                continue
            written += save(figure, folder / name)
    return written


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write the picture as SVG and as PNG of 200 dots an inch; the files written."""
    written = []
    for kind in ("png", "svg"):
        path = stem.with_suffix(f".{kind}")
        with mx.checkpoint.replacing(path) as file:
            # a date would make each file another
            figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
        written.append(path)
    return written


def _panels(attacks: list[str], height: float = 4.2) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(3.2 * len(attacks), 6), height), layout="constrained")
    axes = figure.subplots(1, len(attacks), sharey=True, squeeze=False)[0]
    for axis, attack in zip(axes, attacks, strict=True):
        axis.set_title(ATTACKS[attack].label, fontsize=11)
    return figure, list(axes)


def _place(case: Case, cases: Cases) -> int:
    """Which one it is of the cases that differ in their parameters only."""
    alike = [c for c in cases if (c.defence, c.attack) == (case.defence, case.attack)]
    return sorted(alike).index(case)


def _style(case: Case, cases: Cases) -> dict[str, Any]:
    # what is mixed lies on top, dashed: what it hides is seen through it
    above = 3 if case.row.line == "-" else 4
    markers = case.row.markers
    return {
        "color": case.row.color,
        "linestyle": case.row.line,
        "marker": markers[_place(case, cases) % len(markers)],
        "linewidth": 1.8,
        "markersize": 5,
        "zorder": above,
    }


def alike(lines: dict[Case, np.ndarray]) -> list[list[Case]]:
    """Cases whose lines can't be told apart, together.

    Args:
      lines: of each case, in percent, of one length.
    """
    groups: list[list[Case]] = []
    for case, line in lines.items():
        for group in groups:
            first = lines[group[0]]
            # those of other seeds have other lengths
            if first.shape == line.shape and np.nanmax(np.abs(first - line), initial=0) < SAME:
                group.append(case)
                break
        else:
            groups.append([case])
    return groups


def _name(group: list[Case]) -> str:
    # a panel of three is no wider
    return textwrap.fill(" = ".join(case.label for case in group), 30)


def _leader(group: list[Case]) -> Case:
    """Whose style a group has: MixNN's, which the figures are about, or the first's."""
    return next((case for case in group if case.defence == "mixnn"), group[0])


def _series(seeds: dict[int, results.Rows], name: str) -> list[mx.evaluation.Interval]:
    series = np.array([[row[name] for row in rows] for rows in seeds.values()])
    return [mx.evaluation.student(column, within=(0, 1)) for column in series.T]


def _per_round(cases: Cases, attacks: list[str], name: str, ylabel: str, chance: bool) -> Figure:
    figure, axes = _panels(attacks, 6.2)
    for axis, attack in zip(axes, attacks, strict=True):
        own = {case: _series(seeds, name) for case, seeds in cases.items() if case.attack == attack}
        lines = {case: 100 * np.array([one.mean for one in band]) for case, band in own.items()}
        for group in alike(lines):
            leader = _leader(group)
            mean, spread = _means(own[leader])
            rounds = np.arange(1, len(mean) + 1)
            style = _style(leader, cases) | {"markevery": max(len(mean) // 6, 1)}
            axis.plot(rounds, mean, label=_name(group), **style)
            axis.fill_between(
                rounds, mean - spread[0], mean + spread[1], color=style["color"], alpha=0.12, lw=0
            )
        if chance:
            _chance_line(axis, cases)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axis.set_xlabel("round")
        axis.legend(**BELOW)
    axes[0].set_ylim(*((0, 103) if chance else (0, 100)))
    axes[0].set_ylabel(ylabel)
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


# under its own panel, so that no line lies below it
BELOW: dict[str, Any] = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.16),
    "ncols": 1,
    "fontsize": 8,
    "handlelength": 3,
}


def _chance_line(axis: Axes, cases: Cases) -> None:
    level = np.mean([rows[0]["chance"] for seeds in cases.values() for rows in seeds.values()])
    _level_line(axis, 100 * float(level))


def _level_line(axis: Axes, percent: float) -> None:
    axis.axhline(percent, zorder=1, **CHANCE)
    # at the line's end, beside the axis: nothing lies below it
    axis.annotate(
        "chance",
        (1.01, percent),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8,
        color=CHANCE["color"],
    )


def _utility(cases: Cases, attacks: list[str]) -> Figure:
    return _per_round(cases, attacks, "accuracy", "test accuracy (%)", chance=False)


def _attack(cases: Cases, attacks: list[str]) -> Figure:
    return _per_round(cases, attacks, "attribution", "attribute guessed right (%)", chance=True)


def _attack_accumulated(cases: Cases, attacks: list[str]) -> Figure:
    name = "attribution_accumulated"
    return _per_round(cases, attacks, name, "guessed right, scores summed (%)", chance=True)


def _background(cases: Cases, attacks: list[str]) -> Figure | None:
    known = {
        case: seeds
        for case, seeds in cases.items()
        if case.attack == "passive" and "background" in next(iter(seeds.values()))[0]
    }
    if not known:
        return None
    figure, (axis,) = _panels(["passive"], 5.0)
    # splits that need more people to cover the attribute start later
    people = sorted(
        {int(n) for s in known.values() for rows in s.values() for n in rows[-1]["background"]}
    )
    points = {}
    for case, seeds in known.items():
        last = [rows[-1]["background"] for rows in seeds.values()]
        levels = [[own[str(n)] for own in last if str(n) in own] for n in people]
        points[case] = _means([mx.evaluation.student(level, within=(0, 1)) for level in levels])
    for group in alike({case: mean for case, (mean, _) in points.items()}):
        leader = _leader(group)
        axis.errorbar(
            people, *points[leader], capsize=4, label=_name(group), **_style(leader, cases)
        )
    _chance_line(axis, cases)
    axis.set_ylim(0, 103)
    axis.set_xticks(people)
    axis.set_xlabel("people the server has auxiliary data of")
    axis.set_ylabel("guessed right, scores summed (%)")
    axis.legend(**BELOW)
    return figure


def _participants(cases: Cases, attacks: list[str]) -> Figure:
    figure, axes = _panels(attacks, 6.2)
    for axis, attack in zip(axes, attacks, strict=True):
        values = {
            case: 100 * np.sort([v for rows in seeds.values() for v in rows[-1]["participants"]])
            for case, seeds in cases.items()
            if case.attack == attack
        }
        for group in alike(values):
            own = values[_leader(group)]
            share = 100 * np.arange(1, len(own) + 1) / len(own)
            style = _style(_leader(group), cases) | {"markevery": max(len(own) // 6, 1)}
            axis.step(own, share, where="post", label=_name(group), **style)
        axis.set_xlabel("participant's test accuracy,\nlast round (%)")
        axis.legend(**BELOW | {"bbox_to_anchor": (0.5, -0.24)})
    axes[0].set_ylabel("participants at or below (%)")
    return figure


def _layers(cases: Cases, attacks: list[str]) -> Figure:
    figure, axes = _panels(attacks, 6.2)
    for axis, attack in zip(axes, attacks, strict=True):
        chosen = [c for c in cases if c.attack == attack and not c.perturbs]
        units = list(next(iter(cases[chosen[0]].values()))[0]["unit_level"])
        bars = {
            case: _means(
                [results.over_seeds(cases[case], results.average_unit(unit)) for unit in units]
            )
            for case in chosen
        }
        # no mixing changes what a layer tells: only trajectories differ
        groups = alike({case: mean for case, (mean, _) in bars.items()})
        for position, group in enumerate(groups):
            mean, spread = bars[_leader(group)]
            axis.bar(
                np.arange(len(units)) + (position - (len(groups) - 1) / 2) * 0.8 / len(groups),
                mean,
                0.8 / len(groups),
                yerr=spread,
                color=_leader(group).row.color,
                hatch=HATCHES[position % len(HATCHES)],
                edgecolor="white",
                label=_name(group),
                error_kw={"elinewidth": 1, "ecolor": "#444444"},
            )
        _chance_line(axis, cases)
        axis.set_xticks(range(len(units)), _unit_names(units), rotation=40, ha="right", fontsize=9)
        axis.grid(visible=False, axis="x")
        axis.set_ylim(0, 105)
        axis.legend(**BELOW | {"bbox_to_anchor": (0.5, -0.2)})
    axes[0].set_ylabel("owner's attribute guessed\nfrom the layer alone (%)")
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
    for place, (unit, name, shade) in enumerate(zip(units, names, shades, strict=True)):
        counts = np.mean([row["neighbours"][unit] for row in found], axis=0)
        marker = MARKERS[place % len(MARKERS)]
        left.plot(RADII, counts, color=shade, marker=marker, markevery=5, markersize=5, label=name)
    left.set_xlabel("radius / rms norm of the layer's updates")
    left.set_ylabel("other updates within the radius")
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9
    )
    shares = [100 * np.mean([row["relinked"][unit] for row in found]) for unit in units]
    right.bar(range(len(units)), shares, color=shades)
    participants = len(found[0]["participants"])
    _level_line(right, 100 / participants)
    right.set_ylim(0, 105)
    right.set_xticks(range(len(units)), names, rotation=30, ha="right")
    right.set_ylabel("nearest to its own update of\nthe round before (%)")
    right.grid(visible=False, axis="x")
    return figure


def _frontier(cases: Cases, attacks: list[str]) -> Figure:
    figure, axes = _panels(attacks, 6.2)
    names = ("accuracy", "attribution_accumulated")
    for axis, attack in zip(axes, attacks, strict=True):
        points = {
            case: _means([results.over_seeds(seeds, results.last(name)) for name in names])
            for case, seeds in cases.items()
            if case.attack == attack
        }
        for group in alike({case: means for case, (means, _) in points.items()}):
            leader = _leader(group)
            means, spreads = points[leader]
            style = _style(leader, cases) | {"linestyle": "none", "markersize": 7}
            axis.errorbar(
                *means,
                xerr=spreads[:, :1],
                yerr=spreads[:, 1:],
                label=_name(group),
                capsize=3,
                elinewidth=1,
                **style,
            )
        for defence in dict.fromkeys(case.defence for case in points):
            line = [means for case, (means, _) in points.items() if case.defence == defence]
            row = DEFENCES[defence]
            axis.plot(*zip(*line, strict=True), color=row.color, linestyle=row.line, lw=1, zorder=0)
        _chance_line(axis, cases)
        axis.set_xlabel("test accuracy after\nthe last round (%)")
        axis.legend(**BELOW | {"bbox_to_anchor": (0.5, -0.24)})
    axes[0].set_ylim(0, 105)
    axes[0].set_ylabel("guessed right, scores summed (%)")
    return figure


HATCHES = ("", "//", "..", "xx")
MARKERS = "osD^v<>Ph*X"

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
