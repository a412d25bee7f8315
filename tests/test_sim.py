"""∇Sim and the statistics it sees: cosines, equidistant models, planted effects."""

from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import single

import mixjax as mx

sim = mx.attacks.sim
fixed = hypothesis.settings(derandomize=True, deadline=None, max_examples=25)
scores_jit = jax.jit(sim.scores)
cosine, unit_cosine = jax.jit(sim.cosine), jax.jit(sim.unit_cosine)
circumcenter = jax.jit(sim.circumcenter)
statistics_of = jax.jit(sim.statistics, static_argnums=2)
mix_statistics = jax.jit(sim.mix_statistics)
apply = jax.jit(mx.mixing.apply, static_argnums=2)
GRANULARITIES = [
    *("model", "layer", "leaf", "neurons", "coordinates"),
    *(mx.units.chunks(5), mx.units.chunks(25), lambda path: path[0][0]),
]


class Dense(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def model_stack(seed: int, count: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(count, *shape)), jnp.float32)

    return {"conv": {"w": normal(3, 2)}, "dense": Dense(normal(6, 3), normal(3)), "gain": normal()}


def first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def rows_of(stack: Any) -> np.ndarray:
    parts = [np.reshape(leaf, (leaf.shape[0], -1)) for leaf in jax.tree.leaves(stack)]
    return np.concatenate(parts, axis=1).astype(np.float64)


def permutations(clients: int, units: int, seed: int = 0) -> jax.Array:
    columns = np.tile(np.arange(clients)[:, None], (1, units))
    return jnp.asarray(np.random.default_rng(seed).permuted(columns, axis=0))


def labels_of(units: mx.units.Units) -> np.ndarray:
    """The unit of each parameter in flatten order."""
    return np.concatenate([labels.flat() for labels in units.labels])


def loop_cosine(updates: np.ndarray, directions: np.ndarray) -> np.ndarray:
    scores = np.zeros((len(updates), len(directions)))
    for slot, update in enumerate(updates):
        for attribute, direction in enumerate(directions):
            lengths = np.linalg.norm(update) * np.linalg.norm(direction)
            scores[slot, attribute] = update @ direction / lengths if lengths else 0
    return scores


def close(tree: Any, other: Any, atol: float = 1e-5) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), tree, other)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_statistics_cosines_and_unit_cosines_agree_with_loops(
    granularity: mx.units.Granularity,
) -> None:
    updates, directions = model_stack(0, 5), model_stack(1, 3)
    units = mx.units.partition(first(updates), granularity)
    statistics = statistics_of(updates, directions, units)
    labels, x, r = labels_of(units), rows_of(updates), rows_of(directions)
    unit_scores = unit_cosine(statistics)
    for unit in range(len(units.names)):
        mine, theirs = x[:, labels == unit], r[:, labels == unit]
        close(statistics.dots[:, unit], mine @ theirs.T)
        close(statistics.squared_norms[:, unit], (mine**2).sum(1))
        close(statistics.direction_squared_norms[unit], (theirs**2).sum(1))
        close(unit_scores[:, unit], loop_cosine(mine, theirs))
    close(cosine(statistics), loop_cosine(x, r))
    close(scores_jit(updates, directions), loop_cosine(x, r))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_mixing_statistics_agrees_with_mixing_updates(granularity: mx.units.Granularity) -> None:
    updates, directions = model_stack(0, 7), model_stack(1, 2)
    units = mx.units.partition(first(updates), granularity)
    origins = permutations(7, len(units.names))
    plain = statistics_of(updates, directions, units)
    permuted = mix_statistics(origins, plain)
    gathered = apply(origins, updates, units)
    close(permuted, statistics_of(gathered, directions, units))
    close(cosine(permuted), scores_jit(gathered, directions))
    if len(units.names) > 1:
        assert not np.allclose(cosine(permuted), cosine(plain), atol=1e-3)


def test_many_mixings_of_one_rounds_statistics_agree_with_each_alone() -> None:
    updates, directions = model_stack(0, 7), model_stack(1, 2)
    units = mx.units.partition(first(updates))
    statistics = statistics_of(updates, directions, units)
    draws = jnp.stack([permutations(7, len(units.names), seed) for seed in range(4)])

    def attack(origins: jax.Array) -> jax.Array:
        return cosine(mix_statistics(origins, statistics))

    mapped = jax.jit(jax.vmap(attack))(draws)
    close(mapped, jnp.stack([jax.jit(attack)(origins) for origins in draws]))
    eager = sim.mix_statistics(draws[0], statistics)
    close(mapped[0], sim.cosine(eager))


