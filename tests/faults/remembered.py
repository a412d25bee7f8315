"""Functions that are computed once for all processes: what is tested is how files are written."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mixjax import _identity


def remembered(fn: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """The pure function `fn`, which reads from the folder what it returned for the same bits.

    Where it is only traced for shapes, it returns zeros.
    """

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, jax.core.Tracer):
            return np.zeros(leaf.shape, leaf.dtype)
        return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf

    def recall(*args: Any, **kwargs: Any) -> Any:
        with jax.ensure_compile_time_eval():
            told = json.dumps(_identity.describe((fn, args, kwargs)))
        path = folder / hashlib.sha256(told.encode()).hexdigest()
        if not path.exists():
            path.write_bytes(pickle.dumps(jax.tree.map(plain, fn(*args, **kwargs))))
        return pickle.loads(path.read_bytes())

    return recall
