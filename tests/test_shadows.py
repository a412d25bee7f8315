"""The matcher of shadow participants: its features, its algebra, and what it joins."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_equal

import mixjax as mx
from mixjax.attacks import channels, couplings, shadows

KEY = jax.random.key(0)
CLIENTS, SHADOWS, ROUNDS = 7, 24, 3
RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


PARAMS = {
    "a": {"kernel": normal(3, 2, 4), "bias": normal(4)},
    "b": {"kernel": normal(4, 5), "scale": normal()},
}
UPDATE = jax.tree.map(lambda leaf: normal(*leaf.shape), PARAMS)


@pytest.mark.parametrize("granularity", ["layer", "leaf", "neurons", mx.units.chunks(7)])
def test_features_agree_with_a_slow_loop(granularity: Any) -> None:
    width, units = 64, mx.units.partition(PARAMS, granularity)
    found = np.asarray(shadows.features(PARAMS, units, UPDATE, width), np.float64)
    assert found.shape == (len(units.names), 4, width)
    np.testing.assert_array_equal(
        found[:, 0], mx.measures.sketch(jax.random.key(0), units, UPDATE, width)
    )
    expected = np.zeros((len(units.names), 3, width))
    place = 0
    leaves = [[np.asarray(x, np.float64) for x in jax.tree.leaves(t)] for t in (PARAMS, UPDATE)]
    for weight, move, labels in zip(*leaves, units.labels, strict=True):
        owner = np.broadcast_to(labels.array, move.shape)
        for axis in range(move.ndim):
            for channel in range(move.shape[axis]):
                here = np.moveaxis(owner, axis, 0)[channel]
                own, its = (np.moveaxis(part, axis, 0)[channel] for part in (move, weight))
                for unit in np.unique(here):
                    some = own[here == unit]
                    expected[unit, :, place] = (
                        some.sum(), (some * its[here == unit]).sum(), np.sqrt((some**2).sum()),
                    )  # fmt: skip
                place += 1
    # signs are drawn at random, channel by channel
    np.testing.assert_allclose(np.abs(found[:, 1:]), np.abs(expected), rtol=1e-5, atol=1e-5)
    ratios = (found[:, 1:] * np.sign(expected)).sum(axis=(0, 1))[:place]
    assert set(np.sign(ratios)) == {-1, 1}
    signed = expected[..., :place] * np.sign(ratios)
    np.testing.assert_allclose(found[:, 1:, :place], signed, rtol=1e-5, atol=1e-5)


def test_features_of_narrow_widths_keep_sums_and_follow_from_their_unit_alone() -> None:
    units = mx.units.partition(PARAMS)
    narrow, wide = (shadows.features(PARAMS, units, UPDATE, width) for width in (4, 64))
    folded = wide[:, 1:].reshape(2, 3, 16, 4).sum(axis=2)
    np.testing.assert_allclose(narrow[:, 1:], folded, rtol=1e-4, atol=1e-4)
    other = UPDATE | {"b": PARAMS["b"]}
    np.testing.assert_array_equal(shadows.features(PARAMS, units, other, 64)[0], wide[0])


def test_maps_are_ridge_regressions_on_what_they_reproduce_best() -> None:
    count, units, width, ridge, components = 9, 3, 5, 0.3, 4
    rows, clients = RNG.normal(size=(count, units, 2, width)), RNG.normal(size=(6, units, 2, width))
    rows -= rows.mean(axis=0)
    found = shadows._mapped(rows, clients, components, ridge)
    maps, others, hats = [], [], []
    for unit in range(units):
        parts = []
        for kind in range(2):
            scale = np.sqrt(2 * np.mean(np.sum(rows[:, unit, kind] ** 2, axis=1)))
            parts.append([part[:, unit, kind] / scale for part in (rows, clients)])
        x, y = (np.concatenate([part[which] for part in parts], axis=1) for which in (0, 1))
        maps.append(np.linalg.solve(x.T @ x + ridge * np.eye(2 * width), x.T))
        others.append(y)
        hats.append(x @ maps[-1])
    vectors = np.linalg.eigh(sum(hats))[1][:, ::-1][:, :components]
    expected = np.stack([y @ one @ vectors for one, y in zip(maps, others, strict=True)], axis=1)
    signs = np.sign(np.sum(expected * found, axis=(0, 1)))
    np.testing.assert_allclose(found, expected * signs, atol=1e-8)


def planted(seed: int, count: int, *, related: bool) -> Any:
    """Updates whose layers are fixed random maps of what a person is, or of nothing in common."""
    maps = np.random.default_rng(9)
    rng = np.random.default_rng(seed)
    person = rng.normal(size=(count, 6))

    def leaf(shape: tuple[int, ...]) -> jax.Array:
        own = person if related else rng.normal(size=person.shape)
        turned = np.tanh(own @ maps.normal(size=(6, int(np.prod(shape)))))
        return jnp.asarray(turned.reshape(count, *shape), jnp.float32)

    return {name: {"w": leaf((6, 8)), "b": leaf((8,))} for name in "abc"}


SENT = jax.tree.map(lambda leaf: jnp.ones_like(leaf[0]), planted(0, 1, related=True))


def joined(updates: Any, known: Any, origins: Any, **options: Any) -> Any:
    units = mx.units.partition(SENT)
    mixed = mx.mixing.apply(jnp.asarray(origins), updates, units)
    return shadows.assemble(KEY, SENT, mixed, known, width=64, **options)


def drawn(seed: int, active: Any = None) -> Any:
    active = jnp.ones(CLIENTS, bool) if active is None else active
    return mx.mixing.full_round()(jax.random.key(seed), active, 3)


def test_what_shadow_participants_share_joins_others() -> None:
    updates, known = planted(1, CLIENTS, related=True), planted(2, 60, related=True)
    for seed in range(3):
        origins = drawn(seed)
        found = joined(updates, known, origins)
        assert mx.evaluation.exact_assemblies(found.slots, origins) == 1
    assert (found.confidence > 0.5).all()
    # nothing depends on the slots of those who stayed away
    active = np.arange(CLIENTS) != 2
    origins = drawn(5, jnp.asarray(active))
    left = jax.tree.map(lambda leaf: leaf.at[2].set(0), updates)
    found = joined(left, known, origins, active=jnp.asarray(active))
    assert mx.evaluation.exact_assemblies(found.slots, origins, active) == 1
    assert (found.slots[2] == 2).all()


@pytest.mark.parametrize(("clients", "known"), [(True, False), (False, True)])
def test_where_nothing_is_shared_it_is_right_by_chance(clients: bool, known: bool) -> None:
    units = mx.units.partition(SENT)
    measure = jax.jit(jax.vmap(lambda update: shadows.features(SENT, units, update, 64)))
    nothing = np.zeros((CLIENTS, 3, 0))
    hits = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        origins = np.stack([rng.permutation(CLIENTS) for _ in range(3)], axis=1)
        own = np.asarray(measure(planted(100 + seed, CLIENTS, related=clients)))
        rows = np.asarray(measure(planted(300 + seed, 20, related=known)))
        mixed = np.take_along_axis(own, origins[..., None, None], axis=0)
        slots, _ = shadows._solve(
            channels.Graph(()), 32, 0.1, seed, (rows - rows.mean(axis=0))[None], mixed,
            couplings.Couplings(*[nothing] * 4), np.ones(CLIENTS, bool),
        )  # fmt: skip
        owners = mx.evaluation.owners(slots, origins)
        hits.append([(owners[:, 0] == owners[:, unit]).mean() for unit in (1, 2)])
    # a permutation has one fixed point on average, with variance one
    error = 1 / np.sqrt(np.size(hits)) / CLIENTS
    assert abs(np.mean(hits) - 1 / CLIENTS) < 4 * error


def test_few_and_broken_shadow_participants_do_no_harm() -> None:
    updates, known = planted(1, CLIENTS, related=True), planted(2, 20, related=True)
    origins = drawn(0)
    expected = joined(updates, known, origins)
    broken = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf, jnp.full_like(leaf[:1], jnp.nan)]), known
    )
    assert_equal(joined(updates, broken, origins), expected)
    for few in (known, jax.tree.map(jnp.zeros_like, known)):
        found = joined(updates, jax.tree.map(lambda leaf: leaf[:2], few), origins)
        np.testing.assert_array_equal(np.sort(found.slots, axis=0), np.sort(origins, axis=0))


def test_more_units_than_shadow_participants() -> None:
    updates, known = planted(1, CLIENTS, related=True), planted(2, 8, related=True)
    units = mx.units.partition(SENT, mx.units.chunks(40))
    origins = mx.mixing.full_round()(KEY, jnp.ones(CLIENTS, bool), 40)
    mixed = mx.mixing.apply(origins, updates, units)
    found = shadows.assemble(KEY, SENT, mixed, known, granularity=mx.units.chunks(40), width=16)
    own = mx.evaluation.owners(found.slots, origins)
    np.testing.assert_array_equal(np.sort(own, axis=0), np.sort(origins, axis=0))
    chance = 1 / CLIENTS
    error = np.sqrt(chance * (1 - chance) / own[:, 1:].size)
    assert (own[:, 1:] == own[:, :1]).mean() > chance + 4 * error


class Smooth(nn.Module):
    """No law holds here."""

    @nn.compact
    def __call__(self, inputs: Any) -> Any:
        hidden = jnp.tanh(nn.Dense(12, name="first")(inputs))
        return nn.Dense(3, name="last")(jnp.tanh(nn.Dense(10, name="second")(hidden)))


@functools.cache
def people(seed: int, count: int) -> mx.data.ClientData:
    rng = np.random.default_rng(seed)
    examples = [
        mx.data.Examples(
            (rng.normal(size=(12, 6)) + rng.normal(size=6)).astype(np.float32),
            rng.choice(3, 12, p=rng.dirichlet(np.ones(3))).astype(np.int32),
        )
        for _ in range(count)
    ]
    return mx.data.stack(examples)


@functools.cache
def start() -> Any:
    return mx.models.initial(Smooth(), jax.random.key(3), people(0, CLIENTS).examples.inputs[0])


def federation(attack: Any, **options: Any) -> Any:
    local = mx.client.local_training(
        mx.models.cross_entropy(Smooth()), optax.sgd(0.05), batch_size=12, epochs=3
    )
    defence = mx.defences.mixnn()
    return mx.federation.fedavg(local, defence=defence, attack=attack, keep_probe=True, **options)


def run(attack: Any, **options: Any) -> Any:
    fed = federation(attack, **options)
    state = fed.init(start(), clients=CLIENTS)
    return state, *mx.federation.run(KEY, fed, state, people(0, CLIENTS), ROUNDS)


def test_a_federation_is_joined_with_the_shadows_of_all_rounds_and_replayed() -> None:
    attack = shadows.attack(people(1, SHADOWS), mx.attacks.tracks.attack(width=16), last=2)
    begin, end, records = run(attack)
    pool = end.memories.attack[0]
    assert (pool.rows.shape, pool.rounds) == ((2, SHADOWS, 3, 4, 256), ROUNDS)
    rows = records.probe.references.rows
    np.testing.assert_array_equal(pool.rows, [rows[2], rows[1]])
    np.testing.assert_allclose(rows.sum(axis=1), 0, atol=1e-4)
    assert (np.abs(rows).max(axis=(2, 3, 4)) > 0).all()
    exact = mx.evaluation.exact_assemblies(records.findings.slots, records.truth.origins)
    assert exact.mean() > 0.5
    assert records.findings.then.slots.shape == (ROUNDS, CLIENTS, 3)
    keys = jax.random.split(jax.random.key(9), (2, ROUNDS))
    again = jax.jit(
        jax.vmap(lambda key: mx.records.replay(key, attack, begin, records, mx.mixing.proxy(4))[1])
    )(keys)
    for draw in range(2):
        own = mx.evaluation.exact_assemblies(again.findings.slots[draw], again.truth.origins[draw])
        np.testing.assert_array_equal(own, exact)


def test_a_round_is_what_a_stack_says_and_the_graph_adds_to_it() -> None:
    graph = channels.trace(Smooth(), start(), people(0, CLIENTS).examples.inputs[0])
    attack = shadows.attack(people(1, SHADOWS), graph=graph)
    _, _, records = run(attack, keep_updates=True)
    first = jax.tree.map(lambda leaf: leaf[0], records)
    local = mx.client.local_training(
        mx.models.cross_entropy(Smooth()), optax.sgd(0.05), batch_size=12, epochs=3
    )
    known = mx.cohort.run(KEY, start(), people(1, SHADOWS), local)
    found = shadows.assemble(KEY, start(), first.observation.updates, known, graph=graph)
    owners = [
        sorted(map(tuple, mx.evaluation.owners(slots, first.truth.origins).tolist()))
        for slots in (found.slots, first.findings.slots)
    ]
    assert owners[0] == owners[1]
    assert mx.evaluation.exact_assemblies(found.slots, first.truth.origins) == 1


def test_halves_are_parts_of_their_people() -> None:
    some = mx.data.stack(
        [{"x": np.arange(start, start + 2 * n + 1)} for start, n in ((0, 3), (50, 1))]
    )
    more = shadows.halves(0, some, copies=2)
    assert more.counts.tolist() == [7, 3, 4, 2, 4, 2]
    assert more.examples["x"].shape == (6, 7)
    everyone = mx.data.unstack(more)
    for row, own in enumerate(everyone):
        assert len(set(own["x"].tolist())) == len(own["x"])
        assert set(own["x"].tolist()) <= set(everyone[row % 2]["x"].tolist())
    assert everyone[2]["x"].tolist() != everyone[4]["x"].tolist()


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_are_refused() -> None:
    two = people(1, 2)
    for call, match in (
        (lambda: shadows.attack(people(1, 1)), "two shadow participants; got 1"),
        (lambda: shadows.attack(two, width=0), "width"),
        (lambda: shadows.attack(two, last=1.5), "last"),
        (lambda: shadows.attack(two, components=0), "components"),
        (lambda: shadows.attack(two, ridge=0), "ridge"),
        (lambda: shadows.attack(two, then=3), "expected an attack"),
        (lambda: shadows.attack(two, graph=3), "expected a graph"),
        (lambda: shadows.attack(None), "shadow participants"),
        (lambda: shadows.halves(0, two, 0), "copies"),
        (
            lambda: federation(shadows.attack(two), granularity="leaf").init(start(), CLIENTS),
            "3 units, as the attack's granularity does; got 6",
        ),
    ):
        with pytest.raises(mx.InputError, match=match):
            call()
