"""Examples that the host loads ahead."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Int, PyTree

from mixjax import _validate


def prefetched(
    load: Callable[[int], PyTree[np.ndarray]],
    ids: npt.ArrayLike,
    *,
    ahead: int = 16,
    workers: int = 2,
) -> Callable[[Int[Array, ""]], PyTree[Array]]:
    """Examples that the host loads, the next clients' while this one trains.

    For `client.streamed`, where a cohort's data is on disk or behind a service. Works inside
    `jit`, `vmap` and a mesh: each device's run of clients is read ahead on its own.

    Args:
      load: `client_id -> examples`, arrays `[examples, ...]` padded to one shape for all
        clients. A pure function of the id, safe to call from several threads; it should hold no
        lock that Python code waits for.
      ids: the clients in the order of the cohort's rows.
      ahead: how many clients to load ahead of each that is asked for. At most this many times
        the number of devices plus one are in memory.
      workers: threads that load.

    Returns:
      `client_id -> examples`, traced.

    Raises:
      InputError: for no ids or repeated ones; while running, for examples that are shaped
        unlike the first client's, or integers that JAX would cut to 32 bits.
    """
    order = [int(client) for client in np.asarray(ids).ravel()]
    if not order or len(set(order)) != len(order):
        raise _validate.InputError(f"expected distinct client ids to prefetch; got {order[:10]}.")
    _validate.check_positive(ahead, "ahead", integer=True)
    _validate.check_positive(workers, "workers", integer=True)
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, load(order[0])))
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    pending: dict[int, Future] = {}
    lock = threading.Lock()
    pool = ThreadPoolExecutor(workers, "prefetch")

    def take_one(client: int) -> PyTree[np.ndarray]:
        with lock:
            waiting = pending.pop(client, None)
            upcoming = client
            for _ in range(min(ahead, len(order) - 1)):
                upcoming = following[upcoming]
                if upcoming not in pending:
                    pending[upcoming] = pool.submit(load, upcoming)
            # what another order of clients has left behind
            while len(pending) > ahead * (jax.local_device_count() + 1):
                pending.pop(next(iter(pending))).cancel()
        examples = load(client) if waiting is None else waiting.result()
        if jax.tree.map(lambda leaf: np.shape(leaf), examples) != jax.tree.map(
            lambda shape: shape.shape, shapes
        ):
            raise _validate.InputError(
                f"expected examples of client {client} shaped like client {order[0]}'s, {shapes}; "
                f"got {jax.tree.map(np.shape, examples)}. Pad them to one length."
            )
        _validate.check_integers_fit(examples, f"the examples of client {client}")
        return jax.tree.map(lambda leaf, like: np.asarray(leaf, like.dtype), examples, shapes)

    def host(clients: Any) -> PyTree[np.ndarray]:
        clients = np.asarray(clients)
        rows = [take_one(int(client)) for client in clients.ravel()]
        return jax.tree.map(
            lambda *leaves: np.stack(leaves).reshape(*clients.shape, *leaves[0].shape), *rows
        )

    def examples_fn(client_id: Int[Array, ""]) -> PyTree[Array]:
        return jax.pure_callback(host, shapes, client_id, vmap_method="expand_dims")

    return examples_fn
