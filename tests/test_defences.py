"""Defences: clipping, noise and their laws, and which mixing each one draws."""

from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_equal, flat
from scipy import stats

import mixjax as mx

fixed = hypothesis.settings(derandomize=True, deadline=None, max_examples=40)
KEY = jax.random.key(0)
ACTIVE = jnp.asarray(np.array([1, 1, 0, 1, 1, 1], bool))


def model(scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "a": {"w": jnp.asarray(scale * rng.normal(size=(3, 4)), jnp.float32)},
        "b": (jnp.asarray(scale * rng.normal(size=5), jnp.float32), jnp.float32(scale)),
    }


def has_deviation(sample: np.ndarray, sigma: float) -> bool:
    """Accept where n s² / σ² is a likely χ²: a true σ of mean zero fails once in a million."""
    low, high = stats.chi2.interval(1 - 1e-6, sample.size)
    return bool(low < np.sum(sample**2) / sigma**2 < high)


def is_gaussian(sample: np.ndarray, sigma: float) -> bool:
    return bool(stats.kstest(sample / sigma, "norm").pvalue > 1e-6)


def noise_of(defence: mx.defences.Defence, size: int = 20_000) -> np.ndarray:
    return np.asarray(defence.perturb(KEY, {"w": jnp.zeros(size)})["w"], np.float64)


clip = jax.jit(mx.defences.clipped(1.5).perturb)


@fixed
@hypothesis.given(
    hnp.arrays(np.float32, 6, elements=st.floats(-100, 100, width=32)),
    hnp.arrays(np.float32, (2, 2), elements=st.floats(-100, 100, width=32)),
)
def test_clipping_bounds_the_norm_and_leaves_short_updates_alone(
    bias: np.ndarray, kernel: np.ndarray
) -> None:
    update = {"b": jnp.asarray(bias), "w": jnp.asarray(kernel)}
    result = clip(KEY, update)
    length = np.linalg.norm(flat(update))
    assert np.linalg.norm(flat(result)) <= 1.5 * (1 + 1e-6)
    if length <= 1.5 * (1 - 1e-6):
        assert_equal(result, update)
    else:
        np.testing.assert_allclose(flat(result), flat(update) * 1.5 / length, rtol=1e-5, atol=1e-6)


def test_clipping_judges_the_whole_update_not_its_leaves() -> None:
    update = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([0.0, 4.0])}
    assert_close(
        mx.defences.clipped(3.5).perturb(KEY, update), jax.tree.map(lambda x: 0.7 * x, update)
    )
    assert_equal(mx.defences.clipped(5.0).perturb(KEY, update), update)


def test_clipping_leaves_zeros_and_takes_a_traced_norm() -> None:
    zeros = jax.tree.map(jnp.zeros_like, model())
    assert_equal(clip(KEY, zeros), zeros)
    sweep = jax.vmap(lambda norm: mx.defences.clipped(norm).perturb(KEY, model()))
    lengths = [
        np.linalg.norm(flat(jax.tree.map(lambda x, i=i: x[i], sweep(jnp.array([0.5, 2.0])))))
        for i in (0, 1)
    ]
    np.testing.assert_allclose(lengths, [0.5, 2.0], rtol=1e-5)


CLIPPED: dict[str, tuple[Any, Any]] = {
    "zero": (jnp.zeros(3), [0, 0, 0]),
    "short": (jnp.array([0.3, -0.4, 0.1]), [0.3, -0.4, 0.1]),
    "as long": (jnp.array([3.0, 4.0, 0.0]), [3.0, 4.0, 0.0]),
    "long": (jnp.array([6.0, 8.0, 0.0]), [3.0, 4.0, 0.0]),
    "integers": (jnp.array([6, 8, 0]), [3.0, 4.0, 0.0]),
    "short integers": (jnp.array([3, 0, -1], jnp.int8), [3, 0, -1]),
    "booleans": (jnp.ones(100, bool), [0.5] * 100),
    "halves whose squares overflow": (jnp.array([6e4, 0, 0], jnp.float16), [5.0, 0, 0]),
    "NaN": (jnp.array([1.0, jnp.nan, 0.0]), [1.0, np.nan, 0.0]),
    "infinite": (jnp.array([1.0, -jnp.inf, 0.0]), [np.nan] * 3),
    "a square beyond float32": (jnp.array([3e19, 1.0, 0.0], jnp.float32), [np.nan] * 3),
}


