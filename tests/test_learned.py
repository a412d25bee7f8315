"""Directions that are learned from shadow people, and what they tell of others."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_equal, flat_rows

import mixjax as mx
from mixjax.attacks import learned, sim

PEOPLE, VALUES = 8, 2
TRUTH = np.arange(PEOPLE) % VALUES


def updates_of(seed: int, people: int = PEOPLE, effect: float = 1.0) -> Any:
    """A common part, a part of the attribute, and noise, in two layers."""
    rng = np.random.default_rng(seed)
    truth = np.arange(people) % VALUES
    common, own = np.random.default_rng(99).normal(size=(2, 30))
    rows = 5 * common + effect * np.where(truth, 1, -1)[:, None] * own
    rows = (rows + 0.5 * rng.normal(size=(people, 30))) * rng.uniform(1, 3, (people, 1))
    rows = rows.astype(np.float32)
    return {"a": jnp.asarray(rows[:, :20].reshape(people, 5, 4)), "b": jnp.asarray(rows[:, 20:])}


def terms_of(updates: Any, directions: Any) -> sim.Terms:
    units = mx.units.partition(jax.tree.map(lambda leaf: leaf[0], updates))
    return sim.Terms(*sim.statistics(updates, directions, units)[:2])


def test_the_weights_are_those_of_a_ridge_regression() -> None:
    rows = flat_rows(updates_of(0))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows -= rows.mean(axis=0)
    wanted = np.eye(VALUES)[TRUTH] - np.eye(VALUES)[TRUTH].mean(axis=0)
    strength = 0.3 * np.trace(rows @ rows.T) / PEOPLE
    # in the primal
    weights = np.linalg.solve(rows.T @ rows + strength * np.eye(30), rows.T @ wanted)
    found = flat_rows(learned.directions(updates_of(0), TRUTH, VALUES, ridge=0.3))
    np.testing.assert_allclose(found, (weights / np.linalg.norm(weights, axis=0)).T, atol=1e-4)


def test_it_tells_people_it_has_not_seen_and_better_than_cosines() -> None:
    directions = learned.directions(updates_of(0), TRUTH, VALUES)
    others = updates_of(1, 40)
    truth, everyone = np.arange(40) % VALUES, jnp.ones(40, bool)
    found = learned.scores(terms_of(others, directions), everyone)
    assert (np.argmax(found, axis=1) == truth).mean() > 0.95
    np.testing.assert_allclose(np.mean(found, axis=0), 0, atol=1e-6)
    # what all have in common hides the difference from a plain cosine
    weak, shadows = updates_of(2, 400, effect=0.1), updates_of(3, 40, effect=0.1)
    truth = np.arange(400) % VALUES
    pooled = jax.tree.map(
        lambda leaf: jnp.stack([leaf[np.arange(40) % VALUES == v].mean(axis=0) for v in (0, 1)]),
        shadows,
    )
    by_cosine = np.argmax(sim.scores(weak, pooled), axis=1) == truth
    directions = learned.directions(shadows, np.arange(40) % VALUES, VALUES)
    own = learned.scores(terms_of(weak, directions), jnp.ones(400, bool))
    by_learning = np.argmax(own, axis=1) == truth
    assert by_learning.mean() > by_cosine.mean()


def test_absent_and_broken_shadow_people_teach_nothing() -> None:
    updates = updates_of(0)
    broken = jax.tree.map(lambda leaf: leaf.at[-1].set(jnp.nan), updates)
    active = jnp.arange(PEOPLE) < PEOPLE - 1
    left_out = learned.directions(updates, TRUTH, VALUES, active=active)
    assert_equal(learned.directions(broken, TRUTH, VALUES), left_out)
    nothing = learned.directions(jax.tree.map(jnp.zeros_like, updates), TRUTH, VALUES)
    assert not flat_rows(nothing).any()


def test_units_are_told_alone_and_absent_slots_score_zero() -> None:
    directions = learned.directions(updates_of(0), TRUTH, VALUES)
    terms = terms_of(updates_of(1), directions)
    active = jnp.arange(PEOPLE) != 2
    found = learned.unit_scores(terms, active)
    assert found.shape == (PEOPLE, 2, VALUES)
    assert not found[2].any()
    # wherever a unit comes to lie, its score is its own
    origins = mx.mixing.full_round()(jax.random.key(0), active, 2)
    mixed = learned.unit_scores(mx.measures.mix(origins, terms), active)
    np.testing.assert_allclose(mixed, mx.measures.mix(origins, found), atol=1e-6)


def test_in_a_federation_it_is_an_attack_like_any_other() -> None:
    def local(key: Any, params: Any, data: Any) -> mx.client.LocalResult:
        del key
        move = {"a": params["a"] + data.examples["x"][0], "b": jnp.ones((), jnp.float32)}
        return mx.client.LocalResult(move, jnp.float32(0))

    data = mx.data.stack([{"x": np.full((1, 3), (-1.0) ** i, np.float32)} for i in range(6)])
    attack = learned.attack(mx.data.take(data, [0, 1, 2, 3]), [0, 1, 0, 1], 2)
    federation = mx.federation.fedavg(local, attack=attack)
    state = federation.init({"a": jnp.zeros(3, jnp.float32), "b": jnp.zeros((), jnp.float32)})
    _, records = mx.federation.run(jax.random.key(0), federation, state, data, 2)
    assert np.argmax(records.findings, axis=2).tolist() == [[0, 1] * 3] * 2


@pytest.mark.parametrize(
    ("attribute", "values"), [([0, 1], 2), ([0] * PEOPLE, 2), ([0, 3] * 4, 2), ([0.5] * 8, 2)]
)
def test_an_attribute_that_does_not_fit_is_refused(attribute: Any, values: int) -> None:
    with pytest.raises(mx.InputError, match="expected"):
        learned.directions(updates_of(0), attribute, values)
