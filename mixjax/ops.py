"""Convolution and pooling that stay fast when every client has its own weights.

`vmap` over a convolution with per-client kernels becomes a grouped convolution, which XLA's CPU
back end runs an order of magnitude slower than patches times a matrix (benchmarks/convolution.py).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from mixjax import _validate


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
    as a matrix. Elsewhere, and for grouped or transposed convolutions and other layouts, it is
    XLA's own. For flax: `nn.Conv(conv_general_dilated=mixjax.ops.conv_general_dilated)`.
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
        padding = lax.padtype_to_pads(lhs.shape[1:-1], reach, window_strides, padding)
    patches = _patches(lhs, window, window_strides, padding, dilation, reach)
    return jnp.matmul(
        patches,
        rhs.reshape(-1, rhs.shape[-1]),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


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
    starts = [
        [offset // math.prod(window[axis + 1 :]) % window[axis] for axis in range(len(window))]
        for offset in range(math.prod(window))
    ]
    slices = []
    for start in starts:
        # a window wider than its input leaves empty slices, as in lax
        low = [
            min(index * step, size)
            for index, step, size in zip(start, dilation, inputs.shape[1:-1], strict=True)
        ]
        high = [
            min(first + max(size - span + 1, 0), size)
            for first, size, span in zip(low, inputs.shape[1:-1], reach, strict=True)
        ]
        slices.append(
            lax.slice(
                inputs,
                (0, *low, 0),
                (inputs.shape[0], *high, inputs.shape[-1]),
                (1, *strides, 1),
            )
        )
    return jnp.concatenate(slices, axis=-1)


def max_pool(inputs: Array, window: Sequence[int]) -> Array:
    """Non-overlapping max-pooling of `[batch, *spatial, channels]`; a remainder is dropped.

    The gradient goes to every maximum in equal parts, where `lax.reduce_window` picks the first.
    """
    return _blocks(inputs, window).max(axis=tuple(range(2, 2 * len(window) + 1, 2)))


def avg_pool(inputs: Array, window: Sequence[int]) -> Array:
    """Non-overlapping mean-pooling of `[batch, *spatial, channels]`; a remainder is dropped."""
    return _blocks(inputs, window).mean(axis=tuple(range(2, 2 * len(window) + 1, 2)))


def _blocks(inputs: Array, window: Sequence[int]) -> Array:
    spatial = inputs.shape[1:-1]
    _validate.check_window(window, spatial)
    counts = [size // width for size, width in zip(spatial, window, strict=True)]
    ends = [count * width for count, width in zip(counts, window, strict=True)]
    trimmed = lax.slice(inputs, [0] * inputs.ndim, (inputs.shape[0], *ends, inputs.shape[-1]))
    split = [size for pair in zip(counts, window, strict=True) for size in pair]
    return trimmed.reshape(inputs.shape[0], *split, inputs.shape[-1])