@pytest.mark.parametrize("name", CLIPPED)
def test_the_edge_cases_of_clipping(name: str) -> None:
    update, expected = CLIPPED[name]
    for perturb in (mx.defences.clipped(5.0).perturb, jax.jit(mx.defences.clipped(5.0).perturb)):
        result = perturb(KEY, {"w": update})["w"]
        np.testing.assert_allclose(np.asarray(result, np.float64), expected, rtol=2e-3)
    assert mx.defences.clipped(5.0).perturb(KEY, {}) == {}


def test_clipping_measures_narrow_and_mixed_floats_in_float32() -> None:
    update = {"a": jnp.full(1000, 0.01, jnp.bfloat16), "b": jnp.full(1000, 0.01, jnp.float32)}
    result = mx.defences.clipped(0.1).perturb(KEY, update)
    assert (result["a"].dtype, result["b"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(np.linalg.norm(flat(result)), 0.1, rtol=2e-3)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 30.0])
def test_noise_is_gaussian_of_the_given_deviation(sigma: float) -> None:
    noise = noise_of(mx.defences.noisy_gradient(sigma))
    assert has_deviation(noise, sigma)
    assert is_gaussian(noise, sigma)
    for wrong in (2 / 3 * sigma, 3 / 2 * sigma, 1.05 * sigma):
        assert not has_deviation(noise, wrong)
    assert not is_gaussian(np.random.default_rng(0).laplace(0, np.sqrt(0.5), 20_000), 1)
    assert abs(noise.mean()) < 5 * sigma / np.sqrt(noise.size)


def test_noise_is_independent_between_leaves_and_between_keys() -> None:
    defence = mx.defences.noisy_gradient(1.0)
    update = {"a": jnp.zeros(10_000), "b": jnp.zeros(10_000)}
    one = defence.perturb(KEY, update)
    other = defence.perturb(jax.random.key(1), update)
    for first, second in ((one["a"], one["b"]), (one["a"], other["a"])):
        # a correlation of independent samples has standard error 1/√n
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(10_000)


@fixed
@hypothesis.given(st.integers(0, 2**31 - 1))
def test_no_noise_changes_nothing_and_noise_keeps_structure_and_dtypes(seed: int) -> None:
    update = model() | {"c": jnp.ones(3, jnp.bfloat16)}
    key = jax.random.key(seed)
    assert_equal(silent_jit(key, update), update)
    noisy = noisy_jit(key, update)
    assert jax.tree.structure(noisy) == jax.tree.structure(update)
    for leaf, result in zip(jax.tree.leaves(update), jax.tree.leaves(noisy), strict=True):
        assert (leaf.dtype, leaf.shape) == (result.dtype, result.shape)
        assert (leaf != result).any()


silent_jit = jax.jit(mx.defences.noisy_gradient(0.0).perturb)
noisy_jit = jax.jit(mx.defences.noisy_gradient(0.5).perturb)


def test_noise_adds_to_the_update_whatever_the_update() -> None:
    defence = mx.defences.noisy_gradient(0.5)
    zeros = jax.tree.map(jnp.zeros_like, model())
    added = jax.tree.map(jnp.subtract, defence.perturb(KEY, model(3.0)), model(3.0))
    assert_close(added, defence.perturb(KEY, zeros))


def test_noise_follows_clipping_and_is_not_clipped_itself() -> None:
    size, sigma = 20_000, 2.0
    update = {"w": jnp.full(size, 5.0)}
    defence = mx.defences.noisy_gradient(sigma, clip_norm=1.0)
    noisy = defence.perturb(KEY, update)
    clipped = mx.defences.clipped(1.0).perturb(KEY, update)
    noise = np.asarray(noisy["w"] - clipped["w"], np.float64)
    assert has_deviation(noise, sigma)
    for wrong in (2 / 3 * sigma, 3 / 2 * sigma, sigma / np.sqrt(size)):
        assert not has_deviation(noise, wrong)
    assert_close(mx.defences.noisy_gradient(0.0, clip_norm=1.0).perturb(KEY, update), clipped)


