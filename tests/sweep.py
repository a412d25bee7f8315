"""Federations in one process: `python -m tests.sweep COUNT` prints resident bytes after each.

Each configuration is another federation, and compiles a program of its own.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mixjax as mx

PARAMS = {"in": {"w": np.ones(2, np.float32)}, "out": {"b": np.float32(0)}}
STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    (line,) = (s for s in STATUS.read_text().splitlines() if s.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def loss_fn(params: Any, batch: Any, key: Any) -> jax.Array:
    del key
    return jnp.square(batch @ params["in"]["w"] + params["out"]["b"] - 1)


def one(number: int, data: mx.data.ClientData) -> None:
    rate, bound = 0.01 + 1e-4 * number, 1 + 0.01 * number
    # lists and attacks take twice as long to compile
    list_size = 2 + number // 4 % 2 if number % 4 == 0 else None
    attack = mx.attacks.sim.passive(mx.data.take(data, [0, 1])) if number % 8 == 1 else None
    federation = mx.federation.fedavg(
        mx.client.local_training(loss_fn, optax.sgd(rate), batch_size=1),
        defence=mx.defences.compose(
            mx.defences.clipped(bound), mx.defences.mixnn(list_size=list_size)
        ),
        attack=attack,
    )
    mx.federation.run(jax.random.key(number), federation, federation.init(PARAMS), data, 2)


def main() -> None:
    rng = np.random.default_rng(0)
    data = mx.data.stack([rng.normal(size=(1, 2)).astype(np.float32) for _ in range(4)])
    for number in range(int(sys.argv[1])):
        one(number, data)
        print(resident_bytes(), flush=True)


if __name__ == "__main__":
    main()
