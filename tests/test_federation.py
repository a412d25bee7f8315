"""FedAvg behind a proxy: against a slow loop, and what mixing, keys and attacks may change."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import single

import mixjax as mx

COUNTS = (6, 3, 1, 4, 6, 2)
ACTIVE = (True, True, False, True, True, True)
CLIENTS = len(COUNTS)
RATE, EPOCHS, ROUNDS = 0.2, 2, 3


def loss_fn(params: Any, batch: Any, key: Any) -> jax.Array:
    del key
    hidden = batch["x"] @ params["in"]["w"] + params["in"]["b"][None]
    return 0.5 * jnp.square(hidden @ params["out"]["w"] - batch["y"])


LOCAL = mx.client.local_training(loss_fn, optax.sgd(RATE), batch_size=6, epochs=EPOCHS)
SHUFFLED = mx.client.local_training(loss_fn, optax.sgd(RATE), batch_size=2, epochs=EPOCHS)


def params() -> Any:
    return single(
        {
            "in": {"w": jnp.array([[0.5, 0.1], [-0.3, 0.2]]), "b": jnp.array([0.1, 0.0])},
            "out": {"w": jnp.array([0.4, -0.6])},
        }
    )


@functools.cache
def cohort(seed: int = 0) -> mx.data.ClientData:
    rng = np.random.default_rng(seed)
    clients = [
        {
            "x": rng.normal(size=(count, 2)).astype(np.float32),
            "y": rng.normal(size=count).astype(np.float32),
        }
        for count in COUNTS
    ]
    return mx.data.stack(clients)._replace(active=jnp.array(ACTIVE))


@functools.cache
def auxiliary() -> mx.data.ClientData:
    return mx.data.take(cohort(9), [0, 4])


MATERIALIZED = dataclasses.replace(mx.aggregation.mean, additive=False)


@functools.cache
def federation(**options: Any) -> mx.federation.Federation:
    return mx.federation.fedavg(options.pop("local", LOCAL), **options)


MIXED = mx.defences.mixnn()
PASSIVE = mx.attacks.sim.passive(auxiliary())


STANDARD = federation(local=SHUFFLED, attack=PASSIVE, defence=MIXED)
KEPT = federation(local=SHUFFLED, attack=PASSIVE, defence=MIXED, keep_updates=True)
PLAIN_KEPT = federation(local=SHUFFLED, keep_updates=True)


@functools.cache
def run(key: int, fed: mx.federation.Federation, rounds: int = ROUNDS) -> Any:
    return mx.federation.run(jax.random.key(key), fed, fed.init(params()), cohort(), rounds)


def assert_close(one: Any, other: Any) -> None:
    chex.assert_trees_all_close(jax.device_get(one), jax.device_get(other), rtol=2e-5, atol=1e-6)


def assert_equal(one: Any, other: Any) -> None:
    chex.assert_trees_all_equal(jax.device_get(one), jax.device_get(other))


def slow_client(
    model: tuple[np.ndarray, ...], x: np.ndarray, y: np.ndarray
) -> tuple[list[np.ndarray], float]:
    w, b, v = (part.copy() for part in model)
    losses = []
    for _ in range(EPOCHS):
        residuals = [(x[i] @ w + b) @ v - y[i] for i in range(len(x))]
        losses += [0.5 * r**2 for r in residuals]
        slope_w = sum(r * np.outer(x[i], v) for i, r in enumerate(residuals)) / len(x)
        slope_b = sum(r * v for r in residuals) / len(x)
        slope_v = sum(r * (x[i] @ w + b) for i, r in enumerate(residuals)) / len(x)
        w, b, v = w - RATE * slope_w, b - RATE * slope_b, v - RATE * slope_v
    return [new - old for new, old in zip((w, b, v), model, strict=True)], float(np.mean(losses))


def slow_fedavg(weighting: str) -> tuple[list[np.ndarray], np.ndarray]:
    examples = mx.data.unstack(cohort())
    first = params()
    model = tuple(
        np.asarray(leaf, np.float64)
        for leaf in (first["in"]["w"], first["in"]["b"], first["out"]["w"])
    )
    losses = np.full((ROUNDS, CLIENTS), np.nan)
    for number in range(ROUNDS):
        updates, weights = [], []
        for client in np.flatnonzero(ACTIVE):
            update, loss = slow_client(model, examples[client]["x"], examples[client]["y"])
            losses[number, client] = loss
            updates.append(update)
            weights.append(COUNTS[client] if weighting == "examples" else 1)
        model = tuple(
            old
            + sum(w * update[part] for w, update in zip(weights, updates, strict=True))
            / sum(weights)
            for part, old in enumerate(model)
        )
    return list(model), losses


@pytest.mark.parametrize(
    ("weighting", "aggregate"),
    [
        ("examples", mx.aggregation.mean),
        ("uniform", mx.aggregation.mean),
        ("examples", MATERIALIZED),
    ],
)
def test_three_rounds_equal_a_slow_loop(weighting: str, aggregate: Any) -> None:
    fed = federation(weighting=weighting, aggregate=aggregate, defence=MIXED)
    state, record = run(0, fed)
    (w, b, v), losses = slow_fedavg(weighting)
    assert_close(state.params, {"in": {"w": w, "b": b}, "out": {"w": v}})
    np.testing.assert_allclose(record.loss, losses, rtol=1e-4)
    assert int(state.round) == ROUNDS


def test_the_weighting_matters() -> None:
    by_examples, _ = slow_fedavg("examples")
    uniform, _ = slow_fedavg("uniform")
    assert np.abs(by_examples[0] - uniform[0]).max() > 1e-3


def test_shuffled_batches_equal_a_replay_of_the_librarys_keys() -> None:
    fed, key, model = federation(local=SHUFFLED), jax.random.key(4), params()
    state, _ = mx.federation.run(key, fed, fed.init(model), cohort(), ROUNDS)
    train, total = jax.jit(SHUFFLED), sum(np.array(COUNTS)[list(ACTIVE)])
    for number in range(ROUNDS):
        clients_key = mx.rounds.round_keys(key, number).clients
        step = jax.tree.map(lambda leaf: np.zeros(leaf.shape), model)
        for client in np.flatnonzero(ACTIVE):
            data = jax.tree.map(lambda leaf, row=client: leaf[row], cohort())
            train_key = mx.rounds.client_keys(clients_key, data.ids).train
            update = train(train_key, model, data).update
            share = COUNTS[client] / total
            step = jax.tree.map(lambda s, u, share=share: s + share * np.asarray(u), step, update)
        model = jax.tree.map(lambda leaf, s: leaf + jnp.asarray(s, jnp.float32), model, step)
    assert_close(state.params, model)


@pytest.mark.parametrize("defence", [MIXED, mx.defences.mixnn(2)], ids=["full", "proxy"])
def test_training_through_mixed_tensors_finds_the_same_trajectory(defence: Any) -> None:
    folded, record = run(1, STANDARD)
    mixed, mixed_record = run(
        1,
        federation(local=SHUFFLED, attack=PASSIVE, defence=defence, aggregate=MATERIALIZED),
    )
    assert_close(folded.params, mixed.params)
    np.testing.assert_allclose(record.loss, mixed_record.loss, rtol=1e-4)
    assert_close(record.truth.measures, mixed_record.truth.measures)
    remixed = jax.vmap(mx.measures.mix)(mixed_record.truth.origins, record.truth.measures)
    assert_close(remixed, mixed_record.observation.measures)


def test_the_same_key_gives_bit_equal_records_and_another_does_not() -> None:
    fed = STANDARD
    first, again, other = run(0, fed), run.__wrapped__(0, fed), run(1, fed)
    assert_equal(first, again)
    assert np.any(np.asarray(first[1].truth.origins) != np.asarray(other[1].truth.origins))
    assert np.any(np.asarray(first[0].params["in"]["w"]) != np.asarray(other[0].params["in"]["w"]))


def test_runs_one_after_the_other_are_a_loop_of_steps() -> None:
    fed = STANDARD
    half, first = run(0, fed)
    state, second = mx.federation.run(jax.random.key(0), fed, half, cohort(), ROUNDS)
    step, looped, records = jax.jit(fed.step), fed.init(params()), []
    for _ in range(2 * ROUNDS):
        looped, one = step(jax.random.key(0), looped, cohort())
        records.append(one)
    assert_close(state, looped)
    record = jax.tree.map(lambda *parts: jnp.concatenate(parts), first, second)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *records)
    np.testing.assert_array_equal(stacked.truth.origins, record.truth.origins)
    assert_close(stacked, record)


def test_rounds_draw_their_own_mixing() -> None:
    origins = np.concatenate([run(seed, STANDARD)[1].truth.origins for seed in (0, 1)])
    assert np.unique(origins.reshape(2 * ROUNDS, -1), axis=0).shape[0] == 2 * ROUNDS
    np.testing.assert_array_equal(origins[:, 2], 2)
    for unit in range(2):
        rows = np.sort(origins[..., unit], axis=1)
        np.testing.assert_array_equal(rows, np.tile(range(CLIENTS), (2 * ROUNDS, 1)))


def test_a_run_vmapped_over_seeds_equals_a_loop() -> None:
    fed = STANDARD
    keys = jnp.stack([jax.random.key(seed) for seed in (0, 1)])
    state = fed.init(params())
    mapped = jax.vmap(lambda key: mx.federation.run(key, fed, state, cohort(), ROUNDS))(keys)
    for seed in (0, 1):
        alone = run(seed, fed)
        row = jax.tree.map(lambda leaf, seed=seed: leaf[seed], mapped)
        np.testing.assert_array_equal(row[1].truth.origins, alone[1].truth.origins)
        assert_close(row, alone)


def test_new_keys_states_and_data_of_the_same_shapes_retrace_nothing() -> None:
    traces = 0

    def counted(key: Any, params: Any, data: Any) -> Any:
        nonlocal traces
        traces += 1
        return LOCAL(key, params, data)

    fed = mx.federation.fedavg(counted, defence=MIXED)
    state, _ = mx.federation.run(jax.random.key(0), fed, fed.init(params()), cohort(), 2)
    after_first = traces
    assert after_first > 0
    state, _ = mx.federation.run(jax.random.key(1), fed, state, cohort(3), 2)
    mx.federation.run(jax.random.key(2), fed, state, mx.data.take(cohort(4), range(6)), 2)
    assert traces == after_first


def test_the_number_of_clients_is_not_unrolled() -> None:
    traces = []
    for rows in ([0, 1], list(range(CLIENTS)) * 3):
        count = 0

        def counted(key: Any, params: Any, data: Any) -> Any:
            nonlocal count
            count += 1
            return LOCAL(key, params, data)

        fed = mx.federation.fedavg(counted)
        state = fed.init(params())
        jax.eval_shape(fed.step, jax.random.key(0), state, mx.data.take(cohort(), rows))
        traces.append(count)
    assert traces[0] == traces[1]


@pytest.mark.parametrize("optimizer", [optax.sgd(0.7, momentum=0.9), optax.adam(0.05)])
def test_a_server_optimizer_takes_minus_the_mean_as_gradient(optimizer: Any) -> None:
    with jax.numpy_dtype_promotion("standard"):  # optax.adam needs it
        fed = mx.federation.fedavg(LOCAL, server_optimizer=optimizer, keep_updates=True)
        state, record = run(0, fed)
        model, opt_state = params(), optimizer.init(params())
        for number in range(ROUNDS):
            kept = jax.tree.map(lambda leaf, n=number: leaf[n], record.observation)
            gradient = jax.tree.map(jnp.negative, mx.aggregation.mean(kept.updates, kept.active))
            steps, opt_state = optimizer.update(gradient, opt_state, model)
            model = optax.apply_updates(model, steps)
    assert_close(state.params, model)
    assert_close(state.opt_state, opt_state)


def test_the_observation_carries_no_origins_and_nothing_of_the_truth() -> None:
    _, record = run(0, KEPT)
    assert record.observation._fields == ("active", "measures", "updates")
    assert not set(record.observation._fields) & set(record.truth._fields) - {"measures"}
    assert not any(
        jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves(record.observation)
    )


def test_kept_updates_are_the_mixed_scaled_updates() -> None:
    plain, mixed = run(0, PLAIN_KEPT)[1], run(0, KEPT)[1]
    units = mx.units.partition(params())
    expected = jax.vmap(mx.mixing.apply, (0, 0, None))(
        mixed.truth.origins, plain.observation.updates, units
    )
    assert_equal(mixed.observation.updates, expected)
    for leaf in jax.tree.leaves(mixed.observation.updates):
        np.testing.assert_array_equal(leaf[:, 2], 0)


def test_scores_are_those_of_the_kept_updates() -> None:
    _, record = run(0, KEPT)
    key = mx.rounds.attack_keys(KEPT.init(params()).attack_seed, 0).prepare
    directions = mx.attacks.sim.directions(key, params(), auxiliary(), SHUFFLED)
    updates = jax.tree.map(lambda leaf: leaf[0], record.observation.updates)
    expected = mx.attacks.sim.scores(updates, directions)
    np.testing.assert_allclose(record.findings[0], expected, atol=1e-5)


def test_a_passive_attack_leaves_the_trajectory_bit_equal() -> None:
    plain, plain_record = run(0, federation(local=SHUFFLED, defence=MIXED))
    watched, record = run(0, STANDARD)
    assert_equal(plain, watched)
    np.testing.assert_array_equal(plain_record.loss, record.loss)
    assert plain_record.findings is None
    assert record.findings.shape == (ROUNDS, CLIENTS, 2)


def test_after_an_active_attack_the_model_is_the_sent_one_plus_the_mean_update() -> None:
    attack = mx.attacks.sim.active(auxiliary())
    fed = federation(attack=attack, keep_updates=True)
    state, record = run(0, fed, 1)
    key = mx.rounds.attack_keys(fed.init(params()).attack_seed, 0).prepare
    sent = attack.prepare(key, params(), LOCAL).params
    updates = jax.tree.map(lambda leaf: leaf[0], record.observation.updates)
    mean = mx.aggregation.mean(updates, jnp.array(ACTIVE))
    assert_close(state.params, jax.tree.map(jnp.add, sent, mean))
    assert np.abs(sent["in"]["w"] - params()["in"]["w"]).max() > 1e-3


@pytest.mark.parametrize(
    "aggregate",
    [
        functools.partial(mx.aggregation.trimmed_mean, trim=0.2),
        functools.partial(mx.aggregation.krum, byzantine=1),
    ],
    ids=["trimmed", "krum"],
)
def test_any_aggregation_gets_the_forwarded_updates(aggregate: Any) -> None:
    fed = mx.federation.fedavg(LOCAL, aggregate=aggregate, defence=MIXED, keep_updates=True)
    state, record = run(0, fed, 1)
    updates = jax.tree.map(lambda leaf: leaf[0], record.observation.updates)
    expected = jax.tree.map(jnp.add, params(), aggregate(updates, jnp.array(ACTIVE)))
    assert_close(state.params, expected)


def test_each_client_perturbs_with_its_own_key_before_weights_and_mixing() -> None:
    def perturb(key: Any, update: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, jax.random.uniform(key)), update)

    fed = mx.federation.fedavg(
        LOCAL, defence=mx.defences.Defence(perturb, MIXED.mix), keep_updates=True
    )
    record = jax.tree.map(lambda leaf: leaf[0], run(0, fed)[1])
    clients_key = mx.rounds.round_keys(jax.random.key(0), 0).clients
    keys = [mx.rounds.client_keys(clients_key, row).perturb for row in range(CLIENTS)]
    weights = np.array(COUNTS) * ACTIVE
    weights = weights * (sum(ACTIVE) / weights.sum())
    expected = weights * np.array([jax.random.uniform(key) for key in keys])
    for unit, layer in enumerate(("in", "out")):
        owners = record.truth.origins[:, unit]
        rows = np.asarray(record.observation.updates[layer]["w"]).reshape(CLIENTS, -1)
        np.testing.assert_allclose(
            rows, np.tile(expected[owners][:, None], rows.shape[1]), rtol=1e-5
        )


def test_chunks_change_nothing_but_rounding() -> None:
    plain = run(0, STANDARD)
    fed = mx.federation.fedavg(SHUFFLED, attack=PASSIVE, defence=MIXED, chunk_size=4)
    assert_close(plain, run(0, fed))


def test_two_devices_change_nothing_but_rounding() -> None:
    plain = run(0, STANDARD)
    mesh = mx.sharding.clients_mesh(2)
    attack = mx.attacks.sim.passive(auxiliary(), mesh=mesh)
    fed = mx.federation.fedavg(SHUFFLED, attack=attack, defence=MIXED, mesh=mesh)
    spread = run(0, fed)
    np.testing.assert_array_equal(plain[1].truth.origins, spread[1].truth.origins)
    assert_close(plain, spread)


def test_evaluate_sees_the_new_model() -> None:
    fed = mx.federation.fedavg(LOCAL, evaluate=lambda model: {"copy": model["out"]["w"]})
    state, record = run(0, fed)
    assert record.metrics["copy"].shape == (ROUNDS, 2)
    np.testing.assert_array_equal(record.metrics["copy"][-1], state.params["out"]["w"])


def test_models_of_another_precision_stay_in_it() -> None:
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params())
    data = cohort()._replace(
        examples=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), cohort().examples)
    )
    fed = federation(weighting="examples", aggregate=mx.aggregation.mean, defence=MIXED)
    state, _ = mx.federation.run(jax.random.key(0), fed, fed.init(half), data, ROUNDS)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
