"""The two workloads that every simulator runs, and this engine's rounds of them.

cnn: 64 images 32x32x3 a client, conv 32, pool, conv 64, pool, dense 128, dense 10; 2 steps of 32.
mlp: 64 sensor windows of 300 numbers a client, 300-128-64-4; 4 steps of 16. Both: SGD 0.05.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import mixjax as mx

SAMPLES = 64
BATCH = {"cnn": 32, "mlp": 16}
CLASSES = {"cnn": 10, "mlp": 4}
SHAPE = {"cnn": (32, 32, 3), "mlp": (300,)}
POOL = {"cnn": 128, "mlp": 1024}
LEARNING_RATE = 0.05
ATTRIBUTES = 2
# the cnn's many small kernels compile in half the time by XLA's older emitters and run as fast;
# the mlp's run at three quarters of the speed
COMPILER_OPTIONS: dict[str, dict[str, bool | str]] = {
    "cnn": {"xla_cpu_use_fusion_emitters": False},
    "mlp": {},
}


def model(workload: str) -> nn.Module:
    """The workload's network."""
    if workload == "cnn":
        return mx.models.ImageCNN(classes=10, hidden=(128,), groups=0)
    return mx.models.MLP(classes=4, hidden=(128, 64))


def arrays(workload: str, clients: int, seed: int = 0) -> mx.data.Examples:
    """Random examples `[clients, 64, ...]`, as every peer gets them."""
    rng = np.random.default_rng(seed)
    shape = (clients, SAMPLES, *SHAPE[workload])
    inputs = rng.standard_normal(shape, dtype=np.float32)
    labels = rng.integers(0, CLASSES[workload], (clients, SAMPLES)).astype(np.int32)
    return mx.data.Examples(inputs, labels)


def cohort(workload: str, clients: int) -> tuple[mx.data.ClientData, mx.data.Examples]:
    """A cohort without examples, and the pool from which client i takes row i modulo its size."""
    pool = arrays(workload, min(clients, POOL[workload]))
    return _without_examples(clients), pool


def _without_examples(clients: int) -> mx.data.ClientData:
    return mx.data.ClientData(
        examples=(),
        counts=jnp.asarray(np.full(clients, SAMPLES, np.int32)),
        ids=jnp.asarray(np.arange(clients, dtype=np.int32)),
        active=jnp.asarray(np.ones(clients, bool)),
    )


def loss_fn(workload: str) -> mx.client.LossFn:
    """Cross entropy of each example."""
    return mx.models.cross_entropy(model(workload))


def initial(workload: str) -> Any:
    """The first model."""
    example = jnp.zeros((1, *SHAPE[workload]))
    return mx.models.initial(model(workload), jax.random.key(0), example)


def federation(
    workload: str, pool: mx.data.Examples, *, attacked: bool, mesh: jax.sharding.Mesh | None
) -> mx.federation.Federation:
    """FedAvg of the workload, plain or with MixNN and passive ∇Sim."""
    rows = pool.labels.shape[0]
    local = mx.client.streamed(
        mx.client.local_training(
            loss_fn(workload), optax.sgd(LEARNING_RATE), batch_size=BATCH[workload]
        ),
        lambda client_id: jax.tree.map(lambda leaf: leaf[client_id % rows], pool),
    )
    if not attacked:
        return mx.federation.fedavg(local, mesh=mesh)
    return mx.federation.fedavg(
        local,
        defence=mx.defences.mixnn(),
        attack=mx.attacks.sim.passive(
            _without_examples(ATTRIBUTES)._replace(
                examples=jax.tree.map(lambda leaf: leaf[:ATTRIBUTES], pool)
            ),
            mesh=mesh,
        ),
        mesh=mesh,
    )


class Round(NamedTuple):
    """A compiled round.

    Attributes:
      play: `state -> state`.
      state: of the first model.
      compile_s: seconds that tracing and compiling took.
      mesh: the devices it runs on.
    """

    play: Callable[[Any], Any]
    state: Any
    compile_s: float
    mesh: jax.sharding.Mesh


def compiled_round(workload: str, clients: int, *, attacked: bool) -> Round:
    """A round of the workload, over all devices if their number divides the clients'."""
    mesh = mx.sharding.clients_mesh()
    if clients % mesh.size:
        mesh = mx.sharding.clients_mesh(1)
    data, pool = cohort(workload, clients)
    pool = jax.device_put(pool, jax.NamedSharding(mesh, jax.P()))
    key, params = jax.random.key(0), initial(workload)

    def round_fn(pool: Any, key: Any, state: Any, data: Any) -> Any:
        return federation(workload, pool, attacked=attacked, mesh=mesh).step(key, state, data)

    state = federation(workload, pool, attacked=False, mesh=mesh).init(params)
    started = time.perf_counter()
    lowered = jax.jit(round_fn).lower(pool, key, state, data)
    program = lowered.compile(compiler_options=COMPILER_OPTIONS[workload])
    compile_s = time.perf_counter() - started
    return Round(lambda state: program(pool, key, state, data)[0], state, compile_s, mesh)
