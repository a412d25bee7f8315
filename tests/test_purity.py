"""Purity and agreement of pseudonyms, against loops, formulas of other forms, and chance."""

import itertools
import math
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import mixjax as mx
from mixjax import evaluation

FEW = hypothesis.settings(max_examples=40, deadline=None)
SEEDS = hypothesis.given(st.integers(0, 10**6))
INDICES = [evaluation.purity, evaluation.adjusted_rand_index]


def case(seed: int, rounds: int = 5, slots: int = 6) -> Any:
    """Few pseudonyms and people, so that all happens: ties, gaps, absent slots."""
    rng = np.random.default_rng(seed)
    pseudonyms = rng.integers(-1, 4, (rounds, slots))
    owners = rng.integers(0, 5, (rounds, slots))
    active = rng.uniform(size=(rounds, slots)) < 0.7
    pseudonyms[0, 0], active[0, 0] = 0, True
    return pseudonyms, owners, active


def appearances(pseudonyms: Any, owners: Any, active: Any) -> list[tuple[int, int]]:
    triples = zip(pseudonyms.flat, owners.flat, active.flat, strict=True)
    return [(int(name), int(owner)) for name, owner, there in triples if there and name >= 0]


def test_cases_by_hand() -> None:
    names = [[0, 1, 2], [0, 2, 1], [0, 1, -1]]
    owners = [[4, 5, 6], [4, 5, 6], [4, 6, 5]]
    # pseudonym 0 is all of 4; 1 is of 5, 6, 6; 2 of 6, 5
    assert evaluation.purity(names, owners) == (3 + 2 + 1) / 8
    # pairs: 3 + 1 together, of 3 + 3 + 1 by pseudonym and 3 + 1 + 3 by owner, of 28
    expected = 7 * 7 / 28
    assert evaluation.adjusted_rand_index(names, owners) == pytest.approx(
        (4 - expected) / (7 - expected)
    )


@FEW
@SEEDS
def test_indices_equal_loops(seed: int) -> None:
    pseudonyms, owners, active = case(seed)
    pairs = appearances(pseudonyms, owners, active)
    own = [[owner for name, owner in pairs if name == one] for one in {name for name, _ in pairs}]
    commonest = sum(max(map(one.count, one)) for one in own)
    assert evaluation.purity(pseudonyms, owners, active) == pytest.approx(commonest / len(pairs))

    # the Rand index of all pairs, less its mean over all ways to deal the pseudonyms
    def together(names: list[int], owners: list[int]) -> int:
        places = itertools.combinations(range(len(names)), 2)
        return sum(names[i] == names[j] and owners[i] == owners[j] for i, j in places)

    names, whose = [name for name, _ in pairs], [owner for _, owner in pairs]
    a, b = together(names, names), together(whose, whose)
    index = evaluation.adjusted_rand_index(pseudonyms, owners, active)
    if len(pairs) > 1 and a + b != 2 * a * b / math.comb(len(pairs), 2):
        mean = a * b / math.comb(len(pairs), 2)
        assert index == pytest.approx((together(names, whose) - mean) / ((a + b) / 2 - mean))
    else:
        assert index == 1


@FEW
@SEEDS
def test_new_names_and_the_order_of_slots_and_rounds_change_nothing(seed: int) -> None:
    pseudonyms, owners, active = case(seed)
    rng = np.random.default_rng(seed)
    names, people = rng.permutation(100)[:4], rng.permutation(100)[:5]
    renamed = np.where(pseudonyms < 0, -1, names[pseudonyms]), people[owners], active
    order = rng.permutation(pseudonyms.size)
    moved = [one.reshape(-1)[order].reshape(one.shape) for one in renamed]
    for index in INDICES:
        assert index(*moved) == index(pseudonyms, owners, active)


def test_the_mean_adjusted_index_of_all_ways_to_deal_is_zero() -> None:
    owners = np.array([[0, 1, 1], [2, 0, 1]])
    names = [0, 0, 0, 1, 1, 2]
    dealt = [np.reshape(one, (2, 3)) for one in itertools.permutations(names)]
    indices = [evaluation.adjusted_rand_index(one, owners) for one in dealt]
    assert abs(np.mean(indices)) < 1e-12
    assert max(indices) == pytest.approx(1)


def test_perfect_tracks_and_degenerate_ones() -> None:
    owners = np.stack([np.random.default_rng(t).permutation(7) for t in range(10)])
    alone, split = np.arange(70).reshape(10, 7), 2 * owners + np.arange(10)[:, None] // 5
    for names, purity, index in (
        (owners + 3, 1, 1),
        (alone, 1, 0),  # everybody appears once: pure, and agrees on no pair
        (np.zeros_like(owners), 1 / 7, 0),
    ):
        assert evaluation.purity(names, owners) == pytest.approx(purity)
        assert evaluation.adjusted_rand_index(names, owners) == pytest.approx(index)
    # two pseudonyms a person are as pure, and count against the index
    assert evaluation.purity(split, owners) == 1
    assert 0.5 < evaluation.adjusted_rand_index(split, owners) < 0.7
    # one appearance, or all apart on both sides, is agreement
    assert evaluation.adjusted_rand_index([[5]], [[2]]) == 1
    assert evaluation.adjusted_rand_index([[5, 6]], [[2, 3]]) == 1


