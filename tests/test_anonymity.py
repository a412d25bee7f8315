"""Entropies, guesses and Fano's bound of posteriors: closed forms, loops and laws."""

import math
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import mixjax as mx
from mixjax import evaluation

FEW = hypothesis.settings(max_examples=60, deadline=None)
MEASURES = [evaluation.entropy, evaluation.effective_set_size, evaluation.guessing_entropy]


def rows_of(seed: int, owners: int, shape: tuple[int, ...] = (3,)) -> np.ndarray:
    """Rows from nearly certain to nearly uniform, with exact zeros."""
    rng = np.random.default_rng(seed)
    rows = rng.gamma(rng.choice([0.05, 1.0, 50.0]), size=(*shape, owners))
    rows[..., 1:] *= rng.uniform(size=(*shape, owners - 1)) < 0.8
    rows[..., 0] += 1e-3
    return rows / rows.sum(axis=-1, keepdims=True)


POSTERIORS = st.builds(rows_of, st.integers(0, 10**6), st.integers(1, 30))


@pytest.mark.parametrize("owners", [1, 2, 14, 1000])
def test_who_knows_nothing_and_who_knows_all(owners: int) -> None:
    uniform, certain = np.full((2, owners), 1 / owners), np.eye(owners)[:1]
    for measure, of_uniform, of_certain in zip(
        MEASURES, (math.log2(owners), owners, (owners + 1) / 2), (0, 1, 1), strict=True
    ):
        np.testing.assert_allclose(measure(uniform), np.full(2, of_uniform), rtol=1e-12, atol=0)
        np.testing.assert_array_equal(measure(certain), [of_certain])
    bound = evaluation.fano_bound(evaluation.entropy(uniform), owners)
    np.testing.assert_allclose(bound, (owners - 1) / owners, rtol=0, atol=1e-7)
    assert evaluation.fano_bound(0.0, owners) == 0


@FEW
@hypothesis.given(POSTERIORS)
def test_measures_equal_loops(posterior: np.ndarray) -> None:
    for row, bits, size, guesses in zip(
        posterior, *(measure(posterior) for measure in MEASURES), strict=True
    ):
        expected = -sum(p * math.log2(p) for p in row if p > 0)
        assert bits == pytest.approx(expected, abs=1e-12)
        assert size == pytest.approx(2**expected)
        ranked = sorted(row, reverse=True)
        assert guesses == pytest.approx(sum(i * p for i, p in enumerate(ranked, 1)))


@FEW
@hypothesis.given(POSTERIORS, st.integers(0, 10**6))
def test_the_order_of_owners_changes_nothing(posterior: np.ndarray, seed: int) -> None:
    moved = np.random.default_rng(seed).permuted(posterior, axis=-1)
    for measure in MEASURES:
        np.testing.assert_allclose(measure(moved), measure(posterior), rtol=1e-12, atol=1e-12)


@FEW
@hypothesis.given(POSTERIORS)
def test_the_measures_keep_their_inequalities(posterior: np.ndarray) -> None:
    owners = posterior.shape[-1]
    bits, size, guesses = (measure(posterior) for measure in MEASURES)
    assert (size <= owners * (1 + 1e-12)).all()
    assert (guesses <= (owners + 1) / 2 + 1e-12).all()
    # Massey 1994
    assert (guesses[bits >= 2] >= size[bits >= 2] / 4 + 1 - 1e-12).all()
    # Fano, for each row and for their mean: nobody errs less than by naming the likeliest
    error = 1 - posterior.max(axis=-1)
    clipped = np.minimum(bits, math.log2(owners))
    assert (evaluation.fano_bound(clipped, owners) <= error + 1e-12).all()
    assert evaluation.fano_bound(clipped.mean(), owners) <= error.mean() + 1e-12