def test_composed_noises_are_independent_and_their_variances_add() -> None:
    both = mx.defences.compose(mx.defences.noisy_gradient(0.6), mx.defences.noisy_gradient(0.8))
    noise = noise_of(both)
    assert has_deviation(noise, 1.0)
    for wrong in (0.6, 0.8, 1.4):
        assert not has_deviation(noise, wrong)


def test_composed_defences_perturb_in_order() -> None:
    double = mx.defences.Defence(
        lambda key, update: jax.tree.map(lambda leaf: 2 * leaf, update), mx.mixing.keep()
    )
    clip_to_one = mx.defences.clipped(1.0)
    update = {"w": jnp.asarray([3.0, 4.0])}
    after = mx.defences.compose(clip_to_one, double).perturb(KEY, update)
    before = mx.defences.compose(double, clip_to_one).perturb(KEY, update)
    np.testing.assert_allclose(np.linalg.norm(after["w"]), 2, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(before["w"]), 1, rtol=1e-6)


def test_three_noises_are_independent_too() -> None:
    noises = [mx.defences.noisy_gradient(sigma) for sigma in (0.6, 0.48, 0.64)]
    noise = noise_of(mx.defences.compose(*noises))
    assert has_deviation(noise, 1.0)
    for wrong in (0.6 + 0.48 + 0.64, 0.88, 0.77):
        assert not has_deviation(noise, wrong)


def test_two_composed_defences_draw_the_keys_they_always_drew() -> None:
    noises = [mx.defences.noisy_gradient(sigma) for sigma in (0.6, 0.8)]
    update = model()
    first_key, second_key = jax.random.split(KEY)
    expected = noises[1].perturb(second_key, noises[0].perturb(first_key, update))
    assert_equal(mx.defences.compose(*noises).perturb(KEY, update), expected)


def test_of_one_defence_it_is_that_one() -> None:
    one = mx.defences.mixnn()
    assert mx.defences.compose(one) is one


FRACTIONS = (0.01, 0.07, 0.3, 0.5, 1.0)
top_k_jits = {fraction: jax.jit(mx.defences.top_k(fraction).perturb) for fraction in FRACTIONS}


