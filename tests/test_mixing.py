"""Mixing: the laws of the origin matrix. Its application is in test_apply."""

import itertools
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import mixjax as mx

fixed = hypothesis.settings(derandomize=True, deadline=None, max_examples=20)
ALL = np.ones(4, bool)
SOME = np.array([True, False, True, False, True, True])
MIXES = {
    "keep": mx.mixing.keep(),
    "shuffle": mx.mixing.shuffle(),
    "full_round": mx.mixing.full_round(),
    "proxy_2": mx.mixing.proxy(2),
    "proxy_20": mx.mixing.proxy(20),
    "composed": mx.mixing.compose(mx.mixing.proxy(2), mx.mixing.shuffle()),
}
JITTED = {name: jax.jit(mix, static_argnums=2) for name, mix in MIXES.items()}


def draw(mix: mx.mixing.Mix, active: np.ndarray, units: int, draws: int) -> np.ndarray:
    """`[draws, slot, unit]` among the active rows, these numbered from 0."""
    keys = jax.random.split(jax.random.key(1), draws)
    origins = np.asarray(jax.jit(jax.vmap(lambda key: mix(key, jnp.asarray(active), units)))(keys))
    return np.searchsorted(np.flatnonzero(active), origins[:, active])


def encode(outcomes: np.ndarray) -> np.ndarray:
    """One integer for each whole matrix."""
    digits = outcomes.reshape(len(outcomes), -1)
    return digits @ 8 ** np.arange(digits.shape[1])


def law(outcomes: list[Any]) -> dict[int, float]:
    """The law that draws one of these matrices (or columns) with equal probability."""
    codes, counts = np.unique(encode(np.asarray(outcomes)), return_counts=True)
    return dict(zip(codes.tolist(), (counts / counts.sum()).tolist(), strict=True))


def follows(outcomes: np.ndarray, law: dict[int, float]) -> bool:
    """Pearson's test on whole outcomes; a true law fails once in a million."""
    codes, counts = np.unique(encode(outcomes), return_counts=True)
    if not set(codes.tolist()) <= set(law):
        return False
    expected = len(outcomes) * np.array(list(law.values()))
    observed = np.zeros(len(law))
    observed[np.searchsorted(np.array(list(law)), codes)] = counts
    assert expected.min() >= 5
    distance = np.sum((observed - expected) ** 2 / expected)
    return bool(distance < stats.chi2.isf(1e-6, len(law) - 1))


def has_rate(hits: np.ndarray, rate: float) -> bool:
    """Within five standard errors of independent trials: a true rate fails once in a million."""
    return bool(abs(hits.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / hits.size))


def uniform(count: int, units: int = 1) -> dict[int, float]:
    columns = itertools.permutations(range(count))
    return law([np.stack(pick, 1) for pick in itertools.product(columns, repeat=units)])


def emissions(arrivals: int, list_size: int) -> list[list[int]]:
    """All equally likely outputs of one unit's list, by the definition."""
    size = min(list_size, arrivals)
    outputs = []
    for draws in itertools.product(range(size), repeat=arrivals - size):
        for order in itertools.permutations(range(size)):
            held, sent = list(range(size)), []
            for arrival, entry in enumerate(draws, start=size):
                sent.append(held[entry])
                held[entry] = arrival
            outputs.append(sent + [held[entry] for entry in order])
    return outputs


masks = hnp.arrays(bool, 7).filter(lambda mask: mask.sum() >= 2)


@pytest.mark.parametrize("name", MIXES)
@fixed
@hypothesis.given(seed=st.integers(0, 2**31 - 1), mask=masks)
def test_every_column_permutes_the_active_rows_and_fixes_the_others(
    name: str, seed: int, mask: np.ndarray
) -> None:
    origins = np.asarray(JITTED[name](jax.random.key(seed), jnp.asarray(mask), 3))
    rows = np.arange(7)
    for column in origins.T:
        assert sorted(column) == list(rows)
        assert list(column[~mask]) == list(rows[~mask])
        assert set(column[mask]) == set(rows[mask])


@pytest.mark.parametrize("name", MIXES)
def test_origins_are_the_same_eager_jitted_and_vmapped(name: str) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    mask = jnp.asarray(np.array([1, 1, 0, 1, 1, 1, 0], bool))
    eager = np.stack([MIXES[name](key, mask, 3) for key in keys])
    jitted = np.stack([JITTED[name](key, mask, 3) for key in keys])
    mapped = jax.vmap(lambda key, mask: MIXES[name](key, mask, 3), (0, None))(keys, mask)
    np.testing.assert_array_equal(eager, jitted)
    np.testing.assert_array_equal(eager, mapped)


