"""Membership scores: against a slow loop, planted members, and what mixing leaves of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixjax as mx

membership = mx.attacks.membership
KEY = jax.random.key(0)
CLIENTS, RECORDS, FEATURES, WIDTH = 5, 4, 6, 3
UNITS_BY_NAME = ("in", "out")


def model(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(0.5 * rng.normal(size=shape), jnp.float32)

    return {
        "in": {"w": normal(FEATURES, WIDTH), "b": normal(WIDTH)},
        "out": {"w": normal(WIDTH), "b": normal()},
    }


def loss_fn(params: Any, batch: Any, key: Any) -> jax.Array:
    del key
    hidden = jnp.tanh(batch["x"] @ params["in"]["w"] + params["in"]["b"][None])
    return 0.5 * jnp.square(hidden @ params["out"]["w"] + params["out"]["b"] - batch["y"])


def mean_loss(params: Any, batch: Any, key: Any) -> jax.Array:
    return jnp.mean(loss_fn(params, batch, key))


def noisy_loss(params: Any, batch: Any, key: Any) -> jax.Array:
    """Dropout of inputs: the key matters."""
    kept = jax.random.bernoulli(key, 0.5, batch["x"].shape).astype(jnp.float32)
    return loss_fn(params, batch | {"x": batch["x"] * kept}, key)


def candidates(seed: int, clients: int = CLIENTS, records: int = RECORDS) -> Any:
    rng = np.random.default_rng(seed)
    return {
        "x": jnp.asarray(rng.normal(size=(clients, records, FEATURES)), jnp.float32),
        "y": jnp.asarray(rng.normal(size=(clients, records)), jnp.float32),
    }


def random_updates(seed: int) -> Any:
    stack = [model(100 * seed + client) for client in range(CLIENTS)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *stack)


def slow_descent(params: Any, x: np.ndarray, y: float) -> dict[str, np.ndarray]:
    """Minus the gradient of one record's loss, by hand, by layer."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    hidden = np.tanh(x @ p["in"]["w"] + p["in"]["b"])
    residual = hidden @ p["out"]["w"] + p["out"]["b"] - y
    back = residual * p["out"]["w"] * (1 - hidden**2)
    first = np.concatenate([back, np.outer(x, back).ravel()])
    return {"in": -first, "out": -np.append(residual, residual * hidden)}


def row(tree: Any, index: int) -> dict[str, np.ndarray]:
    parts = {
        name: [np.ravel(np.asarray(tree[name][leaf][index], np.float64)) for leaf in ("b", "w")]
        for name in UNITS_BY_NAME
    }
    return {name: np.concatenate(part) for name, part in parts.items()}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@functools.cache
def jitted(loss: Any, chunk_size: int | None = 2) -> Any:
    return jax.jit(functools.partial(membership.scores, loss_fn=loss, chunk_size=chunk_size))


def score(loss: Any = loss_fn, chunk_size: int | None = 2, **arguments: Any) -> np.ndarray:
    arguments = {
        "params": model(),
        "updates": random_updates(1),
        "examples": candidates(0),
    } | arguments
    return np.asarray(jitted(loss, chunk_size)(KEY, **arguments))


@functools.cache
def unit_jitted() -> Any:
    units = mx.units.partition(model())
    return jax.jit(
        functools.partial(membership.unit_scores, loss_fn=loss_fn, units=units, chunk_size=RECORDS)
    )


def test_scores_and_unit_scores_agree_with_a_slow_loop() -> None:
    params, updates, examples = model(), random_updates(1), candidates(0)
    whole = score()
    by_unit = np.asarray(unit_jitted()(KEY, params=params, updates=updates, examples=examples))
    assert (whole.shape, by_unit.shape) == ((CLIENTS, RECORDS), (CLIENTS, RECORDS, 2))
    for slot in range(CLIENTS):
        update = row(updates, slot)
        for record in range(RECORDS):
            x = np.asarray(examples["x"][slot, record], np.float64)
            descent = slow_descent(params, x, float(examples["y"][slot, record]))
            together = [np.concatenate([part["in"], part["out"]]) for part in (update, descent)]
            np.testing.assert_allclose(whole[slot, record], cosine(*together), atol=1e-5)
            for unit, name in enumerate(UNITS_BY_NAME):
                expected = cosine(update[name], descent[name])
                np.testing.assert_allclose(by_unit[slot, record, unit], expected, atol=1e-5)


def test_scores_are_the_same_eager_jitted_chunked_vmapped_and_spread() -> None:
    expected = score()
    arguments = (loss_fn, model(), random_updates(1), candidates(0))
    for chunk_size in (None, 1, 3, 99):
        np.testing.assert_allclose(score(chunk_size=chunk_size), expected, atol=1e-6)
    np.testing.assert_allclose(membership.scores(KEY, *arguments), expected, atol=1e-6)
    rounds = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), random_updates(1))
    mapped = jax.vmap(lambda updates: membership.scores(KEY, *arguments[:2], updates, arguments[3]))
    np.testing.assert_allclose(mapped(rounds), [expected, -expected], atol=1e-6)
    four = [jax.tree.map(lambda leaf: leaf[:4], tree) for tree in arguments[2:]]
    spread = membership.scores(
        KEY, loss_fn, model(), *four, mesh=mx.sharding.clients_mesh(2), chunk_size=2
    )
    np.testing.assert_allclose(spread, expected[:4], atol=1e-6)


