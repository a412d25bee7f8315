"""The pages of results and of planted data: tables, figures and claims, all read from records."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import claims, members, people, records
from experiments.conditions import DELTA, Case
from experiments.results import (
    by_entry,
    chance_of_slots,
    percent,
    warnings,
    write_text,
)
from experiments.takeaways import sentences
from experiments.tasks import TASKS

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
PLANTED = "planted.md"


class Entry(NamedTuple):
    """One configuration.

    Attributes:
      name: of its file, and of its records' folder.
      title: of its section.
      config: the options it has now; see `results.config_dict`.
    """

    name: str
    title: str
    config: dict[str, Any]


def write(page: Path, entries: Sequence[Entry], *, quick: bool) -> None:
    """Write the page, and beside it that of planted data, from the records beside them."""
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, text(page, entries, quick=quick))
    write_text(page.with_name(PLANTED), planted_text(page, entries))


def text(page: Path, entries: Sequence[Entry], *, quick: bool = False) -> str:
    """The page of results.

    Args:
      page: where it is, or will be: records and figures lie beside it.
      entries: all configurations.
      quick: whether to say that sizes are those of toys.
    """
    finished, others = [], []
    for entry in entries:
        summary = records.summary(records.beside(page) / entry.name)
        if summary is None:
            others.append(f"* {entry.title}: not run.")
        elif not records.complete(summary):
            others.append(
                f"* {entry.title}: not shown. The records are of an earlier program, and don't say "
                "all that the page does, such as whether data is real. Run it again."
            )
        elif summary["data"]["planted"]:
            others.append(f"* {entry.title}: run on [planted data]({PLANTED}) alone.")
        else:
            finished.append((entry, summary))
    # what is asked of records comes after what is asked of people
    finished.sort(key=lambda pair: pair[1].get("kind") == members.KIND)
    of_people = [pair for pair in finished if pair[1].get("kind") != members.KIND]
    runs = [(entry.name, anchor(entry.title), summary) for entry, summary in of_people]
    # the set with most servers and defences speaks for all
    runs.sort(key=lambda run: -len(run[2]["results"]))
    parts = [part for part in ("# Results", sentences(runs), INTRODUCTION) if part]
    if quick:
        parts.insert(1, "**Toy sizes: this page shows that everything runs, and nothing else.**")
    parts.append(judged(of_people))
    for entry, summary in finished:
        parts += [section(entry, summary), *shown_figures(page, entry.name)]
    if others:
        parts += [OTHERS, "\n".join(others)]
    return "\n\n".join(parts) + "\n"


def planted_text(page: Path, entries: Sequence[Entry]) -> str:
    """The page of planted data: tables alone.

    Args:
      page: that of results.
      entries: all configurations.
    """
    parts = [PLANTED_INTRODUCTION]
    for entry in entries:
        summary = records.summary(records.beside(page) / entry.name)
        if summary is not None and records.complete(summary) and summary["data"]["planted"]:
            parts.append(section(entry, summary))
    return "\n\n".join(parts) + "\n"


def anchor(title: str) -> str:
    """What a section is linked by: lower case, without punctuation, spaces as hyphens."""
    kept = "".join(sign for sign in title.lower() if sign.isalnum() or sign in " -_")
    return kept.replace(" ", "-")


OTHERS = """## Not shown here

A set needs its data: `python -m experiments.reproduce --only NAME --data NAME DIR`."""

PLANTED_INTRODUCTION = """# Planted data: no results

These tables show that loaders, training and attacks run from end to end, and nothing else. Their
data are synthetic fixtures in the true formats of sets that are not here, whose attribute is put in
for the attack to find: no figure says anything about the real set. On your copy of a set run
`python -m experiments.reproduce --data NAME DIR`, and its figures move to [results](results.md),
which says what the columns are."""


INTRODUCTION = """Written by `python -m experiments.reproduce` from `experiments/configs`. Percent,
mean over seeds with the 95 % interval (Student's, cut to what a share can be; none for a single
seed). What seeds differ in, and intervals cover, stands with each set.

* *Accuracy* is the final model's on the held-out part of the participants' own data, *outsiders* on
  all data of people who took no part in training. These are the people the server knows: an active
  server trains what it sends on them, and its outsiders are none.
