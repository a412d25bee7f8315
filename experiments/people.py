"""Who is recognised: shares by person and by the attribute's values, of a run's last round."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import mixjax as mx

RATES = (0.01, 0.1)
"""Of false positives; given where the others are enough for one at least."""
ALWAYS, SELDOM = 0.95, 0.5
"""Shares of a person's seeds, at least and less than."""


def columns(
    scores: np.ndarray, owners: np.ndarray, truth: np.ndarray, ids: np.ndarray
) -> dict[str, Any]:
    """More columns of the last row.

    Args:
      scores: summed over rounds, `[draws, rows, values]`; rows are slots or pseudonyms.
      owners: the participant that each row is judged for; one may have none, or several.
      truth: the participants' attribute.
      ids: the participants' ids, the same in all seeds where they are the same people.

    Returns:
      `recognised`, for each id the attribute and how often it was guessed right. With two values,
      `true_positive_rate` for each of `RATES` that is possible: of people of the rarer value, told
      from the others by the margin of scores. Both are means over draws; empty for scores that are
      not finite.
    """
    if not np.isfinite(scores).all():
        return {"recognised": {}, "true_positive_rate": {}}
    right = (mx.evaluation.guesses(scores) == truth[owners]).mean(axis=0)
    recognised = {
        str(ids[client]): [int(truth[client]), float(right[owners == client].mean())]
        for client in np.unique(owners)
    }
    rates: dict[str, float] = {}
    if scores.shape[-1] == 2:
        own = truth[owners]
        rarer = int(np.argmin(np.bincount(own, minlength=2)))
        others = int((own != rarer).sum())
        margin = scores[..., rarer] - scores[..., 1 - rarer]
        members = np.broadcast_to(own == rarer, margin.shape)
        for rate in RATES:
            if others * rate >= 1:
                told = mx.evaluation.true_positive_rate(margin, members, false_positive_rate=rate)
                rates[str(rate)] = float(told.mean())
    return {"recognised": recognised, "true_positive_rate": rates}


def summarize(seeds: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """More of a case's summary, from the columns that its last rows have; empty without them.

    Returns:
      For each value the interval of its participants' share over seeds, how many people of that
      value there were, and how many of them were recognised nearly always or seldom, in the seeds
      in which they took part; and intervals of true-positive rates.
    """
    last = [rows[-1] for rows in seeds.values() if rows[-1].get("recognised")]
    if not last:
        return {}
    of_value: dict[int, list[float]] = {}
    of_person: dict[str, tuple[int, list[float]]] = {}
    for row in last:
        by_value: dict[int, list[float]] = {}
        for person, (value, share) in row["recognised"].items():
            by_value.setdefault(value, []).append(share)
            # dealt participants may have one number and another attribute in each seed
            of_person.setdefault(f"{person} {value}", (value, []))[1].append(share)
        for value, shares in by_value.items():
            of_value.setdefault(value, []).append(float(np.mean(shares)))
    recognised = {}
    for value in sorted(of_value):
        means = [np.mean(shares) for own, shares in of_person.values() if own == value]
        recognised[str(value)] = {
            **mx.evaluation.student(of_value[value], within=(0, 1))._asdict(),
            "people": len(means),
            "always": int(np.sum(np.array(means) >= ALWAYS)),
            "seldom": int(np.sum(np.array(means) < SELDOM)),
        }
    rates = {
        rate: mx.evaluation.student(
            [row["true_positive_rate"][rate] for row in last], within=(0, 1)
        )._asdict()
        for rate in last[0]["true_positive_rate"]
        if all(rate in row["true_positive_rate"] for row in last)
    }
    return {"recognised": recognised, "true_positive_rates": rates}
