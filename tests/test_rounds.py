"""The functions of a round, one by one."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import single

import mixjax as mx

KEY = jax.random.key(2)
PARAMS = single(
    {"in": {"w": jnp.array([[0.5, 0.1], [-0.3, 0.2]])}, "out": {"w": jnp.array([0.4, -0.6])}}
)
COUNTS = (3, 0, 2, 4, 1)


def words(key: Any) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def cohort() -> mx.data.ClientData:
    rng = np.random.default_rng(0)
    people = [{"x": rng.normal(size=(4, 2)).astype(np.float32)} for _ in COUNTS]
    data = mx.data.stack(people)
    return data._replace(
        counts=jnp.array(COUNTS, jnp.int32), active=jnp.array([True, True, True, False, True])
    )


def local(key: Any, params: Any, data: Any) -> Any:
    mean = jnp.sum(data.examples["x"], axis=0) * data.counts.astype(jnp.float32)
    update = {
        "in": {"w": jnp.outer(mean, mean)},
        "out": {"w": mean + jax.random.uniform(key, (), jnp.float32)},
    }
    return mx.client.LocalResult(update, jnp.sum(mean))


def test_no_two_keys_of_a_run_are_the_same() -> None:
    found = []
    for number in range(4):
        keys = mx.rounds.round_keys(KEY, number)
        found += [*keys[1:]]
        for client in (0, 1, 7):
            found += [*mx.rounds.client_keys(keys.clients, client)]
        found += [*mx.rounds.attack_keys(jnp.uint32(9), number)]
    assert len({words(key) for key in found}) == len(found)
    again = jax.jit(mx.rounds.round_keys)(KEY, jnp.int32(3))
    assert [words(key) for key in again] == [words(key) for key in mx.rounds.round_keys(KEY, 3)]


def test_the_keys_of_a_round_are_these() -> None:
    # a contract: a seed's training and origins stay the same from version to version
    whole = jax.random.fold_in(KEY, 5)
    keys = mx.rounds.round_keys(KEY, 5)
    clients, mix, _ = jax.random.split(whole, 3)
    assert (words(keys.clients), words(keys.mix)) == (words(clients), words(mix))
    assert words(keys.participation) == words(jax.random.fold_in(whole, 0x9A57))
    train, perturb = jax.random.split(jax.random.fold_in(clients, 11))
    own = mx.rounds.client_keys(keys.clients, 11)
    assert (words(own.train), words(own.perturb)) == (words(train), words(perturb))


def test_who_has_no_examples_is_not_chosen() -> None:
    data = mx.rounds.choose(KEY, mx.participation.everyone(), jnp.int32(0), cohort())
    np.testing.assert_array_equal(data.active, [True, False, True, False, True])


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_weights_are_relative_to_those_who_train(weighting: str) -> None:
    data = mx.rounds.choose(KEY, mx.participation.everyone(), jnp.int32(0), cohort())
    raw = data.counts if weighting == "examples" else jnp.ones(5, jnp.int32)
    expected = mx.aggregation.relative_weights(raw.astype(jnp.float32), data.active)
    np.testing.assert_allclose(mx.rounds.weigh(data, weighting), expected, rtol=1e-6)
    nobody = data._replace(active=jnp.zeros(5, bool))
    np.testing.assert_array_equal(mx.rounds.weigh(nobody, weighting), 0)


def train(summed: bool, stacked: bool, attack: Any = None) -> Any:
    data = mx.rounds.choose(KEY, mx.participation.everyone(), jnp.int32(0), cohort())
    units = mx.units.partition(PARAMS)
    weights = mx.rounds.weigh(data, "examples")
    probe = mx.attacks.Probe(PARAMS)
    perturb = mx.defences.clipped(2.0).perturb
    clients_key = mx.rounds.round_keys(KEY, 0).clients
    options = {"summed": summed, "stacked": stacked}
    parts = (local, perturb, attack, units, probe, data, weights)
    return mx.rounds.train(clients_key, *parts, **options), data, weights


def test_training_sums_and_stacks_what_a_loop_does() -> None:
    trained, data, weights = train(summed=True, stacked=True)
    clients_key = mx.rounds.round_keys(KEY, 0).clients
    for row in range(len(COUNTS)):
        one = jax.tree.map(lambda leaf, row=row: leaf[row], data)
        keys = mx.rounds.client_keys(clients_key, one.ids)
        update = mx.defences.clipped(2.0).perturb(
            keys.perturb, local(keys.train, PARAMS, one).update
        )
        for leaf, found in zip(*map(jax.tree.leaves, (update, trained.updates)), strict=True):
            expected = np.asarray(leaf) * weights[row] if data.active[row] else 0 * leaf
            np.testing.assert_allclose(found[row], expected, rtol=1e-6)
    for total, rows in zip(*map(jax.tree.leaves, (trained.total, trained.updates)), strict=True):
        np.testing.assert_allclose(total, np.sum(rows, axis=0), rtol=1e-5)
    np.testing.assert_array_equal(trained.sound, data.active)
    np.testing.assert_array_equal(np.isnan(trained.loss), ~np.asarray(data.active))
    assert trained.measures is None
    alone, _, _ = train(summed=False, stacked=False)
    assert (alone.total, alone.updates) == ((), None)


def test_a_measure_is_of_the_weighted_perturbed_update() -> None:
    def measure(probe: Any, units: Any, update: Any) -> Any:
        return mx.units.squared_norms(units, update) + 1

    attack = mx.attacks.Attack(None, None, measure, lambda key, probe, observation: None)
    trained, data, _ = train(summed=False, stacked=True, attack=attack)
    units = mx.units.partition(PARAMS)
    expected = 1 + jax.vmap(mx.units.squared_norms, (None, 0))(units, trained.updates)
    active = np.asarray(data.active)[:, None]
    np.testing.assert_allclose(trained.measures, np.where(active, expected, 0), rtol=1e-6)


SOUND: dict[str, tuple[Any, float | None, bool]] = {
    "zero": (jnp.zeros(3), None, True),
    "zero within any bound": (jnp.zeros(3), 0.1, True),
    "a NaN": (jnp.array([0.0, jnp.nan, 0.0]), None, False),
    "an infinity": (jnp.array([0.0, -jnp.inf, 0.0]), None, False),
    "a square beyond float32": (jnp.array([3e19, 0.0, 0.0]), None, False),
    "weighted, a square beyond float32": (jnp.array([1e19, 0.0, 0.0]), None, False),
    "weighted, just too long for a sum": (jnp.array([2.4e18, 0.0, 0.0]), None, False),
    "weighted, just short enough": (jnp.array([2.2e18, 0.0, 0.0]), None, True),
    "longer than the bound": (jnp.array([3.0, 4.0, 0.0]), 4.99, False),
    "as long as the bound": (jnp.array([3.0, 4.0, 0.0]), 5.0, True),
    "a half whose square overflows": (jnp.array([2e4, 0.0], jnp.float16), None, True),
    "a half that the weight makes infinite": (jnp.array([4e4, 0.0], jnp.float16), None, False),
    "a half infinity": (jnp.array([jnp.inf, 0.0], jnp.float16), None, False),
    "integers": (jnp.array([3, 4, 0]), 4.99, False),
    "short integers": (jnp.array([100, 100], jnp.int8), None, True),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_is_broken(name: str) -> None:
    update, bound, sound = SOUND[name]
    tree = {"a": update, "b": jnp.zeros((2, 2))}

    def is_sound(tree: Any) -> Any:
        weight = jnp.float32(2)
        weighted = jax.tree.map(lambda leaf: mx.types.times(leaf, weight), tree)
        return mx.faults.is_sound(weighted, 4, None if bound is None else bound * weight)

    assert bool(is_sound(tree)) == bool(jax.jit(is_sound)(tree)) == sound
    assert is_sound({})


@pytest.mark.parametrize("least", [1, 2])
def test_who_remains(least: int) -> None:
    weights = jnp.array([1.0, 0.5, 1.5, 0.0])
    everyone = jnp.array([True, True, True, False])
    for pattern in itertools.product([False, True], repeat=3):
        sound = jnp.array([*pattern, False])
        remaining = mx.faults.leave_out(weights, everyone, sound, least)
        kept = np.array(sound)
        enough = kept.sum() >= least
        np.testing.assert_array_equal(remaining.active, kept & enough)
        np.testing.assert_array_equal(remaining.excluded, np.array(everyone) & ~kept)
        if enough and kept.any():
            np.testing.assert_allclose(remaining.weight_sum, np.sum(np.array(weights)[kept]))
    # nobody excluded: exactly the number of clients, whatever the weights' rounding
    third = jnp.full(3, 1 / 3) * 3.0000002
    assert mx.faults.leave_out(third, jnp.ones(3, bool), jnp.ones(3, bool), 1).weight_sum == 3


def test_where_nobody_is_active_the_proxy_moves_nothing_and_learns_nothing() -> None:
    def draw(key: Any, memory: Any, active: Any, units: int) -> Any:
        return memory + jnp.int32(1), mx.mixing.full_round()(key, active, units)

    mix = mx.mixing.Mix(draw, init=lambda clients, units: jnp.int32(0))
    forward = jax.jit(lambda active: mx.rounds.forward(KEY, mix, jnp.int32(4), active, 2))
    memory, origins = forward(jnp.zeros(5, bool))
    assert memory == 4
    np.testing.assert_array_equal(origins, np.tile(np.arange(5)[:, None], (1, 2)))
    memory, origins = forward(jnp.ones(5, bool))
    assert memory == 5
    assert np.any(np.asarray(origins) != np.tile(np.arange(5)[:, None], (1, 2)))


def test_a_step_follows_the_aggregate() -> None:
    mean = jax.tree.map(lambda leaf: jnp.full_like(leaf, 2.0), PARAMS)
    optimizer = optax.sgd(0.25)
    after, _ = mx.rounds.take_step(optimizer, PARAMS, optimizer.init(PARAMS), mean)
    jax.tree.map(
        lambda new, old: np.testing.assert_allclose(new, old + 0.5, rtol=1e-6), after, PARAMS
    )
