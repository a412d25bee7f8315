"""Per-client convolution layers: ours against XLA's, alone in a loop and under `vmap`.

Each layer of the cnn workload, forward and with gradients, as local training runs it: inside a
`lax.scan` over clients with weights of their own.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

import mixjax as mx
from benchmarks import timing

LAYERS = {"first": ((32, 32, 32, 3), (3, 3, 3, 32)), "second": ((32, 16, 16, 32), (3, 3, 32, 64))}
CLIENTS = 4
NUMBERS = ("NHWC", "HWIO", "NHWC")


def ours(inputs: Array, kernel: Array) -> Array:
    """The drop-in."""
    return mx.ops.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS)


def xla(inputs: Array, kernel: Array) -> Array:
    """XLA's own."""
    return lax.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS)


def variant(
    conv: Callable[[Array, Array], Array],
    *,
    gradients: bool,
    vmap: bool,
    pairs: tuple[Array, Array],
) -> Callable[[], Array]:
    """A compiled pass over all clients."""

    def loss(inputs: Array, kernel: Array) -> Array:
        return jnp.sum(conv(inputs, kernel) ** 2)

    def one(pair: tuple[Array, Array]) -> Any:
        return jax.grad(loss, (0, 1))(*pair) if gradients else loss(*pair)

    compiled = jax.jit(jax.vmap(one) if vmap else lambda pairs: lax.map(one, pairs))
    return lambda: compiled(pairs)


def main() -> None:
    """Print and save a line for each layer, pass and way."""
    mx.sharding.use_host_devices(1)
    records = []
    for layer, (input_shape, kernel_shape) in LAYERS.items():
        keys = jax.random.split(jax.random.key(0), 2)
        pairs = (
            jax.random.normal(keys[0], (CLIENTS, *input_shape)),
            jax.random.normal(keys[1], (CLIENTS, *kernel_shape)),
        )
        flops = 2 * CLIENTS * math.prod(input_shape[:3]) * math.prod(kernel_shape)
        for gradients in (False, True):
            seconds = timing.alternate(
                {
                    f"{conv.__name__}, {'vmap' if vmap else 'loop'}": variant(
                        conv, gradients=gradients, vmap=vmap, pairs=pairs
                    )
                    for conv in (ours, xla)
                    for vmap in (False, True)
                },
                repeats=5,
            )
            what = "gradients" if gradients else "forward"
            for way, value in seconds.items():
                rate = (3 if gradients else 1) * flops / value / 1e9
                records.append({"layer": layer, "pass": what, "way": way, "seconds": value})
                print(f"{layer:7} {what:10} {way:11} {1e3 * value:8.2f} ms {rate:7.1f} GFLOP/s")
    timing.save("convolution", records)


if __name__ == "__main__":
    main()
