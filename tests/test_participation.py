"""Who takes part: laws, bounds, and what a round does with a cohort as it is."""

import functools
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from helpers import LINE, assert_equal, line_loss
from hypothesis import strategies as st

import mixjax as mx

part = mx.participation
CLIENTS = 12


def cohort(clients: int = CLIENTS, **fields: Any) -> mx.data.ClientData:
    rng = np.random.default_rng(0)
    data = mx.data.stack(
        [
            {"x": rng.normal(size=(3, 2)).astype(np.float32), "y": np.ones(3, np.float32)}
            for _ in range(clients)
        ],
        range(100, 100 + clients),
    )
    return data._replace(**fields)


@functools.partial(jax.jit, static_argnames=("participation", "draws"))
def masks(participation: Any, data: Any, draws: int = 2000) -> jax.Array:
    keys = jax.random.split(jax.random.key(0), draws)
    return jax.vmap(lambda key, number: participation(key, number, data))(keys, jnp.arange(draws))


def accepted(counts: np.ndarray, draws: int, rate: float) -> bool:
    """Whether binomial counts of a rate are plausible, at one in a million over all of them."""
    tail = 1e-6 / counts.size
    law = scipy.stats.binom(draws, rate)
    return bool(np.all((law.cdf(counts) > tail / 2) & (law.sf(counts - 1) > tail / 2)))


@pytest.mark.parametrize(
    ("participation", "rate"),
    [
        (part.uniform(4), 1 / 3),
        (part.fraction(0.25), 1 / 4),
        (part.poisson(0.3), 0.3),
        (part.dropout(0.3), 0.7),
        (part.compose(part.uniform(6), part.dropout(0.5)), 1 / 4),
        (part.deadline(2.0, part.log_normal(2.0, 0.5)), 0.5),
        (part.deadline(2.0 * np.exp(0.5), part.log_normal(2.0, 0.5)), scipy.stats.norm.cdf(1)),
        (part.everyone(), 1 - 1e-12),
    ],
)
def test_each_client_takes_part_at_the_stated_rate_and_no_other(
    participation: Any, rate: float
) -> None:
    counts = np.asarray(masks(participation, cohort())).sum(axis=0)
    assert accepted(counts, 2000, rate)
    assert not accepted(counts, 2000, rate * 2 / 3)


def test_sampling_is_without_replacement_and_uniform_over_sets() -> None:
    drawn = np.asarray(masks(part.uniform(2), cohort(4)))
    np.testing.assert_array_equal(drawn.sum(axis=1), 2)
    sets, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(sets) == 6
    assert scipy.stats.chisquare(counts).pvalue > 1e-6
    assert scipy.stats.chisquare(counts, 2000 * np.array([1, 1, 1, 1, 1, 5]) / 10).pvalue < 1e-6


def test_independent_clients_vary_in_number_and_sampled_ones_do_not() -> None:
    assert np.asarray(masks(part.poisson(0.5), cohort())).sum(axis=1).std() == pytest.approx(
        np.sqrt(CLIENTS / 4), rel=0.1
    )
    assert np.asarray(masks(part.fraction(0.5), cohort())).sum(axis=1).std() == 0


PARTS = (
    part.uniform(3), part.fraction(0.4), part.poisson(0.5), part.dropout(0.2), part.everyone(),
    part.deadline(1.0, part.log_normal(1.0, 1.0)),
)  # fmt: skip


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.integers(0, 2**32 - 1), st.lists(st.booleans(), min_size=12, max_size=12))
def test_only_clients_that_are_there_are_chosen(seed: int, there: list[bool]) -> None:
    data = cohort(active=jnp.array(there))
    chosen = jax.device_get(_one_of_each(jax.random.key(seed), data))
    for mask in chosen:
        assert not np.any(np.asarray(mask) & ~np.array(there))
    assert np.sum(chosen[0]) == min(3, sum(there))
    assert np.sum(chosen[1]) == min(
        max(1, np.floor(np.float32(0.4) * sum(there) + 0.5)), sum(there)
    )
    np.testing.assert_array_equal(chosen[4], there)


