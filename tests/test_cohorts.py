"""What a server learns of a cohort: the same under any mixing, judged on cohorts that differ."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import mixjax as mx
from mixjax import evaluation

VALUES = 3


def random_scores(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mix", [mx.mixing.shuffle(), mx.mixing.full_round(), mx.mixing.proxy(2)])
def test_an_estimate_from_units_is_the_same_under_any_mixing_to_the_last_bit(
    seed: int, mix: mx.mixing.Mix
) -> None:
    clients, units = 9, 5
    keys = jax.random.split(jax.random.key(seed), 4)
    plain = mx.attacks.sim.Statistics(
        jax.random.normal(keys[0], (clients, units, VALUES)),
        jax.random.uniform(keys[1], (clients, units)) + 1,
        jax.random.uniform(keys[2], (units, VALUES)) + 1,
    )
    active = jnp.arange(clients) != 4
    mixed = mx.attacks.sim.mix_statistics(mix(keys[3], active, units), plain)
    first, second = (
        evaluation.histogram_of_units(mx.attacks.sim.unit_cosine(seen), active)
        for seen in (plain, mixed)
    )
    assert first.tobytes() == second.tobytes()
    assert first.sum() == pytest.approx(1)
    # the whole updates' guesses are not the same: it is the units that tell
    assert np.any(mx.attacks.sim.cosine(plain) != mx.attacks.sim.cosine(mixed))


def test_histograms_equal_loops() -> None:
    scores = random_scores(0, 2, 6, 4, VALUES)
    active = np.array([[True, True, False, True, True, True], [True] + [False] * 5])
    estimate = evaluation.histogram_of_units(scores, active)
    truth = np.array([0, 1, 2, 1, 1, 0])
    known = evaluation.histogram(truth, VALUES, active)
    for run in range(2):
        rows = np.flatnonzero(active[run])
        votes = [int(scores[run, row, unit].argmax()) for row in rows for unit in range(4)]
        for value in range(VALUES):
            assert estimate[run, value] == pytest.approx(votes.count(value) / len(votes))
            assert known[run, value] == np.mean(truth[rows] == value)
    assert np.isnan(evaluation.histogram_of_units(scores[0], np.zeros(6, bool))).all()
    assert np.isnan(evaluation.histogram(truth, VALUES, np.zeros(6, bool))).all()


def test_overlap_is_one_less_the_total_variation_distance() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.dirichlet(np.ones(4), 5), rng.dirichlet(np.ones(4), 5)
    distance = np.abs(one - other).sum(axis=1) / 2
    np.testing.assert_allclose(evaluation.overlap(one, other), 1 - distance)
    assert evaluation.overlap([1, 0], [0, 1]) == 0
    with pytest.raises(mx.InputError, match=r"same attribute values; got shapes \(2,\) and \(3,\)"):
        evaluation.overlap([0.5, 0.5], [0.2, 0.3, 0.5])


def law_of(cohorts: np.ndarray, truth: np.ndarray) -> dict[tuple[int, ...], int]:
    found: dict[tuple[int, ...], int] = {}
    for row in cohorts:
        key = tuple(np.flatnonzero(row).tolist())
        found[key] = found.get(key, 0) + 1
    return found


def test_subcohorts_follow_their_law() -> None:
    truth, size, draws = np.array([0, 0, 0, 1, 1, 2]), 3, 6000
    cohorts = evaluation.subcohorts(0, truth, VALUES, size, draws)
    assert (cohorts.sum(axis=1) == size).all()
    # each composition alike, and within one each set of people alike
    members = {
        one: tuple(np.bincount(truth[list(one)], minlength=VALUES).tolist())
        for one in itertools.combinations(range(6), size)
    }
    compositions = list(members.values())
    expected = {
        one: 1 / len(set(compositions)) / compositions.count(kind) for one, kind in members.items()
    }
    found = law_of(cohorts, truth)
    counts = np.array([found.get(one, 0) for one in expected])
    law = np.array(list(expected.values()))
    assert scipy.stats.chisquare(counts, draws * law).pvalue > 1e-3
    uniform = np.full(len(law), draws / len(law))
    assert scipy.stats.chisquare(counts, uniform).pvalue < 1e-3


def test_cohorts_larger_than_their_clients_are_refused() -> None:
    with pytest.raises(mx.InputError, match="at least 5, the size of a cohort; got shape"):
        evaluation.subcohorts(0, [0, 1, 0, 1], 2, 5, 3)
    with pytest.raises(mx.InputError, match=r"truth in 0\.\.1"):
        evaluation.subcohorts(0, [0, 1, 0, 2], 2, 2, 3)


def judged(scores: Any, truth: np.ndarray) -> tuple[float, float]:
    members = evaluation.subcohorts(0, truth, 2, len(truth) // 2, 400)
    known = evaluation.histogram(truth, 2, members)
    found = evaluation.overlap(evaluation.histogram_of_units(scores, members), known)
    return float(found.mean()), float(evaluation.overlap(known.mean(axis=0), known).mean())


def test_evidence_beats_a_guess_without_and_none_does_not() -> None:
    truth = np.arange(20) % 2
    noise = random_scores(1, 20, 4, 2)
    # units that tell, with as much noise again
    telling = noise + 2 * np.eye(2)[truth][:, None]
    found, chance = judged(telling, truth)
    assert found > chance + 0.1
    assert judged(noise, truth)[0] < chance + 0.05
