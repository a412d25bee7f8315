"""What mixes draw from: permutations of the active clients, and streams through lists."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from mixjax import _memory, _validate
from mixjax.types import Active, PRNGKey, threefry


def stream(
    key: PRNGKey, arrivals: Int[Array, ""] | int, capacity: int, list_size: int, units: int
) -> Int[Array, "capacity units"]:
    """What a stream of updates through lists of `list_size` emits, in terms of arrival order.

    Each unit has a list, filled by the first `list_size` arrivals. Every later arrival emits,
    per unit, a uniformly drawn entry and takes its place. At the end of the round the lists are
    flushed, each in random order.

    Guarantees: every unit of every arrival is emitted exactly once. In steady state an entry's
    delay is geometric with mean `list_size` arrivals, and two units of an emitted update share
    their origin with probability 1/(2 list_size - 1). With at most `list_size` arrivals it is
    a full round.

    Args:
      key: the proxy's key.
      arrivals: the number of updates that arrive, at most `capacity`; may be traced.
      capacity: rows of the result.
      list_size: entries in each list.
      units: the number of units.

    Returns:
      `emitted[slot, unit]`: the arrival (0 first) whose unit the slot-th emission carries. Rows
      from `arrivals` on are zero.

    Raises:
      InputError: for sizes that are no positive whole numbers, or more arrivals than rows.
    """
    _validate.check_key(key)
    for value, name in ((capacity, "capacity"), (list_size, "list_size"), (units, "units")):
        _validate.check_positive(value, name, integer=True)
    _check_arrivals(arrivals, capacity)
    _memory.check_memory(4 * capacity * units, f"a stream of {capacity} x {units}", "", None)
    size = min(list_size, capacity)
    return _emit(key, jnp.asarray(arrivals, jnp.int32), capacity, size, units)


def _check_arrivals(arrivals: Any, capacity: int) -> None:
    if not _validate.concrete(arrivals):
        return
    array = _validate.host_array(arrivals, "arrivals", "iu")
    if array.ndim or not 0 <= int(array) <= capacity:
        raise _validate.InputError(
            f"expected arrivals in 0..{capacity}, the capacity; got {arrivals!r}."
        )


# one program for equal sizes: JAX keeps one for each scan that is called outside of any
@functools.partial(jax.jit, static_argnames=("capacity", "size", "units"))
def _emit(key: PRNGKey, arrivals: Array, capacity: int, size: int, units: int) -> Array:
    draw_key, flush_key = jax.random.split(threefry(key))
    columns = jnp.arange(units)
    lists = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32)[:, None], (size, units))
    emitted = jnp.zeros((capacity, units), lists.dtype)

    def arrive(lists: Array, arrival: Array) -> tuple[Array, Array]:
        entries = jax.random.randint(
            jax.random.fold_in(draw_key, arrival), (units,), 0, size, jnp.int32
        )
        leaving = lists[entries, columns]
        kept = jnp.where(arrival < arrivals, arrival, leaving)
        return lists.at[entries, columns].set(kept), leaving

    lists, leaving = jax.lax.scan(arrive, lists, jnp.arange(size, capacity, dtype=jnp.int32))
    emitted = emitted.at[: capacity - size].set(leaving)

    held = jnp.minimum(arrivals, size)
    flush_keys = jax.random.split(flush_key, units)
    order = jax.vmap(sort_clients, (0, None), out_axes=1)(
        flush_keys, jnp.arange(size, dtype=jnp.int32) < held
    )
    flushed = jnp.take_along_axis(lists, order, axis=0)
    # rows past the last arrival are overwritten below, whatever the scan left there
    start = arrivals - held
    emitted = jax.lax.dynamic_update_slice(emitted, flushed, (start, jnp.int32(0)))
    return jnp.where((jnp.arange(capacity, dtype=jnp.int32) < arrivals)[:, None], emitted, 0)


def permutation(key: PRNGKey, active: Active) -> Int[Array, " clients"]:
    """A uniform permutation of the active rows; the inactive ones stay."""
    slots = active_first(active)
    return jnp.zeros_like(slots).at[slots].set(sort_clients(key, active))


def active_first(active: Active) -> Int[Array, " clients"]:
    """Active rows in ascending order, then the inactive ones."""
    return jnp.argsort(~active, stable=True).astype(jnp.int32)


def sort_clients(key: PRNGKey, active: Active) -> Int[Array, " clients"]:
    """Active rows in uniformly random order, then the inactive ones in ascending order."""
    clients = active.shape[0]
    place_bits = max(clients - 1, 1).bit_length()
    random_bits = 31 - place_bits
    # Sorting single words of [inactive | random | place] is many times faster on CPU than sorting
    # by several operands. A tie keeps the order of the round before, so only ties in every round
    # could bend the law: rounds are added until any tie has probability below 2^-20.
    rounds = -(-(2 * place_bits + 20) // random_bits)
    place = jnp.arange(clients, dtype=jnp.uint32)
    order = jnp.arange(clients, dtype=jnp.int32)
    for bits in jax.random.bits(key, (rounds, clients), jnp.uint32):
        words = ((bits >> (1 + place_bits)) << place_bits) | place
        words = jnp.where(active[order], words, jnp.uint32(1 << 31) | place)
        order = order[(jnp.sort(words) & jnp.uint32((1 << place_bits) - 1)).astype(order.dtype)]
    return order
