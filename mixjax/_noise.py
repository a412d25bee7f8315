"""Gaussian noise on every coordinate of a tree."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from mixjax.types import PRNGKey, Scalar, floating


def add(key: PRNGKey, tree: PyTree[Any], sigma: Scalar) -> PyTree[Any]:
    """The tree plus N(0, sigma²), each leaf with a key of its own; integers become floats."""
    leaves, structure = jax.tree.flatten(tree)
    noisy = []
    for one, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True):
        dtype = floating(leaf.dtype)
        noise = jax.random.normal(one, leaf.shape, dtype)
        noisy.append(leaf.astype(dtype) + jnp.asarray(sigma, dtype) * noise)
    return jax.tree.unflatten(structure, noisy)
