"""The same laws and draws in 64-bit mode, under other generators, and with NaN checks on."""

import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mixjax as mx

PARAMS = {"a": {"w": jnp.zeros(3)}, "b": {"w": jnp.zeros(2)}}
ACTIVE = np.arange(40) % 3 != 0


def draws() -> dict[str, Any]:
    """All that the library draws, from fixed keys."""
    key, active = jax.random.key(1), jnp.asarray(ACTIVE)
    data = mx.data.stack([{"x": np.ones((3, 2), np.float32)}] * 40)._replace(active=active)
    update = {"a": jnp.arange(5, dtype=jnp.float32)}
    number = jnp.int32(2)
    durations = mx.participation.log_normal(1.0, 0.5)(key, number, data)
    chosen = {
        "uniform": mx.participation.uniform(5),
        "fraction": mx.participation.fraction(0.3),
        "dropout": mx.participation.dropout(0.3),
        "deadline": mx.participation.deadline(1.0, mx.participation.log_normal(1.0, 0.5)),
    }

    def loss(params: Any, batch: Any, key: Any) -> Any:
        order = jnp.cumsum(batch["i"])
        return batch["i"] * params["w"] + 0.0 * order

    local = mx.client.local_training(loss, optax.sgd(0.1, momentum=0.5), batch_size=2)
    steps = mx.data.stack([{"i": np.arange(5, dtype=np.float32) ** 2}])
    one = jax.tree.map(lambda leaf: leaf[0], steps)
    return {
        **{
            name: mix(key, active, 3)
            for name, mix in {
                "keep": mx.mixing.keep(),
                "shuffle": mx.mixing.shuffle(),
                "full": mx.mixing.full_round(),
                "proxy": mx.mixing.proxy(5),
                "composed": mx.mixing.compose(mx.mixing.proxy(3), mx.mixing.shuffle()),
            }.items()
        },
        "stream": mx.mixing.stream(key, 30, 40, 4, 2),
        **{name: part(key, number, data) for name, part in chosen.items()},
        "durations": durations.astype(jnp.float32),
        "noise": mx.defences.noisy_gradient(0.5).perturb(key, update)["a"],
        "sketch": mx.measures.sketch(key, mx.units.partition(update, "model"), update, 3),
        "trained": local(key, {"w": jnp.float32(1)}, one).update["w"],
    }


def arrays() -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in jax.jit(draws)().items()}


def test_64_bit_mode_draws_the_same_and_keeps_the_laws() -> None:
    expected = arrays()
    with jax.enable_x64(True):
        found = arrays()
    for name, array in expected.items():
        # the exponential of 64 bits rounds otherwise
        tolerance = 1e-6 if name == "durations" else 0
        np.testing.assert_allclose(found[name], array, rtol=tolerance, err_msg=name)
        assert found[name].dtype == array.dtype, name
    for name in ("keep", "shuffle", "full", "proxy", "composed"):
        for column in found[name].T:
            np.testing.assert_array_equal(np.sort(column), np.arange(40))
            np.testing.assert_array_equal(column[~ACTIVE], np.flatnonzero(~ACTIVE))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_64_bit_mode_trains_in_the_parameters_own_dtype(dtype: Any) -> None:
    def loss(params: Any, batch: Any, key: Any) -> Any:
        return (batch["x"] @ params["a"]["w"] + params["b"]["w"] - batch["y"]) ** 2

    def run() -> Any:
        rng = np.random.default_rng(0)
        people = [
            {"x": rng.normal(size=(n, 2)).astype(dtype), "y": rng.normal(size=n).astype(dtype)}
            for n in (3, 2, 1)
        ]
        data = mx.data.stack(people)
        params = {"a": {"w": jnp.zeros(2, dtype)}, "b": {"w": jnp.zeros((), dtype)}}
        local = mx.client.local_training(loss, optax.sgd(0.1), batch_size=2)
        attack = mx.attacks.sim.passive(mx.data.take(data, [0, 1]))
        fed = mx.federation.fedavg(local, defence=mx.defences.mixnn(), attack=attack)
        return mx.federation.run(jax.random.key(0), fed, fed.init(params), data, 2)

    with jax.enable_x64(True):
        state, records = run()
        assert state.params["a"]["w"].dtype == dtype
        assert records.stepped.all()
    if dtype == np.float32:
        plain = run()
        np.testing.assert_array_equal(records.truth.origins, plain[1].truth.origins)
        np.testing.assert_allclose(state.params["a"]["w"], plain[0].params["a"]["w"], rtol=1e-5)


