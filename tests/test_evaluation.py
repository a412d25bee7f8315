"""Each metric against plain loops and cases small enough to check by hand."""

from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

import mixjax as mx
from mixjax import evaluation

FEW = hypothesis.settings(max_examples=40, deadline=None)
VALUES = 3


def case(seed: int, clients: int = 7, leading: tuple[int, ...] = ()) -> Any:
    rng = np.random.default_rng(seed)
    guesses = rng.integers(0, VALUES, (*leading, clients))
    truth = rng.integers(0, VALUES, clients)
    active = rng.uniform(size=clients) < 0.7
    active[:2] = True
    return guesses, truth, active


SEEDS = hypothesis.given(st.integers(0, 10**6))


def test_a_case_by_hand() -> None:
    guesses, truth = [0, 0, 1, 1, 2], [0, 1, 1, 1, 0]
    active = [True, True, True, True, False]
    assert evaluation.attribution(guesses, truth) == 3 / 5
    assert evaluation.attribution(guesses, truth, active) == 3 / 4
    assert evaluation.balanced_accuracy(guesses, truth, 3) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert evaluation.chance(truth) == 3 / 5
    assert evaluation.chance(truth, active) == 3 / 4
    assert evaluation.permuted_attribution(guesses, truth, 3) == pytest.approx((2 * 2 + 2 * 3) / 25)


def test_the_guess_is_the_highest_score() -> None:
    scores = [[0.1, 0.3, 0.2], [0.5, 0.5, 0.0], [-1.0, -3.0, -0.5]]
    np.testing.assert_array_equal(evaluation.guesses(scores), [1, 0, 2])
    assert evaluation.guesses(np.zeros((2, 4, 5, 3))).shape == (2, 4, 5)


@FEW
@SEEDS
def test_accuracies_equal_loops(seed: int) -> None:
    guesses, truth, active = case(seed)
    rows = np.flatnonzero(active)
    right = [guesses[row] == truth[row] for row in rows]
    assert evaluation.attribution(guesses, truth, active) == pytest.approx(np.mean(right))
    recalls = [
        np.mean([guesses[row] == value for row in rows if truth[row] == value])
        for value in set(truth[rows].tolist())
    ]
    balanced = evaluation.balanced_accuracy(guesses, truth, VALUES, active)
    assert balanced == pytest.approx(np.mean(recalls))
    commonest = max(np.sum(truth[rows] == value) for value in range(VALUES))
    assert evaluation.chance(truth, active) == pytest.approx(commonest / len(rows))


@pytest.mark.parametrize("masked", [False, True])
def test_leading_axes_are_runs_of_their_own(masked: bool) -> None:
    guesses, truth, active = case(0, leading=(4, 5))
    mask = active if masked else None
    for metric in (
        evaluation.attribution,
        lambda g, t, a: evaluation.balanced_accuracy(g, t, VALUES, a),
        lambda g, t, a: evaluation.permuted_attribution(g, t, VALUES, a),
    ):
        together = metric(guesses, truth, mask)
        assert together.shape == (4, 5)
        for run in np.ndindex(4, 5):
            assert together[run] == pytest.approx(metric(guesses[run], truth, mask))


@FEW
@SEEDS
def test_what_is_inactive_does_not_count(seed: int) -> None:
    guesses, truth, active = case(seed)
    other = np.where(active, guesses, (guesses + 1) % VALUES)
    other_truth = np.where(active, truth, (truth + 2) % VALUES)
    for metric in (evaluation.permuted_attribution, evaluation.balanced_accuracy):
        assert metric(guesses, truth, VALUES, active) == metric(other, other_truth, VALUES, active)
        small = metric(guesses[active], truth[active], VALUES)
        assert metric(guesses, truth, VALUES, active) == pytest.approx(small)
    assert evaluation.chance(truth, active) == evaluation.chance(other_truth, active)


def test_nobody_active_gives_nan_without_a_warning() -> None:
    guesses, truth, active = [0, 1], [0, 1], [False, False]
    assert np.isnan(evaluation.attribution(guesses, truth, active))
    assert np.isnan(evaluation.balanced_accuracy(guesses, truth, 2, active))
    assert np.isnan(evaluation.auc(np.eye(2), truth, active))


def mann_whitney(own: np.ndarray, other: np.ndarray) -> float:
    return scipy.stats.mannwhitneyu(own, other).statistic / (own.size * other.size)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_auc_of_two_values_is_that_of_mann_whitney(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (12, 2)) if ties else rng.normal(size=(12, 2))
    truth = np.arange(12) % 2
    active = np.arange(12) < 9
    margin = scores[:, 1] - scores[:, 0]
    own, other = margin[active & (truth == 1)], margin[active & (truth == 0)]
    assert evaluation.auc(scores, truth, active) == pytest.approx(mann_whitney(own, other))


