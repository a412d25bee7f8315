"""Folding one client's function over many: chunks, devices and keys change nothing."""

import functools
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_equal
from hypothesis import strategies as st

import mixjax as mx

COUNTS = (5, 2, 0, 4, 1, 5, 3)
CLIENTS = len(COUNTS)
CHUNKS = (1, 2, 3, 5, CLIENTS, CLIENTS + 4)


def cohort(ids: Any = None) -> mx.data.ClientData:
    rng = np.random.default_rng(0)
    data = mx.data.stack(
        [
            {"x": rng.normal(size=(5, 3)).astype(np.float32), "y": np.ones(5, np.float32)}
            for _ in COUNTS
        ],
        ids,
    )
    return data._replace(counts=jnp.asarray(COUNTS, jnp.int32))


def noisy_loss(params: Any, batch: Any, key: Any) -> jax.Array:
    kept = jax.random.bernoulli(key, 0.5, batch["x"].shape)
    hidden = jnp.where(kept, batch["x"], 0) @ params["w"]
    return jnp.square(hidden + params["b"] - batch["y"])


def params() -> dict[str, jax.Array]:
    return {"w": jnp.array([0.3, -0.2, 0.1], jnp.float32), "b": jnp.float32(0.05)}


LOCAL = mx.client.local_training(noisy_loss, optax.sgd(0.1), batch_size=2, epochs=2)


@functools.partial(jax.jit, static_argnames=("chunk_size", "mesh"))
def train(key: Any, data: Any, chunk_size: int = 1, mesh: Any = None) -> Any:
    return mx.cohort.run(key, params(), data, LOCAL, chunk_size=chunk_size, mesh=mesh)


def integer_fn(shared: Any, client: Any) -> tuple[Any, Any]:
    value, number = client
    summand = {"float": shared * value, "int": number, "half": value.astype(jnp.bfloat16)}
    return summand, (value + 1.0, number * 2)


def integer_clients(count: int) -> tuple[Any, Any]:
    values = jnp.asarray(np.random.default_rng(count).integers(-9, 9, (count, 2, 2)), jnp.float32)
    return values, jnp.arange(count, dtype=jnp.int32) + 2**24


def loop(shared: Any, clients: Any) -> tuple[Any, Any]:
    count = jax.tree.leaves(clients)[0].shape[0]
    results = [
        integer_fn(shared, jax.tree.map(lambda leaf, i=i: leaf[i], clients)) for i in range(count)
    ]
    totals = jax.tree.map(
        lambda *leaves: sum(np.asarray(leaf, np.float64) for leaf in leaves),
        *(summand for summand, _ in results),
    )
    return totals, jax.tree.map(lambda *leaves: np.stack(leaves), *(r for _, r in results))


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_a_fold_equals_a_loop_whatever_the_chunk_size(chunk_size: int) -> None:
    clients, shared = integer_clients(CLIENTS), jnp.float32(3.0)
    totals, records = mx.cohort.fold(integer_fn, shared, clients, chunk_size=chunk_size)
    expected_totals, expected_records = loop(shared, clients)
    for name, total in totals.items():
        np.testing.assert_array_equal(np.asarray(total, np.float64), expected_totals[name])
    assert_equal(records, expected_records)
    assert totals["float"].dtype == totals["half"].dtype == jnp.float32
    assert totals["int"].dtype == jnp.int32


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(st.integers(1, 9), st.integers(1, 12))
def test_any_cohort_in_any_chunks_sums_exactly(count: int, chunk_size: int) -> None:
    clients, shared = integer_clients(count), jnp.float32(2.0)
    totals, records = mx.cohort.fold(integer_fn, shared, clients, chunk_size=chunk_size)
    assert records[0].shape == (count, 2, 2)
    np.testing.assert_array_equal(totals["float"], 2 * np.asarray(clients[0]).sum(axis=0))
    np.testing.assert_array_equal(totals["int"], np.asarray(clients[1]).sum())


def test_booleans_are_counted() -> None:
    flags = jnp.array([True, True, False, True])
    for chunk_size in (1, 2, 3):
        total, _ = mx.cohort.fold(lambda _, flag: (flag, ()), (), flags, chunk_size=chunk_size)
        assert int(total) == 3


def test_summands_accumulate_in_at_least_float32() -> None:
    values = jnp.full(1000, 1 / 3, jnp.bfloat16)
    for chunk_size in (1, 100):
        total, _ = mx.cohort.fold(lambda _, v: (v, ()), (), values, chunk_size=chunk_size)
        np.testing.assert_allclose(total, 1000 * np.float32(values[0]), rtol=1e-5)


def test_the_same_function_may_give_only_a_sum_or_only_a_record() -> None:
    values = jnp.arange(5.0)
    assert mx.cohort.fold(lambda _, v: (v, ()), (), values, chunk_size=2)[1] == ()
    total, records = mx.cohort.fold(lambda _, v: ((), v), (), values, chunk_size=2)
    assert total == ()
    np.testing.assert_array_equal(records, values)


def test_one_client_at_a_time_on_cpu() -> None:
    assert jax.default_backend() != "cpu" or mx.cohort.default_chunk_size(10**6) == 1
    default = mx.cohort.fold(integer_fn, jnp.float32(1), integer_clients(3))
    assert_equal(
        default, mx.cohort.fold(integer_fn, jnp.float32(1), integer_clients(3), chunk_size=1)
    )


