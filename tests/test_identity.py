"""A federation that is built anew, by other objects of the same kind, is the same federation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixjax as mx


def loss(hidden: int) -> Callable[..., Any]:
    return mx.models.cross_entropy(mx.models.MLP(classes=2, hidden=(hidden,)))


def held(value: Any) -> Callable[..., Any]:
    """A function that counts on the value."""
    return lambda: value


def layout(devices: int) -> Callable[..., Any]:
    return held((1, jax.sharding.Mesh(np.asarray(jax.devices()[:devices]), ("clients",))))


def texts(text: str) -> Callable[..., Any]:
    # the letters are other objects each time
    return held(np.array(["".join(text), [text.upper()]], dtype=object))


def run(folder: Path, made_by: Any) -> None:
    def advance(state: Any, rounds: int) -> tuple[Any, Any]:
        return state + rounds, jnp.zeros(rounds)

    start = jnp.zeros(())
    mx.checkpoint.run_segments(
        folder, jax.random.key(0), advance, start, 1, every=1, made_by=made_by
    )


@pytest.mark.parametrize(
    ("make", "same", "other"),
    [(loss, 3, 4), (layout, 1, None), (texts, "one", "two")],
    ids=["a flax module", "a mesh in a tuple", "an array of objects"],
)
def test_what_is_made_anew_is_the_same(
    make: Callable[[Any], Any], same: Any, other: Any, tmp_path: Path
) -> None:
    run(tmp_path, make(same))
    run(tmp_path, make(same))
    if other is None:
        # where a run is laid out may change
        run(tmp_path, make(2))
        return
    with pytest.raises(mx.InputError, match=r"the federation that .*differs in"):
        run(tmp_path, make(other))