def test_auc_of_more_values_averages_one_against_the_rest() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(4, 15, 3)), np.arange(15) % 3
    areas = evaluation.auc(scores, truth)
    assert areas.shape == (4,)
    for run in range(4):
        expected = [
            mann_whitney(scores[run, truth == a, a], scores[run, truth != a, a]) for a in range(3)
        ]
        assert areas[run] == pytest.approx(np.mean(expected))


def test_auc_ignores_a_value_that_nobody_has() -> None:
    scores, truth = np.eye(4)[:3], np.array([0, 1, 2])
    assert evaluation.auc(scores, truth) == 1
    assert evaluation.auc(np.zeros((3, 4)), truth) == 0.5


def membership_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(4, 60))
    scores = rng.normal(size=count) if seed % 2 else rng.integers(0, 4, count).astype(float)
    members, active = rng.uniform(size=count) < 0.4, rng.uniform(size=count) < 0.8
    members[:2], active[:2] = (True, False), True
    return scores, members, active


@FEW
@SEEDS
def test_membership_metrics_equal_loops_over_pairs_and_thresholds(seed: int) -> None:
    scores, members, active = membership_case(seed)
    own, other = scores[active & members], scores[active & ~members]
    wins = [float(a > b) + 0.5 * float(a == b) for a in own for b in other]
    assert evaluation.membership_auc(scores, members, active) == pytest.approx(np.mean(wins))
    for bound in (0.001, 0.01, 0.1, 0.29, 0.5, 1 / 3, 1.0):
        best = 0.0
        for threshold in [*np.unique(scores), np.inf]:
            if np.mean(other >= threshold) <= bound:
                best = max(best, float(np.mean(own >= threshold)))
        found = evaluation.true_positive_rate(scores, members, active, false_positive_rate=bound)
        assert found == best


def test_the_true_positive_rate_at_exact_shares_and_ties() -> None:
    # 29 of 100 non-members are allowed at 0.29, though 0.29 * 100 is less than 29 in floats
    scores = np.concatenate([np.arange(100.0), [70.5, 71.5]])
    members = np.arange(102) >= 100
    rate = evaluation.true_positive_rate
    assert rate(scores, members, false_positive_rate=0.29) == 1
    assert rate(scores, members, false_positive_rate=0.28) == 0.5
    assert rate(scores, members, false_positive_rate=0.27) == 0
    assert rate([1, 1, 1, 1], [True, False, False, False], false_positive_rate=0.9) == 0
    assert rate([1, 1, 1, 1], [True, False, False, False], false_positive_rate=1.0) == 1


def test_infinite_scores_rank_as_any_do() -> None:
    scores, members = [np.inf, 1.0, np.inf, -np.inf, 5.0], [True, False, False, True, True]
    active = [True, True, True, True, False]
    assert evaluation.membership_auc(scores, members, active) == (1 + 0.5) / 4


@pytest.mark.parametrize("metric", [evaluation.membership_auc, evaluation.true_positive_rate])
def test_membership_metrics_keep_leading_axes_and_are_nan_where_undefined(metric: Any) -> None:
    scores = np.random.default_rng(0).normal(size=(2, 3, 8))
    members = np.arange(8) < 4
    together = metric(scores, members)
    assert together.shape == (2, 3)
    for run in np.ndindex(2, 3):
        assert together[run] == metric(scores[run], members)
    assert np.isnan(metric(scores, np.ones(8, bool))).all()
    assert np.isnan(metric(scores, np.zeros(8, bool))).all()
    scores[0, 1, 2] = np.nan
    undefined = np.isnan(metric(scores, members))
    assert undefined[0, 1]
    assert undefined.sum() == 1
    assert not np.isnan(metric(scores, members, np.arange(8) != 2)).any()


def random_statistics(seed: int, clients: int, units: int) -> mx.attacks.sim.Statistics:
    keys = jax.random.split(jax.random.key(seed), 3)
    return mx.attacks.sim.Statistics(
        jax.random.normal(keys[0], (clients, units, VALUES)),
        jax.random.uniform(keys[1], (clients, units)) + 1,
        jax.random.uniform(keys[2], (units, VALUES)) + 1,
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_unit_level_is_bit_equal_under_any_mixing(seed: int) -> None:
    clients, units = 6, 4
    active = jnp.arange(clients) != 2
    plain = random_statistics(seed, clients, units)
    truth = np.random.default_rng(seed).integers(0, VALUES, clients)
    keep = mx.mixing.keep()(jax.random.key(0), active, units)
    unmixed = evaluation.unit_level(mx.attacks.sim.unit_cosine(plain), keep, truth, active)
    assert unmixed.shape == (units,)
    for mix in (mx.mixing.full_round(), mx.mixing.proxy(2), mx.mixing.shuffle()):
        origins = mix(jax.random.key(seed), active, units)
        mixed = mx.attacks.sim.mix_statistics(origins, plain)
        level = evaluation.unit_level(mx.attacks.sim.unit_cosine(mixed), origins, truth, active)
        np.testing.assert_array_equal(level, unmixed)


def test_the_unit_level_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 5, 3, VALUES))
    origins = np.stack([np.stack([rng.permutation(5) for _ in range(3)], 1) for _ in range(2)])
    truth, active = rng.integers(0, VALUES, 5), np.arange(5) != 1
    level = evaluation.unit_level(scores, origins, truth, active)
    for run in range(2):
        for unit in range(3):
            right = [
                scores[run, slot, unit].argmax() == truth[origins[run, slot, unit]]
                for slot in range(5)
                if active[slot]
            ]
            assert level[run, unit] == pytest.approx(np.mean(right))


