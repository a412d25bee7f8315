"""Clients that send the same function in another gauge."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mixjax as mx
from mixjax.attacks import channels, couplings, unmix
from tests.helpers import assert_close, assert_equal, flat
from tests.test_unmix import CLIENTS, MODELS, setting, updates_of

EMPTY = jax.tree.map(lambda leaf: leaf[0], mx.data.stack([np.zeros((1, 1), np.float32)]))


def sent(wrap: Any, name: str, key: int = 0, rate: float = 0.02) -> tuple[Any, Any]:
    """The first client's own update, and what it sends."""
    _, params, _, _ = setting(name)
    own = jax.tree.map(lambda leaf: leaf[0], updates_of(name, rate, 3))
    local = wrap(lambda key, params, data: mx.client.LocalResult(own, jnp.float32(0)))
    return own, local(jax.random.key(key), params, EMPTY).update


def moved(params: Any, update: Any) -> Any:
    return jax.tree.map(jnp.add, params, update)


FORMS: dict[str, Any] = {
    "received": lambda graph, bound: (
        lambda local: mx.rescaling.to_received(local, graph, bound=bound)
    ),
    "random": lambda graph, bound: lambda local: mx.rescaling.at_random(local, graph, bound=bound),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_the_function_is_kept_and_the_update_is_not(name: str, form: str) -> None:
    model, params, graph, inputs = setting(name)
    own, other = sent(FORMS[form](graph, 0.7), name, rate=0.1)
    apply = jax.jit(lambda update: model.apply({"params": moved(params, update)}, inputs[0]))
    plain: Any = apply(own)
    np.testing.assert_allclose(apply(other), plain, rtol=0, atol=2e-5 * np.abs(plain).max())
    assert np.linalg.norm(flat(other) - flat(own)) > 0.1 * np.linalg.norm(flat(own))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_bound_zero_sends_the_same_bits(name: str, form: str) -> None:
    graph = setting(name)[2]
    assert_equal(*sent(FORMS[form](graph, 0.0), name))


def norms(hidden: Any, params: Any) -> np.ndarray:
    """Of all that feeds each channel, in a loop."""
    leaves = jax.tree.leaves(params)
    found = np.zeros(hidden.size)
    for role in hidden.feeds:
        leaf = np.asarray(leaves[role.leaf], np.float64)
        for place, channel in enumerate(role.channels):
            if channel >= 0:
                found[channel] += np.square(np.take(leaf, place, role.axis)).sum()
    return np.sqrt(found)


# in a residual graph what feeds the stem's channels is read again by the branch that feeds them
@pytest.mark.parametrize("name", sorted({*MODELS} - {"residual"}))
def test_norms_are_those_received(name: str) -> None:
    _, params, graph, _ = setting(name)
    own, other = sent(lambda local: mx.rescaling.to_received(local, graph), name, rate=0.1)
    for hidden in graph.hidden:
        before = norms(hidden, params)
        assert np.abs(norms(hidden, moved(params, own)) / before - 1).max() > 1e-3
        np.testing.assert_allclose(norms(hidden, moved(params, other)), before, rtol=1e-5)


def test_strength_and_bound_are_of_the_logarithm() -> None:
    _, params, graph, _ = setting("mlp")
    (first, *_) = graph.hidden

    def log_scales(**options: float) -> np.ndarray:
        wrap = lambda local: mx.rescaling.to_received(local, graph, **options)  # noqa: E731
        own, other = sent(wrap, "mlp", rate=0.1)
        return np.log(norms(first, moved(params, other)) / norms(first, moved(params, own)))

    full = log_scales()
    np.testing.assert_allclose(log_scales(strength=0.3), 0.3 * full, rtol=1e-3, atol=1e-6)
    bound = float(np.median(np.abs(full)))
    bounded = log_scales(bound=bound)
    np.testing.assert_allclose(bounded, np.clip(full, -bound, bound), rtol=1e-3, atol=1e-6)


def test_random_scales_are_uniform_independent_and_anew_for_each_key() -> None:
    _, params, graph, _ = setting("mlp")
    bound, rounds = 0.5, 60
    logs = []
    for key in range(rounds):
        own, other = sent(lambda l: mx.rescaling.at_random(l, graph, bound=bound), "mlp", key)  # noqa: E741
        row = [
            np.log(norms(hidden, moved(params, other)) / norms(hidden, moved(params, own)))
            for hidden in graph.hidden[:1]
        ]
        logs.append(np.concatenate(row))
    drawn = np.stack(logs)
    count = drawn.size
    assert np.abs(drawn).max() < bound * (1 + 1e-4)
    assert len(np.unique(drawn.round(6))) > 0.99 * count
    # moments of a uniform law, 4 standard errors; neither half nor twice the bound has them
    assert abs(drawn.mean()) < 4 * bound / np.sqrt(3 * count)
    assert abs((drawn**2).mean() - bound**2 / 3) < 4 * bound**2 * np.sqrt(4 / 45 / count)
    correlation = np.corrcoef(drawn.T)[np.triu_indices(drawn.shape[1], 1)]
    assert abs(correlation.mean()) < 4 / np.sqrt(rounds * len(correlation))


@pytest.mark.parametrize("form", FORMS)
def test_a_cohort_is_its_clients_one_by_one(form: str) -> None:
    _, params, graph, inputs = setting("mlp")
    local = FORMS[form](graph, 0.3)(training("mlp"))
    data = people(inputs)
    keys = jax.random.split(jax.random.key(1), inputs.shape[0])
    stacked = jax.jit(jax.vmap(local, (0, None, 0)))(keys, params, data).update
    one = local(keys[2], params, jax.tree.map(lambda leaf: leaf[2], data)).update
    assert_close(jax.tree.map(lambda leaf: leaf[2], stacked), one)


def people(inputs: Any) -> mx.data.ClientData:
    labels = np.random.default_rng(1).integers(0, 3, inputs.shape[:2]).astype(np.int32)
    return mx.data.stack(
        [mx.data.Examples(own, right) for own, right in zip(inputs, labels, strict=True)]
    )


def training(name: str) -> mx.client.LocalTraining:
    loss = mx.models.cross_entropy(setting(name)[0])
    return mx.client.local_training(loss, optax.sgd(0.02, momentum=0.9), batch_size=8)


def test_a_wrapped_client_trains_as_it_did() -> None:
    _, params, graph, inputs = setting("mlp")
    data = jax.tree.map(lambda leaf: leaf[0], people(inputs))
    key = jax.random.key(4)
    plain = training("mlp")(key, params, data)
    assert_equal(
        mx.rescaling.at_random(training("mlp"), graph, bound=0.0)(key, params, data), plain
    )
    other = mx.rescaling.at_random(training("mlp"), graph, bound=0.5)(key, params, data)
    assert other.loss == plain.loss


def rescaled_cohort(name: str, bound: float) -> tuple[Any, Any]:
    """Everybody's own update, and what they send at random."""
    _, params, graph, _ = setting(name)
    own = updates_of(name, 0.02, 3)

    def one(key: Any, update: Any) -> Any:
        local = mx.rescaling.at_random(
            lambda key, params, data: mx.client.LocalResult(update, jnp.float32(0)),
            graph,
            bound=bound,
        )
        return local(key, params, EMPTY).update

    return own, jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(8), CLIENTS), own)


