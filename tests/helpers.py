"""What several test files need: trees compared, updates as vectors, a line, broken files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np


def assert_equal(one: Any, other: Any) -> None:
    """The same structure, shapes, dtypes and bits; NaN equals NaN."""
    chex.assert_trees_all_equal(one, other, strict=True)


def assert_close(one: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """The same structure, shapes and dtypes, and numbers within atol + rtol * |other|."""
    chex.assert_trees_all_close(plain(one), plain(other), rtol=rtol, atol=atol, strict=True)


def plain(tree: Any) -> Any:
    """Leaves as NumPy arrays, typed keys as their data."""

    def of_leaf(leaf: Any) -> np.ndarray:
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf)

    return jax.tree.map(of_leaf, tree)


def single(tree: Any) -> Any:
    """The same numbers in 32 bits, also where JAX makes them of 64."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def flat(tree: Any) -> np.ndarray:
    """One update as a vector of float64."""
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def flat_rows(stack: Any) -> np.ndarray:
    """Stacked updates as a matrix of float64, `[clients, parameters]`."""
    parts = [np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(stack)]
    return np.concatenate(parts, axis=1).astype(np.float64)


LINE = single({"in": {"w": jnp.array([0.5, 0.1])}, "out": {"b": jnp.array(0.1)}})
"""Parameters of a linear regression of two layers: weights of two features, and an offset."""


def line_loss(params: Any, batch: Any, key: Any) -> jax.Array:
    """Half the squared error of `LINE`, of each example."""
    del key
    return 0.5 * jnp.square(batch["x"] @ params["in"]["w"] + params["out"]["b"] - batch["y"])


def edit(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    """A function that changes the lines of a text file."""

    def apply(path: Path) -> None:
        path.write_text("\n".join(change(path.read_text().split("\n"))))

    return apply


def with_line(number: int, text: str) -> Callable[[Path], None]:
    """A function that replaces one line of a text file, counted from 1."""
    return edit(lambda rows: [*rows[: number - 1], text, *rows[number:]])


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