@jax.jit
def _one_of_each(key: Any, data: Any) -> list[jax.Array]:
    return [participation(key, jnp.int32(0), data) for participation in PARTS]


def test_neither_padding_nor_order_changes_who_takes_part() -> None:
    key, data = jax.random.key(3), cohort()
    order = np.random.default_rng(1).permutation(CLIENTS)
    plain = _one_of_each(key, data)
    padded = _one_of_each(key, mx.data.pad(data, 8))
    turned = _one_of_each(key, mx.data.take(data, order))
    for one, longer, other in zip(plain, padded, turned, strict=True):
        np.testing.assert_array_equal(longer[:CLIENTS], one)
        assert not np.any(longer[CLIENTS:])
        np.testing.assert_array_equal(other, np.asarray(one)[order])


def test_a_schedule_is_followed_and_starts_again() -> None:
    mask = np.random.default_rng(2).random((3, CLIENTS)) < 0.5
    drawn = np.asarray(masks(part.schedule(mask), cohort(), 7))
    np.testing.assert_array_equal(drawn, np.concatenate([mask, mask, mask[:1]]))
    np.testing.assert_array_equal(masks(part.schedule(mask[0]), cohort(), 2), mask[[0, 0]])


def test_stragglers_are_those_above_the_deadline() -> None:
    seconds = np.arange(CLIENTS, dtype=np.float32)
    np.testing.assert_array_equal(masks(part.deadline(4.0, seconds), cohort(), 1)[0], seconds <= 4)

    def own(key: Any, number: Any, data: Any) -> jax.Array:
        return jnp.where(data.ids == 103, jnp.nan, number.astype(jnp.float32))

    drawn = np.asarray(masks(part.deadline(1.0, own), cohort(), 3))
    np.testing.assert_array_equal(drawn.sum(axis=1), [CLIENTS - 1, CLIENTS - 1, 0])
    assert not drawn[:, 3].any()


def test_rates_may_be_traced() -> None:
    def share(rate: jax.Array) -> jax.Array:
        return part.dropout(rate)(jax.random.key(0), jnp.int32(0), cohort()).mean()

    shares = jax.vmap(share)(jnp.array([0.0, 0.5, 0.99]))
    assert shares[0] == 1
    assert shares[0] > shares[1] > shares[2]


LOCAL = mx.client.local_training(line_loss, optax.sgd(0.2), batch_size=3)
MIXED = mx.defences.mixnn()
MOMENTUM = optax.sgd(0.5, momentum=0.9)


def test_a_round_of_some_is_the_round_of_a_cohort_of_them() -> None:
    mask = np.arange(CLIENTS) % 3 != 0
    data = cohort(counts=jnp.arange(CLIENTS, dtype=jnp.int32) % 3 + 1)
    attack = mx.attacks.sim.passive(mx.data.take(data, [0, 1]))
    options: Any = {"attack": attack, "defence": MIXED}
    fed = mx.federation.fedavg(LOCAL, participation=part.schedule(mask), **options)
    state, record = mx.federation.run(jax.random.key(0), fed, fed.init(LINE), data, 3)
    alone = mx.federation.fedavg(LOCAL, **options)
    subset = mx.data.take(data, np.flatnonzero(mask))
    expected, own = mx.federation.run(jax.random.key(0), alone, alone.init(LINE), subset, 3)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), state, expected)
    np.testing.assert_array_equal(record.observation.active, np.tile(mask, (3, 1)))
    np.testing.assert_allclose(record.loss[:, mask], own.loss, rtol=1e-4)
    assert np.isnan(np.asarray(record.loss)[:, ~mask]).all()
    np.testing.assert_allclose(
        record.truth.measures.dots[:, mask], own.truth.measures.dots, rtol=1e-3, atol=1e-6
    )
    np.testing.assert_array_equal(np.asarray(record.findings)[:, ~mask], 0)
    assert np.all(record.stepped)
    assert not np.any(record.excluded)