def slow_top_k(values: np.ndarray, fraction: float) -> np.ndarray:
    """Pick the largest one by one; `max` takes the first of equal ones."""
    count = -(-round(100 * fraction) * len(values) // 100)
    kept: list[int] = []
    for _ in range(count):
        rest = [index for index in range(len(values)) if index not in kept]
        kept.append(max(rest, key=lambda index: abs(values[index])))
    return np.array([value if index in kept else 0 for index, value in enumerate(values)])


@fixed
@hypothesis.given(
    # few distinct values make ties; tiny and huge ones have bits of their own
    hnp.arrays(np.float32, 100, elements=st.sampled_from([0, 1e-45, -1, 1, 2, -2, 3e38, -0.0]))
    | hnp.arrays(np.float32, 100, elements=st.floats(width=32, allow_nan=False)),
    st.sampled_from(FRACTIONS),
)
def test_top_k_keeps_exactly_the_largest_of_the_whole_update(
    values: np.ndarray, fraction: float
) -> None:
    update = {"a": jnp.asarray(values[:60].reshape(6, 10)), "b": jnp.asarray(values[60:])}
    result = top_k_jits[fraction](KEY, update)
    np.testing.assert_array_equal(flat(result), slow_top_k(values, fraction))


@pytest.mark.parametrize(
    ("fraction", "size", "count"), [(0.07, 100, 7), (0.1, 31, 4), (1e-9, 5, 1)]
)
def test_top_k_counts_in_decimals_and_rounds_up(fraction: float, size: int, count: int) -> None:
    kept = mx.defences.top_k(fraction).perturb(KEY, {"a": jnp.ones(size)})["a"]
    np.testing.assert_array_equal(kept, np.arange(size) < count)


def test_top_k_compares_narrow_and_wide_floats_and_keeps_nan() -> None:
    update = {
        "a": jnp.asarray([1, 3], jnp.bfloat16),
        "b": jnp.array([2.0, jnp.nan, -jnp.inf], jnp.float32),
    }
    result = mx.defences.top_k(0.6).perturb(KEY, update)
    assert (result["a"].dtype, result["b"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(flat(result), [0, 3, 0, np.nan, -np.inf])
    with jax.enable_x64(True):
        close_by = jnp.asarray([1.0, 1.0 + 1e-12, -1.0 - 2e-12])
        kept = mx.defences.top_k(0.6).perturb(KEY, {"a": close_by})["a"]
    np.testing.assert_array_equal(kept, [0, 1 + 1e-12, -1 - 2e-12])


PERTURBING = {
    "none": mx.defences.none(),
    "clipped": mx.defences.clipped(1.0),
    "noisy": mx.defences.noisy_gradient(0.3),
    "top_k": mx.defences.top_k(0.3),
    "clipped_noisy_mixed": mx.defences.compose(
        mx.defences.noisy_gradient(0.3, clip_norm=1.0), mx.defences.mixnn()
    ),
}


@pytest.mark.parametrize("name", PERTURBING)
def test_perturbations_are_the_same_eager_jitted_and_vmapped(name: str) -> None:
    perturb = PERTURBING[name].perturb
    keys = jax.random.split(KEY, 3)
    updates = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), model())
    mapped = jax.vmap(perturb)(keys, updates)
    jitted = jax.jit(perturb)
    for row, key in enumerate(keys):
        one = jax.tree.map(lambda leaf, row=row: leaf[row], updates)
        assert_close(perturb(key, one), jitted(key, one))
        assert_close(perturb(key, one), jax.tree.map(lambda leaf, row=row: leaf[row], mapped))


DEFENCES = {
    "none": (mx.defences.none(), mx.mixing.keep()),
    "clipped": (mx.defences.clipped(1.0), mx.mixing.keep()),
    "noisy": (mx.defences.noisy_gradient(1.0), mx.mixing.keep()),
    "top_k": (mx.defences.top_k(0.5), mx.mixing.keep()),
    "shuffle": (mx.defences.shuffle(), mx.mixing.shuffle()),
    "mixnn": (mx.defences.mixnn(), mx.mixing.full_round()),
    "mixnn_2": (mx.defences.mixnn(2), mx.mixing.proxy(2)),
    "mixnn_shuffle": (
        mx.defences.compose(mx.defences.mixnn(), mx.defences.shuffle()),
        mx.mixing.compose(mx.mixing.full_round(), mx.mixing.shuffle()),
    ),
    "mixnn_shuffle_mixnn_2": (
        mx.defences.compose(mx.defences.mixnn(), mx.defences.shuffle(), mx.defences.mixnn(2)),
        mx.mixing.compose(mx.mixing.full_round(), mx.mixing.shuffle(), mx.mixing.proxy(2)),
    ),
    "clipped_none": (
        mx.defences.compose(mx.defences.clipped(1.0), mx.defences.none()),
        mx.mixing.keep(),
    ),
}


@pytest.fixture(scope="module")
def origins() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each defence `[draws, slot, unit]`, and the same of the mixing it stands for."""

    def draw(key: jax.Array) -> Any:
        return {
            name: (defence.mix(key, ACTIVE, 2), mix(key, ACTIVE, 2))
            for name, (defence, mix) in DEFENCES.items()
        }

    drawn = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 50))
    return jax.tree.map(np.asarray, drawn)


@pytest.mark.parametrize("name", DEFENCES)
def test_each_defence_draws_the_mixing_it_names(
    name: str, origins: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    drawn, expected = origins[name]
    np.testing.assert_array_equal(drawn, expected)
    together = (drawn[..., 0] == drawn[..., 1]).all()
    assert together == ("mixnn" not in name)
    kept = (drawn[..., 0] == np.arange(len(ACTIVE))).all()
    assert kept == ("mixnn" not in name and name != "shuffle")


@pytest.mark.parametrize("name", ["none", "shuffle", "mixnn", "mixnn_2"])
def test_mixing_defences_leave_each_clients_update_alone(name: str) -> None:
    assert_equal(DEFENCES[name][0].perturb(KEY, model()), model())


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32, jnp.bool_])
def test_noise_on_integers_is_noise_on_their_floats(dtype: Any) -> None:
    whole = {"w": jnp.array([0, 1, 1, 0]).astype(dtype)}
    perturb = mx.defences.noisy_gradient(0.3).perturb
    noisy = perturb(KEY, whole)
    assert noisy["w"].dtype == jnp.float32
    assert_equal(noisy, perturb(KEY, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), whole)))
