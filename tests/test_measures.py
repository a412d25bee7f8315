"""Measures commute with mixing, bit by bit; random projections keep lengths as their law says."""

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


MEASURES = {"energies": energies, "projected": projected, "sim": mx.attacks.sim.measure}


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


def test_random_projections_keep_inner_products_as_their_law_says() -> None:
    count = 4096
    params, updates = one(stack(0)), stack(2)
    signs = mx.measures.random_directions(jax.random.key(5), params, count)
    flat = np.concatenate([np.reshape(leaf, (count, -1)) for leaf in jax.tree.leaves(signs)], 1)
    np.testing.assert_array_equal(np.abs(flat), 1)
    size = flat.size
    assert abs(flat.sum()) < 5 * np.sqrt(size)
    # columns are independent: a correlation has deviation 1/sqrt(count)
    correlation = flat.T @ flat / count - np.eye(flat.shape[1])
    assert np.abs(correlation).max() < 6 / np.sqrt(count)
    units = mx.units.partition(params)
    rows = mx.measures.of(projected, mx.attacks.Probe(params, signs), units, updates)
    exact = jax.vmap(mx.units.squared_norms, (None, 0))(units, updates)
    ratio = np.asarray(jnp.sum(rows**2, axis=-1) / count / exact)
    # the variance of a squared projection is at most twice its mean squared
    assert np.abs(ratio - 1).max() < 5 * np.sqrt(2 / count)
    assert np.abs(ratio / 1.5 - 1).min() > 5 * np.sqrt(2 / count)


def test_random_directions_follow_from_key_and_count() -> None:
    params = one(stack(0))
    draw = mx.measures.random_directions
    eager = draw(jax.random.key(1), params, 8)
    jitted = jax.jit(lambda key: draw(key, params, 8))(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, eager, jitted)
    shapes = jax.eval_shape(lambda: params)
    jax.tree.map(np.testing.assert_array_equal, eager, draw(jax.random.key(1), shapes, 8))
    other = draw(jax.random.key(2), params, 8)
    assert np.any(np.asarray(other["dense"]["w"]) != np.asarray(eager["dense"]["w"]))


@pytest.mark.usefixtures("unchecked")
def test_measures_of_other_shapes_are_refused() -> None:
    origins = jnp.tile(jnp.arange(4)[:, None], (1, 3))
    with pytest.raises(mx.InputError, match=r"\[clients, units, ...\] for origins of 3 units; got"):
        mx.measures.mix(origins, {"a": jnp.ones((4, 2))})
    with pytest.raises(mx.InputError, match=r"origins of shape \[5, 3\]"):
        mx.measures.mix(origins, jnp.ones((5, 3)))
    with pytest.raises(mx.InputError, match="a measure"):
        mx.measures.of(None, None, None, stack(0))
