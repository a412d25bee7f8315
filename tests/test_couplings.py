"""Pieces of a cut layer know each other: shared features are measures, and join them again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_unmix import CLIENTS, setting, updates_of

import mixjax as mx
from mixjax.attacks import channels, couplings, tracks, unmix

PIECES = [mx.units.chunks(12), mx.units.chunks(40)]


def name_of(granularity: Any) -> str:
    return getattr(granularity, "__name__", str(granularity))


def scattered(path: Any, shape: Any) -> Any:
    """Sixteen groups of coordinates drawn at random."""
    return np.random.default_rng(len(str(path))).integers(0, 16, shape)


@pytest.mark.parametrize("granularity", [*PIECES, scattered, "neurons", "leaf"], ids=name_of)
def test_couplings_follow_from_their_own_unit_alone(granularity: Any) -> None:
    _, params, graph, _ = setting("sensors")
    updates = updates_of("sensors", 0.02, 3)
    units = mx.units.partition(params, granularity)

    def measure(updates: Any) -> Any:
        one = jax.vmap(lambda update: couplings.measure(graph, params, units, update))
        return one(updates)

    origins = mx.mixing.full_round()(jax.random.key(0), jnp.ones(CLIENTS, bool), len(units.names))
    mixed = measure(mx.mixing.apply(origins, updates, units))
    jax.tree.map(np.testing.assert_array_equal, mixed, mx.measures.mix(origins, measure(updates)))


def test_features_are_sums_and_lengths_of_columns_and_directions_of_inputs() -> None:
    params = {"a": {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}, "c": {"w": jnp.zeros((2, 4))}}
    graph = channels.of_pairs(params, [("a", "c")])
    update = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )
    units = mx.units.partition(params, "neurons")
    found = np.asarray(couplings.shared(graph, units, update))
    w, b = np.asarray(update["a"]["w"]), np.asarray(update["a"]["b"])
    # a channel's own sum and length, in its own column; then what it does with each input
    for channel in range(2):
        own = found[units.names.index(f"a[{channel}]")]
        np.testing.assert_allclose(own[channel], w[:, channel].sum() + b[channel], rtol=1e-5)
        length = np.sqrt((w[:, channel] ** 2).sum() + b[channel] ** 2)
        np.testing.assert_allclose(own[2 + channel], length, rtol=1e-5)
        assert own[1 - channel] == own[3 - channel] == 0
        turned = np.sign(b[channel]) * w[:, channel]
        np.testing.assert_allclose(own[4:7], turned / np.linalg.norm(turned), rtol=1e-5)
    # layers that are not cut have nothing to share
    assert couplings.shared(graph, mx.units.partition(params), update).shape == (2, 0)


@pytest.mark.parametrize("granularity", [*PIECES, scattered], ids=name_of)
def test_pieces_of_layers_are_joined(granularity: Any) -> None:
    _, params, graph, _ = setting("sensors")
    updates = updates_of("sensors", 0.02, 3)
    units = mx.units.partition(params, granularity)
    sizes = mx.units.parameter_counts(units)
    origins = mx.mixing.full_round()(jax.random.key(5), jnp.ones(CLIENTS, bool), len(sizes))
    mixed = mx.mixing.apply(origins, updates, units)
    found = unmix.assemble(jax.random.key(6), params, mixed, graph, granularity=granularity)
    # on noise for data the features are alike, not equal
    share = mx.evaluation.joined_share(found.slots, origins, sizes)
    assert share > 0.6
    # by laws alone they are not joined: many units can be made to fit
    alone = graph._replace(layers=())
    found = unmix.assemble(jax.random.key(6), params, mixed, alone, granularity=granularity)
    assert mx.evaluation.joined_share(found.slots, origins, sizes) < share - 0.25


def test_a_tracker_may_look_at_what_is_joined() -> None:
    _, params, graph, _ = setting("sensors")
    attack = unmix.attack(graph, tracks.attack())
    units = mx.units.partition(params)
    rounds = [updates_of("sensors", 0.02, steps) for steps in (3, 4, 3)]
    assert attack.init is not None
    assert attack.measure is not None
    memory = attack.init(params, units, CLIENTS)
    who = []
    for number, updates in enumerate(rounds):
        key = jax.random.key(number)
        origins = mx.mixing.full_round()(key, jnp.ones(CLIENTS, bool), len(units.names))
        probe = mx.attacks.Probe(params)
        seen = mx.measures.of(
            attack.measure, probe, units, mx.mixing.apply(origins, updates, units)
        )
        observation = mx.observation.Observation(jnp.ones(CLIENTS, bool), seen, None)
        memory, found = attack.observe(key, memory, probe, observation)
        joined = mx.evaluation.owners(found.slots, origins)
        who.append(mx.evaluation.owners(found.then.slots, joined))
        np.testing.assert_array_equal(who[-1], np.broadcast_to(who[-1][:, :1], who[-1].shape))
    np.testing.assert_array_equal(who[1], who[0])
    np.testing.assert_array_equal(who[2], who[0])
