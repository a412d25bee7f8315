"""The claims of the paper's abstract, each judged by a paired test over seeds."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

import mixjax as mx
from experiments.conditions import ATTACKS, Case
from experiments.results import by_entry, percent
from mixjax.evaluation import Verdict

SAME = 0.01
"""A difference of shares that counts as none, written down before any was looked at."""
LEVEL = 0.05
"""Of each test; nothing is corrected for their number."""
WORDS = {True: "yes", False: "**no**", None: "undecided"}


class Claim(NamedTuple):
    """A row of the table.

    Attributes:
      text: what is claimed.
      data: on which set and how many seeds, and of which noise.
      measured: what was found.
      verdict: of the test.
    """

    text: str
    data: str
    measured: str
    verdict: Verdict


def claims(name: str, summary: dict[str, Any]) -> list[Claim]:
    """All that a run can judge.

    Args:
      name: of its configuration.
      summary: see `results.summarize`.
    """
    cases = by_entry(summary)
    if not {Case("none", "passive"), Case("mixnn", "passive")} <= cases.keys():
        return []
    data = f"{name}, {len(cases[Case('none', 'passive')]['by_seed']['accuracy'])} seeds"
    found = [_same_utility(data, cases)]
    for attack in ATTACKS:
        found += _limits(data, cases, attack)
    found += _stronger(data, cases)
    return found + list(_noise(data, cases))


def table(rows: list[Claim]) -> str:
    """The claims in Markdown, in alphabetical order."""
    lines = ["| claim | data | measured | p | holds |", "|---|---|---|---|---|"]
    for text, data, measured, (p_value, holds, _) in sorted(rows, key=lambda row: row.text):
        shown = "–" if np.isnan(p_value) else "<0.0001" if p_value < 1e-4 else f"{p_value:.2g}"
        lines.append(f"| {text} | {data} | {measured} | {shown} | {WORDS[holds]} |")
    return "\n".join(lines)


def identity(name: str, summary: dict[str, Any]) -> str | None:
    """A row: what mixing does to a round's aggregate, and what a reversed sum does to accuracy."""
    cases = by_entry(summary)
    plain, mixed, reversed_ = (
        cases.get(Case(one, "passive")) for one in ("none", "mixnn", "reversed")
    )
    if plain is None or mixed is None or "aggregate_difference" not in mixed:
        return None
    cells = [name, f"{mixed['aggregate_difference']:.1e}"]
    cells.append("yes" if mixed["aggregate_exact"] else "**no**")
    for other in (mixed, reversed_):
        if other is None:
            cells += ["–", "–"]
            continue
        gaps = _difference(other, plain, "accuracy")
        cells += [_points(gaps), f"{100 * np.abs(gaps).max():.1f}"]
    return f"| {' | '.join(cells)} |"


IDENTITY = """| data | aggregate, mixed and not: relative difference | equal on whole numbers | \
MixNN minus plain FL | largest of a seed | reversed sum minus plain FL | largest of a seed |
|---|---|---|---|---|---|---|"""


def _same_utility(data: str, cases: Mapping[Case, Any]) -> Claim:
    plain, mixed = cases[Case("none", "passive")], cases[Case("mixnn", "passive")]
    gaps = _difference(mixed, plain, "accuracy")
    return Claim(
        f"Mixing keeps the utility of classic federated learning, within {100 * SAME:.0f} point",
        data,
        f"MixNN minus plain FL, trained through mixed tensors: {_points(gaps)} points",
        mx.evaluation.equivalence(gaps, SAME, level=LEVEL),
    )


def _limits(data: str, cases: Mapping[Case, Any], attack: str) -> Iterator[Claim]:
    name = "attribution_accumulated"
    plain, shuffled, mixed = (cases.get(Case(one, attack)) for one in ("none", "shuffle", "mixnn"))
    if plain is not None:
        gain = np.subtract(plain["by_seed"][name], plain["by_seed"]["chance"])
        yield Claim(
            f"∇Sim infers the attribute, {attack}",
            data,
            f"plain FL, accumulated: {percent(plain[name])}, chance {_share(plain['chance'])}",
            _more(gain),
        )
    for other, text in (
        (plain, f"MixNN significantly limits the inference, {attack}"),
        (shuffled, f"MixNN limits the inference more than an anonymous shuffle, {attack}"),
    ):
        if other is not None and mixed is not None:
            yield Claim(
                text,
                data,
                f"{Case.of(other).label} {percent(other[name])}, MixNN {percent(mixed[name])}: "
                f"{_points(_difference(other, mixed, name))} points less",
                _more(_difference(other, mixed, name)),
            )


def _stronger(data: str, cases: Mapping[Case, Any]) -> Iterator[Claim]:
    """Every other server of plain FL against the passive one, round by round."""
    passive, name = cases[Case("none", "passive")], "attribution"
    for attack in ("learned", "active"):
        other = cases.get(Case("none", attack))
        if other is not None:
            gains, lost = (
                _difference(other, passive, name),
                _difference(passive, other, "accuracy"),
            )
            yield Claim(
                f"The {ATTACKS[attack].label} infers more in a round than the passive one",
                data,
                f"{percent(other[name])} against {percent(passive[name])}: {_points(gains)} points "
                f"more, at {_points(lost)} points of accuracy",
                _more(gains),
            )


def _noise(data: str, cases: Mapping[Case, Any]) -> Iterator[Claim]:
    """MixNN against every noise, and every noise against none."""
    plain, mixed = cases[Case("none", "passive")], cases[Case("mixnn", "passive")]
    name = "attribution_accumulated"
    for case, noisy in cases.items():
        if case.defence != "noisy" or case.attack != "passive":
            continue
        where = f"{data}, {case.label}"
        limits, lasts = _difference(noisy, mixed, name), _difference(mixed, noisy, "accuracy")
        yield Claim(
            "MixNN limits the inference more than noise does, at no lower utility",
            where,
            f"attack {_points(limits)} points less, utility {_points(lasts)} points more",
            # no lower: at most by the margin
            both(_more(limits), mx.evaluation.superiority(lasts + SAME, level=LEVEL)),
        )
        lost = _difference(plain, noisy, "accuracy")
        yield Claim("Noise damages utility", where, f"{_points(lost)} points lost", _more(lost))


def both(first: Verdict, second: Verdict) -> Verdict:
    """The verdict on two claims together: neither test's level is exceeded."""
    holds = None
    if first.holds is False or second.holds is False:
        holds = False
    elif first.holds and second.holds:
        holds = True
    return Verdict(float(np.maximum(first.p_value, second.p_value)), holds, first.n)


def _more(differences: np.ndarray) -> Verdict:
    return mx.evaluation.superiority(differences, negligible=SAME, level=LEVEL)


def _difference(one: dict[str, Any], other: dict[str, Any], name: str) -> np.ndarray:
    return np.subtract(one["by_seed"][name], other["by_seed"][name])


def _points(differences: np.ndarray) -> str:
    return percent(mx.evaluation.student(differences)._asdict())


def _share(interval: dict[str, float]) -> str:
    return f"{100 * interval['mean']:.0f}"
