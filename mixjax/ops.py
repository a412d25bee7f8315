"""Convolution and pooling that stay fast when every client has its own weights.

`vmap` over a convolution with per-client kernels becomes a grouped convolution, which XLA's CPU
back end runs an order of magnitude slower than patches times a matrix (benchmarks/convolution.py).
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from mixjax import _validate
from mixjax.types import wide

# benchmarks/convolution.py: below this Winograd's transforms cost more than its products save
WINOGRAD_CHANNELS = 16
ROOT = math.sqrt(2)


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """A drop-in for `lax.conv_general_dilated`, with the same values up to rounding.

    On CPU a convolution over channels-last inputs is the patches of the input times the kernel
    as a matrix, or, for 3x3 kernels of stride 1 over many channels, Winograd's products of tiles,
    whose rounding in float32 comes to some 1e-5 of the values' standard deviation.
    Elsewhere, and for grouped or transposed convolutions and other layouts, it is XLA's own. For
    flax: `nn.Conv(conv_general_dilated=mixjax.ops.conv_general_dilated)`.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    spatial = lhs.ndim - 2
    last = (0, lhs.ndim - 1, *range(1, lhs.ndim - 1))
    channels_last = (
        numbers.lhs_spec == last
        and numbers.out_spec == last
        and numbers.rhs_spec == (lhs.ndim - 1, lhs.ndim - 2, *range(spatial))
    )
    plain = feature_group_count == batch_group_count == 1 and not any(
        dilation != 1 for dilation in lhs_dilation or ()
    )
    if jax.default_backend() != "cpu" or not (plain and channels_last):
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
        )
    dilation = tuple(rhs_dilation or (1,) * spatial)
    window = rhs.shape[:spatial]
    reach = [(size - 1) * step + 1 for size, step in zip(window, dilation, strict=True)]
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(lhs.shape[1:-1], reach, window_strides, padding)
        padding = [(int(low), int(high)) for low, high in pads]
    unit = (1,) * spatial
    if tuple(window_strides) == dilation == unit and _suits_winograd(lhs, rhs, padding):
        return _winograd(lhs, rhs, padding, precision, preferred_element_type)
    patches = _patches(lhs, window, window_strides, padding, dilation, reach)
    return _product(patches, rhs.reshape(-1, rhs.shape[-1]), precision, preferred_element_type)