def test_permuted_attribution_is_the_mean_over_permutations() -> None:
    guesses, truth, active = case(3)
    rng, draws = np.random.default_rng(0), 4000
    rows = np.flatnonzero(active)
    accuracies = [np.mean(guesses[rng.permutation(rows)] == truth[rows]) for _ in range(draws)]
    expected = evaluation.permuted_attribution(guesses, truth, VALUES, active)
    assert abs(np.mean(accuracies) - expected) < 4 * np.std(accuracies) / np.sqrt(draws)


def test_wilson_is_its_formula() -> None:
    z = scipy.stats.norm.ppf(0.975)
    for successes, trials in [(0, 5), (14, 20), (3, 3), (1, 1), (50, 400)]:
        share = successes / trials
        center = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
        half = z / (1 + z**2 / trials)
        half *= np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
        expected = (max(center - half, 0), min(center + half, 1))
        assert evaluation.wilson(successes, trials) == pytest.approx(expected, abs=1e-12)


RUNS = 4000


def within_error(rate: float, expected: float) -> bool:
    return abs(rate - expected) < 4 * np.sqrt(expected * (1 - expected) / RUNS)


@pytest.mark.parametrize("runs", [2, 3, 10])
def test_students_interval_covers_the_mean_as_often_as_it_says(runs: int) -> None:
    values = np.random.default_rng(runs).normal(0.7, 0.05, (RUNS, runs))
    intervals = [evaluation.student(row) for row in values]
    assert within_error(float(np.mean([i.low <= 0.7 <= i.high for i in intervals])), 0.95)
    narrow = [evaluation.student(row, 0.5) for row in values]
    assert within_error(float(np.mean([i.low <= 0.7 <= i.high for i in narrow])), 0.5)


def test_cutting_an_interval_to_the_possible_costs_no_coverage() -> None:
    values = np.random.default_rng(0).binomial(14, 0.97, (RUNS, 10)) / 14
    covered = []
    for row in values:
        whole, cut = evaluation.student(row), evaluation.student(row, within=(0, 1))
        assert 0 <= cut.low <= cut.mean == whole.mean <= cut.high <= 1
        covered.append([one.low <= 0.97 <= one.high for one in (whole, cut)])
    covered = np.array(covered)
    np.testing.assert_array_equal(covered[:, 0], covered[:, 1])


def test_an_interval_of_few_or_equal_runs() -> None:
    assert evaluation.student([0.4, 0.4, 0.4]) == pytest.approx((0.4, 0.4, 0.4, 3))
    mean, *ends, n = evaluation.student([0.4])
    assert (mean, n) == (0.4, 1)
    assert np.isnan(ends).all()
    assert np.isnan(evaluation.student([0.4, np.nan])[:3]).all()


@pytest.mark.parametrize("runs", [2, 5, 10])
def test_verdicts_err_as_often_as_they_say(runs: int) -> None:
    rng = np.random.default_rng(runs)
    # at the edge of a claim or its contrary, where errors are most frequent
    edges: list[tuple[Any, float, bool, float]] = [
        (lambda row: evaluation.superiority(row), 0.0, True, 0.05),
        (lambda row: evaluation.superiority(row), 0.0, False, 0.05),
        (lambda row: evaluation.equivalence(row, 9.0), 9.0, True, 0.05),
        (lambda row: evaluation.equivalence(row, 9.0), -9.0, True, 0.05),
        (lambda row: evaluation.equivalence(row, 9.0), 9.0, False, 0.025),
    ]
    for test, mean, wrong, level in edges:
        verdicts = [test(row).holds for row in rng.normal(mean, 0.3, (RUNS, runs))]
        assert within_error(np.mean([verdict is wrong for verdict in verdicts]), level)


