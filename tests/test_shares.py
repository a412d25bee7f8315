"""Additive shares: their sum is the update's, and their correlation gives them away."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, flat_rows

import mixjax as mx
from mixjax import shares

CLIENTS = 6


def updates() -> Any:
    rng = np.random.default_rng(0)
    return {
        "a": jnp.asarray(rng.normal(size=(CLIENTS, 30, 20)), jnp.float32),
        "b": {"w": jnp.asarray(rng.normal(size=(CLIENTS, 500)), jnp.float32)},
    }


@pytest.mark.parametrize("count", [2, 3, 5])
def test_shares_sum_to_updates_and_each_is_noise(count: int) -> None:
    split = shares.split(jax.random.key(0), updates(), count, 10.0)
    summed = jax.tree.map(
        lambda leaf: leaf.reshape(CLIENTS, count, *leaf.shape[1:]).sum(axis=1), split
    )
    assert_close(summed, updates(), rtol=1e-4, atol=1e-4)
    rows, own = flat_rows(split), flat_rows(updates()).repeat(count, axis=0)
    cosines = np.sum(rows * own, axis=1) / np.linalg.norm(rows, axis=1)
    cosines /= np.linalg.norm(own, axis=1)
    # a share of x / count beside noise ten times as long
    assert np.abs(cosines).max() < 0.2
    mean = jax.tree.map(lambda leaf: count * leaf.mean(axis=0), split)
    assert_close(mean, jax.tree.map(lambda leaf: leaf.mean(axis=0), updates()), atol=1e-3)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_mixed_shares_are_joined_by_their_correlation(count: int) -> None:
    split = shares.split(jax.random.key(0), updates(), count, 10.0)
    rows = CLIENTS * count
    origins = mx.mixing.full_round()(jax.random.key(1), jnp.ones(rows, bool), 2)
    units = mx.units.partition(jax.tree.map(lambda leaf: leaf[0], split))
    groups, joined = shares.join(mx.mixing.apply(origins, split, units), count)
    owners = np.asarray(origins) // count
    for unit in range(2):
        own = np.asarray(groups)[:, unit]
        assert all(len(set(owners[own == group, unit])) == 1 for group in range(CLIENTS))
    # the sums are the updates of whoever they are, unit by unit
    for one, other in zip(jax.tree.leaves(joined), jax.tree.leaves(updates()), strict=True):
        gaps = np.abs(np.asarray(one)[:, None] - np.asarray(other)[None])
        assert (gaps.reshape(CLIENTS, CLIENTS, -1).max(axis=2).min(axis=1) < 1e-3).all()


def test_shares_without_noise_can_not_be_told_from_chance() -> None:
    rng = np.random.default_rng(0)
    noise = {"w": jnp.asarray(rng.normal(size=(20, 400)), jnp.float32), "b": jnp.zeros(20)}
    groups, _ = shares.join(noise, 2)
    right = [groups[2 * at, 1] == groups[2 * at + 1, 1] for at in range(10)]
    assert np.mean(right) < 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: shares.split(jax.random.key(0), updates(), 1, 1.0),
        lambda: shares.split(jax.random.key(0), updates(), 2, -1.0),
        lambda: shares.join(updates(), 4),
    ],
)
def test_what_makes_no_shares_is_refused(call: Any) -> None:
    with pytest.raises(mx.InputError, match="expected"):
        call()