@pytest.mark.parametrize(
    ("mix", "active"),
    [
        (mx.mixing.full_round(), ALL),
        (mx.mixing.full_round(), SOME),
        (mx.mixing.proxy(4), ALL),
        (mx.mixing.proxy(5), SOME),
        (mx.mixing.compose(mx.mixing.shuffle(), mx.mixing.full_round()), ALL),
    ],
)
def test_a_full_round_draws_independent_uniform_permutations(
    mix: mx.mixing.Mix, active: np.ndarray
) -> None:
    outcomes = draw(mix, active, 2, 10_000)
    assert follows(outcomes, uniform(4, 2))
    same = outcomes[:, 1, 0] == outcomes[:, 1, 1]
    assert [has_rate(same, 1 / count) for count in (3, 4, 5)] == [False, True, False]


@pytest.mark.parametrize("active", [ALL, SOME], ids=["all", "masked"])
def test_the_shuffle_is_uniform_and_shares_every_origin(active: np.ndarray) -> None:
    outcomes = draw(mx.mixing.shuffle(), active, 2, 10_000)
    assert follows(outcomes[..., 0], uniform(4))
    assert (outcomes[..., 0] == outcomes[..., 1]).all()
    assert not follows(outcomes, uniform(4, 2))


@pytest.mark.parametrize("active", [ALL, SOME], ids=["all", "masked"])
def test_proxy_slots_are_uniform_and_share_origins_as_its_lists_tell(active: np.ndarray) -> None:
    outcomes = draw(mx.mixing.proxy(2), active, 2, 10_000)
    assert all(follows(outcomes[..., unit], uniform(4)) for unit in (0, 1))
    assert not follows(outcomes, uniform(4, 2))
    sent = np.array(emissions(4, 2))
    for slot in range(4):
        share = np.sum(np.bincount(sent[:, slot], minlength=4) ** 2) / len(sent) ** 2
        same = outcomes[:, slot, 0] == outcomes[:, slot, 1]
        assert has_rate(same, share)
        assert not has_rate(same, 1 / 4)


def test_the_uniform_law_rejects_the_common_mistakes_of_a_swapping_loop() -> None:
    rng = np.random.default_rng(0)
    right = [(i, i + 1) for i in (3, 2, 1)]
    for swaps in (right, [(i, 4) for i in range(4)], [(i, i) for i in (3, 2, 1)]):
        rows = np.tile(np.arange(4), (10_000, 1))
        draws = np.arange(len(rows))
        for place, bound in swaps:
            other = rng.integers(bound, size=len(rows))
            taken = rows[draws, other]
            rows[draws, other] = rows[:, place]
            rows[:, place] = taken
        assert follows(rows, uniform(4)) == (swaps is right)


@pytest.mark.parametrize(("arrivals", "list_size"), [(4, 2), (4, 3), (3, 5)])
def test_the_stream_follows_the_law_that_a_loop_enumerates(arrivals: int, list_size: int) -> None:
    keys = jax.random.split(jax.random.key(2), 10_000)
    stream = jax.jit(
        jax.vmap(lambda key, count: mx.mixing.stream(key, count, 6, list_size, 2), (0, None))
    )
    outcomes = np.asarray(stream(keys, jnp.asarray(arrivals)))
    assert (outcomes[:, arrivals:] == 0).all()
    outcomes = outcomes[:, :arrivals]
    wrong = list_size + 1 if list_size < arrivals else 2
    for unit in (0, 1):
        assert follows(outcomes[..., unit], law(emissions(arrivals, list_size)))
        assert not follows(outcomes[..., unit], law(emissions(arrivals, wrong)))
    both = itertools.product(emissions(arrivals, list_size), repeat=2)
    assert follows(outcomes, law([np.stack(pair, 1) for pair in both]))


STEADY_K, STEADY_ARRIVALS = 4, 64


