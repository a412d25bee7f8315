"""Per-client convolution layers: ours against XLA's, alone in a loop and under `vmap`.

Each layer of the cnn workload, forward and with gradients, as local training runs it: inside a
`lax.scan` over clients with weights of their own. Then one client's whole local training
against the matrix products of its layers' shapes and nothing else, on one core.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

import mixjax as mx
from benchmarks import timing, workloads

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
    records.append(whole_client())
    timing.save("convolution", records)


def whole_client() -> dict[str, Any]:
    """A client's local training, and the bare products of the same layers, forward and back."""
    params = workloads.initial("cnn")
    pool = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), workloads.arrays("cnn", 1))
    size, steps = workloads.BATCH["cnn"], workloads.SAMPLES // workloads.BATCH["cnn"]
    local = mx.client.local_training(
        workloads.loss_fn("cnn"), optax.sgd(workloads.LEARNING_RATE), batch_size=size
    )
    data = mx.data.take(mx.data.stack([pool]), [0])
    data = jax.tree.map(lambda leaf: leaf[0], data)
    train = jax.jit(lambda params: local(jax.random.key(0), params, data).update)

    # rows, inputs and outputs of each layer's product
    shapes = [(size * 1024, 27, 32), (size * 256, 288, 64), (size, 4096, 128), (size, 128, 10)]
    operands = [
        tuple(jax.random.normal(jax.random.key(0), shape) for shape in ((m, k), (k, n), (m, n)))
        for m, k, n in shapes
    ]

    @jax.jit
    def products(operands: Any) -> Any:
        # the gradient of the first layer's input is never needed
        return [(x @ w, x.T @ y, *([y @ w.T] if i else [])) for i, (x, w, y) in enumerate(operands)]

    seconds = timing.alternate(
        {"train": lambda: train(params), "products": lambda: products(operands)}
    )
    flops = sum(2 * m * k * n * (3 if i else 2) for i, (m, k, n) in enumerate(shapes))
    share = steps * seconds["products"] / seconds["train"]
    print(
        f"one client: training {flops * steps / seconds['train'] / 1e9:.0f} GFLOP/s, its products "
        f"alone {flops / seconds['products'] / 1e9:.0f} GFLOP/s: {share:.0%}"
    )
    return {"layer": "client", "share_of_products": share} | seconds


if __name__ == "__main__":
    main()
