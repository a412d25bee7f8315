"""What makes large cohorts possible gives what the plain way gives."""

import threading
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_equal, single

import mixjax as mx

PARAMS = single({"a": {"w": jnp.ones((3, 4)) / 3}, "b": {"w": jnp.ones((4, 2)) / 4}})


def loss_fn(params: Any, batch: Any, key: Any) -> Any:
    hidden = jnp.tanh(batch["x"] @ params["a"]["w"])
    return jnp.sum((hidden @ params["b"]["w"] - batch["y"]) ** 2, axis=-1)


LOCAL = mx.client.local_training(loss_fn, optax.sgd(0.1), batch_size=2)


def cohort(*counts: int) -> mx.data.ClientData:
    rng = np.random.default_rng(0)
    return mx.data.stack(
        [
            {
                "x": rng.normal(size=(count, 3)).astype(np.float32),
                "y": rng.normal(size=(count, 2)).astype(np.float32),
            }
            for count in counts
        ]
    )


def test_streamed_clients_train_as_stacked_ones_do() -> None:
    data = cohort(5, 3, 4, 1)
    pool = data.examples
    streamed = mx.client.streamed(
        LOCAL, lambda client_id: jax.tree.map(lambda leaf: leaf[client_id], pool)
    )
    key = jax.random.key(1)
    stacked_updates = mx.cohort.run(key, PARAMS, data, LOCAL)
    updates = mx.cohort.run(key, PARAMS, data._replace(examples=()), streamed)
    assert_equal(updates, stacked_updates)


def test_a_streamed_federation_runs_with_mixing_and_attack() -> None:
    data = cohort(5, 3, 4, 2, 5, 4)
    pool = data.examples
    streamed = mx.client.streamed(
        LOCAL, lambda client_id: jax.tree.map(lambda leaf: leaf[client_id], pool)
    )
    records = []
    for local, examples in ((LOCAL, data.examples), (streamed, ())):
        cohort_data = data._replace(examples=examples)
        auxiliary = mx.data.take(data, [0, 1])._replace(
            examples=jax.tree.map(lambda leaf: leaf[:2], pool)
        )
        federation = mx.federation.fedavg(
            local, defence=mx.defences.mixnn(), attack=mx.attacks.sim.passive(auxiliary)
        )
        state = federation.init(PARAMS)
        records.append(mx.federation.run(jax.random.key(2), federation, state, cohort_data, 2)[1])
    np.testing.assert_array_equal(records[0].findings, records[1].findings)


@pytest.mark.parametrize("devices", [1, 2])
def test_clients_loaded_by_the_host_train_as_stacked_ones_do(devices: int) -> None:
    data = cohort(5, 3, 4, 1, 2, 6)
    host, loaded = jax.device_get(data.examples), []

    def load(client: int) -> Any:
        loaded.append(client)
        return jax.tree.map(lambda leaf: leaf[client], host)

    streamed = mx.client.streamed(LOCAL, mx.data.prefetched(load, data.ids, ahead=2))
    mesh = mx.sharding.clients_mesh(devices)
    key = jax.random.key(1)
    expected = mx.cohort.run(key, PARAMS, data, LOCAL, mesh=mesh)
    for chunk_size in (1, 2):
        updates = mx.cohort.run(
            key, PARAMS, data._replace(examples=()), streamed, mesh=mesh, chunk_size=chunk_size
        )
        assert_close(updates, expected)
    assert set(loaded) == set(range(6))


def test_the_next_clients_are_loaded_while_one_is_used() -> None:
    began = {client: threading.Event() for client in range(4)}

    def load(client: int) -> Any:
        began[client].set()
        return {"x": np.full((2, 3), client, np.float32)}

    fetch = mx.data.prefetched(load, [3, 1, 0, 2], ahead=2, workers=1)
    np.testing.assert_array_equal(fetch(jnp.int32(3))["x"], 3.0)
    assert began[1].wait(10)
    assert began[0].wait(10)
    assert not began[2].is_set()
    # a chunk comes in one call, and an order that was not foretold is served too
    chunk = jax.jit(jax.vmap(fetch))(jnp.array([2, 3, 0, 1]))["x"]
    np.testing.assert_array_equal(chunk[:, 0, 0], [2.0, 3.0, 0.0, 1.0])


