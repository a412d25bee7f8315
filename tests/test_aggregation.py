"""Weighting and aggregation: against loops, and what mixing leaves unchanged."""

import functools
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_equal, flat, flat_rows

import mixjax as mx

fixed = hypothesis.settings(derandomize=True, deadline=None, max_examples=25)
EPS = float(np.finfo(np.float32).eps)
CLIENTS = 9
MASK = np.array([1, 1, 0, 1, 1, 1, 1, 0, 1], bool)
MIXES = {
    "shuffle": mx.mixing.shuffle(),
    "full_round": mx.mixing.full_round(),
    "proxy": mx.mixing.proxy(3),
}
masks = hnp.arrays(bool, CLIENTS).filter(lambda mask: mask.sum() >= 1)


def updates_of(seed: int, clients: int = CLIENTS) -> dict[str, dict[str, jax.Array]]:
    rng = np.random.default_rng(seed)
    shapes = {"a": {"b": (3,), "w": (4, 3)}, "b": {"w": (3, 2)}, "c": {"w": ()}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(1, 2, (clients, *shape)), jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def spoiled(updates: Any, mask: np.ndarray) -> Any:
    """NaN in the inactive rows."""
    return jax.tree.map(
        lambda leaf: jnp.where(mask.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.nan), updates
    )


def loop_median(rows: np.ndarray) -> np.ndarray:
    result = np.zeros(rows.shape[1])
    for coordinate, values in enumerate(rows.T):
        ordered = sorted(values.tolist())
        half = len(ordered) // 2
        middle = ordered[half : half + 1] if len(ordered) % 2 else ordered[half - 1 : half + 1]
        result[coordinate] = sum(middle) / len(middle)
    return result


def loop_trimmed_mean(rows: np.ndarray, tenths: int) -> np.ndarray:
    result = np.zeros(rows.shape[1])
    cut = tenths * len(rows) // 10
    for coordinate, values in enumerate(rows.T):
        kept = sorted(values.tolist())[cut : len(rows) - cut]
        result[coordinate] = sum(kept) / len(kept)
    return result


def loop_krum(rows: np.ndarray, byzantine: int, select: int) -> np.ndarray:
    scores = []
    for i, row in enumerate(rows):
        others = [float(np.sum((row - other) ** 2)) for j, other in enumerate(rows) if j != i]
        scores.append(sum(sorted(others)[: len(rows) - byzantine - 2]))
    chosen = sorted(range(len(rows)), key=lambda i: scores[i])[:select]
    return np.mean([rows[i] for i in chosen], axis=0)


median = jax.jit(mx.aggregation.coordinate_median)
mean = jax.jit(mx.aggregation.mean)
trimmed = {
    tenths: jax.jit(lambda updates, active, trim=tenths / 10: mx.aggregation.trimmed_mean(
        updates, active, trim=trim
    ))
    for tenths in (0, 1, 2, 3, 4)
}  # fmt: skip
krum = {
    pair: jax.jit(lambda updates, active, pair=pair: mx.aggregation.krum(
        updates, active, byzantine=pair[0], select=pair[1]
    ))
    for pair in ((0, 1), (2, 1), (2, 3))
}  # fmt: skip


@fixed
@hypothesis.given(seed=st.integers(0, 99), mask=masks)
def test_mean_median_and_trimmed_mean_agree_with_loops_and_ignore_inactive_rows(
    seed: int, mask: np.ndarray
) -> None:
    updates = updates_of(seed)
    rows, given_rows = flat_rows(updates)[mask], spoiled(updates, mask)
    active = jnp.asarray(mask)
    np.testing.assert_allclose(flat(mean(given_rows, active)), rows.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        flat(median(given_rows, active)), loop_median(rows), rtol=1e-5, atol=1e-5
    )
    for tenths, aggregate in trimmed.items():
        np.testing.assert_allclose(
            flat(aggregate(given_rows, active)),
            loop_trimmed_mean(rows, tenths),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize("clients", [3, 7, 10, 20, 30, 100])
@pytest.mark.parametrize("tenths", [1, 2, 3, 4])
def test_the_trim_fraction_is_not_cut_short_by_rounding(clients: int, tenths: int) -> None:
    rows = np.random.default_rng(0).normal(size=(clients, 2))
    result = mx.aggregation.trimmed_mean(jnp.asarray(rows, jnp.float32), trim=tenths / 10)
    np.testing.assert_allclose(result, loop_trimmed_mean(rows, tenths), rtol=1e-4, atol=1e-5)


@fixed
@hypothesis.given(seed=st.integers(0, 99), mask=masks.filter(lambda mask: mask.sum() >= 5))
def test_krum_agrees_with_a_loop_and_ignores_inactive_rows(seed: int, mask: np.ndarray) -> None:
    updates = updates_of(seed)
    for (byzantine, select), aggregate in krum.items():
        result = aggregate(spoiled(updates, mask), jnp.asarray(mask))
        expected = loop_krum(flat_rows(updates)[mask], byzantine, select)
        np.testing.assert_allclose(flat(result), expected, rtol=1e-5, atol=1e-5)


def test_krum_leaves_outliers_out() -> None:
    updates = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), jnp.float32)
    poisoned = updates.at[:2].add(1e3)
    result = mx.aggregation.krum(poisoned, byzantine=2, select=6)
    np.testing.assert_allclose(result, updates[2:].mean(0), rtol=1e-5, atol=1e-6)


