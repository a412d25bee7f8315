"""DrJAX tuned for a CPU: groups of clients on a mesh, clients of a group one after another.

Features used: drjax.program with one placement per (CPU) device, sharded over the mesh;
broadcast, map_fn over the groups, reduce_sum. Inside of a group jax.lax.scan runs over its
clients, so that no client's matmul is batched with another's: measured faster than a vmap
over 2 to 400 clients. Convolutions are patches and a matmul, pooling is a reshape and max,
as XLA's CPU convolutions are very slow inside of a loop or a vmap. Initial weights are
normal with variance 1 / fan_in, biases zero. Examples are shuffled with jax.random.
"""

from functools import partial

import drjax
import jax
import jax.numpy as jnp

import common
from jax_models import init, train

# Measured on two cores, 1 and 2 devices: mlp 0.32 and 0.17 ms a client, cnn 35 and 30-34.
DEVICES = 2


def make_round(groups, clients, batch):
    def train_group(params, *group):
        def add_client(total, client):
            return jax.tree.map(jnp.add, total, train(params, *client, batch)), None

        return jax.lax.scan(add_client, jax.tree.map(jnp.zeros_like, params), group)[0]

    @partial(jax.jit, donate_argnums=0)
    @drjax.program(placements={"groups": groups})
    def run_round(params, x, y, key):
        keys = jax.random.split(key, clients).reshape(groups, -1)
        totals = drjax.map_fn(train_group, (drjax.broadcast(params), x, y, keys))
        return jax.tree.map(lambda t: t / clients, drjax.reduce_sum(totals))

    return run_round


def main():
    args = common.arguments()
    groups = DEVICES if args.clients % DEVICES == 0 else 1
    jax.config.update("jax_num_cpu_devices", groups)
    mesh = jax.make_mesh((groups,), ("groups",), (jax.sharding.AxisType.Auto,))
    jax.set_mesh(mesh)
    shard = jax.NamedSharding(mesh, jax.P("groups"))
    x, y = (jax.device_put(a.reshape(groups, -1, *a.shape[1:]), shard)
            for a in common.client_data(args.workload, args.clients))
    params = init(jax.random.key(0), args.workload)
    params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    run_round = make_round(groups, args.clients, common.BATCH[args.workload])
    clock = common.Clock()
    for i in range(args.rounds):
        clock.start()
        params = jax.block_until_ready(run_round(params, x, y, jax.random.key(i)))
        clock.stop()
    common.report("drjax", args, clock, jax.tree.leaves(params),
                  ["drjax", "jax", "jaxlib", "numpy"])


if __name__ == "__main__":
    main()
