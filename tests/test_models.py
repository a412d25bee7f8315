"""The networks: shapes, sizes, units, and one set of weights per client."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_equal

import mixjax as mx

MODELS = {
    "mlp": (mx.models.MLP(classes=3, hidden=(5, 4)), (6, 2)),
    "sensor": (mx.models.SensorCNN(classes=7, features=(4, 6), hidden=(8, 5)), (100, 6)),
    "image": (mx.models.ImageCNN(classes=10, features=(4, 6), hidden=(8, 5), groups=2), (8, 9, 3)),
}

UNITS = {
    "mlp": {"Dense_0": 12 * 5 + 5, "Dense_1": 5 * 4 + 4, "Dense_2": 4 * 3 + 3},
    "sensor": {
        "Conv_0": 5 * 6 * 4 + 4,
        "Conv_1": 5 * 4 * 6 + 6,
        "dense/Dense_0": 25 * 6 * 8 + 8,
        "dense/Dense_1": 8 * 5 + 5,
        "dense/Dense_2": 5 * 7 + 7,
    },
    "image": {
        "Conv_0": 9 * 3 * 4 + 4,
        "Conv_1": 9 * 4 * 6 + 6,
        "GroupNorm_0": 2 * 4,
        "GroupNorm_1": 2 * 6,
        "dense/Dense_0": 2 * 2 * 6 * 8 + 8,
        "dense/Dense_1": 8 * 5 + 5,
        "dense/Dense_2": 5 * 10 + 10,
    },
}


@functools.cache
def initialized(name: str, seed: int = 0) -> tuple[Any, Any, jax.Array]:
    model, shape = MODELS[name]
    inputs = jax.random.normal(jax.random.key(1), (4, *shape), jnp.float32)
    return model, jax.jit(model.init)(jax.random.key(seed), inputs), inputs


@pytest.mark.parametrize("name", MODELS)
def test_logits_have_a_row_for_each_example_and_depend_on_it_alone(name: str) -> None:
    model, variables, inputs = initialized(name)
    apply = jax.jit(model.apply)
    logits = apply(variables, inputs)
    assert logits.shape == (4, model.classes)
    assert logits.dtype == jnp.float32
    changed = apply(variables, inputs.at[0].set(0))
    np.testing.assert_allclose(logits[1:], changed[1:], rtol=1e-5, atol=1e-6)
    assert np.abs(logits[0] - changed[0]).max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_there_is_no_state_but_parameters(name: str) -> None:
    _, variables, _ = initialized(name)
    assert set(variables) == {"params"}
    names = str(jax.tree_util.tree_flatten_with_path(variables)[0])
    assert "BatchNorm" not in names


@pytest.mark.parametrize("name", MODELS)
def test_layers_and_their_parameter_counts(name: str) -> None:
    _, variables, _ = initialized(name)
    units = mx.units.partition(variables["params"])
    assert mx.units.parameter_counts(units) == UNITS[name]


@pytest.mark.parametrize("name", MODELS)
def test_the_models_map_over_clients_weights(name: str) -> None:
    model, first, inputs = initialized(name)
    second = initialized(name, seed=2)[1]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    apply = jax.jit(model.apply)
    mapped = jax.jit(jax.vmap(model.apply, (0, None)))(stacked, inputs)
    for row, variables in enumerate((first, second)):
        np.testing.assert_allclose(mapped[row], apply(variables, inputs), rtol=1e-4, atol=1e-5)


def test_default_sizes() -> None:
    def count(model: Any, shape: tuple[int, ...]) -> int:
        variables = jax.eval_shape(
            model.init, jax.random.key(0), jnp.zeros((1, *shape), jnp.float32)
        )
        return sum(leaf.size for leaf in jax.tree.leaves(variables))

    assert count(mx.models.MLP(classes=10), (784,)) == 784 * 128 + 128 + 128 * 64 + 64 + 650
    sensor = 5 * 6 * 16 + 16 + 5 * 16 * 32 + 32 + 25 * 32 * 64 + 64 + 64 * 7 + 7
    assert count(mx.models.SensorCNN(classes=7), (100, 6)) == sensor
    image = 27 * 32 + 32 + 9 * 32 * 64 + 64 + 8 * 8 * 64 * 128 + 128 + 128 * 64 + 64 + 650
    assert count(mx.models.ImageCNN(classes=10, groups=0), (32, 32, 3)) == image
    assert count(mx.models.ImageCNN(classes=10), (32, 32, 3)) == image + 2 * (32 + 64)


def test_models_are_hashable_settings() -> None:
    assert hash(mx.models.SensorCNN(classes=7)) == hash(mx.models.SensorCNN(classes=7))


@pytest.mark.parametrize("name", MODELS)
def test_the_first_parameters_are_flaxs_own_up_to_rounding(name: str) -> None:
    model, variables, inputs = initialized(name)
    params = mx.models.initial(model, jax.random.key(0), inputs[:1])
    assert_close(params, variables["params"], rtol=2e-6, atol=0)
    again = mx.models.initial(model, jax.random.key(0), inputs)
    assert_equal(params, again)


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_the_cross_entropy_of_each_example(name: str) -> None:
    model, variables, inputs = initialized(name)
    labels = np.array([0, 2, 1, 2], np.int32)
    losses = mx.models.cross_entropy(model)(
        variables["params"], mx.data.Examples(inputs, jnp.asarray(labels)), jax.random.key(0)
    )
    odds = np.exp(np.asarray(model.apply(variables, inputs), np.float64))
    expected = -np.log(odds[np.arange(4), labels] / odds.sum(axis=1))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


class Normalized(nn.Module):
    """A network with statistics."""

    @nn.compact
    def __call__(self, inputs: Any) -> Any:
        return nn.BatchNorm(use_running_average=False)(inputs)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("model", "key", "message"),
    [
        ("mlp", jax.random.key(0), r"a flax.linen module such as .*; got 'mlp'"),
        (MODELS["mlp"][0], 0, "expected a typed key; got 0"),
        (mx.models.MLP(classes=3, hidden=[5]), jax.random.key(0), "(?s)hashable.*tuples for lists"),
        (Normalized(), jax.random.key(0), r"parameters only; got variables \['batch_stats'\] too"),
    ],
)
def test_what_has_no_first_parameters_is_refused(model: Any, key: Any, message: str) -> None:
    with pytest.raises(mx.InputError, match=message):
        mx.models.initial(model, key, jnp.zeros((2, 3), jnp.float32))


@pytest.mark.usefixtures("unchecked")
def test_only_a_network_has_a_loss() -> None:
    with pytest.raises(mx.InputError, match=r"a flax.linen module .*; got None"):
        mx.models.cross_entropy(None)
