"""The two networks in plain JAX: patches and a matmul, pooling as a reshape and max."""

import math

import jax
import jax.numpy as jnp

import common


def init(key, workload):
    shapes = {"cnn": [(3, 3, 3, 32), (3, 3, 32, 64), (8 * 8 * 64, 128), (128, 10)],
              "mlp": [(300, 128), (128, 64), (64, 4)]}[workload]
    layers = []
    for key, shape in zip(jax.random.split(key, len(shapes)), shapes):
        fan_in = math.prod(shape[:-1])
        layers.append((jax.random.normal(key, shape) / fan_in ** 0.5, jnp.zeros(shape[-1])))
    return layers


def conv_relu_pool(x, w, b):
    n, h, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = jnp.concatenate(
        [padded[:, i:i + h, j:j + width] for i in range(3) for j in range(3)], axis=-1)
    x = jax.nn.relu(patches @ w.reshape(-1, w.shape[-1]) + b)
    return x.reshape(n, h // 2, 2, width // 2, 2, -1).max((2, 4))


def loss(layers, x, y):
    *hidden, (w_out, b_out) = layers
    for w, b in hidden:
        if w.ndim == 4:
            x = conv_relu_pool(x, w, b)
        else:
            x = jax.nn.relu(x.reshape(x.shape[0], -1) @ w + b)
    logits = jax.nn.log_softmax(x @ w_out + b_out)
    return -jnp.take_along_axis(logits, y[:, None], axis=1).mean()


def train(params, x, y, key, batch):
    """One shuffled epoch of SGD."""
    rows = jax.random.permutation(key, common.SAMPLES).reshape(-1, batch)

    def step(params, rows):
        grads = jax.grad(loss)(params, x[rows], y[rows])
        return jax.tree.map(lambda p, g: p - common.LEARNING_RATE * g, params, grads), None

    return jax.lax.scan(step, params, rows, unroll=True)[0]
