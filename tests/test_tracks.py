"""Pseudonyms: kept while people differ, at chance where not, right for those who come and go."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_equal

import mixjax as mx
from mixjax.attacks import sim, tracks

CLIENTS, ROUNDS = 6, 5
KEY = jax.random.key(3)
PARAMS = jax.tree.map(
    lambda leaf: jnp.asarray(leaf, jnp.float32),
    {"a": {"w": np.ones((4, 3)), "b": np.zeros(3)}, "c": {"w": np.ones((3, 5))}},
)
DIRECTIONS = jax.tree.map(lambda leaf: jnp.stack([jnp.ones_like(leaf), jnp.cos(leaf)]), PARAMS)


def moving(own: float) -> Any:
    """Local training in a direction of one's own, and of chance, and all with the model."""

    def local(key: Any, params: Any, data: Any) -> Any:
        mine = jax.random.fold_in(jax.random.key(1), data.ids)

        def move(leaf: Any, seed: int) -> Any:
            parts = (own, mine), (0.3, key)
            return jnp.cos(leaf) + sum(
                size * jax.random.normal(jax.random.fold_in(one, seed), leaf.shape, jnp.float32)
                for size, one in parts
            )

        leaves, structure = jax.tree.flatten(params)
        update = structure.unflatten([move(leaf, seed) for seed, leaf in enumerate(leaves)])
        return mx.client.LocalResult(update, jnp.float32(0))

    return local


def scorer() -> mx.attacks.Attack:
    """∇Sim against directions that are given."""

    def prepare(key: Any, params: Any, local: Any) -> mx.attacks.Probe:
        return mx.attacks.Probe(params, DIRECTIONS)

    return mx.attacks.Attack(None, prepare, sim.measure, sim.observe)


def federation(attack: Any, defence: Any, own: float = 1.0, **options: Any) -> Any:
    return mx.federation.fedavg(moving(own), defence=defence, attack=attack, **options)


def run(fed: Any, rounds: int = ROUNDS, key: Any = KEY) -> Any:
    data = mx.data.stack([{"x": np.ones((1, 2), np.float32)}] * CLIENTS)
    start = fed.init(PARAMS, clients=CLIENTS)
    return mx.federation.run(key, fed, start, data, rounds)


def owners(records: Any) -> np.ndarray:
    """`[rounds, pseudonyms, units]`: who is behind each pseudonym."""
    return mx.evaluation.owners(records.findings.slots, records.truth.origins)


def last(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[-1], tree)


@pytest.mark.parametrize("each_unit", [False, True])
def test_pseudonyms_stay_with_their_people(each_unit: bool) -> None:
    defence = mx.defences.mixnn() if each_unit else mx.defences.shuffle()
    _, records = run(federation(tracks.attack(each_unit=each_unit), defence))
    found = owners(records)
    for names in np.moveaxis(found, 2, 0).reshape(-1, CLIENTS):
        np.testing.assert_array_equal(np.sort(names), np.arange(CLIENTS))
    np.testing.assert_array_equal(found, np.broadcast_to(found[0], found.shape))
    # whole updates can't be followed where units go their own ways
    if each_unit:
        _, records = run(federation(tracks.attack(), defence))
        assert np.mean(owners(records)[1:] == owners(records)[0]) < 0.9


def test_a_large_layer_of_noise_does_not_drown_a_small_telling_one() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(size=(CLIENTS, 16))
    found = tracks.start(CLIENTS, 2, 3, 16)
    names = []
    for number in range(ROUNDS):
        telling = own + 0.5 * rng.normal(size=own.shape)
        rows = np.stack([telling, 100 * rng.normal(size=own.shape)], axis=1).astype(np.float32)
        order = rng.permutation(CLIENTS)
        key = jax.random.fold_in(KEY, number)
        everybody = jnp.ones(CLIENTS, bool)
        found, slots = tracks.follow(key, found, jnp.asarray(rows[order]), everybody)
        names.append(order[np.asarray(slots)[:, 0]])
    np.testing.assert_array_equal(names, np.broadcast_to(names[0], np.shape(names)))


def test_equal_people_are_followed_no_better_than_by_chance() -> None:
    def same(key: Any, params: Any, data: Any) -> Any:
        return mx.client.LocalResult(jax.tree.map(jnp.ones_like, params), jnp.float32(0))

    fed = mx.federation.fedavg(same, defence=mx.defences.none(), attack=tracks.attack())
    _, records = run(fed, 300)
    found = owners(records)[..., 0]
    kept = np.mean(found[1:] == found[:-1])
    assert abs(kept - 1 / CLIENTS) < 5 * np.sqrt(1 / CLIENTS / found[1:].size)