def test_verdicts_find_what_is_there() -> None:
    rng = np.random.default_rng(0)
    same, more = rng.normal(0, 0.005, 10), rng.normal(0.05, 0.01, 10)
    assert evaluation.equivalence(same, 0.01).holds is True
    assert evaluation.equivalence(more, 0.01).holds is False
    assert evaluation.superiority(more).holds is True
    assert evaluation.superiority(-more).holds is False
    assert evaluation.superiority(same - 0.001, negligible=0.01).holds is False
    wide = np.array([0.5, -0.5, 0.4, -0.4])
    for verdict in (
        evaluation.superiority(wide),
        evaluation.superiority(wide, negligible=0.01),
        evaluation.equivalence(wide, 0.01),
    ):
        assert verdict.holds is None


@pytest.mark.parametrize("values", [[0.3], [0.3, np.nan, 0.4]])
def test_one_run_or_a_missing_one_decides_nothing(values: list[float]) -> None:
    for verdict in (evaluation.superiority(values), evaluation.equivalence(values, 0.5)):
        assert verdict.holds is None
        assert np.isnan(verdict.p_value)
        assert verdict.n == len(values)


def test_equal_differences_are_judged_by_their_number() -> None:
    # 0.3 - 0.1 and 0.4 - 0.2 differ in their last bit
    nearly = np.array([0.3 - 0.1, 0.4 - 0.2] * 3)
    assert evaluation.superiority(nearly[:4]).holds is None
    assert evaluation.superiority(nearly) == (0.5**6, True, 6)
    assert evaluation.superiority(np.zeros(9)) == (1.0, None, 9)
    assert evaluation.superiority(np.zeros(9), negligible=0.01).holds is False
    assert evaluation.equivalence(np.zeros(9), 0.01) == (0.5**9, True, 9)
    assert evaluation.equivalence(np.zeros(2), 0.01).holds is None
    assert evaluation.equivalence(np.full(9, 0.5), 0.01).holds is False


def stacks() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)

    def one() -> Any:
        return {
            "a": {
                "w": jnp.asarray(rng.normal(size=(5, 2, 3)), jnp.float32),
                "b": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32),
            },
            "c": {"w": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)},
        }

    first, second = one(), one()
    second = jax.tree.map(lambda a, b: a + 2 * b, first, second)
    return first, second, mx.units.partition(jax.tree.map(lambda leaf: leaf[0], first))


def of_unit(stack: Any, units: mx.units.Units, unit: int) -> np.ndarray:
    rows = [np.asarray(leaf, np.float64).reshape(5, -1) for leaf in jax.tree.leaves(stack)]
    parts = [row[:, labels.flat() == unit] for row, labels in zip(rows, units.labels, strict=True)]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("granularity", ["layer", "neurons", "coordinates", mx.units.chunks(4)])
def test_distances_ranks_and_neighbours_equal_loops(granularity: mx.units.Granularity) -> None:
    first, second, _ = stacks()
    units = mx.units.partition(jax.tree.map(lambda leaf: leaf[0], first), granularity)
    count = len(units.names)
    distances = evaluation.unit_distances(first, second, units)
    ranks = evaluation.relink_rank(first, second, units)
    radii = [0.1, 0.8, 1.2, 1.6, 3.0]
    near = evaluation.neighbours(first, units, radii)
    assert (distances.shape, ranks.shape) == ((5, 5, count), (5, count))
    assert near.shape == (5, count, 5)
    for unit in range(count):
        old, new = of_unit(first, units, unit), of_unit(second, units, unit)
        scale = np.sqrt(np.mean([row @ row for row in old]))
        for i in range(5):
            for j in range(5):
                expected = np.linalg.norm(old[i] - new[j])
                np.testing.assert_allclose(distances[i, j, unit], expected, rtol=1e-6)
            to_old = [np.linalg.norm(new[i] - row) for row in old]
            assert ranks[i, unit] == 1 + sum(d < to_old[i] for d in to_old)
            for place, radius in enumerate(radii):
                others = [np.linalg.norm(old[i] - old[j]) for j in range(5) if j != i]
                assert near[i, unit, place] == sum(d <= radius * scale for d in others)


def test_a_unit_without_elements_is_at_no_distance() -> None:
    stack = {"a": jnp.ones((3, 2)), "none": jnp.ones((3, 0))}
    units = mx.units.partition(jax.tree.map(lambda leaf: leaf[0], stack))
    np.testing.assert_array_equal(evaluation.unit_distances(stack, stack, units), 0)
    np.testing.assert_array_equal(evaluation.neighbours(stack, units, [1.0]), 2)


def test_an_unchanged_update_is_relinked_first() -> None:
    first, _, units = stacks()
    np.testing.assert_array_equal(evaluation.relink_rank(first, first, units), 1)
    order = jnp.array([1, 2, 3, 4, 0])
    moved = jax.tree.map(lambda leaf: leaf[order], first)
    assert (evaluation.relink_rank(first, moved, units) > 1).all()


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(mx.InputError, match=f"got {successes} of {trials}"):
        evaluation.wilson(successes, trials)
