"""Measures commute with mixing, bit by bit; sketches keep inner products as their law says."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixjax as mx

CLIENTS = 7
GRANULARITIES = ["model", "layer", "leaf", mx.units.chunks(5), "neurons", "coordinates"]


def stack(seed: int, count: int = CLIENTS) -> Any:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(count, *shape)), jnp.float32)

    return {"conv": {"w": normal(3, 2), "b": normal(2)}, "dense": {"w": normal(4, 3)}}


def one(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def energies(probe: Any, units: Any, update: Any) -> Any:
    squares = mx.units.squared_norms(units, update)
    return {"root": jnp.sqrt(squares), "large": squares > 3, "table": squares[:, None, None]}


def projected(probe: Any, units: Any, update: Any) -> Any:
    return mx.units.dots(units, update, probe.references)


def sketched(probe: Any, units: Any, update: Any) -> Any:
    return mx.measures.sketch(jax.random.key(0), units, update, 3)


MEASURES = {
    "energies": energies,
    "projected": projected,
    "sim": mx.attacks.sim.measure,
    "sketch": sketched,
}


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("name", MEASURES)
def test_the_measure_of_mixed_updates_is_the_mixed_measure(name: str, granularity: Any) -> None:
    updates = stack(0)
    units = mx.units.partition(one(updates), granularity)
    probe = mx.attacks.Probe(one(updates), stack(1, 4))
    origins = mx.mixing.full_round()(jax.random.key(0), jnp.arange(CLIENTS) != 2, len(units.names))

    def measure(updates: Any) -> Any:
        return mx.measures.of(MEASURES[name], probe, units, updates)

    def both(updates: Any) -> Any:
        mixed = mx.mixing.apply(origins, updates, units)
        return measure(mixed), mx.measures.mix(origins, measure(updates))

    jax.tree.map(np.testing.assert_array_equal, *jax.jit(both)(updates))
    of_mixed, mixed = both(updates)
    jax.tree.map(np.testing.assert_array_equal, of_mixed, mixed)
    leaves = zip(*map(jax.tree.leaves, (measure(updates), mixed)), strict=True)
    assert any(np.any(np.asarray(plain) != np.asarray(moved)) for plain, moved in leaves)


def test_mixing_measures_agrees_with_a_loop_and_vmaps() -> None:
    rows = {"a": jnp.arange(24).reshape(4, 3, 2), "b": (jnp.arange(12.0).reshape(4, 3) > 5)}
    draws = np.stack([np.random.default_rng(i).permuted(np.tile(np.arange(4)[:, None], 3), axis=0)
                      for i in range(5)])  # fmt: skip
    mapped = jax.vmap(mx.measures.mix, (0, None))(jnp.asarray(draws), rows)
    for draw, origins in enumerate(draws):
        for slot in range(4):
            for unit in range(3):
                owner = origins[slot, unit]
                assert mapped["b"][draw, slot, unit] == rows["b"][owner, unit]
                np.testing.assert_array_equal(mapped["a"][draw, slot, unit], rows["a"][owner, unit])


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_sketches_keep_inner_products_as_their_law_says(granularity: Any) -> None:
    keys, updates = 2000, stack(2)
    first, second = one(updates), jax.tree.map(lambda leaf: leaf[1], updates)
    units = mx.units.partition(first, granularity)
    width = 4

    def products(key: Any) -> Any:
        a, b = (mx.measures.sketch(key, units, update, width) for update in (first, second))
        return jnp.sum(a * b, axis=1), a

    drawn = jax.vmap(products)(jax.random.split(jax.random.key(5), keys))
    found, rows = map(np.asarray, drawn)
    exact = np.asarray(mx.units.dots(units, first, jax.tree.map(lambda leaf: leaf[None], second)))
    exact = exact[:, 0]
    lengths = [np.asarray(mx.units.squared_norms(units, update)) for update in (first, second)]
    deviation = np.sqrt(2 / width * lengths[0] * lengths[1])
    # unbiased, and no wider than stated
    assert np.all(np.abs(found.mean(axis=0) - exact) <= 5 * deviation / np.sqrt(keys) + 1e-6)
    assert np.all(np.sqrt(np.mean((found - exact) ** 2, axis=0)) <= 1.1 * deviation + 1e-6)
    # signs of different coordinates have nothing to do with one another
    assert np.all(np.abs(rows.mean(axis=0)) <= 6 * np.sqrt(lengths[0] / keys)[:, None])


def test_a_sketch_is_linear_and_follows_from_its_key() -> None:
    updates = stack(3)
    units = mx.units.partition(one(updates))
    draw = functools.partial(mx.measures.sketch, units=units, width=8)
    rows = [
        draw(jax.random.key(1), update=jax.tree.map(lambda leaf, i=i: leaf[i], updates))
        for i in range(2)
    ]
    mixed = jax.tree.map(lambda leaf: 2 * leaf[0] - leaf[1], updates)
    jitted = jax.jit(draw)(jax.random.key(1), update=mixed)
    np.testing.assert_allclose(jitted, 2 * rows[0] - rows[1], rtol=0, atol=1e-5)
    assert np.mean(np.asarray(draw(jax.random.key(2), update=one(updates))) != rows[0]) > 0.3


@pytest.mark.usefixtures("unchecked")
def test_measures_of_other_shapes_are_refused() -> None:
    origins = jnp.tile(jnp.arange(4)[:, None], (1, 3))
    with pytest.raises(mx.InputError, match=r"\[clients, units, ...\] for origins of 3 units; got"):
        mx.measures.mix(origins, {"a": jnp.ones((4, 2))})
    with pytest.raises(mx.InputError, match=r"origins of shape \[5, 3\]"):
        mx.measures.mix(origins, jnp.ones((5, 3)))
    with pytest.raises(mx.InputError, match="a measure"):
        mx.measures.of(None, None, None, stack(0))
    units = mx.units.partition(one(stack(0)))
    with pytest.raises(mx.InputError, match="width"):
        mx.measures.sketch(jax.random.key(0), units, one(stack(0)), 0)
    with pytest.raises(mx.InputError, match="the update"):
        mx.measures.sketch(jax.random.key(0), units, {"a": jnp.ones(2)}, 4)
