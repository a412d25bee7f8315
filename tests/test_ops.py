"""Convolution and pooling against XLA's own."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mixjax as mx

ONE = ("NHC", "HIO", "NHC")
TWO = ("NHWC", "HWIO", "NHWC")


def arrays(
    spatial: tuple[int, ...], window: tuple[int, ...], channels: int = 3, features: int = 4
) -> Any:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, *spatial, channels)).astype(np.float32)
    kernel = rng.normal(size=(*window, channels, features)).astype(np.float32)
    return jnp.asarray(inputs), jnp.asarray(kernel)


CASES = [
    ((11,), (3,), (1,), "SAME", (1,)),
    ((11,), (5,), (2,), "SAME", (1,)),
    ((10,), (4,), (3,), "VALID", (1,)),
    ((10,), (3,), (2,), [(2, 1)], (2,)),
    ((8, 7), (3, 3), (1, 1), "SAME", (1, 1)),
    ((8, 7), (3, 2), (2, 1), "VALID", (1, 1)),
    ((9, 8), (3, 2), (2, 3), "SAME", (2, 1)),
    ((6, 5), (2, 3), (1, 2), [(1, 0), (2, 2)], (1, 2)),
    ((5, 5), (1, 1), (2, 2), "VALID", (1, 1)),
    ((4, 4), (3, 3), (1, 1), [(-1, 0), (0, 0)], (1, 1)),
]


WINOGRAD_CASES = [
    ((8, 6), "SAME"),
    ((7, 9), "SAME"),
    ((5, 5), "VALID"),
    ((6, 5), [(2, 0), (0, 3)]),
    ((9, 4), [(-1, 1), (1, 1)]),
]


@pytest.mark.parametrize(("spatial", "padding"), WINOGRAD_CASES)
def test_many_channels_go_by_winograd_and_equal_lax(spatial: Any, padding: Any) -> None:
    inputs, kernel = arrays(spatial, (3, 3), channels=16, features=20)

    def ours(inputs: Any, kernel: Any) -> Any:
        return mx.ops.conv_general_dilated(inputs, kernel, (1, 1), padding, dimension_numbers=TWO)

    assert "f32[36,16,20]" in str(jax.make_jaxpr(ours)(inputs, kernel))
    # tiles of 4x4 round twice as much as sums of products
    check_against_lax(inputs, kernel, (1, 1), padding, (1, 1), atol=2e-5)


@pytest.mark.parametrize("spatial", [(3, 3), (4, 4)])
def test_winograd_is_left_where_most_of_its_tiles_would_be_dropped(spatial: Any) -> None:
    inputs, kernel = arrays(spatial, (3, 3), channels=16, features=20)

    def ours(inputs: Any, kernel: Any) -> Any:
        return mx.ops.conv_general_dilated(inputs, kernel, (1, 1), "VALID", dimension_numbers=TWO)

    assert "f32[36," not in str(jax.make_jaxpr(ours)(inputs, kernel))
    check_against_lax(inputs, kernel, (1, 1), "VALID", (1, 1))


def test_winograd_differentiates_forwards_and_twice() -> None:
    inputs, kernel = arrays((5, 4), (3, 3), channels=16, features=16)

    def square(convolution: Any) -> Any:
        def loss(kernel: Any) -> Any:
            outputs = convolution(inputs, kernel, (1, 1), "SAME", dimension_numbers=TWO)
            return jnp.mean(outputs**3)

        along = jax.grad(lambda kernel: jax.jvp(loss, (kernel,), (kernel,))[1])
        return jax.jit(along)(kernel)

    expected = square(lax.conv_general_dilated)
    np.testing.assert_allclose(
        square(mx.ops.conv_general_dilated), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )


def test_half_precision_is_not_transformed() -> None:
    inputs, kernel = (leaf.astype(jnp.bfloat16) for leaf in arrays((6, 6), (3, 3), 16, 16))
    own = mx.ops.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=TWO)
    theirs = lax.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=TWO)
    np.testing.assert_allclose(
        own.astype(jnp.float32), theirs.astype(jnp.float32), rtol=2**-7, atol=2**-5
    )


@pytest.mark.parametrize(("spatial", "window", "strides", "padding", "dilation"), CASES)
def test_values_and_gradients_equal_those_of_lax(
    spatial: Any, window: Any, strides: Any, padding: Any, dilation: Any
) -> None:
    check_against_lax(*arrays(spatial, window), strides, padding, dilation)


def check_against_lax(
    inputs: Any, kernel: Any, strides: Any, padding: Any, dilation: Any, atol: float = 1e-5
) -> None:
    options = {
        "window_strides": strides,
        "padding": padding,
        "rhs_dilation": dilation,
        "dimension_numbers": ONE if inputs.ndim == 3 else TWO,
    }
    reference = lax.conv_general_dilated(inputs, kernel, **options)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=reference.shape), jnp.float32)

    def gradients(convolution: Any) -> Any:
        def loss(inputs: Any, kernel: Any) -> Any:
            outputs = convolution(inputs, kernel, **options)
            return jnp.sum(outputs * weight), outputs

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(inputs, kernel)

    (_, own), own_gradients = gradients(mx.ops.conv_general_dilated)
    _, expected_gradients = gradients(lax.conv_general_dilated)
    np.testing.assert_allclose(own, reference, rtol=1e-5, atol=atol)
    for one, other in zip(own_gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def test_a_tiny_convolution_equals_loops() -> None:
    inputs, kernel = arrays((5,), (3,))
    own = mx.ops.conv_general_dilated(inputs, kernel, (1,), "VALID", dimension_numbers=ONE)
    for place in range(3):
        expected = np.einsum("nkc,kcf->nf", inputs[:, place : place + 3], kernel)
        np.testing.assert_allclose(own[:, place], expected, rtol=1e-5, atol=1e-5)


def test_a_window_wider_than_its_input_gives_an_empty_output_as_in_lax() -> None:
    inputs, kernel = arrays((2,), (5,))
    for convolution in (lax.conv_general_dilated, mx.ops.conv_general_dilated):
        outputs = convolution(inputs, kernel, (1,), "VALID", dimension_numbers=ONE)
        assert outputs.shape == (2, 0, 4)


@pytest.mark.parametrize(
    "options",
    [
        {"feature_group_count": 3},
        {"lhs_dilation": (2, 2)},
        {"batch_group_count": 2},
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
        {"dimension_numbers": None},
    ],
    ids=["grouped", "transposed", "batch groups", "channels first", "default layout"],
)
def test_other_convolutions_are_those_of_lax(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    layout = options.get("dimension_numbers", TWO)
    groups = options.get("feature_group_count", 1)
    shapes = ((2, 6, 5, 3), (3, 3, 3 // groups, 6))
    if layout != TWO:
        shapes = ((2, 3, 6, 5), (6, 3, 3, 3))
    inputs, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    call = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": layout} | options
    if "lhs_dilation" in options:
        call["padding"] = [(1, 1), (1, 1)]
    own = mx.ops.conv_general_dilated(inputs, kernel, **call)
    np.testing.assert_array_equal(own, lax.conv_general_dilated(inputs, kernel, **call))


def test_patches_are_used_on_cpu_and_lax_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, kernel = arrays((8,), (3,))

    def primitives() -> str:
        return str(jax.make_jaxpr(
            lambda a, b: mx.ops.conv_general_dilated(a, b, (1,), "SAME", dimension_numbers=ONE)
        )(inputs, kernel))  # fmt: skip

    assert "conv_general_dilated" not in primitives()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" in primitives()


def test_every_client_may_have_its_own_kernel() -> None:
    inputs, _ = arrays((7, 6), (3, 3))
    rng = np.random.default_rng(2)
    kernels = jnp.asarray(rng.normal(size=(3, 3, 3, 3, 4)), jnp.float32)
    stacked = jnp.stack([inputs, 2 * inputs, -inputs])

    def convolution(inputs: Any, kernel: Any) -> Any:
        return mx.ops.conv_general_dilated(inputs, kernel, (2, 1), "SAME", dimension_numbers=TWO)

    mapped = jax.jit(jax.vmap(convolution))(stacked, kernels)
    scanned = jax.lax.map(lambda pair: convolution(*pair), (stacked, kernels))
    for row in range(3):
        expected = lax.conv_general_dilated(
            stacked[row], kernels[row], (2, 1), "SAME", dimension_numbers=TWO
        )
        np.testing.assert_allclose(mapped[row], expected, rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(scanned[row], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "window"), [((2, 9, 3), (2,)), ((2, 6, 3), (3,)), ((2, 7, 9, 3), (2, 4))]
)
def test_pools_equal_reduce_window_and_drop_the_remainder(shape: Any, window: Any) -> None:
    values = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape)
    inputs = jnp.asarray(values, jnp.float32)
    full = (1, *window, 1)
    maxima = lax.reduce_window(inputs, -jnp.inf, lax.max, full, full, "VALID")
    sums = lax.reduce_window(inputs, 0.0, lax.add, full, full, "VALID")
    np.testing.assert_array_equal(mx.ops.max_pool(inputs, window), maxima)
    np.testing.assert_allclose(
        mx.ops.avg_pool(inputs, window), sums / np.float32(np.prod(window)), rtol=1e-6
    )


def test_ties_have_the_gradient_of_reduce_window() -> None:
    inputs = jnp.round(2 * jax.random.normal(jax.random.key(0), (2, 6, 9, 3)))
    cotangent = jax.random.normal(jax.random.key(1), (2, 3, 3, 3))

    def of(pool: Any) -> Any:
        return jax.grad(lambda x: jnp.sum(pool(x) * cotangent))(inputs)

    window = (1, 2, 3, 1)
    theirs = of(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID"))
    np.testing.assert_array_equal(of(lambda x: mx.ops.max_pool(x, (2, 3))), theirs)


def test_a_window_of_many_elements_still_finds_its_maximum() -> None:
    inputs = jnp.arange(300.0)[None, :, None]
    gradient = jax.grad(lambda x: jnp.sum(mx.ops.max_pool(x, (150,))))(inputs)
    np.testing.assert_array_equal(jnp.flatnonzero(gradient.ravel()), [149, 299])


def test_the_mean_shares_its_gradient() -> None:
    inputs = jnp.array([3.0, 3.0, 1.0, 2.0])[None, :, None]
    mean = jax.grad(lambda x: jnp.sum(mx.ops.avg_pool(x, (2,))))(inputs)
    np.testing.assert_array_equal(mean.ravel(), [0.5] * 4)


@pytest.mark.parametrize("shape", [(3, 7, 5, 12), (3, 9, 12), (3, 12)])
@pytest.mark.parametrize("groups", [1, 4, 12])
def test_group_norm_has_the_values_and_gradients_of_flax(shape: Any, groups: int) -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    inputs, cotangent = (2 + 3 * jax.random.normal(key, shape, jnp.float32) for key in keys[:2])
    scale, bias = (jax.random.normal(key, (12,), jnp.float32) for key in keys[2:])

    def of(norm: Any) -> Any:
        return jax.jit(jax.value_and_grad(norm, argnums=(0, 1, 2)))(inputs, scale, bias)

    def theirs(inputs: Any, scale: Any, bias: Any) -> Any:
        params = {"params": {"scale": scale, "bias": bias}}
        return jnp.sum(nn.GroupNorm(groups).apply(params, inputs) * cotangent)

    def ours(inputs: Any, scale: Any, bias: Any) -> Any:
        return jnp.sum(mx.ops.group_norm(inputs, scale, bias, groups) * cotangent)

    for got, expected in zip(jax.tree.leaves(of(ours)), jax.tree.leaves(of(theirs)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", "CAUSAL", 1])
def test_flax_takes_the_convolution_as_a_drop_in(padding: Any) -> None:
    inputs, _ = arrays((9,), (3,))
    plain = nn.Conv(4, (3,), 2, padding=padding)
    ours = nn.Conv(4, (3,), 2, padding=padding, conv_general_dilated=mx.ops.conv_general_dilated)
    params = plain.init(jax.random.key(0), inputs)
    np.testing.assert_allclose(
        ours.apply(params, inputs), plain.apply(params, inputs), rtol=1e-5, atol=1e-5
    )