def _product(inputs: Array, matrix: Array, precision: Any, preferred_element_type: Any) -> Array:
    # as two matrices: the weights' gradient over several batch axes is twice as slow on CPU
    flat = jnp.matmul(
        inputs.reshape(-1, inputs.shape[-1]),
        matrix,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return flat.reshape(*inputs.shape[:-1], matrix.shape[-1])


def _patches(
    inputs: Array,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    reach: Sequence[int],
) -> Array:
    """`[batch, *out, window * channels]`: shifted, strided slices side by side."""
    zero = jnp.zeros((), inputs.dtype)
    inputs = lax.pad(inputs, zero, [(0, 0, 0), *((*pads, 0) for pads in padding), (0, 0, 0)])
    # one axis after the other, last first: two copies of longer runs beat one of short ones
    for axis in reversed(range(len(window))):
        size = max(inputs.shape[axis + 1] - reach[axis] + 1, 0)
        inputs = jnp.concatenate(
            [
                _slice_axis(
                    inputs,
                    axis + 1,
                    min(tap * dilation[axis], inputs.shape[axis + 1]),
                    size,
                    strides[axis],
                )
                for tap in range(window[axis])
            ],
            axis=-1,
        )
    return inputs


def _slice_axis(inputs: Array, axis: int, start: int, size: int, stride: int) -> Array:
    stop = min(start + size, inputs.shape[axis])
    return lax.slice_in_dim(inputs, start, stop, stride, axis)


def _suits_winograd(lhs: Array, rhs: Array, padding: Sequence[tuple[int, int]]) -> bool:
    outputs = _winograd_outputs(lhs, padding) if lhs.ndim == 4 else (0, 0)
    tiles = math.prod(-(-size // 4) for size in outputs)
    return (
        rhs.shape[:-2] == (3, 3)
        and min(rhs.shape[2:]) >= WINOGRAD_CHANNELS
        and lhs.dtype == rhs.dtype == jnp.float32
        # at least half of what the tiles compute is kept
        and min(outputs) > 0
        and 8 * tiles <= math.prod(outputs)
    )


def _winograd_outputs(lhs: Array, padding: Sequence[tuple[int, int]]) -> tuple[int, int]:
    height, width = (
        size + sum(pads) - 2 for size, pads in zip(lhs.shape[1:-1], padding, strict=True)
    )
    return height, width


def _winograd(
    inputs: Array,
    kernel: Array,
    padding: Sequence[tuple[int, int]],
    precision: Any,
    preferred_element_type: Any,
) -> Array:
    """A 3x3 convolution of stride 1 by tiles of 4x4 outputs: 36 products where patches take 144.

    Source: Lavin and Gray 2016, arXiv:1509.09308, F(4x4, 3x3), with the points 0, +-sqrt(1/2),
    +-sqrt(2) and infinity, whose rounding is a quarter of that of 0, +-1, +-2 and infinity.
    """
    height, width = _winograd_outputs(inputs, padding)
    ends = [
        (low, high + 2 + -size % 4, 0)
        for (low, high), size in zip(padding, (height, width), strict=True)
    ]
    inputs = lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    # barriers, or each of 36 tiles is computed from the inputs again
    tiles = _input_tiles(lax.optimization_barrier(_input_tiles(inputs, 1)), 3)
    taps = _kernel_taps(_kernel_taps(kernel).swapaxes(0, 1))
    products = jnp.matmul(
        tiles.reshape(36, -1, kernel.shape[-2]),
        taps.reshape(36, *kernel.shape[-2:]),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    products = products.reshape(*tiles.shape[:-1], kernel.shape[-1])
    rows = lax.optimization_barrier(_output_tiles(products, 3))
    return _output_tiles(rows, 1)[:, :height, :width]


def _input_tiles(inputs: Array, axis: int) -> Array:
    """Fours along the axis, each with the two that follow it, become six on a new first axis."""
    # parts of a split rather than strides, whose gradient would be a slow scatter
    fours = _unstack(
        inputs.reshape(*inputs.shape[:axis], -1, 4, *inputs.shape[axis + 1 :]), axis + 1
    )
    count = fours[0].shape[axis] - 1
    x0, x1, x2, x3 = (lax.slice_in_dim(part, 0, count, 1, axis) for part in fours)
    x4, x5 = (lax.slice_in_dim(part, 1, count + 1, 1, axis) for part in fours[:2])
    even, odd = x4 - 2 * x2, (x3 - 2 * x1) / ROOT
    wide_even, wide_odd = x4 - x2 / 2, (x3 - x1 / 2) * ROOT
    return jnp.stack(
        [
            x0 - 2.5 * x2 + x4,
            even + odd,
            even - odd,
            wide_even + wide_odd,
            wide_even - wide_odd,
            x1 - 2.5 * x3 + x5,
        ]
    )


def _kernel_taps(kernel: Array) -> Array:
    """Three along the first axis become six."""
    k0, k1, k2 = _unstack(kernel, 0)
    even, odd = (k0 + k2 / 2) / -1.5, k1 / (-1.5 * ROOT)
    wide_even, wide_odd = (k0 + 2 * k2) / 6, k1 * (ROOT / 6)
    return jnp.stack([k0, even + odd, even - odd, wide_even + wide_odd, wide_even - wide_odd, k2])


def _output_tiles(products: Array, axis: int) -> Array:
    """Six on the first axis become fours along the axis, which is counted without the first."""
    y0, y1, y2, y3, y4, y5 = _unstack(products, 0)
    even, odd = y1 + y2, (y1 - y2) / ROOT
    wide_even, wide_odd = y3 + y4, (y3 - y4) * ROOT
    fours = jnp.stack(
        [
            y0 + even + wide_even,
            odd + wide_odd,
            even / 2 + 2 * wide_even,
            odd / 2 + 2 * wide_odd + y5,
        ],
        axis + 1,
    )
    return fours.reshape(*fours.shape[:axis], -1, *fours.shape[axis + 2 :])


def _unstack(inputs: Array, axis: int) -> list[Array]:
    return [part.squeeze(axis) for part in lax.split(inputs, (1,) * inputs.shape[axis], axis)]


def max_pool(inputs: Array, window: Sequence[int]) -> Array:
    """Non-overlapping max-pooling of `[batch, *spatial, channels]`; a remainder is dropped.

    Values and gradients are those of `lax.reduce_window`: of equal maxima the first gets all.
    """
    blocks = _blocks(inputs, window)
    return _max_of(
        tuple(blocks[_offset(place)] for place in itertools.product(*map(range, window)))
    )


def _offset(place: tuple[int, ...]) -> tuple[Any, ...]:
    return (slice(None), *(part for index in place for part in (slice(None), index)))


@jax.custom_vjp
def _max_of(parts: tuple[Array, ...]) -> Array:
    """The elementwise maximum of equally shaped arrays."""
    return functools.reduce(jnp.maximum, parts)


def _max_of_forward(parts: tuple[Array, ...]) -> tuple[Array, tuple[Array, int]]:
    index_type = jnp.int8 if len(parts) < 128 else jnp.int32
    best, first = parts[0], jnp.zeros(parts[0].shape, index_type)
    for index, part in enumerate(parts[1:], 1):
        first = jnp.where(part > best, index_type(index), first)
        best = jnp.maximum(best, part)
    return best, (first, len(parts))


def _max_of_backward(residual: Any, gradient: Array) -> tuple[tuple[Array, ...]]:
    first, count = residual
    zero = jnp.zeros((), gradient.dtype)
    return (tuple(jnp.where(first == index, gradient, zero) for index in range(count)),)


_max_of.defvjp(_max_of_forward, _max_of_backward)


def avg_pool(inputs: Array, window: Sequence[int]) -> Array:
    """Non-overlapping mean-pooling of `[batch, *spatial, channels]`; a remainder is dropped."""
    return _blocks(inputs, window).mean(axis=tuple(range(2, 2 * len(window) + 1, 2)))


def group_norm(
    inputs: Array, scale: Array, bias: Array, groups: int, epsilon: float = 1e-6
) -> Array:
    """Group normalization of `[batch, *spatial, channels]`.

    The same as `flax.linen.GroupNorm`, at a fraction of its cost on CPU: sums go over whole
    channels first, so that nothing as large as the input is reduced over two axes apart.

    Args:
      inputs: `[batch, *spatial, channels]`.
      scale: `[channels]`.
      bias: `[channels]`.
      groups: a divisor of `channels`.
      epsilon: added to the variance.

    Source: Wu and He 2018, arXiv:1803.08494.

    Raises:
      InputError: for groups that don't divide the channels.
    """
    _check_groups(groups, inputs.shape[-1])
    spatial = tuple(range(1, inputs.ndim - 1))
    width = inputs.shape[-1] // groups
    count = math.prod(inputs.shape[1:-1]) * width

    def group_mean(of_channel: Array) -> Array:
        sums = of_channel.reshape(-1, groups, width).sum(axis=-1)
        return jnp.repeat(sums / count, width, axis=-1)

    # the squares of half-precision numbers overflow, and their differences are rounding
    inputs, dtype = inputs.astype(wide(inputs.dtype)), inputs.dtype
    mean = group_mean(inputs.sum(axis=spatial))
    variance = group_mean(jnp.square(inputs).sum(axis=spatial)) - jnp.square(mean)
    factor = scale[None].astype(inputs.dtype) * lax.rsqrt(jnp.maximum(variance, 0) + epsilon)
    centred = inputs - jnp.expand_dims(mean, spatial)
    shift = jnp.expand_dims(bias, (0, *spatial)).astype(inputs.dtype)
    return (centred * jnp.expand_dims(factor, spatial) + shift).astype(dtype)


def _check_groups(groups: int, channels: int) -> None:
    whole = isinstance(groups, (int, np.integer)) and not isinstance(groups, bool)
    if not whole or groups < 1 or channels % groups:
        raise _validate.InputError(
            f"expected groups to be a whole number that divides the {channels} channels; "
            f"got {groups!r}."
        )


def _blocks(inputs: Array, window: Sequence[int]) -> Array:
    spatial = inputs.shape[1:-1]
    _check_window(window, spatial)
    counts = [size // width for size, width in zip(spatial, window, strict=True)]
    ends = [count * width for count, width in zip(counts, window, strict=True)]
    trimmed = lax.slice(inputs, [0] * inputs.ndim, (inputs.shape[0], *ends, inputs.shape[-1]))
    split = [size for pair in zip(counts, window, strict=True) for size in pair]
    return trimmed.reshape(inputs.shape[0], *split, inputs.shape[-1])


def _check_window(window: Sequence[int], spatial: Sequence[int]) -> None:
    _validate.check_sequence(window, "a pooling window")
    if len(window) != len(spatial) or any(width < 1 for width in window):
        raise _validate.InputError(
            f"expected a pooling window of {len(spatial)} positive sizes for spatial axes "
            f"{tuple(spatial)}; got {tuple(window)}."
        )