def test_examples_of_another_shape_are_named() -> None:
    fetch = mx.data.prefetched(lambda client: {"x": np.zeros(3 + client)}, [0, 1])
    with pytest.raises(Exception, match="expected examples of client 1 shaped like client 0's"):
        fetch(jnp.int32(1))
    with pytest.raises(mx.InputError, match="expected distinct client ids"):
        mx.data.prefetched(lambda client: np.zeros(3), [0, 1, 1])


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_round_lowers_for_accelerators(platform: str) -> None:
    data = cohort(4, 3)
    federation = mx.federation.fedavg(
        LOCAL,
        defence=mx.defences.mixnn(list_size=2),
        attack=mx.attacks.sim.passive(data),
        chunk_size=2,
    )
    state = federation.init(PARAMS)

    def step(seed: Any, state: Any, data: Any) -> Any:
        state, record = federation.step(jax.random.key(seed), state, data)
        return state, record.findings

    exported = jax.export.export(jax.jit(step), platforms=[platform])(0, state, data)
    assert exported.platforms == (platform,)


def statistics(clients: int) -> mx.attacks.sim.Statistics:
    keys = jax.random.split(jax.random.key(3), 2)
    return mx.attacks.sim.Statistics(
        dots=jax.random.normal(keys[0], (clients, 2, 2)),
        squared_norms=1 + jax.random.uniform(keys[1], (clients, 2)),
        direction_squared_norms=jnp.ones((2, 2)),
    )


def test_draws_of_the_shuffle_average_to_the_expected_attribution() -> None:
    draws, clients = 4000, 9
    terms = statistics(clients)
    guesses = mx.evaluation.guesses(mx.attacks.sim.cosine(terms))
    # whoever knows everybody without mixing is wrong about many behind it
    truth = guesses
    rates = mx.evaluation.attribution_over_draws(
        jax.random.key(4), terms, truth, mx.mixing.shuffle(), draws=draws
    )
    expected = mx.evaluation.permuted_attribution(guesses, truth, 2)
    error = rates.std() / np.sqrt(draws)
    assert abs(rates.mean() - expected) < 4 * error
    # what no mixing gives is refused
    assert abs(mx.evaluation.attribution(guesses, truth) - rates.mean()) > 100 * error > 0


def test_draws_without_mixing_all_give_the_accuracy_of_the_round() -> None:
    terms, truth = statistics(8), np.arange(8) % 2
    rates = mx.evaluation.attribution_over_draws(
        jax.random.key(4), terms, truth, mx.mixing.keep(), draws=5
    )
    guesses = mx.evaluation.guesses(mx.attacks.sim.cosine(terms))
    np.testing.assert_allclose(rates, mx.evaluation.attribution(guesses, truth), rtol=1e-6)


def test_draws_ignore_inactive_clients() -> None:
    draws, terms = 2000, statistics(8)
    truth = guesses = mx.evaluation.guesses(mx.attacks.sim.cosine(terms))
    active = ~np.isin(np.arange(8), np.flatnonzero(guesses == 0)[:2])
    rates = mx.evaluation.attribution_over_draws(
        jax.random.key(4), terms, truth, mx.mixing.shuffle(), active, draws=draws
    )
    np.testing.assert_allclose(rates * 6, np.round(rates * 6), atol=1e-5)
    error = rates.std() / np.sqrt(draws)
    expected = mx.evaluation.permuted_attribution(guesses, truth, 2, active)
    assert abs(rates.mean() - expected) < 4 * error
    everybodys = mx.evaluation.permuted_attribution(guesses, truth, 2)
    assert abs(rates.mean() - everybodys) > 20 * error


def test_permutations_of_thousands_are_permutations_with_uniform_slots() -> None:
    clients = 5000
    active = jnp.arange(clients) % 7 != 0
    origins = np.asarray(mx.mixing.full_round()(jax.random.key(5), active, 2))
    for column in origins.T:
        np.testing.assert_array_equal(np.sort(column), np.arange(clients))
    kept = np.asarray(active)
    np.testing.assert_array_equal(origins[~kept], np.flatnonzero(~kept)[:, None].repeat(2, 1))
    # of n slots a uniform permutation fixes about one; more than 12 has probability < 1e-9
    assert np.sum(origins[kept, 0] == np.flatnonzero(kept)) <= 12
    # rank correlation has deviation 1/sqrt(n): a permutation that keeps any order shows
    assert abs(np.corrcoef(origins[kept, 0], np.flatnonzero(kept))[0, 1]) < 5 / np.sqrt(kept.sum())
