"""One leaf of stacked updates, mixed by the labels of its elements."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mixjax._labels import FEW_RUNS, Labels
from mixjax.types import Origins

BLOCK_BYTES = 2**20
"""Columns of a stack that fit a core's cache together: by label, rows are read at random.

On two CPU cores blocks move 2 GB/s, a gather of all elements at once 0.3 (benchmarks/mixing.py).
"""


def take(leaf: Array, origins: Origins, labels: Labels) -> Array:
    """`leaf[origins[slot, label], element]`; origins are clipped to the clients."""
    leaf = jnp.asarray(leaf)
    if labels.whole:
        return jnp.take(leaf, origins[:, labels.array.item()], axis=0, mode="clip")
    if labels.starts.size <= FEW_RUNS:
        rows = leaf.reshape(leaf.shape[0], -1)
        parts = [
            jnp.take(rows[:, start:stop], origins[:, unit], axis=0, mode="clip")
            for start, stop, unit in labels.runs()
        ]
        return jnp.concatenate(parts, axis=1).reshape(leaf.shape)
    return _take_by_label(leaf, _clipped(origins), labels)


def permute_in_place(
    leaves: Sequence[Array], origins: Origins, labels: Sequence[Labels]
) -> list[Array]:
    """`take` of each leaf in the leaf's own memory, for origins that are permutations."""
    cut = [own.starts.size > FEW_RUNS for own in labels]
    runs = [[] if by_label else own.runs() for own, by_label in zip(labels, cut, strict=True)]
    moved = sorted({unit for own in runs for _, _, unit in own})
    walks = jax.vmap(_cycle_walk, in_axes=1)(origins[:, np.array(moved, int)])

    mixed = []
    for leaf, own, by_label, parts in zip(leaves, labels, cut, runs, strict=True):
        if by_label:
            mixed.append(_permute_blocks(leaf, _clipped(origins), own))
            continue
        rows = jnp.reshape(leaf, (leaf.shape[0], -1))
        for start, stop, unit in parts:
            place = moved.index(unit)
            walk = jax.tree.map(lambda column, place=place: column[place], walks)
            rows = _permute_rows(rows, walk, start, stop)
        mixed.append(rows.reshape(leaf.shape))
    return mixed


def _clipped(origins: Origins) -> Origins:
    return jnp.clip(origins, 0, origins.shape[0] - 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _take_by_label(leaf: Array, origins: Origins, labels: Labels) -> Array:
    return jax.lax.platform_dependent(
        leaf,
        origins,
        cpu=functools.partial(_permute_blocks, labels=labels),
        default=functools.partial(_take_at_once, labels=labels),
    )


@_take_by_label.defjvp
def _take_tangents(labels: Labels, primals: Any, tangents: Any) -> tuple[Array, Array]:
    # the transpose of a loop over blocks would pass over the whole stack once a block
    leaf, origins = primals
    mixed = _take_by_label(leaf, origins, labels)
    return mixed, _take_at_once(tangents[0], origins, labels)


def _take_at_once(leaf: Array, origins: Origins, labels: Labels) -> Array:
    own = origins[:, labels.array]
    return jnp.take_along_axis(leaf, own, axis=0, mode="promise_in_bounds")


def _permute_blocks(leaf: Array, origins: Origins, labels: Labels) -> Array:
    """The same some columns at a time, in the memory of the leaf where that is given away."""
    clients = leaf.shape[0]
    columns = max(1, BLOCK_BYTES // (clients * leaf.dtype.itemsize))
    repeats, own = labels.repeated()
    if own.size <= columns:
        rows, width = leaf.reshape(clients, repeats, own.size), min(columns // own.size, repeats)
        every = origins[:, None, own]

        def origins_of(start: Any) -> Array:
            return every
    else:
        rows, width = leaf.reshape(clients, -1), columns
        flat = jnp.asarray(np.tile(own, repeats))

        def origins_of(start: Any) -> Array:
            here = jax.lax.dynamic_slice_in_dim(flat, start, width)
            return jnp.take(origins, here, axis=1, mode="clip")

    count = rows.shape[1]

    # one write in all: with another one beside it the compiler copies the whole stack
    def step(index: Any, rows: Array) -> Array:
        start = jnp.minimum(index * width, count - width)
        block = jax.lax.dynamic_slice_in_dim(rows, start, width, axis=1)
        here = origins_of(start)
        if count % width:
            # what the block before has mixed stays
            axes = (1,) * (rows.ndim - 2)
            done = start + jnp.arange(width).reshape(1, -1, *axes) < index * width
            here = jnp.where(done, jnp.arange(clients).reshape(-1, 1, *axes), here)
        block = jnp.take_along_axis(block, here, axis=0, mode="promise_in_bounds")
        return jax.lax.dynamic_update_slice_in_dim(rows, block, start, axis=1)

    return jax.lax.fori_loop(0, -(-count // width), step, rows).reshape(leaf.shape)


class _Moves(NamedTuple):
    """The slots in the order of a permutation's cycles, and where each one's row comes from."""

    slot: Array
    origin: Array
    opens: Array
    closes: Array


def _cycle_walk(column: Array) -> _Moves:
    def step(carry: Any, _: None) -> tuple[Any, _Moves]:
        visited, slot, opens, lowest = carry
        visited = visited.at[slot].set(True)
        origin = column[slot]
        closes = visited[origin]
        lowest = jax.lax.while_loop(
            lambda at: visited[at] & (at < column.shape[0] - 1), lambda at: at + 1, lowest
        )
        following = jnp.where(closes, lowest, origin)
        return (visited, following, closes, lowest), _Moves(slot, origin, opens, closes)

    first = jnp.zeros((), column.dtype)
    start = (jnp.zeros(column.shape, bool), first, jnp.bool_(True), first)
    return jax.lax.scan(step, start, length=column.shape[0])[1]


def _permute_rows(rows: Array, moves: _Moves, start: int, stop: int) -> Array:
    # one write a step: with two the compiler copies the whole stack each time
    def step(index: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, kept = carry
        slot, origin, opens, closes = jax.tree.map(lambda leaf: leaf[index], moves)
        read = functools.partial(jax.lax.dynamic_slice, slice_sizes=(1, stop - start))
        kept = jnp.where(opens, read(rows, (slot, start)), kept)
        row = jnp.where(closes, kept, read(rows, (origin, start)))
        return jax.lax.dynamic_update_slice(rows, row, (slot, start)), kept

    kept = jnp.zeros((1, stop - start), rows.dtype)
    return jax.lax.fori_loop(0, rows.shape[0], step, (rows, kept))[0]
