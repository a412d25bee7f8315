"""The page of results: tables, figures and claims, all read from finished runs."""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.conditions import Case
from experiments.results import (
    DELTA,
    best_unit,
    percent,
    read_summary,
    warnings,
    write_text,
)

FIGURES = {
    "utility": "Test accuracy a round; mean over participants, 95 % band over seeds.",
    "participants": "Each participant's test accuracy at the end, as a distribution.",
    "attack": "∇Sim, round by round.",
    "attack_accumulated": "∇Sim, scores summed over rounds.",
    "layers": "∇Sim on one layer alone, judged for the layer's owner.",
    "frontier": "Attack against utility over the noise.",
    "background": "∇Sim against the number of people the server knows.",
    "neighbours": "Left: other updates within a radius. Right: updates nearest to their "
    "owner's update of the round before.",
}
# how far apart two accuracies may be to count as the same, in points
SAME = 2.0


class Entry(NamedTuple):
    """One configuration.

    Attributes:
      name: of its file.
      title: of its section.
      folder: its results, if it has run.
      problem: why it was not run.
    """

    name: str
    title: str
    folder: Path
    problem: str | None


def write(page: Path, entries: Iterable[Entry], *, quick: bool) -> None:
    """Write the page, with copies of the figures beside it."""
    figures = page.parent / "results"
    figures.mkdir(parents=True, exist_ok=True)
    parts = [INTRODUCTION]
    if quick:
        parts.append("**Toy sizes: this page shows that everything runs, and nothing else.**")
    finished = []
    for entry in entries:
        summary = recorded(entry.folder)
        if summary is None:
            parts.append(f"## {entry.title}\n\nNot run: {entry.problem or 'not asked for'}")
        elif "data" not in summary:
            parts.append(
                f"## {entry.title}\n\nNot shown: the results there are don't say whether their "
                "data is real. Run them again."
            )
        else:
            finished.append((entry, summary))
    parts.insert(1, claims([pair for pair in finished if not pair[1]["data"]["planted"]]))
    parts += [section(entry, summary, figures) for entry, summary in finished]
    write_text(page, "\n\n".join(parts) + "\n")


