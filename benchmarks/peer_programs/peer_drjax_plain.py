"""DrJAX as one would write it first: flax modules, every client in one map_fn.

Features used: drjax.program, broadcast, map_fn (a vmap over all clients) and reduce_mean,
jitted as one round; flax.linen Conv/Dense with max_pool (flax's default initialisation:
lecun normal kernels, zero biases). Examples are shuffled with jax.random in the round.
"""

from functools import partial

import drjax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import common


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x)))


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (128, 64):
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(4)(x)


def make_round(model, clients, batch):
    def loss(params, x, y):
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def client_update(params, x, y, key):
        rows = jax.random.permutation(key, common.SAMPLES).reshape(-1, batch)

        def step(params, rows):
            grads = jax.grad(loss)(params, x[rows], y[rows])
            return jax.tree.map(lambda p, g: p - common.LEARNING_RATE * g, params, grads), None

        return jax.lax.scan(step, params, rows)[0]

    @partial(jax.jit, donate_argnums=0)
    @drjax.program(placements={"clients": clients})
    def run_round(params, x, y, key):
        keys = jax.random.split(key, clients)
        trained = drjax.map_fn(client_update, (drjax.broadcast(params), x, y, keys))
        return drjax.reduce_mean(trained)

    return run_round


def main():
    args = common.arguments()
    x, y = map(jnp.asarray, common.client_data(args.workload, args.clients))
    model = Cnn() if args.workload == "cnn" else Mlp()
    params = model.init(jax.random.key(0), x[0, :1])
    run_round = make_round(model, args.clients, common.BATCH[args.workload])
    clock = common.Clock()
    for i in range(args.rounds):
        clock.start()
        params = jax.block_until_ready(run_round(params, x, y, jax.random.key(i)))
        clock.stop()
    packages = ["drjax", "jax", "jaxlib", "flax", "optax", "numpy"]
    common.report("drjax_plain", args, clock, jax.tree.leaves(params), packages)


if __name__ == "__main__":
    main()