def test_masks_that_change_every_round_compile_once() -> None:
    traces = 0

    def counted(key: Any, params: Any, data: Any) -> Any:
        nonlocal traces
        traces += 1
        return LOCAL(key, params, data)

    fed = mx.federation.fedavg(counted, defence=MIXED, participation=part.uniform(5))
    state, first = mx.federation.run(jax.random.key(0), fed, fed.init(LINE), cohort(), 20)
    once = traces
    active = np.asarray(first.observation.active)
    np.testing.assert_array_equal(active.sum(axis=1), 5)
    assert len(np.unique(active, axis=0)) > 10
    mx.federation.run(jax.random.key(1), fed, state, cohort(active=jnp.arange(CLIENTS) != 2), 20)
    assert traces == once
    for origins, mask in zip(first.truth.origins, active, strict=True):
        np.testing.assert_array_equal(np.sort(origins[mask], 0)[:, 0], np.flatnonzero(mask))
        np.testing.assert_array_equal(origins[~mask, 0], np.flatnonzero(~mask))


@pytest.mark.parametrize("stacked", [False, True], ids=["folded", "stacked"])
@pytest.mark.parametrize("lone", [False, True], ids=["nobody", "one"])
def test_too_few_clients_forward_nothing_and_change_nothing(stacked: bool, lone: bool) -> None:
    fed = mx.federation.fedavg(
        LOCAL,
        defence=MIXED,
        participation=part.schedule(np.stack([np.ones(4, bool), (np.arange(4) == 1) & lone])),
        server_optimizer=MOMENTUM,
        attack=mx.attacks.sim.passive(mx.data.take(cohort(), [0, 1])),
        keep_updates=stacked,
    )
    one, _ = mx.federation.run(jax.random.key(0), fed, fed.init(LINE), cohort(4), 1)
    two, record = mx.federation.run(jax.random.key(0), fed, one, cohort(4), 1)
    assert_equal(two._replace(round=one.round), one)
    assert int(two.round) == 2
    record = jax.tree.map(lambda leaf: leaf[0], record)
    assert not record.stepped
    assert not np.any(record.observation.active)
    assert np.isfinite(record.loss).sum() == lone
    seen = record.observation
    for leaf in jax.tree.leaves((seen.updates, seen.measures, record.findings)):
        np.testing.assert_array_equal(leaf, 0)
    third, record = mx.federation.run(jax.random.key(0), fed, two, cohort(4), 1)
    assert record.stepped.all()
    assert np.any(np.asarray(third.params["in"]["w"]) != np.asarray(two.params["in"]["w"]))


def test_without_mixing_one_client_is_enough() -> None:
    fed = mx.federation.fedavg(LOCAL, participation=part.uniform(1))
    _, record = mx.federation.run(jax.random.key(0), fed, fed.init(LINE), cohort(), 4)
    assert record.stepped.all()
    np.testing.assert_array_equal(np.asarray(record.observation.active).sum(axis=1), 1)


def test_a_mix_made_of_others_needs_as_many_clients_as_they() -> None:
    keep, shuffle, proxy = mx.mixing.keep(), mx.mixing.shuffle(), mx.mixing.proxy(2)
    assert keep.least == 1
    assert [mix.least for mix in (shuffle, mx.mixing.full_round(), proxy)] == [2, 2, 2]
    assert mx.mixing.compose(keep, keep).least == 1
    assert mx.mixing.compose(keep, shuffle).least == 2
    assert mx.mixing.compose(shuffle, keep, keep).least == 2


def test_a_client_that_stays_away_is_not_trained() -> None:
    ran = []

    def loss(params: Any, batch: Any, key: Any) -> jax.Array:
        jax.debug.callback(lambda: ran.append(1))
        return line_loss(params, batch, key)

    local = mx.client.local_training(loss, optax.sgd(0.2), batch_size=3)
    fed = mx.federation.fedavg(local, participation=part.uniform(2))
    state, _ = mx.federation.run(jax.random.key(0), fed, fed.init(LINE), cohort(), 3)
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(ran) == 2 * 3