def noise(key: Any, params: Any, data: Any) -> Any:
    update = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), params)
    return mx.client.LocalResult(update, jnp.float32(0))


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_any_generator_keep_the_promises(generator: str) -> None:
    key = jax.random.key(0, impl=generator)
    data = mx.data.stack([np.ones((1, 2), np.float32)] * 6)
    one, three = (
        mx.cohort.run(key, PARAMS, data, noise, chunk_size=size)["a"]["w"] for size in (1, 3)
    )
    np.testing.assert_allclose(one, three, rtol=1e-6)
    assert len(np.unique(one)) == one.size
    turned = mx.data.take(data, [2, 0, 5, 3, 1, 4])
    chosen = [
        sorted(np.asarray(own.ids)[mx.participation.uniform(2)(key, jnp.int32(0), own)].tolist())
        for own in (data, turned)
    ]
    assert chosen[0] == chosen[1]
    # units and keys of a vmap are mixed on their own
    draw = mx.mixing.full_round()
    everyone = jnp.ones(30, bool)
    origins = np.asarray(draw(key, everyone, 2))
    assert np.any(origins[:, 0] != origins[:, 1])
    keys = jax.random.split(key, 3)
    mapped = jax.vmap(lambda key: draw(key, everyone, 2))(keys)
    for own, row in zip(keys, mapped, strict=True):
        np.testing.assert_array_equal(draw(own, everyone, 2), row)
    fed = mx.federation.fedavg(noise, defence=mx.defences.mixnn())
    whole = [
        mx.federation.run(key, fed, fed.init(PARAMS), rows, 2)[0].params["a"]["w"]
        for rows in (data, turned)
    ]
    np.testing.assert_allclose(*whole, atol=1e-6)


def test_an_optimizers_noise_is_each_clients_and_rounds_own() -> None:
    def flat(params: Any, batch: Any, key: Any) -> Any:
        return 0 * batch[:, 0] + 0 * (params["a"]["w"].sum() + params["b"]["w"].sum())

    data = mx.data.stack([np.ones((2, 2), np.float32)] * 3)
    with jax.numpy_dtype_promotion("standard"):
        optimizers = {
            "noisy": optax.noisy_sgd(0.1, eta=1.0, key=0),
            "chained": optax.chain(optax.add_noise(1.0, 0.1, key=3), optax.sgd(0.1)),
            "masked": optax.masked(optax.add_noise(1.0, 0.1, key=3), {"a": True, "b": False}),
        }
        for name, optimizer in optimizers.items():
            local = mx.client.local_training(flat, optimizer, batch_size=2)
            rows = np.concatenate(
                [mx.cohort.run(jax.random.key(n), PARAMS, data, local)["a"]["w"] for n in (0, 1)]
            )
            assert len(np.unique(rows, axis=0)) == 6, name
            again = mx.cohort.run(jax.random.key(0), PARAMS, data, local)["a"]["w"]
            np.testing.assert_array_equal(again, rows[:3])


def test_a_healthy_run_passes_nan_checks_and_a_broken_one_is_told() -> None:
    program = """
import jax, numpy as np, jax.numpy as jnp, optax
jax.config.update("jax_debug_nans", True)
import mixjax as mx
data = mx.data.stack([np.ones((n, 2), np.float32) for n in (2, 1, 2)])
params = {"a": {"w": jnp.ones(2)}, "b": {"w": jnp.ones(())}}
def loss(p, b, k):
    return (b @ p["a"]["w"] + p["b"]["w"]) ** 2
local = mx.client.local_training(loss, optax.sgd(0.01), batch_size=1)
parts = {"participation": mx.participation.schedule([True, True, False])}
fed = mx.federation.fedavg(local, **parts)
state, record = mx.federation.run(jax.random.key(0), fed, fed.init(params), data, 1)
assert np.isnan(np.asarray(record.loss)[0, 2]) and record.stepped.all()
fed.step(jax.random.key(0), state, data)
wild = mx.client.local_training(loss, optax.sgd(1e30), batch_size=1)
fed = mx.federation.fedavg(wild, broken="raise")
try:
    mx.federation.run(jax.random.key(0), fed, fed.init(params), data, 1)
except mx.BrokenUpdateError as error:
    print(error.client)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0\n"


class Normed(nn.Module):
    batch: bool

    @nn.compact
    def __call__(self, inputs: Any) -> Any:
        norm = nn.BatchNorm(use_running_average=False) if self.batch else nn.GroupNorm(2)
        return nn.Dense(1)(norm(inputs))[:, 0]


def normed_loss(batch_norm: bool, scalar: bool) -> tuple[Any, Any, Any]:
    net = Normed(batch_norm)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    variables = net.init(jax.random.key(0), inputs)

    def loss(params: Any, batch: Any, key: Any) -> Any:
        kept = jax.random.bernoulli(key, 0.8, batch.shape)
        held = {name: value for name, value in variables.items() if name != "params"}
        out, _ = net.apply({"params": params, **held}, batch * kept, mutable=["batch_stats"])
        losses = (out - 1.0) ** 2
        return losses.mean() if scalar else losses

    return loss, variables["params"], inputs


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_losses_that_couple_examples_are_told(batch_norm: bool, scalar: bool) -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        loss, params, inputs = normed_loss(batch_norm, scalar)
        told = mx.client.couples_examples(loss, params, inputs, jax.random.key(1))
    assert told == batch_norm


def test_a_contrastive_loss_is_told_and_a_short_batch_refused() -> None:
    def contrastive(params: Any, batch: Any, key: Any) -> Any:
        likeness = (batch * params["w"]) @ batch.T
        return jax.nn.logsumexp(likeness, axis=1) - jnp.diagonal(likeness)

    batch = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    key, params = jax.random.key(0), {"w": jnp.ones((1, 3), jnp.float32)}
    assert mx.client.couples_examples(contrastive, params, batch, key)
    with pytest.raises(mx.InputError, match="at least three examples; got 2"):
        mx.client.couples_examples(contrastive, params, batch[:2], key)
