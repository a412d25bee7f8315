"""FedJAX 0.0.17: its fed_avg algorithm over its for_each_client jit backend.

Features used: fedjax.create_model_from_haiku and model_grad, InMemoryFederatedData,
algorithms.fed_avg.federated_averaging, which shuffles and batches with
shuffle_repeat_batch. Haiku's default initialisation. One jitted step a batch is called
from Python, so that XLA's convolutions are fast here (they are not inside of a loop).
"""

import fedjax
import haiku as hk
import jax

import common


def max_pool(x):
    """2 x 2 pooling as a reshape: with hk.max_pool a client took twice as long."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


def forward(batch):
    x = batch["x"]
    if x.ndim == 4:
        for channels in (32, 64):
            x = max_pool(jax.nn.relu(hk.Conv2D(channels, 3)(x)))
        return hk.nets.MLP([128, 10])(hk.Flatten()(x))
    return hk.nets.MLP([128, 64, 4])(x)


def build_model(sample):
    return fedjax.create_model_from_haiku(
        hk.transform(forward), sample,
        train_loss=lambda batch, logits: fedjax.metrics.unreduced_cross_entropy_loss(
            batch["y"], logits))


def main():
    args = common.arguments()
    fedjax.set_for_each_client_backend("jit")
    x, y = common.client_data(args.workload, args.clients)
    data = fedjax.InMemoryFederatedData(
        {str(i): {"x": x[i], "y": y[i]} for i in range(args.clients)})
    batching = fedjax.ShuffleRepeatBatchHParams(common.BATCH[args.workload], num_epochs=1)
    model = build_model({"x": x[0, :1], "y": y[0, :1]})
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        fedjax.model_grad(model), fedjax.optimizers.sgd(common.LEARNING_RATE),
        fedjax.optimizers.sgd(1.0), batching)
    state = algorithm.init(model.init(jax.random.PRNGKey(0)))
    sampler = fedjax.client_samplers.UniformGetClientSampler(data, args.clients, seed=0)
    clock = common.Clock()
    for _ in range(args.rounds):
        clock.start()
        state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state.params)
        clock.stop()
    common.report("fedjax", args, clock, jax.tree_util.tree_leaves(state.params),
                  ["fedjax", "jax", "jaxlib", "dm-haiku", "numpy"])


if __name__ == "__main__":
    main()
