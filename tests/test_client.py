"""Local training of one client: against slow loops, and what padding and keys may do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import mixjax as mx

FEATURES = 3


def squared_loss(params: Any, batch: Any, key: Any) -> jax.Array:
    del key
    predictions = batch["x"] @ params["w"] + params["b"]
    return 0.5 * jnp.square(predictions - batch["y"])


def logistic_loss(params: Any, batch: Any, key: Any) -> jax.Array:
    del key
    logits = batch["x"] @ params["w"] + params["b"]
    return optax.sigmoid_binary_cross_entropy(logits, batch["y"])


def client(count: int, capacity: int, padding: float = 0.0, seed: int = 0) -> mx.data.ClientData:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(capacity, FEATURES)).astype(np.float32)
    y = (rng.uniform(size=capacity) < 0.5).astype(np.float32)
    x[count:], y[count:] = padding, padding
    return mx.data.ClientData(
        examples={"x": jnp.asarray(x), "y": jnp.asarray(y)},
        counts=jnp.int32(count),
        ids=jnp.int32(0),
        active=jnp.bool_(True),
    )


def start() -> dict[str, jax.Array]:
    return {"w": jnp.array([0.3, -0.2, 0.1], jnp.float32), "b": jnp.float32(0.05)}


def one_column_a_step(steps: int) -> optax.GradientTransformation:
    """Step s moves column s only: the parameters become a log of the gradients."""

    def update(gradient: Any, count: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        column = jnp.arange(steps, dtype=count.dtype) == count
        moved = jax.tree.map(
            lambda leaf: jnp.where(jnp.broadcast_to(column, leaf.shape), -leaf, 0), gradient
        )
        return moved, count + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


def visits(key: Any, count: int, capacity: int, batch_size: int, epochs: int) -> np.ndarray:
    """`[steps, examples]`: 1 / (size of the batch) where a step visits an example."""
    size = min(batch_size, capacity)
    steps = epochs * -(-capacity // size)

    def marking_loss(params: Any, batch: Any, key: Any) -> jax.Array:
        del key
        return jnp.sum(params[batch], axis=-1)

    local = mx.client.local_training(
        marking_loss, one_column_a_step(steps), batch_size=batch_size, epochs=epochs
    )
    data = mx.data.ClientData(jnp.arange(capacity), jnp.int32(count), jnp.int32(0), jnp.bool_(True))
    result = jax.jit(local)(key, jnp.zeros((capacity, steps)), data)
    return -np.asarray(result.update).T


def slow_training(
    loss: str, batches: np.ndarray, data: Any, rate: float, momentum: float
) -> tuple[dict[str, np.ndarray], float]:
    x, y = (np.asarray(data.examples[name], np.float64) for name in "xy")
    w, b = np.asarray(start()["w"], np.float64), float(start()["b"])
    velocity_w, velocity_b, losses = np.zeros_like(w), 0.0, []
    for batch in batches:
        members = np.flatnonzero(batch)
        if not members.size:
            continue
        gradient_w, gradient_b = np.zeros_like(w), 0.0
        for member in members:
            score = x[member] @ w + b
            if loss == "squared":
                slope = score - y[member]
                losses.append(0.5 * slope**2)
            else:
                chance = 1 / (1 + np.exp(-score))
                slope = chance - y[member]
                losses.append(-np.log(chance if y[member] else 1 - chance))
            gradient_w += slope * x[member] / members.size
            gradient_b += slope / members.size
        velocity_w = momentum * velocity_w + gradient_w
        velocity_b = momentum * velocity_b + gradient_b
        w, b = w - rate * velocity_w, b - rate * velocity_b
    first = start()
    return {"w": w - np.asarray(first["w"]), "b": b - float(first["b"])}, float(np.mean(losses))


@pytest.mark.parametrize(
    ("loss", "count", "batch_size"),
    [("squared", 7, 3), ("logistic", 4, 3), ("logistic", 5, 100), ("squared", 1, 2)],
)
def test_local_training_equals_a_slow_loop_in_the_same_order(
    loss: str, count: int, batch_size: int
) -> None:
    key, data = jax.random.key(3), client(count, 8)
    loss_fn = squared_loss if loss == "squared" else logistic_loss
    local = mx.client.local_training(
        loss_fn, optax.sgd(0.2, momentum=0.9), batch_size=batch_size, epochs=2
    )
    result = jax.jit(local)(key, start(), data)
    batches = visits(key, count, 8, batch_size, 2)
    expected, expected_loss = slow_training(loss, batches, data, 0.2, 0.9)
    np.testing.assert_allclose(result.update["w"], expected["w"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.update["b"], expected["b"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.loss, expected_loss, rtol=1e-5)


@pytest.mark.parametrize(("count", "capacity", "batch_size"), [(7, 7, 3), (5, 9, 2)])
def test_each_epoch_visits_each_example_once(count: int, capacity: int, batch_size: int) -> None:
    log = visits(jax.random.key(1), count, capacity, batch_size, epochs=3)
    real_steps = -(-count // min(batch_size, capacity))
    seen = log > 0
    for epoch in range(3):
        of_epoch = seen[epoch * real_steps : (epoch + 1) * real_steps]
        np.testing.assert_array_equal(of_epoch.sum(axis=0), np.arange(capacity) < count)
    assert not seen[3 * real_steps :].any()
    np.testing.assert_allclose(log.sum(axis=1)[: 3 * real_steps], 1, rtol=1e-6)


def test_epochs_and_keys_have_their_own_orders() -> None:
    log = visits(jax.random.key(0), 20, 20, 1, epochs=2) > 0
    other = visits(jax.random.key(1), 20, 20, 1, epochs=2) > 0
    assert (log[:20] != log[20:]).any()
    assert (log != other).any()


def order_statistic(orders: np.ndarray) -> float:
    """Chi-square distance of the orders of three examples from uniform ones."""
    codes = orders @ np.array([9, 3, 1])
    counts = np.array([np.sum(codes == code) for code in (5, 7, 11, 15, 19, 21)])
    return float(np.sum((counts - len(orders) / 6) ** 2) / (len(orders) / 6))


def test_the_order_is_uniform_and_a_rotation_would_not_pass() -> None:
    keys = jax.random.split(jax.random.key(5), 3000)
    capacity, count = 4, 3

    def loss(params: Any, batch: Any, key: Any) -> jax.Array:
        del key
        return jnp.sum(params[batch], axis=-1)

    local = mx.client.local_training(loss, one_column_a_step(capacity), batch_size=1)
    data = mx.data.ClientData(jnp.arange(capacity), jnp.int32(count), jnp.int32(0), jnp.bool_(True))
    train = jax.jit(jax.vmap(local, (0, None, None)))
    log = -np.asarray(train(keys, jnp.zeros((capacity, capacity)), data).update)
    orders = np.argmax(log[:, :count, :count], axis=1)
    limit = scipy.stats.chi2.ppf(1 - 1e-6, 5)
    assert order_statistic(orders) < limit
    rotations = (np.arange(3) + np.random.default_rng(0).integers(3, size=(3000, 1))) % 3
    assert order_statistic(rotations) > limit


@pytest.mark.parametrize("scalar", [False, True])
def test_padding_is_never_read(scalar: bool) -> None:
    def loss(params: Any, batch: Any, key: Any) -> jax.Array:
        losses = logistic_loss(params, batch, key)
        return jnp.mean(losses) if scalar else losses

    local = jax.jit(
        mx.client.local_training(loss, optax.sgd(0.1, momentum=0.9), batch_size=3, epochs=2)
    )
    zeros = local(jax.random.key(0), start(), client(4, 8, padding=0.0))
    nans = local(jax.random.key(0), start(), client(4, 8, padding=np.nan))
    for one, other in zip(jax.tree.leaves(zeros), jax.tree.leaves(nans), strict=True):
        assert np.isfinite(other).all()
        np.testing.assert_array_equal(one, other)


def test_gradients_through_training_ignore_padding_too() -> None:
    local = mx.client.local_training(logistic_loss, optax.sgd(0.1), batch_size=3, epochs=2)

    def moved(params: Any, data: Any) -> jax.Array:
        return jnp.sum(local(jax.random.key(0), params, data).update["w"])

    gradient = jax.jit(jax.grad(moved))
    plain, poisoned = (gradient(start(), client(4, 8, padding)) for padding in (0.0, np.nan))
    np.testing.assert_array_equal(plain["w"], poisoned["w"])


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adam(0.1)])
def test_a_client_without_examples_returns_a_zero_update_and_no_loss(optimizer: Any) -> None:
    local = mx.client.local_training(squared_loss, optimizer, batch_size=3, epochs=2)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam needs it
        result = jax.jit(local)(jax.random.key(0), start(), client(0, 8, padding=np.nan))
    for leaf in jax.tree.leaves(result.update):
        np.testing.assert_array_equal(leaf, 0)
    assert np.isnan(result.loss)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.1, momentum=0.9),
        optax.adam(0.1),
        optax.sgd(optax.linear_schedule(0.3, 0.0, 6)),
    ],
    ids=["momentum", "adam", "schedule"],
)
def test_steps_without_examples_move_no_optimizer_state(optimizer: Any) -> None:
    local = mx.client.local_training(squared_loss, optimizer, batch_size=4, epochs=4)
    data = client(4, 4)
    padded = {
        name: jnp.pad(leaf, [(0, 9)] + [(0, 0)] * (leaf.ndim - 1))
        for name, leaf in data.examples.items()
    }
    with jax.numpy_dtype_promotion("standard"):  # optax.adam needs it
        # full batches: the order of four examples changes nothing but rounding
        tight = jax.jit(local)(jax.random.key(0), start(), data)
        roomy = jax.jit(local)(jax.random.key(0), start(), data._replace(examples=padded))
    np.testing.assert_allclose(tight.update["w"], roomy.update["w"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tight.loss, roomy.loss, rtol=1e-5)


def test_adam_equals_optax_stepped_by_hand() -> None:
    data, optimizer = client(6, 6), optax.adam(0.05)
    local = mx.client.local_training(squared_loss, optimizer, batch_size=6, epochs=5)
    params, state = start(), optimizer.init(start())
    with jax.numpy_dtype_promotion("standard"):  # optax.adam needs it
        result = jax.jit(local)(jax.random.key(0), start(), data)
        for _ in range(5):
            gradient = jax.grad(lambda p: jnp.mean(squared_loss(p, data.examples, None)))(params)
            steps, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, steps)
    expected = jax.tree.map(jnp.subtract, params, start())
    np.testing.assert_allclose(result.update["w"], expected["w"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.update["b"], expected["b"], rtol=1e-4, atol=1e-6)


def test_a_scalar_loss_is_read_as_a_mean_over_examples() -> None:
    def mean_loss(params: Any, batch: Any, key: Any) -> jax.Array:
        return jnp.mean(logistic_loss(params, batch, key))

    results = [
        mx.client.local_training(loss, optax.sgd(0.1), batch_size=3, epochs=2)(
            jax.random.key(2), start(), client(5, 8)
        )
        for loss in (logistic_loss, mean_loss)
    ]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_each_step_hands_the_loss_a_key_of_its_own() -> None:
    def noisy_loss(params: Any, batch: Any, key: Any) -> jax.Array:
        return jnp.sum(params) * jax.random.uniform(key, batch.shape)

    local = mx.client.local_training(noisy_loss, one_column_a_step(6), batch_size=2, epochs=2)
    data = mx.data.ClientData(jnp.arange(6), jnp.int32(6), jnp.int32(0), jnp.bool_(True))
    train = jax.jit(local)
    first, again, other = (
        np.asarray(train(jax.random.key(seed), jnp.zeros(6), data).update) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.unique(np.concatenate([first, other])).size == 12


def test_a_scalar_loss_gets_a_key_for_each_example() -> None:
    def dropout_loss(params: Any, batch: Any, key: Any) -> jax.Array:
        return jnp.mean(jnp.sum(params[batch], axis=-1)) * jax.random.uniform(key)

    local = mx.client.local_training(dropout_loss, one_column_a_step(1), batch_size=6)
    data = mx.data.ClientData(jnp.arange(6), jnp.int32(6), jnp.int32(0), jnp.bool_(True))
    update = np.asarray(local(jax.random.key(0), jnp.zeros((6, 1)), data).update)
    assert np.unique(update).size == 6


def test_jit_and_vmap_change_nothing_but_rounding() -> None:
    local = mx.client.local_training(logistic_loss, optax.sgd(0.1), batch_size=3, epochs=2)
    compiled, keys = jax.jit(local), jax.random.split(jax.random.key(0), 2)
    clients = [client(count, 8, seed=count) for count in (8, 5)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clients)
    mapped = jax.jit(jax.vmap(local, (0, None, 0)))(keys, start(), stacked)
    for row, data in enumerate(clients):
        alone, compiled_alone = local(keys[row], start(), data), compiled(keys[row], start(), data)
        for one, two, three in zip(
            *map(jax.tree.leaves, (alone, compiled_alone, mapped)), strict=True
        ):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(one, three[row], rtol=1e-5, atol=1e-7)


def test_the_jacobian_of_a_step_of_least_squares_is_known() -> None:
    data, rate = client(6, 6), 0.3

    def loss(params: Any, batch: Any, key: Any) -> jax.Array:
        del key
        return 0.5 * jnp.square(batch["x"] @ params - batch["y"])

    local = mx.client.local_training(loss, optax.sgd(rate), batch_size=6)
    jacobian = jax.jacobian(lambda w: local(jax.random.key(0), w, data).update)(start()["w"])
    x = np.asarray(data.examples["x"])
    np.testing.assert_allclose(jacobian, -rate * x.T @ x / 6, rtol=1e-4, atol=1e-6)


def test_updates_keep_the_dtype_of_the_parameters() -> None:
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), start())
    data = client(5, 8)
    data = data._replace(
        examples=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), data.examples)
    )
    local = mx.client.local_training(squared_loss, optax.sgd(0.1), batch_size=3)
    result = local(jax.random.key(0), params, data)
    assert result.update["w"].dtype == jnp.bfloat16
    assert result.loss.dtype == jnp.float32


@pytest.mark.usefixtures("unchecked")
def test_a_loss_of_another_shape_is_refused() -> None:
    local = mx.client.local_training(
        lambda params, batch, key: batch["x"] @ params["w"][:, None], optax.sgd(0.1), batch_size=4
    )
    with pytest.raises(mx.InputError, match=r"loss of a batch of 4 .* shape \[4\] or a scalar"):
        local(jax.random.key(0), start(), client(8, 8))