@pytest.fixture(scope="module")
def delays() -> np.ndarray:
    """`[draws, unit]`: arrivals from an entry's own to the one that sends it.

    Of each stream only its last emission before the flush, so that draws are independent. By
    then the chance that the first fill still shows is (3/4)^59 < 1e-7.
    """
    keys = jax.random.split(jax.random.key(3), 20_000)
    row = STEADY_ARRIVALS - STEADY_K - 1
    origins = jax.jit(
        jax.vmap(
            lambda key: mx.mixing.stream(key, STEADY_ARRIVALS, STEADY_ARRIVALS, STEADY_K, 2)[row]
        )
    )(keys)
    return STEADY_ARRIVALS - 1 - np.asarray(origins)


def test_a_proxy_delay_is_geometric_with_the_list_size_as_its_mean(delays: np.ndarray) -> None:
    edges = 20

    def fits(cells: np.ndarray) -> bool:
        observed = np.bincount(np.minimum(delays.ravel(), edges), minlength=edges + 1)[1:]
        expected = delays.size * np.append(cells[: edges - 1], 1 - cells[: edges - 1].sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.sum((observed - expected) ** 2 / expected)
        return bool(distance < stats.chi2.isf(1e-6, edges - 1))

    days = np.arange(1, edges)
    assert delays.min() == 1
    assert fits(stats.geom.pmf(days, 1 / STEADY_K))
    assert not fits(stats.geom.pmf(days, 1 / (STEADY_K + 1)))
    assert not fits(stats.geom.pmf(days, 1 / (STEADY_K - 1)))
    assert not fits(stats.geom.pmf(days, 1 / STEADY_K, loc=1))
    assert not fits(stats.poisson.pmf(days, STEADY_K))


def test_units_in_a_steady_proxy_share_an_origin_once_in_two_k_less_one(
    delays: np.ndarray,
) -> None:
    same = delays[:, 0] == delays[:, 1]
    assert has_rate(same, 1 / (2 * STEADY_K - 1))
    for wrong in (1 / STEADY_K, 1 / (2 * STEADY_K), 1 / (2 * STEADY_K - 2), 1 / STEADY_ARRIVALS):
        assert not has_rate(same, wrong)


def test_a_proxy_origin_has_the_entropy_of_the_formula(delays: np.ndarray) -> None:
    p = 1 / STEADY_K
    entropy = -((1 - p) * np.log(1 - p) + p * np.log(p)) / p
    counts = np.bincount(delays.ravel())
    found = stats.entropy(counts)
    # the plug-in estimate is low by about (cells - 1) / 2n; its error has the spread of -log P
    bias = (np.count_nonzero(counts) - 1) / (2 * delays.size)
    spread = -np.log(1 - p) * np.sqrt((1 - p) / p**2)
    bound = 5 * spread / np.sqrt(delays.size)
    assert abs(found + bias - entropy) < bound
    for wrong in (np.log(STEADY_K), np.log(np.e * STEADY_K), np.log(2 * STEADY_K - 1)):
        assert abs(found + bias - wrong) > bound


def test_buckets_mix_within_and_never_across() -> None:
    groups = np.array([0, 1, 0, 1, 0, 2])
    active = jnp.array([True, True, True, True, True, True])
    mix = mx.mixing.within(groups)
    keys = jax.random.split(jax.random.key(0), 600)
    drawn = np.asarray(jax.vmap(lambda key: mix(key, active, 3))(keys))
    assert (np.sort(drawn, axis=1) == np.arange(6)[None, :, None]).all()
    assert (groups[drawn] == groups[None, :, None]).all()
    # uniform inside: a third of 600 draws, and a half
    for row, others in ((0, 3), (1, 2)):
        share = (drawn[:, row, 0] == row).mean()
        assert abs(share - 1 / others) < 4 * np.sqrt(1 / 4 / 600)
    # units are independent of each other
    assert abs((drawn[:, 0, 0] == drawn[:, 0, 1]).mean() - 1 / 3) < 4 * np.sqrt(1 / 4 / 600)


def test_who_is_alone_in_a_bucket_keeps_its_place() -> None:
    active = jnp.array([True, False, True, True])
    drawn = mx.mixing.within([0, 0, 1, 1])(jax.random.key(0), active, 5)
    assert drawn[:2].tolist() == [[0] * 5, [1] * 5]


def test_buckets_of_another_cohort_are_refused() -> None:
    with pytest.raises(mx.InputError, match="3 clients that have groups; got 4"):
        mx.mixing.within([0, 0, 1])(jax.random.key(0), jnp.ones(4, bool), 2)
    with pytest.raises(mx.InputError, match="as an array of integers"):
        mx.mixing.within([0.5, 1.0])