* *Attribution*: is the guess for a slot the attribute of the participant of that slot? Mean over
  rounds; *accumulated* sums scores over rounds first, and so do *balanced* (the mean over the
  attribute's values) and *AUC*. Whatever depends on the mixing is the mean over 200 draws of it;
  the adaptive server's pseudonyms are judged for their owners, behind one draw a seed.
* *Chance* of accumulated attribution: for plain FL, always the commonest value; for mixed slots the
  permutation's expectation `sum_a (n_a/C)(m_a/C)`, of n_a participants and m_a guesses. Balanced
  accuracy by chance is one over the number of values, AUC 50.
* *Cohort*: how much of the attribute's histogram a server tells, from single units alone, which no
  mixing changes; on halves of the participants whose composition varies, beside what a guess
  without evidence gets of the same.
* *Best layer*: the attribute of a layer's owner, guessed from that layer alone; which layer is
  best, every other seed says. *Accumulated*, a layer's owner is followed without error: a bound.
* ε is of all rounds together, for one client's clipped and noisy updates, mixed or not; mixing
  without noise has no differential privacy.

Each row of a run's `rounds.jsonl` holds the seed that everything random follows from, the
permutations of every mixing too: whoever has the file and the program can undo the mixing. Don't
publish it where real people's updates could be seen. Those of this page are published, compressed,
with the summaries, in `results/records`: all people in them are of public sets. Tables, claims and
verdicts are computed from these files, and a test computes them again."""

TESTS = f"""Tests are paired, seed by seed, at a level of {100 * claims.LEVEL:.0f} % each, not
corrected for their number. *The same* is an equivalence within {100 * claims.SAME:.0f} point (two
one-sided t tests), everything else a one-sided t test. *No* is shown too: a difference outside the
margin, or a gain of less than {100 * claims.SAME:.0f} point. Where neither is shown it reads
undecided: a wide interval helps no claim."""


def judged(finished: list[tuple[Entry, dict[str, Any]]]) -> str:
    """What the paper's abstract says, what was measured, and whether it holds."""
    rows = [row for entry, summary in finished for row in claims.claims(entry.name, summary)]
    identities = [claims.identity(entry.name, summary) for entry, summary in finished]
    parts = ["## The claims of the paper's abstract", TESTS, claims.table(rows), CAVEAT]
    parts += ["### Utility of mixing is an identity", IDENTITY]
    parts.append("\n".join([claims.IDENTITY, *(row for row in identities if row)]))
    return "\n\n".join(parts)


CAVEAT = """A shuffle of whole updates, which mixes nothing, brings attribution down as far as MixNN
does (the control in every table): it breaks the link between slot and participant. What mixing
adds, that no forwarded update is one person's, an adaptive server takes away: it joins the layers
of each person and follows them from round to round; see [adversaries](adversaries.md)."""

IDENTITY = """The mean of mixed updates is the mean of the same tensors in another order. Of each
round's updates: the relative difference of both means, the largest over rounds, seeds and tensors,
and whether they are equal to the last bit where updates are whole numbers. The rest is rounding,
which training enlarges: beside it stands plain FL with its clients summed in reverse order.
Accuracies in points, after the last round."""


def section(entry: Entry, summary: dict[str, Any]) -> str:
    """Conditions and tables of one run."""
    if summary.get("kind") == members.KIND:
        return members.section(entry.title, notes(entry, summary), summary)
    config, environment = summary["config"], summary["environment"]
    conditions = (
        f"{config['rounds']} rounds, {config['seeds']} seeds, {config['epochs']} local epochs, "
        f"batches of {config['batch_size']}, SGD {config['learning_rate']:g} with momentum "
        f"{config['momentum']:g}; the server knows {config['auxiliary']} people. Chance "
        f"{100 * summary['chance']:.1f} %. Versions: jax {environment['jax']}, flax "
        f"{environment['flax']}, optax {environment['optax']}, numpy {environment['numpy']}; "
        f"{environment['devices']} {environment['device']} devices on {environment['cpus']} cores."
    )
    excluded = warnings(summary)
    broken = ["**Broken updates**: " + " ".join(excluded)] if excluded else []
    parts = [f"## {entry.title}", *notes(entry, summary), *broken]
    dealt = TASKS[config["dataset"]].dealt
    parts += [conditions, covered(summary), table(summary), layers(summary), COMMENT]
    parts.append(recognised(summary, dealt=dealt))
    return "\n\n".join(part for part in parts if part)


def notes(entry: Entry, summary: dict[str, Any]) -> list[str]:
    """What a reader must know first: that options have changed, or that data is planted."""
    parts, config = [], summary["config"]
    if config != entry.config:
        names = sorted({*config, *entry.config})
        changed = [name for name in names if config.get(name) != entry.config.get(name)]
        parts.append(
            f"**Of an earlier run**: its configuration has changed since, in {', '.join(changed)}."
        )
    if summary["data"]["planted"]:
        parts.append("**Planted data.**")
    return parts


def shown_figures(page: Path, name: str) -> list[str]:
    """A paragraph for each picture of a run that lies beside the page."""
    return [
        f"![{caption}](results/{name}_{figure}.png)\n\n*{caption}* "
        f"([SVG](results/{name}_{figure}.svg))"
        for figure, caption in FIGURES.items()
        if (page.parent / "results" / f"{name}_{figure}.svg").is_file()
    ]


COMMENT = """What a single layer tells of its owner no permutation changes: the columns differ only
where training does. So the server still learns which layers come from somebody with the
attribute. Attribution of the adaptive server is judged for the owners of its pseudonyms: whom it
recognises again, not by which name."""


def covered(summary: dict[str, Any]) -> str:
    """What differs between seeds, which is what the intervals cover."""
    people, known = summary["data"]["pool"], summary["config"]["auxiliary"]
    always = "the first model, the order of examples and the mixing"
    if TASKS[summary["config"]["dataset"]].dealt:
        return (
            f"Every seed deals images anew to {people} participants, of whom the server knows "
            f"{known}, and draws {always}: the intervals cover all of these, within this set of "
            "images."
        )
    count = math.comb(people, known)
    ways = f"at most {count:,}" if count < 10**6 else "millions of"
    return (
        f"Every seed draws which {people - known} of {people} people take part ({ways} "
        f"ways) and {always}: the intervals cover these draws from the same {people} "
        "people, and say nothing of others."
    )


COLUMNS = {
    "accuracy": "accuracy",
    "outsiders": "accuracy_outsiders",
    "attribution": "attribution",
    "accumulated": "attribution_accumulated",
    "chance": "",
    "balanced": "balanced_accuracy_accumulated",
    "AUC": "auc_accumulated",
    "cohort (by chance)": "cohort",
    "best layer": "best_unit_level",
    "accumulated layer": "best_unit_accumulated",
}


def table(summary: dict[str, Any]) -> str:
    """A line for each defence and attack."""
    names = ["defence", "attack", *COLUMNS, f"ε at δ = {DELTA:g}"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for case, entry in by_entry(summary).items():
        shown = {name: percent(entry[field]) for name, field in COLUMNS.items() if field}
        shown["chance"] = f"{100 * chance_of_slots(entry):.1f}"
        shown["cohort (by chance)"] += f" ({100 * entry['cohort_chance']['mean']:.1f})"
        epsilon = entry.get("epsilon", math.nan)
        shown_epsilon = "∞" if math.isnan(epsilon) else f"{epsilon:.2g}"
        cells = [case.label, case.attack, *(shown[name] for name in COLUMNS), shown_epsilon]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def layers(summary: dict[str, Any]) -> str:
    """Layer by layer: its size, and the attack on it alone."""
    # of all that is replayed on one trajectory the columns would be the same
    cases = {
        case: entry
        for case, entry in by_entry(summary).items()
        if case.attack == "passive" and case.defence in ("none", "mixnn")
    }
    if not cases:
        return ""
    counts = summary["parameters"]
    total = sum(counts.values())
    lines = [
        f"| layer | parameters | share | "
        f"{' | '.join(f'{case.label} | accumulated' for case in cases)} |",
        "|---|---|---|" + "---|---|" * len(cases),
    ]
    for unit, count in counts.items():
        levels = [entry[n] for entry in cases.values() for n in ("unit_level", "unit_accumulated")]
        cells = [percent(level[unit]) for level in levels]
        lines.append(f"| {unit} | {count:,} | {count / total:.1%} | {' | '.join(cells)} |")
    largest = max(counts, key=lambda unit: counts[unit])
    note = (
        f"\n\nThe cosine of whole updates is mostly that of {largest}, which holds "
        f"{counts[largest] / total:.0%} of the parameters."
    )
    return "\n".join(lines) + (note if counts[largest] > total / 2 else "")


SHOWN = (
    Case("none", "passive"),
    Case("shuffle", "passive"),
    Case("mixnn", "passive"),
    Case("mixnn", "adaptive"),
)
"""Lines of the table of who is recognised."""


def recognised(summary: dict[str, Any], *, dealt: bool) -> str:
    """Who is recognised; empty where no row tells.

    Args:
      summary: see `results.summarize`.
      dealt: whether each seed makes other participants of a pool: there are no people to count.
    """
    entries = by_entry(summary)
    cases = {case: entries[case] for case in SHOWN if entries.get(case, {}).get("recognised")}
    if not cases:
        return ""
    values = summary["data"]["values"]
    first = next(iter(cases.values()))
    rates = first["true_positive_rates"]
    names = ["defence", "attack"]
    for index, value in enumerate(values):
        told = first["recognised"].get(str(index))
        names.append(value if told is None or dealt else f"{value} ({told['people']} people)")
        names += [] if dealt else ["always", "seldom"]
    names += [f"TPR at {float(rate):.0%}" for rate in rates]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for case, entry in cases.items():
        cells = [case.label, case.attack]
        for index in range(len(values)):
            told = entry["recognised"].get(str(index))
            cells.append("–" if told is None else percent(told))
            if not dealt:
                cells += ["–", "–"] if told is None else [str(told["always"]), str(told["seldom"])]
        cells += [percent(entry["true_positive_rates"][rate]) for rate in rates]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([RECOGNISED + ("" if dealt else COUNTED), "", *lines])


RECOGNISED = """Who is recognised, with scores summed over all rounds: the share of participants
of each value."""
COUNTED = f""" *Always* and *seldom* count people, who were recognised in at least
{100 * people.ALWAYS:.0f} % and in less than {100 * people.SELDOM:.0f} % of the seeds in which they
took part."""
