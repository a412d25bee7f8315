"""Servers that send crafted models, what they read, and the sum that hides all but them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_equal

import mixjax as mx
from mixjax.attacks import channels, crafted, flooding

CLIENTS, ROUNDS = 6, 4
MODEL = mx.models.MLP(classes=3, hidden=(8, 6))


def cohort() -> mx.data.ClientData:
    rng = np.random.default_rng(0)
    return mx.data.stack(
        [
            mx.data.Examples(
                rng.normal(size=(12, 5)).astype(np.float32),
                rng.integers(0, 3, 12).astype(np.int32),
            )
            for _ in range(CLIENTS)
        ]
    )


LOCAL = mx.client.local_training(
    mx.models.cross_entropy(MODEL), optax.sgd(0.05, momentum=0.9), batch_size=4
)


def first() -> Any:
    params = mx.models.initial(MODEL, jax.random.key(1), cohort().examples.inputs[0, :1])
    return jax.tree.map(lambda leaf: leaf + 0.05, params)


def played(**options: Any) -> Any:
    federation = mx.federation.fedavg(LOCAL, **options)
    state = federation.init(first(), CLIENTS)
    return mx.federation.run(jax.random.key(2), federation, state, cohort(), ROUNDS)


GRANULARITIES = ["layer", "neurons", mx.units.chunks(9)]


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=["layer", "neurons", "chunks"])
def test_who_trains_alone_is_read_however_finely_it_is_mixed(granularity: Any) -> None:
    attack = crafted.isolate(mx.attacks.sim.passive(cohort()))
    options = {"attack": attack, "granularity": granularity, "keep_updates": True}
    records = played(defence=mx.defences.mixnn(), **options)[1]
    units = mx.units.partition(first(), granularity)
    found = records.findings
    assert found.client.tolist() == [0, -1, 1, -1]
    assert found.then.shape == (ROUNDS, 1, CLIENTS)
    for number in (0, 2):
        client, slots = int(found.client[number]), np.asarray(found.slots[number])
        origins = np.asarray(records.truth.origins[number])
        # a unit that does not move, such as a dead neuron, is nobody's
        moved = np.asarray(records.truth.measures[0][number])[client] > 0
        owners = origins[slots, np.arange(len(units.names))]
        assert moved.sum() > len(units.names) / 2
        assert (owners[moved] == client).all()
    assert records.stepped.tolist() == [False, True, False, True]


def test_it_opens_a_sum() -> None:
    attack = crafted.isolate(every=1)
    options = {"attack": attack, "keep_updates": True}
    state, records = played(defence=mx.defences.secure_aggregation(), **options)
    assert_equal(state.params, first())
    _, alone = played(
        participation=lambda key, number, data: data.active & (data.ids == 0), keep_updates=True
    )
    seen = jax.tree.map(lambda leaf: CLIENTS * leaf[0, 0], records.observation.updates)
    own = jax.tree.map(lambda leaf: leaf[0, 0], alone.observation.updates)
    # what others move is the last bias
    for layer in ("Dense_0", "Dense_1"):
        assert_close(seen[layer], own[layer], rtol=1e-4)


@pytest.mark.parametrize(("uploads", "right"), [("models", True), ("updates", False)])
def test_marks_come_back_with_models_and_not_with_updates(uploads: str, right: bool) -> None:
    attack = crafted.tag(mx.attacks.sim.passive(cohort()), strength=1.0)
    options = {"attack": attack, "uploads": uploads, "weighting": "uniform"}
    _, records = played(defence=mx.defences.mixnn(), **options)
    slots, origins = records.findings.slots, records.truth.origins
    owners = np.take_along_axis(np.asarray(origins), np.asarray(slots), axis=1)
    share = np.mean(owners == np.arange(CLIENTS)[:, None])
    assert share == 1 if right else share < 0.6
    assert records.findings.then.shape == (ROUNDS, CLIENTS, CLIENTS)


def test_marks_leave_the_mean_alone() -> None:
    weak = crafted.tag(strength=1e-3)
    options = {"uploads": "models", "weighting": "uniform"}
    marked, _ = played(attack=weak, **options)
    plain, _ = played(**options)
    assert_close(marked.params, plain.params, rtol=1e-2, atol=1e-3)


def test_models_and_updates_are_the_same_where_all_get_one_model() -> None:
    assert_equal(played(uploads="models")[0].params, played()[0].params)


@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_another_gauge_is_the_same_function(spread: float) -> None:
    inputs, params = cohort().examples.inputs[0], first()
    graph = channels.trace(MODEL, params, inputs[:1])
    attack = crafted.regauge(graph, mx.attacks.sim.passive(cohort()), spread=spread)
    assert attack.prepare is not None
    sent = attack.prepare(jax.random.key(0), params, LOCAL).params
    outputs = [MODEL.apply({"params": one}, inputs) for one in (params, sent)]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)
    feeds = jnp.sum(sent["Dense_0"]["kernel"] ** 2, axis=0) + sent["Dense_0"]["bias"] ** 2
    reads = jnp.sum(sent["Dense_1"]["kernel"] ** 2, axis=1)
    logs = np.log(np.asarray(feeds / reads)) / 2
    # the second layer's gauge has moved what reads the first
    if spread == 0:
        again = attack.prepare(jax.random.key(0), sent, LOCAL).params
        assert_close(again, sent, rtol=0.5)
    else:
        assert np.ptp(logs) > spread


def test_a_sum_hides_who_has_what() -> None:
    attack = mx.attacks.sim.passive(cohort())
    plain, one_by_one = played(attack=attack)
    state, records = played(attack=attack, defence=mx.defences.secure_aggregation())
    assert_equal(state.params, plain.params)
    assert records.findings.shape == (ROUNDS, 1, CLIENTS)
    assert records.observation.active.shape == (ROUNDS, 1)
    # everybody gets the same guess: over people of all values it is right by chance
    guesses = mx.evaluation.guesses(np.asarray(records.findings))
    truth = np.arange(CLIENTS)
    assert np.mean(guesses == truth) == 1 / CLIENTS
    assert np.mean(mx.evaluation.guesses(np.asarray(one_by_one.findings)) == truth) > 0.5
    keys = jax.random.split(jax.random.key(0), ROUNDS)
    kept = played(attack=attack, defence=mx.defences.secure_aggregation(), keep_probe=True)[1]
    with pytest.raises(mx.InputError, match="sum alone"):
        mx.records.replay(keys, attack, state, kept, mx.mixing.full_round())


def test_a_sum_serves_no_rule_that_reads_updates_one_by_one() -> None:
    with pytest.raises(mx.InputError, match="needs the sum alone"):
        mx.federation.fedavg(
            LOCAL,
            defence=mx.defences.compose(mx.defences.clipped(1.0), mx.defences.secure_aggregation()),
            aggregate=mx.aggregation.coordinate_median,
        )


def test_a_crafted_model_of_another_form_is_refused() -> None:
    attack = crafted.isolate()._replace(send=lambda probe, client: probe.params["Dense_0"])
    with pytest.raises(mx.InputError, match=r"attack\.send to send a model like"):
        played(attack=attack)


def test_a_probe_must_say_whether_it_learns() -> None:
    attack = mx.attacks.Attack(
        None,
        lambda key, params, local: mx.attacks.Probe(params, learns=jnp.ones(2, bool)),
        None,
        lambda key, probe, observation: (),
    )
    with pytest.raises(mx.InputError, match="learns to be True or False"):
        played(attack=attack)


@pytest.mark.parametrize(("list_size", "units"), [(2, 1), (5, 4), (8, 30)])
def test_dummies_wash_an_update_out_of_the_lists(list_size: int, units: int) -> None:
    capacity = list_size + 1 + 400

    def leaves_after(key: Any) -> Any:
        emitted = mx.mixing.stream(key, capacity, capacity, list_size, units)
        # the one comes after those that fill the lists; the slot of arrival n is n - k
        return jnp.max(jnp.argmax(emitted == list_size, axis=0))

    last = jax.lax.map(leaves_after, jax.random.split(jax.random.key(0), 400), batch_size=50)
    needed = np.asarray(last).astype(float)
    expected = flooding.expected_dummies(list_size, units)
    assert abs(needed.mean() - expected) < 4 * needed.std() / 20
    harmonic = np.sum(1 / np.arange(1, units + 1))
    assert abs(expected - (harmonic / -np.log(1 - 1 / list_size) + 0.5)) < 0.2
    enough = flooding.dummies(list_size, units, 0.9)
    assert flooding.isolated(list_size, units, enough) >= 0.9
    assert flooding.isolated(list_size, units, enough - 1) < 0.9
    assert abs(np.mean(needed <= enough) - flooding.isolated(list_size, units, enough)) < 0.06


def test_a_list_of_one_holds_nothing_back() -> None:
    assert flooding.expected_dummies(1, 7) == flooding.dummies(1, 7) == 1
    assert flooding.isolated(1, 7, 1) == 1


@pytest.mark.parametrize(
    "call", [lambda: flooding.isolated(0, 1, 1), lambda: crafted.isolate(every=0)]
)
def test_numbers_out_of_range_are_refused(call: Any) -> None:
    with pytest.raises(mx.InputError, match="expected"):
        call()