@pytest.mark.parametrize("bound", [0.01, 0.4, 3.0])
def test_lengths_change_by_the_scale_of_the_channel(bound: float) -> None:
    _, params, graph, _ = setting("mlp")
    units = mx.units.partition(params, "leaf")
    measure = jax.vmap(lambda update: couplings.lengths(graph, params, units, update))
    before, after = map(measure, rescaled_cohort("mlp", bound))
    fed, read = (np.subtract(*pair) for pair in zip(after, before, strict=True))
    # of the last channels: their bias is scaled by them alone, and so is what reads them
    last = slice(-graph.hidden[-1].size, None)
    bias, kernel = (units.names.index(name) for name in ("Dense_1/bias", "Dense_2/kernel"))
    scale = fed[:, bias, last]
    assert 0.8 * bound < np.abs(scale).max() < bound * (1 + 1e-4)
    np.testing.assert_allclose(read[:, kernel, last], -scale, atol=2e-6)
    np.testing.assert_array_equal(np.delete(read[..., last], kernel, axis=1), 0)


# six channels of a first layer say too little at 0.3
@pytest.mark.parametrize(
    ("name", "bound"), [("mlp", 0.3), ("mlp", 1.0), ("sensors", 1.0), ("sensors", 3.0)]
)
def test_a_gauge_at_random_is_a_watermark(name: str, bound: float) -> None:
    exact = joined(name, rescaled_cohort(name, bound)[1], gauge=bound / np.sqrt(3))
    assert exact == 1


