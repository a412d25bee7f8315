"""Units: which parameters move together, and the per-unit sums."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixjax as mx

fixed = hypothesis.settings(derandomize=True, deadline=None, max_examples=40)


class Dense(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    weight: jax.Array
    bias: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class MLP:
    layers: list[Linear]
    scale: jax.Array


class FlaxMLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(2)(nn.LayerNorm()(nn.Dense(3)(x)))


def dense(inputs: int = 2, outputs: int = 3) -> dict[str, jax.Array]:
    return {"w": jnp.ones((inputs, outputs)), "b": jnp.ones(outputs)}


def layer_of_each_leaf(model: object) -> list[str]:
    units = mx.units.partition(model)
    return [units.names[segments[0].unit] for segments in units.segments]


def label_of_each_parameter(units: mx.units.Units, sizes: list[int]) -> list[list[int]]:
    """For each element of each leaf the units that claim it."""
    labels: list[list[int]] = []
    for size, segments in zip(sizes, units.segments, strict=True):
        claims: list[list[int]] = [[] for _ in range(size)]
        for start, stop, unit in segments:
            for element in range(start, stop):
                claims[element].append(unit)
        labels.extend(claims)
    return labels


def test_flax_layers_hold_kernel_and_bias_together() -> None:
    params = FlaxMLP().init(jax.random.key(0), jnp.ones((1, 4)))
    assert layer_of_each_leaf(params) == [
        *["params/Dense_0"] * 2,
        *["params/Dense_1"] * 2,
        *["params/LayerNorm_0"] * 2,
    ]


def test_haiku_modules_are_layers_whatever_slashes_their_names_hold() -> None:
    model = {"mlp/~/linear_0": dense(), "mlp/~/linear_1": dense(), "norm": {"scale": jnp.ones(3)}}
    assert mx.units.partition(model).names == ("mlp/~/linear_0", "mlp/~/linear_1", "norm")


def test_equinox_style_modules_group_by_parent_and_root_leaves_stand_alone() -> None:
    linear = Linear(jnp.ones((2, 3)), jnp.ones(2))
    model = MLP([linear, linear], jnp.ones(()))
    assert layer_of_each_leaf(model) == [*["layers/0"] * 2, *["layers/1"] * 2, "scale"]


def test_dotted_names_group_by_prefix() -> None:
    model = {name: jnp.ones(2) for name in ("fc.0.bias", "fc.0.weight", "fc.1.weight", "gain")}
    assert layer_of_each_leaf(model) == ["fc/0", "fc/0", "fc/1", "gain"]


def test_leaves_of_a_flat_tree_are_layers_of_their_own() -> None:
    flat = {"b1": jnp.ones(2), "w1": jnp.ones((2, 2)), "w2": jnp.ones(2)}
    assert mx.units.partition(flat).names == ("b1", "w1", "w2")
    assert mx.units.partition(tuple(flat.values())).names == ("0", "1", "2")


def test_sequences_and_named_tuples_group_by_position_and_field() -> None:
    one = Dense(jnp.ones((2, 2)), jnp.ones(2))
    assert layer_of_each_leaf([one, one]) == ["0", "0", "1", "1"]
    assert layer_of_each_leaf({"head": one, "body": [one]}) == [*["body/0"] * 2, *["head"] * 2]


def test_a_model_of_one_layer_is_refused_unless_it_is_asked_for() -> None:
    with pytest.raises(mx.InputError, match="at least two units"):
        mx.units.partition({"dense": dense()})
    with pytest.raises(mx.InputError, match="at least two units"):
        mx.units.partition({"w": jnp.ones(3)}, "leaf")
    assert mx.units.partition({"dense": dense()}, "model").names == ("model",)
    assert len(mx.units.partition({"dense": dense()}, mx.units.chunks(2)).names) == 2


def test_a_function_names_the_layer_of_each_path() -> None:
    flat = {"w1": jnp.ones(2), "b1": jnp.ones(3), "w2": jnp.ones(4)}
    units = mx.units.partition(flat, lambda path: path[-1][-1])
    assert mx.units.parameter_counts(units) == {"1": 5, "2": 4}


def test_units_are_hashable_and_the_same_for_arrays_and_their_shapes() -> None:
    model = {"a": dense(), "b": dense()}
    for granularity in ("layer", "leaf", "model", mx.units.chunks(3)):
        units = mx.units.partition(model, granularity)
        shapes = jax.eval_shape(lambda: model)
        assert mx.units.partition(shapes, granularity) == units
        assert hash(units) == hash(mx.units.partition(model, granularity))


shapes = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=5)


@fixed
@hypothesis.given(shapes, st.data())
def test_each_parameter_belongs_to_one_unit(
    shapes: list[tuple[int, ...]], data: st.DataObject
) -> None:
    sizes = [int(np.prod(shape)) for shape in shapes]
    model = {
        "gain": jax.ShapeDtypeStruct((), jnp.float32),
        "layers": [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
    }
    count = data.draw(st.integers(1, sum(sizes) + 1))
    for granularity in ("model", "layer", "leaf", mx.units.chunks(count)):
        units = mx.units.partition(model, granularity)
        labels = label_of_each_parameter(units, [1, *sizes])
        assert all(len(label) == 1 for label in labels)
        counts = np.bincount([label[0] for label in labels], minlength=len(units.names))
        assert mx.units.parameter_counts(units) == dict(zip(units.names, counts, strict=True))
        assert counts.min() >= 1


@fixed
@hypothesis.given(shapes, st.data())
def test_chunks_are_runs_whose_lengths_differ_by_at_most_one(
    shapes: list[tuple[int, ...]], data: st.DataObject
) -> None:
    sizes = [int(np.prod(shape)) for shape in shapes]
    count = data.draw(st.integers(1, sum(sizes)))
    model = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    units = mx.units.partition(model, mx.units.chunks(count))
    labels = [label for (label,) in label_of_each_parameter(units, sizes)]
    lengths = np.bincount(labels, minlength=count)
    assert labels == sorted(labels)
    assert lengths.max() - lengths.min() <= 1
    assert len(units.names) == count


def test_leaves_without_elements_join_no_chunk_and_break_none() -> None:
    model = {"a": jnp.zeros((0, 2)), "b": jnp.ones(5), "c": jnp.zeros(0)}
    for count in (1, 2, 5):
        units = mx.units.partition(model, mx.units.chunks(count))
        assert sum(mx.units.parameter_counts(units).values()) == 5
        np.testing.assert_allclose(jnp.sum(squared_norms_jit(units, model)), 5)


def random_model(seed: int, *leading: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(*leading, *shape)), jnp.float32)

    return {
        "conv": {"kernel": normal(3, 2, 2)},
        "dense": Dense(normal(4, 3), normal(3)),
        "gain": normal(),
    }


dots_jit = jax.jit(mx.units.dots, static_argnums=0)
squared_norms_jit = jax.jit(mx.units.squared_norms, static_argnums=0)

GRANULARITIES = [
    "model",
    "layer",
    "leaf",
    mx.units.chunks(1),
    mx.units.chunks(4),
    mx.units.chunks(28),
    lambda path: "gain" if path[-1] in ("gain", "bias") else "rest",
]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_dots_and_norms_agree_with_a_loop_over_parameters(
    granularity: mx.units.Granularity,
) -> None:
    update = random_model(0)
    directions = random_model(1, 3)
    units = mx.units.partition(update, granularity)
    sizes = [leaf.size for leaf in jax.tree.leaves(update)]
    labels = [label for (label,) in label_of_each_parameter(units, sizes)]
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(update)]).astype(np.float64)
    rows = np.concatenate(
        [np.reshape(leaf, (3, -1)) for leaf in jax.tree.leaves(directions)], axis=1
    ).astype(np.float64)
    dots, squares = np.zeros((len(units.names), 3)), np.zeros(len(units.names))
    for element, unit in enumerate(labels):
        dots[unit] += flat[element] * rows[:, element]
        squares[unit] += flat[element] ** 2
    np.testing.assert_allclose(dots_jit(units, update, directions), dots, atol=1e-5)
    np.testing.assert_allclose(squared_norms_jit(units, update), squares, rtol=1e-5)


def test_sums_of_narrow_floats_and_integers_accumulate_in_float32() -> None:
    # a bfloat16 sum of ones sticks at 256, a sum of int8 squares wraps
    model = {"a": jnp.ones(1024, jnp.bfloat16), "b": jnp.full(512, 100, jnp.int8)}
    units = mx.units.partition(model)
    expected = [1024, 512 * 100**2]
    squares = mx.units.squared_norms(units, model)
    dots = mx.units.dots(units, model, jax.tree.map(lambda leaf: leaf[None], model))
    assert squares.dtype == dots.dtype == jnp.float32
    np.testing.assert_array_equal(squares, expected)
    np.testing.assert_array_equal(dots[:, 0], expected)


def test_dots_and_norms_are_the_same_eager_jitted_and_vmapped() -> None:
    updates, directions = random_model(0, 5), random_model(1, 2)
    one = jax.tree.map(lambda leaf: leaf[0], updates)
    units = mx.units.partition(one)

    def both(update: object) -> tuple[jax.Array, jax.Array]:
        return mx.units.dots(units, update, directions), mx.units.squared_norms(units, update)

    eager = both(one)
    jitted = jax.jit(both)(one)
    mapped = jax.tree.map(lambda leaf: leaf[0], jax.vmap(both)(updates))
    for other in (jitted, mapped):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), eager, other)


def test_describe_prints_every_unit_with_its_count_and_the_total(
    capsys: pytest.CaptureFixture[str],
) -> None:
    mx.units.describe({"a": dense(), "b": dense(1, 1)})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        ["a", "9", "81.8%", "a/b", "a/w"],
        ["b", "2", "18.2%", "b/b", "b/w"],
        ["total", "11"],
    ]
