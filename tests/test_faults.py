"""A client that sends rubbish is left out of the round, and never spreads."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import LINE, assert_close, assert_equal, line_loss

import mixjax as mx

CLIENTS = 6
COUNTS = (1, 3, 2, 3, 1, 2)
BAD = np.array([False, True, False, True, False, False])
MIXED = mx.defences.mixnn()
STACKED = dataclasses.replace(mx.aggregation.mean, additive=False)


def cohort(**poison: float) -> mx.data.ClientData:
    rng = np.random.default_rng(0)
    data = mx.data.stack(
        [
            {
                "x": rng.normal(size=(count, 2)).astype(np.float32),
                "y": rng.normal(size=count).astype(np.float32),
            }
            for count in COUNTS
        ],
        range(40, 40 + CLIENTS),
    )
    examples = dict(data.examples)
    for name, value in poison.items():
        examples[name] = examples[name].at[np.flatnonzero(BAD), 0].set(value)
    return data._replace(examples=examples)


LOCAL = mx.client.local_training(line_loss, optax.sgd(0.2), batch_size=3)
ATTACK = mx.attacks.sim.passive(mx.data.take(cohort(), [0, 5]))


@functools.cache
def federation(**options: Any) -> mx.federation.Federation:
    options = {"defence": MIXED, "attack": ATTACK} | options
    return mx.federation.fedavg(LOCAL, **options)


def run(data: mx.data.ClientData, rounds: int = 3, **options: Any) -> Any:
    fed = federation(**options)
    return mx.federation.run(jax.random.key(0), fed, fed.init(LINE), data, rounds)


def scaled(record: Any, factor: np.float32) -> Any:
    """The record where every forwarded row is longer by the factor."""

    def terms(found: Any) -> Any:
        return found._replace(
            dots=found.dots * factor, squared_norms=found.squared_norms * factor**2
        )

    seen = record.observation
    updates = jax.tree.map(lambda leaf: leaf * factor, seen.updates)
    return record._replace(
        observation=seen._replace(measures=terms(seen.measures), updates=updates),
        truth=record.truth._replace(measures=terms(record.truth.measures)),
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30], ids=str)
@pytest.mark.parametrize("options", [{}, {"keep_updates": True}], ids=["folded", "stacked"])
def test_a_round_with_broken_clients_is_the_round_of_the_others(
    value: float, options: dict[str, Any]
) -> None:
    state, record = run(cohort(x=value), **options)
    # as if the same clients had stayed away: the same mixing, model and scores
    expected, other = run(cohort()._replace(active=jnp.array(~BAD)), **options)
    assert_close(state, expected, rtol=2e-5)
    # but for the factor that weights relative to all who trained leave on every forwarded row
    counts = np.array(COUNTS)
    factor = np.float32(CLIENTS / counts.sum() / (np.sum(~BAD) / counts[~BAD].sum()))
    assert abs(factor - 1) > 0.1
    assert_close(
        record._replace(excluded=None), scaled(other, factor)._replace(excluded=None), rtol=2e-5
    )
    np.testing.assert_array_equal(record.excluded, np.tile(BAD, (3, 1)))
    np.testing.assert_array_equal(record.observation.active, np.tile(~BAD, (3, 1)))
    assert record.stepped.all()
    seen = (state, record.observation, record.findings, record.truth, record.loss[:, ~BAD])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(seen))


@pytest.mark.parametrize("aggregate", [mx.aggregation.mean, STACKED], ids=["folded", "stacked"])
def test_rows_weigh_relative_to_all_who_train_and_the_step_to_those_who_remain(
    aggregate: Any,
) -> None:
    options = {"defence": None, "keep_updates": True, "attack": None, "aggregate": aggregate}
    state, record = run(cohort(x=np.nan), 1, **options)
    updates = jax.tree.map(lambda leaf: leaf[0], record.observation.updates)
    own = mx.cohort.run(jax.random.key(0), LINE, cohort(), LOCAL)
    share = np.where(BAD, 0, COUNTS) / np.sum(COUNTS) * CLIENTS
    remaining = np.where(BAD, 0, COUNTS) / np.sum(np.array(COUNTS)[~BAD])
    steps = jax.tree.map(jnp.subtract, state.params, LINE)
    # one full batch: the update does not depend on the key
    for leaf, whole, step in zip(*map(jax.tree.leaves, (updates, own, steps)), strict=True):
        flat = np.asarray(whole).reshape(CLIENTS, -1)
        rows = np.reshape(leaf, (CLIENTS, -1))
        np.testing.assert_allclose(rows, flat * share[:, None], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(np.ravel(step), remaining @ flat, rtol=1e-5, atol=1e-6)
    # the plain mean of the rows would be another step
    assert np.abs(share / np.sum(~BAD) - remaining)[~BAD].min() > 0.03


def test_a_healthy_cohort_is_not_touched() -> None:
    state, record = run(cohort())
    assert not np.any(record.excluded)
    other, _ = run(cohort(), max_norm=1e6)
    assert_equal(state, other)


def test_an_update_longer_than_the_bound_is_excluded() -> None:
    updates = mx.cohort.run(jax.random.key(0), LINE, cohort(), LOCAL)
    norms = np.sqrt(
        sum(np.sum(np.reshape(leaf, (CLIENTS, -1)) ** 2, 1) for leaf in jax.tree.leaves(updates))
    )
    bound = float(np.sort(norms)[2:4].mean())
    _, record = run(cohort(), 1, max_norm=bound)
    np.testing.assert_array_equal(record.excluded[0], norms > bound)


def test_noise_that_breaks_an_update_counts_too() -> None:
    def perturb(key: Any, update: Any) -> Any:
        del key
        return jax.tree.map(lambda leaf: leaf / 0 * leaf, update)

    defence = mx.defences.Defence(perturb, MIXED.mix)
    state, record = run(cohort(), 2, defence=defence)
    assert record.excluded.all()
    assert not record.stepped.any()
    assert_equal(state.params, LINE)


def test_nobody_but_a_lone_sound_client_is_not_forwarded() -> None:
    data = cohort(x=np.nan)._replace(active=jnp.array([True, True, False, True, False, False]))
    state, record = run(data, 1)
    assert not record.observation.active.any()
    assert not record.stepped.any()
    np.testing.assert_array_equal(record.truth.origins[0], np.tile(range(CLIENTS), (2, 1)).T)
    np.testing.assert_array_equal(record.observation.measures.dots, 0)
    jax.tree.map(np.testing.assert_array_equal, state.params, LINE)


def test_a_client_that_breaks_in_some_rounds_is_back_in_the_others() -> None:
    def local(key: Any, params: Any, data: Any) -> Any:
        result = LOCAL(key, params, data)
        broken = jax.random.bernoulli(key, 0.3)
        return result._replace(
            update=jax.tree.map(lambda leaf: jnp.where(broken, jnp.nan, leaf), result.update)
        )

    fed = mx.federation.fedavg(local, defence=MIXED, attack=ATTACK, keep_probe=True)
    state, record = mx.federation.run(jax.random.key(1), fed, fed.init(LINE), cohort(), 20)
    excluded = np.asarray(record.excluded)
    assert 10 < excluded.sum() < 60
    assert (excluded.sum(axis=0) < 20).all()
    np.testing.assert_array_equal(
        record.observation.active[record.stepped], ~excluded[record.stepped]
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    # the server's own training breaks too: a direction that is no number gives no score
    broken = np.isnan(record.probe.references["in"]["w"]).any(axis=-1)
    found = np.moveaxis(np.asarray(record.findings), 1, 0)
    assert broken.any()
    assert np.isfinite(found[:, ~broken]).all()
    assert np.isnan(found[:, broken]).any()


def test_an_aggregate_that_overflows_is_no_step() -> None:
    def huge(updates: Any, active: Any) -> Any:
        del active
        return jax.tree.map(lambda leaf: jnp.full(leaf.shape[1:], jnp.inf), updates)

    state, record = run(cohort(), 2, aggregate=huge, attack=None)
    assert not record.stepped.any()
    assert record.observation.active.all()
    assert_equal(state.params, LINE)


def test_krum_without_enough_sound_clients_takes_no_step() -> None:
    krum = functools.partial(mx.aggregation.krum, byzantine=2)
    _, record = run(cohort(), 1, aggregate=krum, attack=None)
    assert record.stepped.all()
    state, record = run(cohort(x=np.nan), 1, aggregate=krum, attack=None)
    assert not record.stepped.any()
    assert_equal(state.params, LINE)


def test_chunks_and_devices_exclude_the_same_clients() -> None:
    plain = run(cohort(x=np.nan))
    chunked = run(cohort(x=np.nan), chunk_size=4)
    spread = run(cohort(x=np.nan), mesh=mx.sharding.clients_mesh(2))
    for other in (chunked, spread):
        assert_close(plain, other, rtol=2e-5)
        np.testing.assert_array_equal(other[1].excluded, np.tile(BAD, (3, 1)))


def breaks_in_round(number: int) -> mx.participation.Participation:
    """Healthy clients first; from round `number` on the broken ones too."""
    mask = np.tile(~BAD, (8, 1))
    mask[number:] = True
    return mx.participation.schedule(mask)


@pytest.mark.parametrize("number", [0, 2])
def test_raise_names_client_and_round_and_keeps_what_was_done(number: int) -> None:
    options: Any = {"participation": breaks_in_round(number)}
    with pytest.raises(mx.BrokenUpdateError, match=f"client 41 sent .* in round {number}") as info:
        run(cohort(x=np.nan), 5, broken="raise", **options)
    error = info.value
    assert (error.client, error.round) == (41, number)
    assert int(error.state.round) == number
    assert error.records.loss.shape == (number, CLIENTS)
    if number:
        state, records = run(cohort(x=np.nan), number, **options)
        assert_equal(error.state, state)
        assert_equal(error.records, records)


def test_one_may_go_on_after_an_error() -> None:
    with pytest.raises(mx.BrokenUpdateError) as info:
        run(cohort(x=np.nan), 4, broken="raise", participation=breaks_in_round(2))
    fed = federation(broken="raise", participation=breaks_in_round(2))
    healed = cohort()._replace(active=jnp.array(~BAD))
    state, records = mx.federation.run(jax.random.key(0), fed, info.value.state, healed, 4)
    assert int(state.round) == 6
    assert not records.excluded.any()


def test_under_a_transformation_the_record_tells() -> None:
    fed = federation(broken="raise")
    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    state, records = jax.vmap(
        lambda key: mx.federation.run(key, fed, fed.init(LINE), cohort(x=np.nan), 2)
    )(keys)
    assert records.excluded[:, :, BAD].all()
    np.testing.assert_array_equal(state.round, 0)