@pytest.mark.parametrize("owners", [2, 3, 14, 1000])
@pytest.mark.parametrize("error", [1e-12, 1e-3, 0.1, 0.4])
def test_fano_is_exact_for_one_likely_owner_and_others_alike(owners: int, error: float) -> None:
    row = np.full((1, owners), error / (owners - 1))
    row[0, 0] = 1 - error
    bits = evaluation.entropy(row)
    (bound,) = evaluation.fano_bound(bits, owners)
    assert bound == pytest.approx(error, rel=1e-6)
    # and tighter than the weak form, which can be below zero
    assert bound > (bits[0] - 1) / math.log2(owners)


def test_fano_for_two_owners_is_the_inverse_of_the_binary_entropy() -> None:
    errors = np.linspace(0.01, 0.49, 20)
    bits = -errors * np.log2(errors) - (1 - errors) * np.log2(1 - errors)
    np.testing.assert_allclose(evaluation.fano_bound(bits, 2), errors, rtol=1e-9)
    grid = evaluation.fano_bound(np.linspace(0, 1, 50).reshape(5, 10), 2)
    assert grid.shape == (5, 10)
    assert (np.diff(grid.ravel()) > 0).all()


def test_leading_axes_and_a_mask() -> None:
    posterior = rows_of(0, 5, (2, 3, 4))
    active = np.arange(4) != 2
    junk = posterior.copy()
    junk[..., 2, :] = np.nan
    for measure in MEASURES:
        values = measure(junk, active)
        assert values.shape == (2, 3, 4)
        assert np.isnan(values[..., 2]).all()
        np.testing.assert_array_equal(values[..., active], measure(posterior)[..., active])
    bound = evaluation.fano_bound(evaluation.entropy(junk, active), 5)
    assert np.isnan(bound).tolist() == np.isnan(evaluation.entropy(junk, active)).tolist()
    assert np.isnan(evaluation.fano_bound(np.nan, 1))


def test_rows_of_half_precision_are_scaled_to_one() -> None:
    posterior = rows_of(1, 40).astype(np.float32) * np.float32(1.0005)
    exact = posterior.astype(np.float64) / posterior.astype(np.float64).sum(-1, keepdims=True)
    np.testing.assert_allclose(evaluation.entropy(posterior), evaluation.entropy(exact), rtol=1e-12)


SUM = "rows of probabilities that sum to 1 in the posterior; got row "


@pytest.mark.parametrize(
    ("posterior", "message"),
    [
        ([[0.5, 0.5], [0.0, 0.0]], SUM + r"\[1\]: numbers from 0 to 0, sum 0\. Divide rows"),
        ([[0.5, 0.5], [np.nan, 1.0]], SUM + r"\[1\]: numbers from nan to nan, sum nan"),
        ([[[0.5, 0.5], [1.5, -0.5]]], SUM + r"\[0, 1\]: numbers from -0.5 to 1.5, sum 1"),
        ([[np.inf, 1.0]], SUM + r"\[0\]: numbers from 1 to inf, sum inf"),
        ([0.5, 0.25], SUM + r"\[\]: numbers from 0.25 to 0.5, sum 0.75"),
        (np.ones((2, 0)), r"posterior \[..., slots, owners\] of at least one owner; got \(2, 0\)"),
        (1.0, "posterior as an array of .* with at least 1 axes"),
        ([["a"]], "posterior as an array of integers or real numbers"),
    ],
)
def test_what_is_no_posterior_is_refused(posterior: Any, message: str) -> None:
    for measure in MEASURES:
        with pytest.raises(mx.InputError, match=message):
            measure(posterior)


def test_masks_and_entropies_that_do_not_fit_are_refused() -> None:
    with pytest.raises(mx.InputError, match=r"active \[..., slots\] .* got \[2\] and \[3, 5\]"):
        evaluation.entropy(rows_of(0, 5), [True, False])
    for bits, owners in ((-0.1, 4), (2.1, 4), (np.inf, 4), (0.5, 1)):
        with pytest.raises(mx.InputError, match=rf"between 0 and log2 of {owners} owners.*; got"):
            evaluation.fano_bound(bits, owners)
    with pytest.raises(mx.InputError, match="owners to be a whole number of at least 1; got 0"):
        evaluation.fano_bound(0.5, 0)