def test_the_multiset_of_unit_scores_is_the_same_before_and_after_mixing() -> None:
    updates, directions = model_stack(0, 7), model_stack(1, 2)
    units = mx.units.partition(first(updates))
    origins = permutations(7, len(units.names))
    plain = statistics_of(updates, directions, units)
    mixed = mix_statistics(origins, plain)
    np.testing.assert_array_equal(
        np.sort(unit_cosine(plain), axis=0), np.sort(unit_cosine(mixed), axis=0)
    )


def test_scores_are_zero_where_either_vector_is_zero() -> None:
    updates = jax.tree.map(lambda leaf: leaf.at[1].set(0), model_stack(0, 3))
    directions = jax.tree.map(lambda leaf: leaf.at[0].set(0), model_stack(1, 2))
    scores = np.asarray(scores_jit(updates, directions))
    assert (scores[1] == 0).all()
    assert (scores[:, 0] == 0).all()
    assert (scores[[0, 2], 1] != 0).all()
    units = mx.units.partition(first(updates))
    by_unit = np.asarray(unit_cosine(statistics_of(updates, directions, units)))
    assert (by_unit[1] == 0).all()
    assert np.isfinite(by_unit).all()


@fixed
@hypothesis.given(seed=st.integers(0, 99), power=st.integers(-12, 12))
def test_scores_are_bounded_and_blind_to_length(seed: int, power: int) -> None:
    updates, directions = model_stack(seed, 4), model_stack(seed + 100, 2)
    scores = np.asarray(scores_jit(updates, directions))
    assert np.abs(scores).max() <= 1 + 1e-5
    longer = jax.tree.map(lambda leaf: leaf * 2.0**power, updates)
    np.testing.assert_allclose(scores_jit(longer, directions), scores, atol=1e-6)
    np.testing.assert_allclose(
        np.diagonal(scores_jit(directions, directions)), np.ones(2), atol=1e-5
    )


def test_scores_are_the_same_eager_jitted_and_vmapped() -> None:
    updates, directions = model_stack(0, 4), model_stack(1, 2)
    eager = sim.scores(updates, directions)
    close(eager, scores_jit(updates, directions))
    rounds = jax.tree.map(lambda leaf: jnp.stack([leaf, 1 - leaf]), updates)
    close(eager, jax.vmap(sim.scores, (0, None))(rounds, directions)[0])


def test_the_gradient_of_scores_is_that_of_the_cosine_and_finite_at_zero() -> None:
    updates, directions = model_stack(0, 4), model_stack(1, 2)
    updates = jax.tree.map(lambda leaf: leaf.at[2].set(0), updates)
    gradient = rows_of(
        jax.jit(jax.grad(lambda u: jnp.sum(scores_jit(u, directions)[:, 1])))(updates)
    )
    assert np.isfinite(gradient).all()
    x, r = rows_of(updates), rows_of(directions)[1]
    for slot in (0, 1, 3):
        length = np.linalg.norm(x[slot])
        cosine = x[slot] @ r / length / np.linalg.norm(r)
        expected = (r / np.linalg.norm(r) - cosine * x[slot] / length) / length
        np.testing.assert_allclose(gradient[slot], expected, atol=1e-5)


def orthonormal_directions(count: int, units: mx.units.Units) -> np.ndarray:
    """Directions whose parts in each unit are orthonormal."""
    labels, rows = labels_of(units), np.zeros((count, len(labels_of(units))))
    rng = np.random.default_rng(0)
    for unit in range(len(units.names)):
        inside = labels == unit
        rows[:, inside] = np.linalg.qr(rng.normal(size=(inside.sum(), count)))[0].T
    return rows


def as_stack(rows: np.ndarray) -> Any:
    template = model_stack(0, 1)
    leaves, structure = jax.tree.flatten(template)
    cuts = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = zip(np.split(rows, cuts, axis=1), leaves, strict=True)
    return jax.tree.unflatten(
        structure,
        [
            jnp.asarray(part.reshape(len(rows), *leaf.shape[1:]), jnp.float32)
            for part, leaf in parts
        ],
    )


