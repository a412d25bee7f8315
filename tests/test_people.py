"""Who is recognised: by person, by the attribute's value, and at few false alarms."""

from typing import Any

import numpy as np
import pytest

from experiments import people, report
from experiments.conditions import Case


def test_shares_are_of_owners_and_means_over_draws() -> None:
    truth, ids = np.array([0, 1, 1]), np.array([7, 8, 9])
    # two draws of three rows; the last two rows are both of the last participant
    guesses = np.array([[0, 1, 0], [1, 1, 1]])
    scores = np.eye(2)[guesses]
    found = people.columns(scores, np.array([0, 2, 2]), truth, ids)
    assert found["recognised"] == {"7": [0, 0.5], "9": [1, 0.75]}
    assert found["true_positive_rate"] == {}
    scores[0, 0, 0] = np.nan
    assert people.columns(scores, np.arange(3), truth, ids)["recognised"] == {}


def test_true_positives_are_of_the_rarer_value_and_where_others_are_enough() -> None:
    truth = np.repeat([0, 1], [100, 20])
    margin = np.where(truth == 1, 1.5, 0) + np.tile([0, 1, 2, 3], 30) / 10
    scores = np.stack([0 * margin, margin], axis=-1)[None]
    own = np.arange(120)
    assert people.columns(scores, own, truth, own)["true_positive_rate"] == {"0.01": 1, "0.1": 1}
    # the rarer value is the first, and nothing tells them apart
    other = people.columns(0 * scores, own, 1 - truth, own)["true_positive_rate"]
    assert other == {"0.01": 0, "0.1": 0}
    few = people.columns(scores[:, 50:], np.arange(70), truth[50:], np.arange(70))
    assert set(few["true_positive_rate"]) == {"0.1"}
    three = np.zeros((1, 120, 3))
    assert people.columns(three, own, truth, own)["true_positive_rate"] == {}


def seeds() -> dict[int, list[dict[str, Any]]]:
    """Person 1 is always recognised, person 2 in one of two seeds, person 3 never."""
    shown = [
        {"1": [0, 1.0], "2": [0, 1.0], "3": [1, 0.0]},
        {"1": [0, 1.0], "2": [0, 0.0], "3": [1, 0.0]},
    ]
    return {
        seed: [{}, {"recognised": one, "true_positive_rate": {"0.1": 0.2 * seed}}]
        for seed, one in enumerate(shown)
    }


def test_a_summary_has_each_value_and_counts_people_over_seeds() -> None:
    found = people.summarize(seeds())
    first, second = found["recognised"]["0"], found["recognised"]["1"]
    assert first["mean"] == 0.75
    assert [first[name] for name in ("people", "always", "seldom")] == [2, 1, 0]
    assert second["mean"] == 0
    assert [second[name] for name in ("people", "always", "seldom")] == [1, 0, 1]
    assert found["true_positive_rates"]["0.1"]["mean"] == pytest.approx(0.1)
    assert people.summarize({0: [{}]}) == {}


@pytest.mark.parametrize("dealt", [True, False])
def test_the_page_counts_people_where_seeds_share_them(dealt: bool) -> None:
    entry = Case("none", "passive").keys() | people.summarize(seeds())
    summary = {"results": [entry], "data": {"values": ["left", "right"]}}
    lines = report.recognised(summary, dealt=dealt).splitlines()[-3:]
    assert len({line.count("|") for line in lines}) == 1
    assert ("left (2 people) | always | seldom" in lines[0]) == (not dealt)
    assert "TPR at 10%" in lines[0]
    assert ("| 1 | 0 |" in lines[2]) == (not dealt)
    assert report.recognised({"results": [{**entry, "recognised": {}}]}, dealt=dealt) == ""