AGGREGATIONS: dict[str, Callable[..., Any]] = {
    "mean": mx.aggregation.mean,
    "median": mx.aggregation.coordinate_median,
    "trimmed": lambda updates, active: mx.aggregation.trimmed_mean(updates, active, trim=0.2),
    "krum": lambda updates, active: mx.aggregation.krum(updates, active, byzantine=1, select=2),
    "scale": lambda updates, active: mx.aggregation.scale(updates, jnp.arange(9.0), active),
}


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregations_are_the_same_eager_jitted_and_vmapped(name: str) -> None:
    aggregate = AGGREGATIONS[name]
    rounds = jax.tree.map(lambda *leaves: jnp.stack(leaves), updates_of(0), updates_of(1))
    first = updates_of(0)
    active = jnp.asarray(MASK)
    eager = aggregate(first, active)
    assert_close(eager, jax.jit(aggregate)(first, active))
    mapped = jax.vmap(aggregate, (0, None))(rounds, active)
    assert_close(eager, jax.tree.map(lambda leaf: leaf[0], mapped))


def test_aggregates_of_narrow_types_sum_in_float32_and_integers_become_floats() -> None:
    # a bfloat16 sum of ones sticks at 256
    ones = {"a": jnp.ones((1000, 2), jnp.bfloat16), "b": jnp.arange(1000, dtype=jnp.int32)}
    for aggregate in (mx.aggregation.mean, mx.aggregation.trimmed_mean):
        result = aggregate(ones)
        np.testing.assert_array_equal(np.asarray(result["a"], np.float32), 1)
        np.testing.assert_allclose(result["b"], 499.5, rtol=1e-6)
        assert (result["a"].dtype, result["b"].dtype) == (jnp.bfloat16, jnp.float32)


@fixed
@hypothesis.given(mask=masks, counts=hnp.arrays(np.int32, CLIENTS, elements=st.integers(1, 500)))
def test_scaling_makes_the_uniform_mean_the_weighted_one(
    mask: np.ndarray, counts: np.ndarray
) -> None:
    updates, active = updates_of(3), jnp.asarray(mask)
    weights = jnp.asarray(counts, jnp.float32)
    factors = np.asarray(mx.aggregation.relative_weights(weights, active))
    assert (factors[~mask] == 0).all()
    np.testing.assert_allclose(factors[mask].mean(), 1, rtol=1e-5)
    scaled = mx.aggregation.scale(updates, weights, active)
    expected = np.average(flat_rows(updates)[mask], axis=0, weights=counts[mask])
    np.testing.assert_allclose(flat(mean(scaled, active)), expected, rtol=1e-4, atol=1e-5)


def test_scaling_keeps_the_dtypes_of_floats() -> None:
    updates = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(2)}
    scaled = mx.aggregation.scale(updates, jnp.array([1.0, 3.0]))
    np.testing.assert_array_equal(scaled["b"], [0.5, 1.5])
    np.testing.assert_array_equal(np.asarray(scaled["a"][:, 0], np.float32), [0.5, 1.5])
    assert scaled["a"].dtype == jnp.bfloat16


@functools.partial(jax.jit, static_argnums=0)
def mixed_by(name: str, updates: Any, active: jax.Array) -> Any:
    return mx.mix(jax.random.key(4), updates, active=active, method=MIXES[name])