def test_planted_attributes_are_recognised_and_follow_the_units_when_mixed() -> None:
    # with orthonormal directions the right one wins for sure under noise shorter than 1/√2
    units = mx.units.partition(first(model_stack(0, 1)), lambda path: str(path[0] == "conv"))
    directions = orthonormal_directions(3, units)
    truth, labels = np.arange(12) % 3, labels_of(units)
    noise = np.random.default_rng(1).normal(size=(12, len(labels)))
    for unit in range(2):
        part = noise[:, labels == unit]
        noise[:, labels == unit] = 0.6 * part / np.linalg.norm(part, axis=1, keepdims=True)
    updates, stacked = as_stack(directions[truth] + noise), as_stack(directions)
    np.testing.assert_array_equal(jnp.argmax(scores_jit(updates, stacked), 1), truth)
    np.testing.assert_array_equal(
        jnp.argmax(scores_jit(updates, as_stack(-directions)), 1) == truth, False
    )
    origins = permutations(12, 2)
    mixed = mix_statistics(origins, statistics_of(updates, stacked, units))
    guesses = jnp.argmax(unit_cosine(mixed), axis=2)
    np.testing.assert_array_equal(guesses, truth[np.asarray(origins)])


def distances(center: Any, points: Any) -> np.ndarray:
    return np.linalg.norm(rows_of(points) - flat(center), axis=1)


def flat(tree: Any) -> np.ndarray:
    return rows_of(jax.tree.map(lambda leaf: leaf[None], tree))[0]


@pytest.mark.parametrize("attributes", [2, 3, 4])
def test_the_circumcenter_is_equidistant_and_follows_the_formula(attributes: int) -> None:
    points = model_stack(attributes, attributes)
    center = circumcenter(points)
    apart = distances(center, points)
    np.testing.assert_allclose(apart, apart[0], rtol=1e-4)
    rows = rows_of(points)
    differences = rows[1:] - rows[0]
    gram = differences @ differences.T
    expected = rows[0] + np.linalg.solve(gram, np.diag(gram) / 2) @ differences
    np.testing.assert_allclose(flat(center), expected, atol=1e-4)
    # the mean of the points is a point of their hull too, but not this one
    unequal = distances(jax.tree.map(lambda leaf: leaf.mean(0), points), points)
    assert attributes == 2 or not np.allclose(unequal, unequal[0], rtol=1e-2)


def test_the_circumcenter_of_two_points_is_their_midpoint_and_of_one_place_the_place() -> None:
    points = model_stack(0, 2)
    close(circumcenter(points), jax.tree.map(lambda leaf: (leaf[0] + leaf[1]) / 2, points))
    same = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 3), points)
    close(circumcenter(same), first(points))


def test_the_circumcenter_is_the_same_eager_jitted_and_vmapped() -> None:
    rounds = jax.tree.map(lambda *leaves: jnp.stack(leaves), model_stack(0, 3), model_stack(1, 3))
    mapped = jax.vmap(sim.circumcenter)(rounds)
    close(first(mapped), circumcenter(model_stack(0, 3)), atol=1e-4)
    close(first(mapped), sim.circumcenter(model_stack(0, 3)), atol=1e-4)


def test_mixed_precision_models_have_scores_and_a_circumcenter() -> None:
    updates, directions = model_stack(0, 3), model_stack(1, 3)
    for stack in (updates, directions):
        stack["conv"]["w"] = stack["conv"]["w"].astype(jnp.bfloat16)
    expected = loop_cosine(rows_of(updates), rows_of(directions))
    close(scores_jit(updates, directions), expected)
    center = circumcenter(directions)
    assert center["conv"]["w"].dtype == jnp.bfloat16
    apart = distances(center, directions)
    np.testing.assert_allclose(apart, apart[0], rtol=1e-2)


def towards_the_mean(key: jax.Array, params: Any, data: mx.data.ClientData) -> Any:
    """Local training that moves half the way to the client's mean example, with a little noise."""
    count = jnp.maximum(data.counts, 1).astype(jnp.float32)
    center = jnp.sum(data.examples, axis=0) / count
    jitter = 0.1 * jax.random.normal(key, center.shape, center.dtype)
    update = {"a": 0.5 * (center - params["a"]) + jitter, "b": jnp.sin(center) - params["b"]}
    return mx.client.LocalResult(update, jnp.float32(0))