def recorded(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None without one."""
    path = folder / "summary.json"
    return read_summary(path) if path.is_file() else None


INTRODUCTION = """# Results

Written by `python -m experiments.reproduce` from `experiments/configs`. Percent, mean over seeds
and 95 % interval over seeds (Student's, cut to [0, 100]; none for a single seed); every seed has
other people as participants. *Attribution*: is the guess for a slot the attribute of the
participant of that slot? For mixings it is the mean over 200 draws. *Set level*: how well the
guesses' histogram matches the cohort's, which no permutation of whole updates lowers. *Best
layer*: the attribute of a layer's owner, guessed from that layer alone. ε is of all rounds
together, for one client's clipped and noisy updates, mixed or not; mixing without noise has no
differential privacy.

Each row of a run's `rounds.jsonl` holds the seed that everything random follows from, the
permutations of every mixing too: whoever has the file and the program can undo the mixing. Don't
publish it where real people's updates could be seen."""


def claims(finished: list[tuple[Entry, dict[str, Any]]]) -> str:
    """What the paper's abstract says, what was measured, and whether it holds."""
    lines = [
        "## The claims of the paper's abstract",
        "| claim | data | measured | holds |\n|---|---|---|---|",
    ]
    rows = []
    for entry, summary in finished:
        cases = by_case(summary)
        plain, mixed = cases.get(Case("none", "passive")), cases.get(Case("mixnn", "passive"))
        if plain is None or mixed is None:
            continue
        chance = 100 * summary["chance"]
        data = f"{entry.name}, {plain['accuracy']['n']} seeds"
        if "accuracy_minus_none" in mixed:
            gap = mixed["accuracy_minus_none"]
            rows.append(
                (
                    "Mixing keeps the utility of classic federated learning",
                    data,
                    f"MixNN minus plain FL, trained through mixed tensors: {percent(gap)} points",
                    max(abs(gap["low"]), abs(gap["high"])) * 100 <= SAME,
                )
            )
        # the abstract's two and the one that undoes mixing, whatever else is compared
        for attack in ("passive", "adaptive", "active"):
            seen = cases.get(Case("none", attack))
            if seen is not None:
                accumulated = seen["attribution_accumulated"]
                rows.append(
                    (
                        f"∇Sim infers the attribute, {attack}",
                        data,
                        f"plain FL, accumulated: {percent(accumulated)}, chance {chance:.0f}",
                        accumulated["low"] * 100 > chance,
                    )
                )
            behind = cases.get(Case("mixnn", attack))
            if behind is not None and seen is not None:
                accumulated = behind["attribution_accumulated"]
                rows.append(
                    (
                        f"MixNN significantly limits the inference, {attack}",
                        data,
                        f"MixNN, accumulated: {percent(accumulated)}, plain FL "
                        f"{percent(seen['attribution_accumulated'])}",
                        accumulated["high"] < seen["attribution_accumulated"]["low"],
                    )
                )
        rows += noise_claims(data, cases, mixed, plain)
    rows.sort(key=lambda row: row[0])
    lines[-1] += "".join(
        f"\n| {claim} | {where} | {measured} | {'yes' if holds else '**no**'} |"
        for claim, where, measured, holds in rows
    )
    lines.append(CAVEAT)
    return "\n\n".join(lines)


CAVEAT = """A shuffle of whole updates, which mixes nothing, brings attribution down as far as MixNN
does (the control in every table): it breaks the link between slot and participant. What mixing
adds, that no forwarded update is one person's, an adaptive server takes away: it joins the layers
of each person and follows them from round to round; see [adversaries](adversaries.md)."""


def noise_claims(
    data: str, cases: dict[Case, dict[str, Any]], mixed: dict[str, Any], plain: dict[str, Any]
) -> list[tuple[str, str, str, bool]]:
    """MixNN against every noise: lower attack, and no lower utility."""
    rows = []
    for case, noisy in cases.items():
        if case.defence != "noisy" or case.attack != "passive":
            continue
        attack, utility = noisy["attribution_accumulated"], noisy["accuracy"]
        rows.append(
            (
                "MixNN limits the inference more than noise does, at no lower utility",
                f"{data}, {case.label}",
                f"attack {percent(mixed['attribution_accumulated'])} against {percent(attack)}, "
                f"utility {percent(mixed['accuracy'])} against {percent(utility)}",
                mixed["attribution_accumulated"]["high"] < attack["low"]
                and mixed["accuracy"]["high"] >= utility["low"],
            )
        )
        rows.append(
            (
                "Noise damages utility",
                f"{data}, {case.label}",
                f"{percent(utility)} against {percent(plain['accuracy'])} of plain FL",
                utility["high"] < plain["accuracy"]["low"],
            )
        )
    return rows


def section(entry: Entry, summary: dict[str, Any], figures: Path) -> str:
    """Conditions, table, layers and figures of one run."""
    config, environment = summary["config"], summary["environment"]
    conditions = (
        f"{config['rounds']} rounds, {config['seeds']} seeds, {config['epochs']} local epochs, "
        f"batches of {config['batch_size']}, SGD {config['learning_rate']:g} with momentum "
        f"{config['momentum']:g}; the server knows {config['auxiliary']} people. Chance "
        f"{100 * summary['chance']:.1f} %. Versions: jax {environment['jax']}, flax "
        f"{environment['flax']}, optax {environment['optax']}, numpy {environment['numpy']}; "
        f"{environment['devices']} {environment['device']} devices on {environment['cpus']} cores."
    )
    parts = [f"## {entry.title}"]
    if entry.problem:
        parts.append(f"**Of an earlier run**: the last was refused. {entry.problem}")
    if summary["data"]["planted"]:
        parts.append(
            "**Planted data**: a synthetic fixture in the set's true format, whose attribute "
            "signal is put in. It shows that loader, training and attack run end to end, and "
            "says nothing about the real set. Run it on your copy with `--data`."
        )
    excluded = warnings(summary)
    if excluded:
        parts.append("**Broken updates**: " + " ".join(excluded))
    parts += [conditions, table(summary), layers(summary), COMMENT]
    shown = []
    for figure, caption in FIGURES.items():
        source = entry.folder / f"{figure}.png"
        if source.is_file():
            target = figures / f"{entry.name}_{figure}.png"
            shutil.copyfile(source, target)
            shown.append(f"![{caption}](results/{target.name})\n\n*{caption}*")
    return "\n\n".join(parts + shown)


COMMENT = """What a single layer tells of its owner no permutation changes: the columns differ only
where training does. So the server still learns which layers come from somebody with the
attribute, and how many such people there are. Attribution of the adaptive server is judged for the
owners of its pseudonyms: whom it recognises again, not by which name."""


def table(summary: dict[str, Any]) -> str:
    """A line for each defence and attack."""
    lines = [
        f"| defence | attack | accuracy | attribution | accumulated | AUC | set level | "
        f"best layer | ε at δ = {DELTA:g} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, entry in by_case(summary).items():
        names = ("accuracy", "attribution", "attribution_accumulated", "auc", "set_level")
        shown = [*(entry[name] for name in names), best_unit(entry)]
        epsilon = entry.get("epsilon", math.nan)
        shown_epsilon = "∞" if math.isnan(epsilon) else f"{epsilon:,.0f}"
        cells = [case.label, case.attack, *map(percent, shown), shown_epsilon]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def layers(summary: dict[str, Any]) -> str:
    """Layer by layer: its size, and the attack on it alone."""
    cases = {c: e for c, e in by_case(summary).items() if c.server.passive and not c.perturbs}
    if not cases:
        return ""
    counts = summary["parameters"]
    total = sum(counts.values())
    lines = [
        f"| layer | parameters | share | {' | '.join(case.label for case in cases)} |",
        "|---|---|---|" + "---|" * len(cases),
    ]
    for unit, count in counts.items():
        cells = [percent(entry["unit_level"][unit]) for entry in cases.values()]
        lines.append(f"| {unit} | {count:,} | {count / total:.1%} | {' | '.join(cells)} |")
    largest = max(counts, key=lambda unit: counts[unit])
    note = (
        f"\n\nThe cosine of whole updates is mostly that of {largest}, which holds "
        f"{counts[largest] / total:.0%} of the parameters."
    )
    return "\n".join(lines) + (note if counts[largest] > total / 2 else "")


def by_case(summary: dict[str, Any]) -> dict[Case, dict[str, Any]]:
    """The summary's entries by what was run."""
    return {Case.of(entry): entry for entry in summary["results"]}
