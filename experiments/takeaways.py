"""What a reader of the page of results should take away, computed from its records."""

import math
from collections.abc import Mapping
from typing import Any

from experiments.conditions import Case
from experiments.results import by_entry, chance_of_slots

Entries = Mapping[Case, dict[str, Any]]


def sentences(runs: list[tuple[str, str, dict[str, Any]]]) -> str:
    """At most five sentences, each with a link to its table.

    Args:
      runs: of each finished set its name, its section's anchor, and its summary. Figures are of the
        first.
    """
    if not runs:
        return ""
    name, anchor, summary = runs[0]
    cases = by_entry(summary)
    found = [
        _identity([by_entry(one) for _, _, one in runs]),
        _slots(name, anchor, cases),
        _adaptive(name, anchor, cases),
        _noise(name, anchor, cases),
        _sum_only(name, anchor, cases),
    ]
    return "\n".join(f"{number}. {one}" for number, one in enumerate(filter(None, found), start=1))


def _identity(sets: list[Entries]) -> str:
    mixed = [cases[case] for cases in sets if (case := Case("mixnn", "passive")) in cases]
    told = [entry for entry in mixed if "aggregate_exact" in entry]
    if not told:
        return ""
    exact = sum(bool(entry["aggregate_exact"]) for entry in told)
    return (
        "**Mixing costs no utility, as it is a sum in another order**: on "
        f"{exact} of {len(told)} sets the means of mixed and unmixed whole numbers are equal to "
        "the last bit; see [the identity](#utility-of-mixing-is-an-identity)."
    )


def _slots(name: str, anchor: str, cases: Entries) -> str:
    entries = [cases.get(Case(one, "passive")) for one in ("none", "mixnn", "shuffle")]
    if None in entries:
        return ""
    plain, mixed, shuffled = (_accumulated(entry) for entry in entries if entry is not None)
    assert entries[1] is not None
    return (
        "**Against a server that takes slots for people MixNN protects, and no more than an "
        f"anonymous shuffle of whole updates**: on {name} ∇Sim is right for {plain} under plain "
        f"FL, {mixed} behind MixNN and {shuffled} behind the shuffle, by chance for "
        f"{100 * chance_of_slots(entries[1]):.0f} %; see [{name}](#{anchor})."
    )


def _adaptive(name: str, anchor: str, cases: Entries) -> str:
    mixed, plain = (cases.get(Case(one, "adaptive")) for one in ("mixnn", "none"))
    if mixed is None or plain is None:
        return ""
    return (
        "**A server that joins the layers of each person again, and follows them, undoes it**: on "
        f"{name} ∇Sim is then right for {_accumulated(mixed)} behind MixNN, and for "
        f"{_accumulated(plain)} under plain FL; see [adversaries](adversaries.md) and "
        f"[{name}](#{anchor})."
    )


def _noise(name: str, anchor: str, cases: Entries) -> str:
    plain = cases.get(Case("none", "passive"))
    private = [entry for case, entry in cases.items() if case[:2] == ("private", "passive")]
    noisy = [
        entry
        for case, entry in cases.items()
        if case[:2] == ("noisy", "passive")
        and not math.isnan(entry["attribution_accumulated"]["mean"])
    ]
    if plain is None or not private or not noisy:
        return ""
    widest = max(private, key=lambda entry: entry["epsilon"])
    least = min(noisy, key=lambda entry: entry["accuracy"]["mean"])
    return (
        "**Noise by each client has no useful middle here**: on "
        f"{name} accuracy is {_share(plain['accuracy'])} without and {_share(widest['accuracy'])} "
        f"at ε = {widest['epsilon']:.2g}; the noise that leaves {_share(least['accuracy'])} has "
        f"ε = {least['epsilon']:.1e} and leaves ∇Sim {_accumulated(least)}; see "
        f"[{name}](#{anchor})."
    )


def _sum_only(name: str, anchor: str, cases: Entries) -> str:
    summed = cases.get(Case("sum_only", "passive"))
    if summed is None:
        return ""
    return (
        "**What hides who has what is that the server sees the sum alone**: on "
        f"{name} accuracy is {_share(summed['accuracy'])} and ∇Sim right for "
        f"{_accumulated(summed)}, one guess for all; not against a server that sends crafted "
        f"models, see [adversaries](adversaries.md) and [{name}](#{anchor})."
    )


def _accumulated(entry: dict[str, Any]) -> str:
    return _share(entry["attribution_accumulated"])


def _share(interval: dict[str, float]) -> str:
    return f"{100 * interval['mean']:.1f} %"
