"""Two thousand rounds with dropouts and broken clients: nothing grows, nothing is compiled anew."""

import gc
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mixjax as mx

SEGMENTS, ROUNDS, WARM_UP = 20, 100, 5
PARAMS = {"in": {"w": jnp.ones(2)}, "out": {"b": jnp.float32(0)}}
PROCESS = Path("/proc/self")


def resident_bytes() -> int:
    (line,) = (s for s in (PROCESS / "status").read_text().splitlines() if s.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def open_files() -> int:
    return len(list((PROCESS / "fd").iterdir()))


@pytest.mark.skipif(not PROCESS.exists(), reason="reads /proc")
def test_two_thousand_rounds_leave_nothing_behind() -> None:
    traces = 0

    def loss_fn(params: Any, batch: Any, key: Any) -> jax.Array:
        del key
        return jnp.square(batch["x"] @ params["in"]["w"] + params["out"]["b"] - 1)

    trained = mx.client.local_training(loss_fn, optax.sgd(0.05), batch_size=2)

    def local(key: Any, params: Any, data: Any) -> Any:
        nonlocal traces
        traces += 1
        result = trained(key, params, data)
        broken = jax.random.bernoulli(key, 0.1)
        update = jax.tree.map(lambda leaf: jnp.where(broken, jnp.nan, leaf), result.update)
        return result._replace(update=update)

    rng = np.random.default_rng(0)
    data = mx.data.stack([{"x": rng.normal(size=(2, 2)).astype(np.float32)} for _ in range(6)])
    federation = mx.federation.fedavg(
        local,
        defence=mx.defences.mixnn(),
        participation=mx.participation.compose(
            mx.participation.uniform(4), mx.participation.dropout(0.3)
        ),
        attack=mx.attacks.sim.passive(mx.data.take(data, [0, 1])),
    )
    state, key = federation.init(PARAMS), jax.random.key(0)
    excluded = skipped = 0
    memory, files, threads, warm_traces = [], 0, 0, 0
    for segment in range(SEGMENTS):
        state, records = mx.federation.run(key, federation, state, data, ROUNDS)
        excluded += int(records.excluded.sum())
        skipped += int((~records.stepped).sum())
        assert np.isfinite(records.scores).all()
        gc.collect()
        memory.append(resident_bytes())
        if segment == WARM_UP:
            files, threads, warm_traces = open_files(), threading.active_count(), traces
    assert int(state.round) == SEGMENTS * ROUNDS
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    # of 5,600 chosen clients a tenth breaks; fewer than two of four remain in some 15 % of rounds
    assert 450 < excluded < 680
    assert 100 < skipped < 500
    assert traces == warm_traces
    assert max(memory[WARM_UP:]) < 1.05 * memory[WARM_UP]
    assert (open_files(), threading.active_count()) == (files, threads)