def test_leading_axes_are_runs_of_their_own_and_units_share_a_mask() -> None:
    runs = [case(seed) for seed in range(6)]
    pseudonyms, owners = (np.stack([run[i] for run in runs]).reshape(2, 3, 5, 6) for i in (0, 1))
    active = runs[0][2]
    for index in INDICES:
        values = index(pseudonyms, owners, active)
        assert values.shape == (2, 3)
        for place in np.ndindex(2, 3):
            assert values[place] == index(pseudonyms[place], owners[place], active)


def test_runs_without_a_pseudonym_are_nan_and_absent_slots_are_never_looked_at() -> None:
    pseudonyms, owners, active = case(3)
    nothing = np.full_like(pseudonyms, -1)
    both = np.stack([pseudonyms, nothing])
    for index in [*INDICES, lambda *runs: evaluation.chance_purity(*runs, seed=0, draws=3)]:
        assert np.isnan(index(both, owners, active)).tolist() == [False, True]
        assert np.isnan(index(pseudonyms, owners, np.zeros_like(active)))
        junk = np.where(active, owners, -7)
        assert index(pseudonyms, junk, active) == index(pseudonyms, owners, active)


def expected_purity(rounds: int, people: int) -> float:
    """E max / R of R draws from C: P(max <= m) = R! [x^R] (sum_{k <= m} (x/C)^k / k!)^C."""
    chances = [0.0]
    for most in range(1, rounds + 1):
        one = [people**-k / math.factorial(k) for k in range(most + 1)]
        power = np.ones(1)
        for _ in range(people):
            power = np.convolve(power, one)[: rounds + 1]
        chances.append(math.factorial(rounds) * power[rounds] if len(power) > rounds else 0.0)
    return float(np.dot(np.diff(chances), np.arange(1, rounds + 1))) / rounds


@pytest.mark.parametrize(("rounds", "people"), [(1, 4), (2, 3), (5, 14), (20, 14)])
def test_chance_is_the_expectation_of_the_commonest_of_random_owners(
    rounds: int, people: int
) -> None:
    owners = np.tile(np.arange(people), (rounds, 1))
    pseudonyms = np.random.default_rng(0).permuted(owners, axis=1)
    chance = evaluation.chance_purity(pseudonyms, owners, seed=1, draws=8000)
    expected = expected_purity(rounds, people)
    # one draw's purity is a mean over people, each in 1/R..1
    error = 0.5 / math.sqrt(8000 * people)
    assert abs(chance - expected) < 4 * error
    if rounds > 1:
        for wrong in (1 / people, expected_purity(rounds, people - 1)):
            assert abs(chance - wrong) > 4 * error


def test_chance_deals_within_each_round_to_those_who_were_there() -> None:
    # in each round one is there: dealing changes nothing
    owners = np.arange(4)[:, None] % 2 * np.ones((1, 3), int)
    pseudonyms = np.tile(np.arange(3), (4, 1))
    active = np.zeros((4, 3), bool)
    active[:, 1] = True
    own = evaluation.purity(pseudonyms, owners, active)
    assert own == 0.5
    assert evaluation.chance_purity(pseudonyms, owners, active, seed=0, draws=50) == own
    # two rounds of disjoint people: whoever is dealt what, each pseudonym has two owners
    apart = np.array([[0, 1], [2, 3]])
    assert evaluation.chance_purity([[0, 1], [0, 1]], apart, seed=0, draws=50) == 0.5


def test_chance_follows_from_its_seed() -> None:
    pseudonyms, owners, active = case(5)
    first, again, other = (
        evaluation.chance_purity(pseudonyms, owners, active, seed=seed, draws=5)
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert 0 < first <= 1


@pytest.mark.parametrize(
    ("pseudonyms", "owners", "message"),
    [
        ([0, 1], [0, 1], r"\[..., rounds, slots\]; got \[2\]. Give one round an axis"),
        ([[0, -2]], [[0, 1]], r"from 0, or -1 for none; got -2"),
        ([[0, 1]], [[0, -1]], r"owner of at least 0 .* got -1. Leave slots out by active"),
        ([[0, 1]], [[0, 1, 2]], r"matching shapes and slots last; got \(1, 2\), \(1, 3\)"),
        ([[0.0, 1.0]], [[0, 1]], r"pseudonyms as an array of integers .*; got float64\[1, 2\]"),
    ],
)
def test_what_is_no_track_is_refused(pseudonyms: Any, owners: Any, message: str) -> None:
    for index in INDICES:
        with pytest.raises(mx.InputError, match=message):
            index(pseudonyms, owners)
    with pytest.raises(mx.InputError, match=message):
        evaluation.chance_purity(pseudonyms, owners, seed=0)


def test_chance_needs_a_seed_and_draws() -> None:
    with pytest.raises(mx.InputError, match="a seed that is a whole number of at least 0; got -1"):
        evaluation.chance_purity([[0]], [[0]], seed=-1)
    with pytest.raises(mx.InputError, match="draws to be a whole number of at least 1; got 0"):
        evaluation.chance_purity([[0]], [[0]], seed=0, draws=0)
