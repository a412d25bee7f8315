"""Whose record it is: against a slow loop, and what mixing takes from it until it is undone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import single

import mixjax as mx
from mixjax.attacks import channels, source, unmix

KEY = jax.random.key(0)
SLOTS, RECORDS, FEATURES = 4, 5, 3
MODEL = single({"in": {"w": jnp.array([0.5, 0.1, -0.3])}, "out": {"b": jnp.array(0.2)}})
RNG = np.random.default_rng(0)
UPDATES = jax.tree.map(
    lambda leaf: jnp.asarray(RNG.normal(size=(SLOTS, *leaf.shape)), jnp.float32), MODEL
)
CANDIDATES = {
    "x": jnp.asarray(RNG.normal(size=(RECORDS, FEATURES)), jnp.float32),
    "y": jnp.asarray(RNG.normal(size=RECORDS), jnp.float32),
}


def loss_fn(params: Any, batch: Any, key: Any) -> jax.Array:
    """Half the squared error of a line, with dropout of inputs: the key matters."""
    kept = jax.random.bernoulli(key, 0.9, batch["x"].shape).astype(jnp.float32)
    x = batch["x"] * kept
    return 0.5 * jnp.square(x @ params["in"]["w"] + params["out"]["b"] - batch["y"])


def mean_loss(params: Any, batch: Any, key: Any) -> jax.Array:
    return jnp.mean(plain_loss(params, batch, key))


def plain_loss(params: Any, batch: Any, key: Any) -> jax.Array:
    del key
    return 0.5 * jnp.square(batch["x"] @ params["in"]["w"] + params["out"]["b"] - batch["y"])


@functools.cache
def jitted(loss: Any = loss_fn, chunk_size: int | None = 2) -> Any:
    return jax.jit(functools.partial(source.record_losses, loss_fn=loss, chunk_size=chunk_size))


def losses(loss: Any = loss_fn, chunk_size: int | None = 2, **instead: Any) -> np.ndarray:
    arguments = {"params": MODEL, "updates": UPDATES, "records": CANDIDATES} | instead
    return np.asarray(jitted(loss, chunk_size)(KEY, **arguments))


def test_losses_agree_with_a_slow_loop() -> None:
    result = losses(plain_loss)
    assert result.shape == (SLOTS, RECORDS)
    x, y = (np.asarray(CANDIDATES[name], np.float64) for name in "xy")
    for slot in range(SLOTS):
        w = np.asarray(MODEL["in"]["w"] + UPDATES["in"]["w"][slot], np.float64)
        b = float(MODEL["out"]["b"] + UPDATES["out"]["b"][slot])
        np.testing.assert_allclose(result[slot], 0.5 * (x @ w + b - y) ** 2, rtol=1e-5)
    np.testing.assert_allclose(losses(mean_loss), result, rtol=1e-5)


def test_losses_are_the_same_eager_jitted_chunked_vmapped_and_spread() -> None:
    expected = losses()
    for chunk_size in (None, 1, 3, 99):
        np.testing.assert_allclose(losses(chunk_size=chunk_size), expected, rtol=1e-5)
    eager = source.record_losses(KEY, loss_fn, MODEL, UPDATES, CANDIDATES)
    np.testing.assert_allclose(eager, expected, rtol=1e-5)
    rounds = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), UPDATES)
    mapped = jax.vmap(lambda own: source.record_losses(KEY, loss_fn, MODEL, own, CANDIDATES))
    np.testing.assert_allclose(mapped(rounds), [expected, expected[::-1]], rtol=1e-5)
    mesh = mx.sharding.clients_mesh(2)
    spread = source.record_losses(KEY, loss_fn, MODEL, UPDATES, CANDIDATES, mesh=mesh)
    np.testing.assert_allclose(spread, expected, rtol=1e-5)


def test_a_record_meets_the_same_draws_under_every_model_and_its_own() -> None:
    same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), UPDATES)
    copies = {
        "x": jnp.ones((40, FEATURES), jnp.float32), "y": jnp.zeros(40, jnp.float32),
    }  # fmt: skip
    result = losses(updates=same, records=copies)
    np.testing.assert_array_equal(result, np.broadcast_to(result[:1], result.shape))
    assert len(np.unique(result[0])) > 1
    fewer = jax.tree.map(lambda leaf: leaf[:10], copies)
    np.testing.assert_allclose(losses(updates=same, records=fewer), result[:, :10], rtol=1e-5)


CLIENTS, OWN = 8, 6


@functools.cache
def federation() -> tuple[Any, ...]:
    """Clients that learn random labels of few records by heart."""
    rng = np.random.default_rng(1)
    inputs = jnp.asarray(rng.normal(size=(CLIENTS, OWN, 10)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 4, (CLIENTS, OWN)), jnp.int32)
    model = mx.models.MLP(classes=4, hidden=(24, 16))
    params = mx.models.initial(model, jax.random.key(2), inputs[0])
    loss = mx.models.cross_entropy(model)
    local = mx.client.local_training(loss, optax.sgd(0.1), batch_size=OWN, epochs=40)
    people = [mx.data.Examples(*own) for own in zip(inputs, labels, strict=True)]
    updates = jax.jit(lambda: mx.cohort.run(KEY, params, mx.data.stack(people), local))()
    records = mx.data.Examples(inputs.reshape(-1, 10), labels.reshape(-1))
    graph = channels.trace(model, params, inputs[0])
    score = jax.jit(lambda updates: source.record_losses(KEY, loss, params, updates, records))
    return params, updates, graph, score


@pytest.mark.parametrize("seed", range(3))
def test_only_what_was_joined_tells_whose_a_record_is(seed: int) -> None:
    params, updates, graph, score = federation()
    units = mx.units.partition(params)
    origins = mx.mixing.full_round()(jax.random.key(seed), jnp.ones(CLIENTS, bool), 3)
    mixed = mx.mixing.apply(origins, updates, units)
    assembly = unmix.assemble(jax.random.key(seed), params, mixed, graph)
    joined = score(mx.mixing.apply(assembly.slots, mixed, units))
    owner = mx.evaluation.owners(assembly.slots, origins)[:, 0]
    plain = np.asarray(score(updates))
    np.testing.assert_array_equal(joined, plain[owner])
    truth = np.repeat(np.arange(CLIENTS), OWN)

    def right(losses: Any, owner: Any) -> float:
        return float(np.mean(owner[np.argmin(losses, axis=0)] == truth))

    everyone = np.arange(CLIENTS)
    assert right(joined, owner) == right(plain, everyone) > 0.8
    # of a chimera, whichever layer's owner is taken for its own
    chimeras = score(mixed)
    assert max(right(chimeras, np.asarray(origins)[:, unit]) for unit in range(3)) < 0.6
