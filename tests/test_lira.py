"""Likelihood ratios of membership: closed forms, a slow loop, and the best test there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import mixjax as mx

lira = mx.attacks.lira


def test_confidence_is_the_log_odds_of_the_true_class() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 5, 3)).astype(np.float32)
    labels = rng.integers(3, size=(4, 5)).astype(np.int32)
    likely = np.exp(logits.astype(np.float64))
    likely /= likely.sum(axis=-1, keepdims=True)
    p = np.take_along_axis(likely, labels[..., None], axis=-1)[..., 0]
    found = jax.jit(lira.confidence)(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(found, np.log(p / (1 - p)), atol=1e-5)


@pytest.mark.parametrize("sure", [200.0, -200.0])
def test_confidence_is_finite_where_a_probability_is_rounded_away(sure: float) -> None:
    logits = jnp.array([sure, 0.0, 0.0], jnp.float32)
    found = lira.confidence(logits, jnp.array(0))
    np.testing.assert_allclose(found, sure - np.log(2), rtol=1e-6)
    slope = jax.grad(lambda logits: lira.confidence(logits, jnp.array(0)))(logits)
    np.testing.assert_allclose(slope, [1, -0.5, -0.5], atol=1e-6)


def drawn(
    models: int, records: int, rng: np.random.Generator, gap: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Confidences of models, whether they used each record, and what is known of each record."""
    easy = 5 * rng.normal(size=records)
    used = rng.random((models, records)) < 0.5
    values = easy + gap * used + rng.normal(size=(models, records))
    return values.astype(np.float32), used, easy, values


@pytest.mark.parametrize("pooled", [False, True])
def test_scores_agree_with_a_slow_loop(pooled: bool) -> None:
    values, used, *_ = drawn(9, 6, np.random.default_rng(1))
    observed = np.random.default_rng(2).normal(size=(2, 6)).astype(np.float32)
    found = lira.scores(*map(jnp.asarray, (observed, values, used)), pooled=pooled)
    expected = np.zeros((2, 6))
    for sign, which in ((1, used), (-1, ~used)):
        parts = [values[which[:, record], record].astype(np.float64) for record in range(6)]
        all_ = np.concatenate([part - part.mean() for part in parts])
        for record, part in enumerate(parts):
            spread = np.sqrt(np.mean(np.square(all_))) if pooled else part.std()
            density = scipy.stats.norm.logpdf(observed[:, record], part.mean(), spread)
            expected[:, record] += sign * density
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_axes_of_clients_and_targets_are_kept() -> None:
    values, used, *_ = drawn(9, 12, np.random.default_rng(3))
    observed = np.random.default_rng(4).normal(size=(5, 12)).astype(np.float32)
    flat = lira.scores(*map(jnp.asarray, (observed, values, used)))
    shaped = jax.jit(lira.scores)(
        observed.reshape(5, 3, 4), values.reshape(9, 3, 4), used.reshape(9, 3, 4)
    )
    np.testing.assert_allclose(shaped.reshape(5, 12), flat, rtol=1e-4, atol=1e-4)


def test_members_are_found_as_well_as_the_best_test_finds_them() -> None:
    """Two normal laws a gap apart: no test has a larger area than Φ(gap / √2)."""
    gap, records = 2.0, 4000
    rng = np.random.default_rng(5)
    values, used, easy, _ = drawn(257, records, rng, gap)
    found = np.asarray(lira.scores(*map(jnp.asarray, (values[0], values[1:], used[1:]))))
    area = float(mx.evaluation.membership_auc(found, used[0]))
    best = scipy.stats.norm.cdf(gap / np.sqrt(2))
    error = np.sqrt(best * (1 - best) / (records / 2))
    assert best - 0.01 - 3 * error < area < best + 3 * error
    rate = float(mx.evaluation.true_positive_rate(found, used[0]))
    highest = scipy.stats.norm.sf(scipy.stats.norm.isf(0.01) - gap)
    assert abs(rate - highest) < 0.1
    # without the reference, what is easy hides what was used
    assert mx.evaluation.membership_auc(values[0], used[0]) < area - 0.2
    del easy


def test_nothing_is_found_where_training_leaves_no_trace() -> None:
    values, used, *_ = drawn(65, 4000, np.random.default_rng(6), gap=0)
    found = np.asarray(lira.scores(*map(jnp.asarray, (values[0], values[1:], used[1:]))))
    error = np.sqrt(4001 / (12 * 2000 * 2000))
    assert abs(mx.evaluation.membership_auc(found, used[0]) - 0.5) < 4 * error


def test_a_record_that_too_few_models_saw_has_no_score_and_one_all_agree_on_a_zero() -> None:
    used = np.array([[True, True, True], [False, True, True], [False, False, False]] * 2)
    used[3:, 0] = False
    values = np.zeros((6, 3), np.float32)
    values[:, 0] = values[:, 1] = np.arange(6)
    found = lira.scores(*map(jnp.asarray, (np.zeros(3, np.float32), values, used)))
    assert np.isnan(found[0])
    assert np.isfinite(found[1])
    assert found[2] == 0


@pytest.mark.parametrize(
    ("observed", "shadows", "used"),
    [((3,), (4, 2), (4, 2)), ((2,), (4, 2), (3, 2)), ((5, 2, 3), (4, 3, 2), (4, 3, 2))],
)
def test_shapes_that_do_not_fit_are_refused(
    unchecked: None, observed: tuple[int, ...], shadows: tuple[int, ...], used: tuple[int, ...]
) -> None:
    with pytest.raises(mx.InputError, match=r"of one shape \[models, records\], and observed"):
        lira.scores(jnp.zeros(observed), jnp.zeros(shadows), jnp.zeros(used, bool))
