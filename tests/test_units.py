"""Units: which parameters move together, and by what names."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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
    return [units.names[labels.array.item()] for labels in units.labels]


def label_of_each_parameter(units: mx.units.Units) -> np.ndarray:
    return np.concatenate([labels.flat() for labels in units.labels])


def unit_of_each_element(model: object, granularity: mx.units.Granularity) -> list[np.ndarray]:
    """Names in the shape of each leaf."""
    units = mx.units.partition(model, granularity)
    return [
        np.broadcast_to(np.array(units.names)[labels.array], labels.shape)
        for labels in units.labels
    ]


def test_flax_layers_hold_kernel_and_bias_together() -> None:
    params = FlaxMLP().init(jax.random.key(0), jnp.ones((1, 4), jnp.float32))
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
    different = set()
    for granularity in (*NAMED, mx.units.chunks(3), mx.units.chunks(17)):
        units = mx.units.partition(model, granularity)
        shapes = jax.eval_shape(lambda: model)
        assert mx.units.partition(shapes, granularity) == units
        assert hash(units) == hash(mx.units.partition(model, granularity))
        assert not any(labels.array.flags.writeable for labels in units.labels)
        different.add(units)
    # layer and leaf differ as b and w of a layer do
    assert len(different) == 7
    one, other = (mx.units.partition(model, mx.units.chunks(count)).labels for count in (3, 17))
    assert one[0] != other[1]
    assert one != "labels"


NAMED = ("model", "layer", "leaf", "neurons", "coordinates")
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
    for granularity in (*NAMED, mx.units.chunks(count)):
        units = mx.units.partition(model, granularity)
        assert len(set(units.names)) == len(units.names)
        labels = label_of_each_parameter(units)
        assert labels.size == 1 + sum(sizes)
        counts = np.bincount(labels, minlength=len(units.names))
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
    labels = label_of_each_parameter(units)
    lengths = np.bincount(labels, minlength=count)
    np.testing.assert_array_equal(labels, np.sort(labels))
    assert lengths.max() - lengths.min() <= 1
    assert len(units.names) == count


def test_leaves_without_elements_join_no_chunk_and_break_none() -> None:
    model = {"a": jnp.zeros((0, 2)), "b": jnp.ones(5), "c": jnp.zeros(0)}
    for count in (1, 2, 5):
        units = mx.units.partition(model, mx.units.chunks(count))
        assert sum(mx.units.parameter_counts(units).values()) == 5
        np.testing.assert_allclose(jnp.sum(squared_norms_jit(units, model)), 5)


squared_norms_jit = jax.jit(mx.units.squared_norms, static_argnums=0)


def test_neurons_hold_a_channel_with_its_bias_and_scalars_stand_by_their_layer() -> None:
    model = {
        "conv": {"bias": jnp.ones(2), "kernel": jnp.ones((3, 2)), "scale": jnp.ones(())},
        "gain": jnp.ones(()),
    }
    bias, kernel, scale, gain = unit_of_each_element(model, "neurons")
    assert bias.tolist() == ["conv[0]", "conv[1]"]
    assert kernel.tolist() == [["conv[0]", "conv[1]"]] * 3
    assert (scale.item(), gain.item()) == ("conv", "gain")


def test_coordinates_are_named_by_leaf_and_index() -> None:
    model = {"a": {"w": jnp.ones((1, 2), jnp.float32)}, "gain": jnp.ones(())}
    assert mx.units.partition(model, "coordinates").names == ("a/w[0,0]", "a/w[0,1]", "gain")


def test_a_function_of_path_and_shape_groups_elements_across_leaves() -> None:
    model = {"a": {"b": jnp.ones(3), "w": jnp.ones((2, 3))}, "c": jnp.ones(2)}

    def rows(path: tuple[str, ...], shape: tuple[int, ...]) -> object:
        if path == ("c",):
            return "group 1"
        # made by JAX, also under jit
        return jnp.arange(7, 7 + shape[0]).reshape(-1, *[1] * (len(shape) - 1))

    bias, kernel, last = unit_of_each_element(model, rows)
    assert bias.tolist() == ["group 7", "group 8", "group 9"]
    assert kernel.tolist() == [["group 7"] * 3, ["group 8"] * 3]
    assert last.tolist() == ["group 1"] * 2
    jax.jit(lambda x: mx.units.partition(model, rows) and x)(1)
    by_words = mx.units.partition(
        model, lambda path, shape: np.array(["out", "in", "in"]) if shape[-1] == 3 else "in"
    )
    assert mx.units.parameter_counts(by_words) == {"out": 3, "in": 8}


@fixed
@hypothesis.given(shapes, st.data())
def test_any_labels_that_a_function_returns_are_kept(
    shapes: list[tuple[int, ...]], data: st.DataObject
) -> None:
    axes = [tuple(data.draw(st.sampled_from((1, size))) for size in shape) for shape in shapes]
    groups = [data.draw(hnp.arrays(np.int64, own, elements=st.integers(-2, 9))) for own in axes]
    model = [jnp.ones(shape) for shape in shapes]
    hypothesis.assume(len({value for group in groups for value in group.ravel()}) > 1)
    named = unit_of_each_element(model, lambda path, shape: groups[int(path[0])])
    for names, group, shape in zip(named, groups, shapes, strict=True):
        expected = np.broadcast_to(group, shape)
        assert (
            names.tolist()
            == np.array([f"group {i}" for i in expected.flat]).reshape(shape).tolist()
        )
    units = mx.units.partition(model, lambda path, shape: groups[int(path[0])])
    for labels, shape in zip(units.labels, shapes, strict=True):
        full = np.broadcast_to(labels.array, shape)
        for axis, size in enumerate(labels.array.shape):
            assert size == 1 or (full != full.take([0], axis)).any()
    squares = squared_norms_jit(units, model)
    np.testing.assert_array_equal(squares, list(mx.units.parameter_counts(units).values()))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda path, shape: 3, r"a layer name, or an array.*got 3 for leaf \('a', 'b'\)"),
        (lambda path, shape: ["x", "y"], r"a layer name, or an array.*got \['x', 'y'\] for leaf"),
        (
            lambda path, shape: np.zeros(shape),
            r"integers or strings.*'b'\); got float64\[3\]",
        ),
        (lambda path, shape: np.ones(shape, bool), r"integers or strings.*got bool\[3\]"),
        (lambda path, shape: np.arange(5), r"broadcast to \(3,\) for leaf \('a', 'b'\); got int64"),
        (lambda path, shape: np.zeros((1, 3), int), r"broadcast to \(3,\).*got int64\[1, 3\]"),
        (lambda path, shape, more: "x", r"path and shape; got .*'path', 'shape', 'more'"),
        (lambda: "x", "path and shape; got"),
        (lambda path, *, more: "x", r"path and shape; got .*'more'"),
        (lambda path, shape: np.zeros((), int), "at least two units.*'group 0'"),
    ],
)
def test_a_granularity_function_that_returns_something_else_is_refused(
    function: object, message: str
) -> None:
    with pytest.raises(mx.InputError, match=message):
        mx.units.partition({"a": dense()}, function)


def test_a_second_argument_with_a_default_is_left_alone() -> None:
    model = {"a": dense(), "b": dense()}
    units = mx.units.partition(model, lambda path, suffix="!": path[0] + suffix)
    assert units.names == ("a!", "b!")


def test_units_of_the_same_name_are_told_apart() -> None:
    model = {"a": {"b": dense()}, "a/b": dense(), "a/b (2)": dense()}
    assert mx.units.partition(model).names == ("a/b", "a/b (3)", "a/b (2)")
    names = mx.units.partition(model, "neurons").names
    assert len(set(names)) == len(names) == 9

    def mine(path: tuple[str, ...], shape: tuple[int, ...]) -> object:
        return "group 3" if path[0] == "a" else np.array(3)

    units = mx.units.partition(model, mine)
    assert mx.units.parameter_counts(units) == {"group 3": 9, "group 3 (2)": 18}


class Attention(NamedTuple):
    query: jax.Array
    key: jax.Array
    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Holder:
    value: jax.Array
    bias: jax.Array


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_partitioning(nn.initializers.ones, (None, "model"))
        twice = nn.with_logical_partitioning(init, ("in", "out"))
        return nn.Dense(2, kernel_init=twice)(nn.Dense(3, kernel_init=init)(x))


def test_boxes_of_flax_are_seen_through() -> None:
    class Net(nnx.Module):
        def __init__(self) -> None:
            self.first = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
            self.last = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
            self.pair = nnx.Param({"one": jnp.ones(2), "two": {"three": jnp.ones(2)}})

    state = nnx.state(Net(), nnx.Param)
    layers = [*["first"] * 2, *["last"] * 2, "pair", "pair/two"]
    assert layer_of_each_leaf(state) == layers == layer_of_each_leaf(nnx.to_pure_dict(state))
    assert mx.units.partition(state, "leaf").names[:2] == ("first/bias", "first/kernel")
    assert "first[2]" in mx.units.partition(jax.eval_shape(lambda: state), "neurons").names
    boxed = Boxed().init(jax.random.key(0), jnp.ones((1, 2), jnp.float32))
    assert layer_of_each_leaf(boxed) == [*["params/Dense_0"] * 2, *["params/Dense_1"] * 2]
    assert mx.units.partition(boxed, "leaf").names[1] == "params/Dense_0/kernel"
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), boxed)
    assert jax.tree.structure(mx.mix(jax.random.key(0), stacked)) == jax.tree.structure(boxed)


def test_a_field_called_value_is_no_box() -> None:
    one = jnp.ones(2)
    assert mx.units.partition({"attn": {"query": one, "value": one}}, "leaf").names == (
        "attn/query", "attn/value",
    )  # fmt: skip
    model = {"attn": Attention(one, one, one), "holder": Holder(one, one), "value": {"value": one}}
    assert mx.units.partition(model, "leaf").names == (
        *("attn/query", "attn/key", "attn/value"),
        *("holder/value", "holder/bias", "value/value"),
    )
    assert mx.units.partition(model).names == ("attn", "holder", "value")


def test_a_cut_into_many_chunks_is_quick_and_exact() -> None:
    model = [jnp.zeros((100, 700)), *[jnp.zeros(10)] * 300]
    units = mx.units.partition(model, mx.units.chunks(50_000))
    counts = np.array(list(mx.units.parameter_counts(units).values()))
    assert set(counts) == {1, 2}
    assert counts.sum() == 73_000
    assert units.names[-1] == "chunk49999"


def test_describe_prints_the_first_of_very_many_units(capsys: pytest.CaptureFixture[str]) -> None:
    mx.units.describe({"a": dense(5, 20)}, "coordinates")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 23
    assert lines[1].split() == ["a/b[0]", "1", "0.8%", "a/b"]
    assert lines[-2:] == ["... and 100 more units", f"{'total':7}  {120:10}"]
    mx.units.describe({"a": dense(1, 20)}, "coordinates")
    assert len(capsys.readouterr().out.splitlines()) == 42


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