def draw(key: Any, client: Any) -> tuple[Any, Any]:
    own = mx.cohort.client_key(key, client.ids)
    return (), (jax.random.key_data(own), jax.random.normal(own, (4,)))


@pytest.mark.parametrize("chunk_size", [2, 5, CLIENTS])
def test_a_client_draws_the_same_numbers_in_any_chunks(chunk_size: int) -> None:
    key, data = jax.random.key(0), cohort()
    alone = mx.cohort.fold(draw, key, data, chunk_size=1)[1]
    chunked = mx.cohort.fold(draw, key, data, chunk_size=chunk_size)[1]
    assert_equal(alone, chunked)


def test_a_client_draws_the_same_numbers_in_any_cohort() -> None:
    key, rows = jax.random.key(0), [5, 0, 3]
    data = cohort(ids=[40, 7, 9, 1000, 3, 2, 8])
    everyone, some = train(key, data), train(key, mx.data.take(data, rows))
    assert_equal(jax.tree.map(lambda leaf: leaf[jnp.array(rows)], everyone), some)


def test_a_clients_randomness_follows_its_id_and_the_key() -> None:
    data = cohort()._replace(counts=jnp.full(CLIENTS, 5))
    same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), data.examples)
    data = data._replace(examples=same)
    first = np.asarray(train(jax.random.key(0), data)["w"])
    other = np.asarray(train(jax.random.key(1), data)["w"])
    assert np.unique(np.concatenate([first, other]), axis=0).shape[0] == 2 * CLIENTS


@pytest.mark.parametrize("chunk_size", [3, CLIENTS + 4])
def test_training_a_cohort_is_the_same_in_any_chunks(chunk_size: int) -> None:
    key, data = jax.random.key(0), cohort()
    assert_close(train(key, data), train(key, data, chunk_size))


def test_run_equals_a_loop_over_clients() -> None:
    key, data, local = jax.random.key(0), cohort(), jax.jit(LOCAL)
    stacked = mx.cohort.run(key, params(), data, LOCAL)
    for row in range(CLIENTS):
        client = jax.tree.map(lambda leaf, row=row: leaf[row], data)
        alone = local(mx.cohort.client_key(key, client.ids), params(), client).update
        assert_close(jax.tree.map(lambda leaf, row=row: leaf[row], stacked), alone)


@pytest.mark.parametrize(("compiled", "chunk_size"), [(False, 1), (True, 3)])
def test_two_devices_give_what_one_gives(compiled: bool, chunk_size: int) -> None:
    key, data, mesh = jax.random.key(0), mx.data.pad(cohort(), 2), mx.sharding.clients_mesh(2)
    spread = train if compiled else train.__wrapped__
    updates = spread(key, data, chunk_size=chunk_size, mesh=mesh)
    shards = updates["w"].addressable_shards
    assert [shard.data.shape for shard in shards] == [(4, 3), (4, 3)]
    assert {shard.device for shard in shards} == set(jax.devices()[:2])
    assert_close(updates, train(key, data))


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_a_sum_over_devices_equals_the_sum(chunk_size: int) -> None:
    clients, mesh = integer_clients(8), mx.sharding.clients_mesh(2)
    totals, records = mx.cohort.fold(
        integer_fn, jnp.float32(3), clients, chunk_size=chunk_size, mesh=mesh
    )
    expected_totals, expected_records = loop(jnp.float32(3), clients)
    for name, total in totals.items():
        np.testing.assert_array_equal(np.asarray(total, np.float64), expected_totals[name])
        assert total.sharding.is_fully_replicated
    assert_equal(records, expected_records)
    assert [shard.data.shape for shard in records[0].addressable_shards] == [(4, 2, 2)] * 2


def test_client_keys_are_the_same_on_any_device() -> None:
    key, data = jax.random.key(0), mx.data.pad(cohort(), 2)
    spread = mx.cohort.fold(draw, key, data, mesh=mx.sharding.clients_mesh(2))[1]
    assert_equal(spread, mx.cohort.fold(draw, key, data)[1])


def test_inactive_clients_give_zeros_even_in_place_of_nan() -> None:
    data = cohort()
    poisoned = jax.tree.map(lambda leaf: leaf.at[3].set(jnp.nan), data.examples)
    active = jnp.arange(CLIENTS) != 3
    clean = train(jax.random.key(0), data)
    updates = train(jax.random.key(0), data._replace(examples=poisoned, active=active))
    for leaf, clean_leaf in zip(jax.tree.leaves(updates), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(leaf[3], 0)
        np.testing.assert_array_equal(np.delete(leaf, 3, 0), np.delete(clean_leaf, 3, 0))
    assert np.any(np.asarray(clean["w"][3]))


def test_a_fold_may_be_vmapped_and_differentiated() -> None:
    values = jnp.arange(5.0)

    def total(scale: jax.Array) -> jax.Array:
        return mx.cohort.fold(lambda s, v: (s * s * v, ()), scale, values, chunk_size=2)[0]

    np.testing.assert_allclose(jax.vmap(total)(jnp.array([1.0, 2.0])), [10, 40])
    np.testing.assert_allclose(jax.grad(total)(3.0), 60)


def test_the_mesh_has_one_axis_of_clients() -> None:
    assert mx.sharding.clients_mesh().shape == {"clients": 2}
    assert mx.sharding.clients_mesh(1).shape == {"clients": 1}
