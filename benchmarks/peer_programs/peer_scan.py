"""A plain jitted lax.scan over clients, one at a time, that keeps every client's parameters.

What one writes first in JAX: no running sum, one device, the mean over the stack at the end.
"""

from functools import partial

import jax
import jax.numpy as jnp

import common
from jax_models import init, train


@partial(jax.jit, static_argnames="batch")
def run_round(params, x, y, key, batch):
    def client(_, data):
        return None, train(params, *data, batch)

    _, stack = jax.lax.scan(client, None, (x, y, jax.random.split(key, x.shape[0])))
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), stack)


def main():
    args = common.arguments()
    x, y = (jnp.asarray(a) for a in common.client_data(args.workload, args.clients))
    params = init(jax.random.key(0), args.workload)
    clock = common.Clock()
    for i in range(args.rounds):
        clock.start()
        key, batch = jax.random.key(i), common.BATCH[args.workload]
        params = jax.block_until_ready(run_round(params, x, y, key, batch))
        clock.stop()
    common.report("scan", args, clock, jax.tree.leaves(params), ["jax", "jaxlib", "numpy"])


if __name__ == "__main__":
    main()
