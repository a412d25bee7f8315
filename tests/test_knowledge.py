"""An attack for several levels of knowledge is that attack, once for each."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mixjax as mx
from experiments import knowledge, training
from mixjax.attacks import Attack, sim

CLIENTS, VALUES, LEVELS, ROUNDS = 5, 2, 3, 4
PARAMS = {"a": {"w": jnp.ones((3, 2))}, "b": {"w": jnp.ones((2, 2))}}


def loss_fn(params: Any, batch: mx.data.Examples, key: jax.Array) -> jax.Array:
    del key
    logits = jnp.tanh(batch.inputs @ params["a"]["w"]) @ params["b"]["w"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)


LOCAL = mx.client.local_training(loss_fn, optax.sgd(0.1), batch_size=4, epochs=1)


def people(rng: np.random.Generator, count: int) -> mx.data.ClientData:
    def one(rows: int) -> mx.data.Examples:
        inputs = rng.normal(size=(rows, 3)).astype(np.float32)
        return mx.data.Examples(inputs, rng.integers(0, 2, rows).astype(np.int32))

    return mx.data.stack([one(4 + row) for row in range(count)], capacity=16)


def remembering(auxiliary: mx.data.ClientData) -> Attack:
    """∇Sim with its scores summed over rounds."""
    once = sim.passive(auxiliary)

    def prepare(key: jax.Array, memory: Any, params: Any, local: Any) -> mx.attacks.Probe:
        del memory
        assert once.prepare is not None
        return once.prepare(key, params, local)

    def observe(key: jax.Array, memory: Any, probe: Any, observation: Any) -> tuple[Any, Any]:
        scores = memory + once.observe(key, probe, observation)
        return scores, scores

    return Attack(
        lambda params, units, clients: jnp.zeros((clients, VALUES)), prepare, sim.measure, observe
    )


def play(attack: Attack, data: mx.data.ClientData) -> training.Trajectory:
    federation = mx.federation.fedavg(LOCAL, attack=attack, keep_probe=True)
    start = federation.init(PARAMS, CLIENTS)
    records = mx.federation.run(jax.random.key(1), federation, start, data, ROUNDS)[1]
    return training.Trajectory(start, records)


@pytest.fixture(scope="module")
def data() -> tuple[mx.data.ClientData, mx.data.ClientData]:
    rng = np.random.default_rng(0)
    return people(rng, CLIENTS), people(rng, LEVELS * VALUES)


@pytest.mark.parametrize("make", [sim.passive, remembering])
def test_each_level_finds_what_it_finds_alone(make: Any, data: Any) -> None:
    cohort, rows = data
    run = play(knowledge.by_level(make(rows), LEVELS), cohort)
    assert run.records.findings.shape == (ROUNDS, CLIENTS, LEVELS, VALUES)
    for level in range(LEVELS):
        own = jax.tree.map(lambda leaf, at=VALUES * level: leaf[at : at + VALUES], rows)
        alone = play(make(own), cohort).records
        np.testing.assert_allclose(
            run.records.findings[:, :, level], alone.findings, rtol=1e-4, atol=1e-6
        )
        np.testing.assert_array_equal(run.records.loss, alone.loss)


@pytest.mark.parametrize("make", [sim.active, remembering])
def test_one_level_is_the_attack_itself(make: Any, data: Any) -> None:
    cohort, rows = data
    own = jax.tree.map(lambda leaf: leaf[:VALUES], rows)
    alone, run = play(make(own), cohort), play(knowledge.by_level(make(own), 1), cohort)
    np.testing.assert_allclose(
        knowledge.at_last(run.records.findings, 2), alone.records.findings, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(run.records.loss, alone.records.loss, rtol=1e-6)