def test_who_stays_away_keeps_a_pseudonym_and_newcomers_get_their_own() -> None:
    some = mx.participation.uniform(4)
    # in so small a model people resemble one another by chance
    attack = tracks.attack(newcomer=0.6)
    fed = federation(attack, mx.defences.shuffle(), participation=some)
    state, records = run(fed, 30)
    found, active = owners(records)[..., 0], np.asarray(records.observation.active)
    slots = np.asarray(records.findings.slots)[..., 0]
    present = np.take_along_axis(active, slots, axis=1)
    np.testing.assert_array_equal(present.sum(axis=1), 4)
    for pseudonym in range(CLIENTS):
        own = found[present[:, pseudonym], pseudonym]
        assert len(own) > 5
        assert len(set(own.tolist())) == 1
    seen = state.memories.attack[0].times[:, 0]
    np.testing.assert_array_equal(seen, present.sum(axis=0))


def test_what_follows_sees_plain_learning_in_another_order() -> None:
    _, plain = run(federation(scorer(), mx.defences.none()))
    for each_unit, defence in ((False, mx.defences.shuffle()), (True, mx.defences.mixnn())):
        attack = tracks.attack(scorer(), each_unit=each_unit)
        _, records = run(federation(attack, defence))
        names = owners(records)[0]
        if not each_unit:
            order = names[:, 0]
            np.testing.assert_array_equal(records.findings.then, plain.findings[:, order])
        else:
            expected = mx.measures.mix(jnp.asarray(names), last(plain.truth.measures))
            slots = records.findings.slots[-1]
            assert_equal(mx.measures.mix(slots, last(records.observation.measures[1])), expected)


def test_repair_joins_the_first_rounds_anew() -> None:
    rng = np.random.default_rng(0)
    rounds, people, width = 12, 8, 32
    own = rng.normal(size=(people, width))
    rows = own + 1.6 * rng.normal(size=(rounds, people, width))
    origins = np.stack([rng.permutation(people) for _ in range(rounds)])
    rows = np.take_along_axis(rows, origins[..., None], axis=1)[:, :, None].astype(np.float32)
    active = jnp.ones((rounds, people), bool)
    slots = np.stack([rng.permutation(people) for _ in range(rounds)])
    slots[2:] = np.argsort(origins[2:], axis=1)
    slots = jnp.asarray(slots[..., None], jnp.int32)
    found = jax.jit(tracks.repair)(KEY, jnp.asarray(rows), active, slots)
    names = mx.evaluation.owners(found, origins[..., None])[..., 0]
    np.testing.assert_array_equal(names[:2], np.tile(np.arange(people), (2, 1)))

    def likeness(slots: Any) -> float:
        directions = jax.vmap(tracks.directions)(jnp.asarray(rows), active)
        aligned = jnp.take_along_axis(directions, slots[..., None], axis=1)
        return float(jnp.sum(jnp.sum(aligned, axis=0) ** 2))

    worse = jnp.asarray(rng.permuted(np.asarray(slots), axis=1))
    values = [likeness(worse)]
    for sweeps in (1, 2, 4):
        values.append(likeness(tracks.repair(KEY, jnp.asarray(rows), active, worse, sweeps=sweeps)))
    assert values == sorted(values)
    assert values[1] > values[0]


def test_tracks_are_resumed_replayed_and_vmapped(tmp_path: Any) -> None:
    attack = tracks.attack(scorer())
    fed = federation(attack, mx.defences.shuffle(), keep_probe=True)
    state, records = run(fed)
    start = fed.init(PARAMS, clients=CLIENTS)
    data = mx.data.stack([{"x": np.ones((1, 2), np.float32)}] * CLIENTS)
    for rounds in (3, ROUNDS):
        found = mx.checkpoint.run(tmp_path, KEY, fed, start, data, rounds, every=1)
    assert_equal(found[1].findings, records.findings)
    assert_equal(found[0].memories, state.memories)
    mix_keys = jax.random.split(jax.random.key(8), (2, ROUNDS))
    again = jax.vmap(
        lambda keys: mx.records.replay(keys, attack, start, records, mx.mixing.shuffle())[1]
    )(mix_keys)
    for draw in range(2):
        one = jax.tree.map(lambda leaf, draw=draw: leaf[draw], again)
        names = owners(one)
        np.testing.assert_array_equal(names, np.broadcast_to(names[0], names.shape))


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_are_refused() -> None:
    for options, match in (
        ({"width": 0}, "width"),
        ({"last": 0}, "last"),
        ({"then": 3}, "expected an attack"),
        ({"then": scorer()._replace(updates=True)}, "reads whole updates"),
    ):
        with pytest.raises(mx.InputError, match=match):
            tracks.attack(**options)
