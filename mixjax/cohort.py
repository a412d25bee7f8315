"""Many clients: one client's function folded over the client axis.

Clients are taken in chunks. A chunk is `vmap`ped, its summands go into a running sum, and only
each client's record stays, so a stack of updates exists only if the record is the update.

Memory of a fold, beyond the cohort's data, for a model of P bytes whose local training needs T
bytes of state and activations, and records of R bytes, with chunks of K of C clients:

    P (running sum) + K (T + P) + C R

`run` keeps every update: its R is P.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from mixjax import _axes, _memory, _validate
from mixjax.client import LocalTraining, check_result
from mixjax.data import ClientData
from mixjax.types import CLIENTS, Params, PRNGKey, Updates, threefry, wide

Shared = TypeVar("Shared")
Summand = TypeVar("Summand")
Record = TypeVar("Record")

# A stack of per-client weights makes every matrix product a batched one, which XLA's CPU
# back end runs at half the speed of one product after the other; accelerators need the batch.
CHUNK_BYTES = 2**30


def client_key(key: PRNGKey, client_id: Any) -> PRNGKey:
    """A client's key: the same in any cohort, chunking or sharding."""
    return jax.random.fold_in(threefry(key), client_id)


def default_chunk_size(bytes_per_client: int) -> int:
    """One client at a time on CPU; elsewhere as many as fit `CHUNK_BYTES`."""
    if jax.default_backend() == "cpu":
        return 1
    return max(1, CHUNK_BYTES // max(bytes_per_client, 1))


def fold(
    client_fn: Callable[[Shared, Any], tuple[Summand, Record]],
    shared: Shared,
    clients: PyTree[Any],
    *,
    chunk_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Summand, Record]:
    """Map a function over clients, sum one part of its result and stack the other.

    Args:
      client_fn: `(shared, client) -> (summand, record)` for one client.
      shared: what all clients get, such as the model's parameters.
      clients: any pytree of arrays with a leading clients axis.
      chunk_size: clients trained at once, by default `default_chunk_size`. It need not divide
        the number of clients.
      mesh: a mesh with an axis named "clients" to spread clients over; its size must divide
        their number (`data.pad` makes it so).

    Returns:
      The sum of the summands over clients, floats in at least float32, and the stacked records.
      Another chunk size or mesh changes the order of summation and nothing else.
    """
    _validate.check_callable(client_fn, "a function of (shared, client)")
    count = _axes.check_client_axis(clients, "the cohort")
    if chunk_size is None:
        one = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), clients)
        # gradients, optimizer state and trained parameters: about four copies of what is shared
        chunk_size = default_chunk_size(_memory.tree_bytes(one) + 4 * _memory.tree_bytes(shared))
    _validate.check_positive(chunk_size, "chunk_size", integer=True)
    if mesh is None:
        return _fold_chunks(client_fn, shared, clients, count, chunk_size)

    devices = _check_mesh(mesh, count)

    def on_device(shared: Shared, clients: Any) -> tuple[Summand, Record]:
        total, records = _fold_chunks(client_fn, shared, clients, count // devices, chunk_size)
        return jax.lax.psum(total, CLIENTS), records

    split = jax.sharding.PartitionSpec(CLIENTS)
    whole = jax.sharding.PartitionSpec()
    spread = jax.shard_map(
        on_device, mesh=mesh, in_specs=(whole, split), out_specs=(whole, split), check_vma=False
    )
    return spread(shared, clients)


def _check_mesh(mesh: jax.sharding.Mesh, clients: int) -> int:
    """The number of devices on the mesh's clients axis."""
    _validate.check_mesh(mesh)
    if "clients" not in mesh.axis_names:
        raise _validate.InputError(
            f"expected a mesh with an axis named 'clients'; got axes {mesh.axis_names}. "
            "Make one with sharding.clients_mesh()."
        )
    if jax.sharding.AxisType.Explicit in mesh.axis_types:
        raise _validate.InputError(
            f"expected a mesh whose axes are of type Auto; got {mesh.axis_types}. Make one with "
            "sharding.clients_mesh(), or pass axis_types=(jax.sharding.AxisType.Auto,) to "
            "jax.make_mesh."
        )
    devices = mesh.shape["clients"]
    if clients % devices:
        raise _validate.InputError(
            f"expected a number of clients that the mesh's {devices} devices divide; got "
            f"{clients}. Pad the cohort with data.pad(data, {devices})."
        )
    return devices


def _fold_chunks(
    client_fn: Callable[[Any, Any], tuple[Any, Any]],
    shared: Any,
    clients: Any,
    count: int,
    chunk_size: int,
) -> tuple[Any, Any]:
    size = min(chunk_size, count)
    full = count // size * size

    def chunk(total: Any, clients: Any) -> tuple[Any, Any]:
        if jax.tree.leaves(clients)[0].shape[0] == 1:
            one = jax.tree.map(lambda leaf: leaf[0], clients)
            summand, record = client_fn(shared, one)
            return _add(total, summand), jax.tree.map(lambda leaf: leaf[None], record)
        summands, records = jax.vmap(client_fn, (None, 0))(shared, clients)
        return _add(total, jax.tree.map(_sum_rows, summands)), records

    summand, _ = jax.eval_shape(
        lambda shared, clients: client_fn(shared, jax.tree.map(lambda leaf: leaf[0], clients)),
        shared,
        clients,
    )
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, _wide(leaf.dtype)), summand)
    head = jax.tree.map(
        lambda leaf: leaf[:full].reshape(full // size, size, *leaf.shape[1:]), clients
    )
    total, records = jax.lax.scan(chunk, total, head)
    records = jax.tree.map(lambda leaf: leaf.reshape(full, *leaf.shape[2:]), records)
    if full < count:
        rest = jax.tree.map(lambda leaf: leaf[full:], clients)
        total, rest_records = chunk(total, rest)
        records = jax.tree.map(lambda *parts: jnp.concatenate(parts), records, rest_records)
    return total, records


def run(
    key: PRNGKey,
    params: Params,
    data: ClientData,
    local: LocalTraining,
    *,
    chunk_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Updates:
    """Every client's update, stacked: for whatever needs the updates themselves.

    Args:
      key: the round's key; each client's is derived from it and the client's id.
      params: the model the server sends.
      data: the cohort.
      local: local training of one client.
      chunk_size: see `fold`.
      mesh: see `fold`.

    Returns:
      `trained - params` for each client; zeros for inactive ones.
    """
    _validate.check_key(key)
    clients = _axes.check_cohort(data)
    _axes.check_params(params)
    _validate.check_callable(local, "local training such as client.local_training(...)")
    _validate.check_mesh(mesh)
    _memory.check_stack_memory(
        params,
        clients,
        chunk_size,
        mesh,
        updates=clients * _memory.tree_bytes(params),
        beside=_memory.tree_bytes((params, data)),
        advice="Reduce updates as they come with cohort.fold, or train fewer clients at once "
        "(data.take).",
    )

    def client_fn(shared: Any, client: ClientData) -> tuple[tuple[()], Params]:
        key, params = shared
        # local training skips the steps of a client without examples
        client = client._replace(counts=jnp.where(client.active, client.counts, 0))
        result = local(client_key(key, client.ids), params, client)
        check_result(result, params)
        return (), zero_unless(client.active, result.update)

    _, updates = fold(client_fn, (key, params), data, chunk_size=chunk_size, mesh=mesh)
    return updates


def zero_unless(active: Any, tree: Any) -> Any:
    """The tree where `active` holds, zeros elsewhere, even in place of NaN."""
    return jax.tree.map(lambda leaf: jnp.where(active, leaf, jnp.zeros_like(leaf)), tree)


def _add(total: Any, summand: Any) -> Any:
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, summand)


def _sum_rows(stack: Any) -> Any:
    # a product with ones: a reduction over the leading axis is many times slower on CPU
    return jnp.tensordot(
        jnp.ones(stack.shape[0], _wide(stack.dtype)),
        stack.astype(_wide(stack.dtype)),
        1,
        precision=jax.lax.Precision.HIGHEST,
    )


def _wide(dtype: Any) -> Any:
    if dtype == jnp.bool_:
        return jnp.dtype(jnp.int32)
    return wide(dtype) if jnp.issubdtype(dtype, jnp.inexact) else dtype