@pytest.mark.parametrize("name", ["mlp", "sensors"])
def test_the_law_alone_is_blind_to_it(name: str) -> None:
    assert joined(name, rescaled_cohort(name, 0.3)[1], gauge=None) < 0.4


@pytest.mark.parametrize("name", ["mlp", "sensors"])
def test_a_part_of_the_way_back_leaves_lengths_alike(name: str) -> None:
    _, params, graph, _ = setting(name)

    def one(update: Any) -> Any:
        local = mx.rescaling.to_received(
            lambda key, params, data: mx.client.LocalResult(update, jnp.float32(0)),
            graph,
            strength=0.5,
        )
        return local(jax.random.key(0), params, EMPTY).update

    updates = jax.jit(jax.vmap(one))(updates_of(name, 0.02, 3))
    assert joined(name, updates, gauge=0.0) == 1


def joined(name: str, updates: Any, gauge: float | None) -> float:
    """The share of whole updates that one round's server joins."""
    _, params, graph, _ = setting(name)
    units = mx.units.partition(params)
    active = np.arange(CLIENTS) != 2
    origins = mx.mixing.full_round()(jax.random.key(3), jnp.asarray(active), len(units.names))
    mixed = mx.mixing.apply(origins, updates, units)
    assembly = unmix.assemble(
        jax.random.key(4), params, mixed, graph, active=jnp.asarray(active), gauge=gauge
    )
    return float(mx.evaluation.exact_assemblies(assembly.slots, origins, active))


def test_a_federation_that_rescales_is_unmixed_round_by_round() -> None:
    _, params, graph, inputs = setting("mlp")
    local = mx.rescaling.at_random(training("mlp"), graph, bound=0.3)
    attack = unmix.attack(graph, gauge=0.3 / np.sqrt(3))
    fed = mx.federation.fedavg(local, defence=mx.defences.mixnn(), attack=attack)
    start = fed.init(params, clients=CLIENTS)
    _, records = mx.federation.run(jax.random.key(1), fed, start, people(inputs), 3)
    exact = mx.evaluation.exact_assemblies(records.findings.slots, records.truth.origins)
    np.testing.assert_array_equal(exact, 1)


def test_channels_without_weights_stay() -> None:
    params = {"a": {"w": jnp.zeros((2, 3))}, "b": {"w": jnp.ones((3, 2))}}
    graph = channels.of_pairs(params, [("a", "b")])
    own = jax.tree.map(jnp.ones_like, params)
    local = mx.rescaling.to_received(
        lambda key, params, data: mx.client.LocalResult(own, jnp.float32(0)), graph
    )
    assert_equal(local(jax.random.key(0), params, EMPTY).update, own)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: mx.rescaling.at_random(training("mlp"), g, bound=-0.1), "bound to be at least"),
        (lambda g: mx.rescaling.to_received(training("mlp"), g, bound=-1), "bound to be at least"),
        (lambda g: mx.rescaling.to_received(training("mlp"), g, strength=1.2), "strength"),
        (lambda g: mx.rescaling.to_received(None, g), "expected local training"),
        (lambda g: unmix.attack(g, gauge=-1.0), "gauge to be at least"),
        (lambda g: mx.rescaling.at_random(training("mlp"), "all", bound=0.1), "expected a graph"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_rescaling_is_refused(call: Any, message: str) -> None:
    with pytest.raises(mx.InputError, match=message):
        call(setting("mlp")[2])