def test_a_mean_loss_scores_like_a_loss_per_example() -> None:
    np.testing.assert_allclose(score(mean_loss), score(), atol=1e-6)


def test_every_slot_and_record_has_a_key_of_its_own_whatever_the_chunks() -> None:
    same = {
        "examples": jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf[:1, :1], leaf.shape), candidates(0)
        ),
        "updates": jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), random_updates(1)
        ),
    }
    result = score(noisy_loss, **same)
    np.testing.assert_allclose(score(noisy_loss, 3, **same), result, atol=1e-6)
    for line in (*result, *result.T):
        assert len(np.unique(line)) > 1
    assert len(np.unique(score(**same))) == 1


def test_scores_are_zero_and_differentiable_where_a_vector_is_zero() -> None:
    updates = jax.tree.map(lambda leaf: leaf.at[1].set(0), random_updates(1))
    # a model without output weights that predicts 0 for a target of 0 has no gradient
    params = model() | {"out": {"w": jnp.zeros(WIDTH), "b": jnp.zeros(())}}
    examples = candidates(0)
    examples["y"] = examples["y"].at[2, 3].set(0)
    result = score(params=params, updates=updates, examples=examples)
    assert (result[1] == 0).all()
    assert result[2, 3] == 0
    assert np.sum(result == 0) == RECORDS + 1

    def total(updates: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(
            jitted(loss_fn)(KEY, params=params, updates=updates, examples=examples | {"x": x})
        )

    slopes = jax.jit(jax.grad(total, (0, 1)))(updates, examples["x"])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slopes))
    step = jax.tree.map(lambda leaf: leaf.at[0].multiply(jnp.float32(0)), random_updates(2))
    step = jax.tree.map(lambda leaf: leaf.at[1].set(0), step)
    slope = sum(
        jnp.vdot(a, b)
        for a, b in zip(jax.tree.leaves(slopes[0]), jax.tree.leaves(step), strict=True)
    )
    ahead, behind = (
        total(
            jax.tree.map(lambda a, b, s=sign: a + jnp.float32(s) * b, updates, step), examples["x"]
        )
        for sign in (1e-2, -1e-2)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-2, rtol=2e-2, atol=1e-2)


PLANTED, USED = 40, 2


@functools.cache
def planted() -> Any:
    """Updates of one full-batch step on the first half of each client's candidates."""
    examples = candidates(3, PLANTED, 2 * USED)
    members = jax.tree.map(lambda leaf: leaf[:, :USED], examples)
    step = jax.jit(jax.vmap(jax.grad(mean_loss), (None, 0, None)))
    return jax.tree.map(lambda leaf: -0.1 * leaf, step(model(), members, KEY)), examples


def judged(scores: np.ndarray, members: np.ndarray) -> float:
    return float(mx.evaluation.membership_auc(scores.ravel(), members.ravel()))


def standard_error(members: int, others: int) -> float:
    """Of the area under the curve where members are like others (Mann and Whitney 1947)."""
    return float(np.sqrt((members + others + 1) / (12 * members * others)))


FIRST_HALF = np.broadcast_to(np.arange(2 * USED) < USED, (PLANTED, 2 * USED))
NULL = standard_error(PLANTED * USED, PLANTED * USED)


def test_members_of_an_update_score_higher_and_mixing_hides_whose_they_are() -> None:
    updates, examples = planted()
    plain = judged(score(updates=updates, examples=examples), FIRST_HALF)
    assert plain > 0.5 + 5 * NULL
    mixed = mx.mix(jax.random.key(1), updates)
    hidden = judged(score(updates=mixed, examples=examples), FIRST_HALF)
    assert hidden < plain - 3 * NULL
    wrong = jax.tree.map(lambda leaf: -leaf, updates)
    assert judged(score(updates=wrong, examples=examples), FIRST_HALF) == pytest.approx(1 - plain)


def test_records_that_nobody_used_score_like_each_other() -> None:
    updates, _ = planted()
    strangers = candidates(4, PLANTED, 2 * USED)
    area = judged(score(updates=updates, examples=strangers), FIRST_HALF)
    assert abs(area - 0.5) < 4 * NULL


def test_mixing_moves_unit_scores_and_their_members_together() -> None:
    updates, examples = planted()
    units = mx.units.partition(model())
    # every slot gets the same candidates: all clients' records, each with its owner or -1
    pooled = jax.tree.map(
        lambda leaf: jnp.broadcast_to(
            leaf.reshape(-1, *leaf.shape[2:]), (PLANTED, PLANTED * 2 * USED, *leaf.shape[2:])
        ),
        examples,
    )
    owners = np.where(FIRST_HALF, np.arange(PLANTED)[:, None], -1).ravel()
    areas = []
    for mix in (mx.mixing.keep(), mx.mixing.full_round()):
        origins = mix(jax.random.key(1), jnp.ones(PLANTED, bool), 2)
        forwarded = mx.mixing.apply(origins, updates, units)
        scores = np.asarray(unit_jitted()(KEY, params=model(), updates=forwarded, examples=pooled))
        members = owners[None, :, None] == np.asarray(origins)[:, None, :]
        areas.append([judged(scores[..., unit], members[..., unit]) for unit in (0, 1)])
    np.testing.assert_allclose(areas[0], areas[1], atol=1e-4)
    assert min(areas[0]) > 0.5 + 5 * standard_error(PLANTED * USED, PLANTED * PLANTED * USED)
