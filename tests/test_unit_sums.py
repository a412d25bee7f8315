"""Inner products and squared norms, unit by unit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixjax as mx


class Dense(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def label_of_each_parameter(units: mx.units.Units) -> np.ndarray:
    return np.concatenate([labels.flat() for labels in units.labels])


def random_model(seed: int, *leading: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(*leading, *shape)), jnp.float32)

    return {
        "conv": {"kernel": normal(5, 2, 2)},
        "dense": Dense(normal(7, 3), normal(3)),
        "gain": normal(),
    }


dots_jit = jax.jit(mx.units.dots, static_argnums=0)
squared_norms_jit = jax.jit(mx.units.squared_norms, static_argnums=0)

GRANULARITIES = [
    "model",
    "layer",
    "leaf",
    mx.units.chunks(1),
    mx.units.chunks(4),
    mx.units.chunks(40),
    "neurons",
    "coordinates",
    lambda path, shape: np.arange(int(np.prod(shape))).reshape(shape) % 3,
    lambda path: "gain" if path[-1] in ("gain", "bias") else "rest",
]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_dots_and_norms_agree_with_a_loop_over_parameters(
    granularity: mx.units.Granularity,
) -> None:
    update = random_model(0)
    directions = random_model(1, 3)
    units = mx.units.partition(update, granularity)
    labels = label_of_each_parameter(units)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(update)]).astype(np.float64)
    rows = np.concatenate(
        [np.reshape(leaf, (3, -1)) for leaf in jax.tree.leaves(directions)], axis=1
    ).astype(np.float64)
    dots, squares = np.zeros((len(units.names), 3)), np.zeros(len(units.names))
    for element, unit in enumerate(labels):
        dots[unit] += flat[element] * rows[:, element]
        squares[unit] += flat[element] ** 2
    np.testing.assert_allclose(dots_jit(units, update, directions), dots, atol=1e-5)
    np.testing.assert_allclose(squared_norms_jit(units, update), squares, rtol=1e-5)


def test_sums_of_narrow_floats_and_integers_accumulate_in_float32() -> None:
    # a bfloat16 sum of ones sticks at 256, a sum of int8 squares wraps
    model = {"a": jnp.ones(1024, jnp.bfloat16), "b": jnp.full(512, 100, jnp.int8)}
    units = mx.units.partition(model)
    expected = [1024, 512 * 100**2]
    squares = mx.units.squared_norms(units, model)
    dots = mx.units.dots(units, model, jax.tree.map(lambda leaf: leaf[None], model))
    assert squares.dtype == dots.dtype == jnp.float32
    np.testing.assert_array_equal(squares, expected)
    np.testing.assert_array_equal(dots[:, 0], expected)


@pytest.mark.parametrize("granularity", ["layer", "neurons", mx.units.chunks(40)])
def test_dots_and_norms_are_the_same_eager_jitted_and_vmapped(
    granularity: mx.units.Granularity,
) -> None:
    updates, directions = random_model(0, 5), random_model(1, 2)
    one = jax.tree.map(lambda leaf: leaf[0], updates)
    units = mx.units.partition(one, granularity)

    def both(update: object) -> tuple[jax.Array, jax.Array]:
        return mx.units.dots(units, update, directions), mx.units.squared_norms(units, update)

    eager = both(one)
    jitted = jax.jit(both)(one)
    mapped = jax.tree.map(lambda leaf: leaf[0], jax.vmap(both)(updates))
    for other in (jitted, mapped):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), eager, other)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_gradient_of_squared_norms_is_twice_the_update(
    granularity: mx.units.Granularity,
) -> None:
    update = random_model(0)
    units = mx.units.partition(update, granularity)
    weights = jnp.arange(1.0, len(units.names) + 1, dtype=jnp.float32)
    gradient = jax.grad(lambda update: weights @ mx.units.squared_norms(units, update))(update)
    for leaf, own, labels in zip(
        *map(jax.tree.leaves, (update, gradient)), units.labels, strict=True
    ):
        expected = 2 * leaf * weights[np.broadcast_to(labels.array, labels.shape)]
        np.testing.assert_allclose(own, expected, rtol=1e-6)