PARAMS = single({"a": jnp.asarray([1.0, -1.0, 2.0, 0.5]), "b": jnp.asarray([0.5, 0.0, 0.1, -0.3])})


def auxiliary_data(attributes: int) -> mx.data.ClientData:
    rng = np.random.default_rng(attributes)
    return mx.data.stack(
        [rng.normal(3 * a, 1, (4 + a, 4)).astype(np.float32) for a in range(attributes)]
    )


def prepared(attack: mx.attacks.Attack, key: jax.Array) -> mx.attacks.Probe:
    return jax.jit(lambda key, params: attack.prepare(key, params, towards_the_mean))(key, PARAMS)


@pytest.mark.parametrize("attributes", [2, 3, 4])
def test_the_active_server_sends_a_model_equidistant_from_the_attribute_models(
    attributes: int,
) -> None:
    auxiliary, key = auxiliary_data(attributes), jax.random.key(6)
    passive = prepared(sim.passive(auxiliary), key)
    active = prepared(sim.active(auxiliary), key)
    close(passive.params, PARAMS, atol=0)
    models = jax.tree.map(lambda a, b: a[None] + b, PARAMS, passive.references)
    apart = distances(active.params, models)
    np.testing.assert_allclose(apart, apart[0], rtol=1e-4)
    reached = jax.tree.map(lambda a, b: a[None] + b, active.params, active.references)
    close(reached, models, atol=1e-4)
    lengths = np.linalg.norm(rows_of(active.references), axis=1)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-4)
    unchanged = np.linalg.norm(rows_of(passive.references), axis=1)
    assert not np.allclose(unchanged, unchanged[0], rtol=1e-2)


def test_passive_directions_are_the_local_training_of_each_attribute() -> None:
    auxiliary, key = auxiliary_data(3), jax.random.key(7)
    found = sim.directions(key, PARAMS, auxiliary, towards_the_mean)
    for attribute in range(3):
        one = jax.tree.map(lambda leaf, a=attribute: leaf[a], auxiliary)
        client_key = mx.cohort.client_key(key, one.ids)
        alone = towards_the_mean(client_key, PARAMS, jax.tree.map(jnp.asarray, one)).update
        close(jax.tree.map(lambda leaf, a=attribute: leaf[a], found), alone)
    again = jax.jit(lambda key: sim.directions(key, PARAMS, auxiliary, towards_the_mean))(key)
    close(found, again)


def test_an_attacks_findings_are_the_scores_of_what_it_measured() -> None:
    updates, directions = model_stack(0, 4), model_stack(1, 2)
    probe = mx.attacks.Probe(first(updates), directions)
    for attack in (sim.passive(auxiliary_data(2)), sim.active(auxiliary_data(2))):
        for granularity in GRANULARITIES:
            units = mx.units.partition(first(updates), granularity)
            measured = mx.measures.of(attack.measure, probe, units, updates)
            observation = mx.observation.Observation(jnp.ones(4, bool), measured, None)
            found = attack.observe(jax.random.key(0), probe, observation)
            close(found, scores_jit(updates, directions))


def test_a_direction_that_is_not_finite_gives_scores_that_no_guess_is_made_of() -> None:
    updates = {"a": {"w": jnp.ones((3, 2))}, "b": {"w": jnp.ones((3, 4))}}
    directions = {
        "a": {"w": jnp.ones((2, 2)).at[1, 0].set(jnp.nan)},
        "b": {"w": jnp.ones((2, 4)).at[0].set(0)},
    }
    scores = np.asarray(mx.attacks.sim.scores(updates, directions))
    assert np.isfinite(scores[:, 0]).all()
    assert np.isnan(scores[:, 1]).all()
    with pytest.raises(mx.InputError, match="none of them NaN"):
        mx.evaluation.guesses(scores)
    units = mx.units.partition(jax.tree.map(lambda leaf: leaf[0], updates))
    terms = mx.attacks.sim.statistics(updates, directions, units)
    unit = np.asarray(mx.attacks.sim.unit_cosine(terms))
    # a unit of length zero has a cosine of zero, and only the broken one has none
    np.testing.assert_array_equal(np.isnan(unit[0]), [[False, True], [False, False]])
    np.testing.assert_array_equal(unit[:, 1, 0], 0)