@pytest.mark.parametrize("mask", [np.ones(CLIENTS, bool), MASK], ids=["all", "dropouts"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", MIXES)
def test_mixing_changes_the_mean_by_rounding_only(
    name: str, weighted: bool, mask: np.ndarray
) -> None:
    updates, active = updates_of(5), jnp.asarray(mask)
    if weighted:
        updates = mx.aggregation.scale(updates, 1 + jnp.arange(9.0), active)
    mixed = mixed_by(name, spoiled(updates, mask), active)
    before, after = flat(mean(updates, active)), flat(mean(mixed, active))
    magnitude = np.abs(flat_rows(updates)[mask]).mean(axis=0)
    # each of two float32 sums of C terms, divided by C, errs by at most C eps mean|x|
    assert (np.abs(before - after) <= 2 * mask.sum() * EPS * magnitude).all()


@pytest.mark.parametrize("mask", [np.ones(CLIENTS, bool), MASK], ids=["all", "dropouts"])
@pytest.mark.parametrize("name", MIXES)
def test_mixing_leaves_integer_means_medians_and_trimmed_means_bit_equal(
    name: str, mask: np.ndarray
) -> None:
    active = jnp.asarray(mask)
    updates = updates_of(6)
    whole = jax.tree.map(jnp.round, updates)
    assert_equal(mean(whole, active), mean(mixed_by(name, whole, active), active))
    mixed = mixed_by(name, spoiled(updates, mask), active)
    assert_equal(median(updates, active), median(mixed, active))
    for aggregate in trimmed.values():
        assert_equal(aggregate(updates, active), aggregate(mixed, active))


def test_mixing_changes_krum_and_shuffling_whole_updates_does_not() -> None:
    active = jnp.ones(CLIENTS, bool)
    updates = updates_of(7)
    before = krum[2, 1](updates, active)
    assert_equal(before, krum[2, 1](mixed_by("shuffle", updates, active), active))
    rows = flat_rows(updates)
    for name in ("full_round", "proxy"):
        after = flat(krum[2, 1](mixed_by(name, updates, active), active))
        assert not np.allclose(after, flat(before))
        assert not any(np.allclose(after, row) for row in rows)


def test_an_unscaled_weighted_mean_after_mixing_follows_its_law() -> None:
    draws, clients = 10_000, 6
    rng = np.random.default_rng(0)
    x = rng.normal(size=(clients, 3)) + np.arange(clients)[:, None]
    w = np.array([1, 1, 2, 3, 5, 8]) / 20
    updates = {name: jnp.asarray(x + shift, jnp.float32) for name, shift in (("a", 0), ("b", 9))}
    weights = jnp.asarray(w * clients, jnp.float32)

    def weighted_mean(key: jax.Array) -> jax.Array:
        mixed = mx.mix(key, updates)
        return mx.aggregation.mean(mx.aggregation.scale(mixed, weights))["a"]

    found = np.asarray(jax.vmap(weighted_mean)(jax.random.split(jax.random.key(9), draws)))
    bias = -clients * np.mean((w - w.mean())[:, None] * (x - x.mean(0)), axis=0)
    spread = np.var(x, axis=0, ddof=1)
    variance = (np.sum(w**2) - 1 / clients) * spread

    def has_mean(expected: np.ndarray) -> bool:
        return bool((np.abs(found.mean(0) - expected) < 5 * np.sqrt(variance / draws)).all())

    def has_variance(expected: np.ndarray) -> bool:
        # a sample variance has relative spread sqrt((kurtosis - 1) / n), and kurtosis < 4 here
        return bool((np.abs(found.var(0, ddof=1) / expected - 1) < 5 * np.sqrt(3 / draws)).all())

    assert has_mean(w @ x + bias)
    assert has_mean(x.mean(0))
    assert not has_mean(w @ x)
    assert has_variance(variance)
    assert not has_variance(np.sum(w**2) * spread)
    assert not has_variance((np.sum(w**2) - 1 / clients) * np.var(x, axis=0))


def test_the_mean_of_an_only_row_is_that_row_bit_by_bit() -> None:
    rows = {"w": jax.random.normal(jax.random.key(0), (1, 1000))}
    for active in (None, jnp.ones(1, bool)):
        mean = jax.jit(mx.aggregation.mean)(rows, active)
        np.testing.assert_array_equal(mean["w"], rows["w"][0])
    assert np.isnan(jax.jit(mx.aggregation.mean)(rows, jnp.zeros(1, bool))["w"]).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_robust_aggregations_of_the_largest_numbers_do_not_overflow(dtype: Any) -> None:
    most = float(jnp.finfo(dtype).max)
    ends = {"w": jnp.array([[most], [-most], [most], [-most]], dtype)}
    assert mx.aggregation.coordinate_median(ends)["w"].tolist() == [0]
    same = {"w": jnp.full((4, 1), most, dtype)}
    assert mx.aggregation.coordinate_median(same)["w"].tolist() == [most]
    # a sum that only a wider number holds
    if dtype != jnp.float32:
        many = {"w": jnp.full((40, 1), 6e4, dtype)}
        trimmed = mx.aggregation.trimmed_mean(many, trim=0.1)["w"]
        assert trimmed.dtype == dtype
        np.testing.assert_array_equal(trimmed, many["w"][0])


def test_the_median_of_infinities_is_one() -> None:
    rows = {"w": jnp.array([[1.0], [jnp.inf], [jnp.inf], [jnp.inf]])}
    assert mx.aggregation.coordinate_median(rows)["w"].tolist() == [np.inf]
    least = {"w": jnp.full((3, 1), jnp.finfo(jnp.float16).smallest_subnormal, jnp.float16)}
    assert mx.aggregation.coordinate_median(least)["w"] == least["w"][0]
