"""Broken updates: what counts as one, who remains without them, and the error that stops a run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mixjax.types import Active, Params, Scalar, Weights, wide

BROKEN = ("exclude", "raise")


class BrokenUpdateError(RuntimeError):
    """A client sent a broken update, in a federation with `broken="raise"`.

    Attributes:
      client: the client's id.
      round: the number of the round, from 0.
      state: the state before that round.
      records: the records of the rounds before it.
    """

    def __init__(self, client: int, round: int, state: Any, records: Any) -> None:
        super().__init__(
            f"expected finite updates within max_norm; client {client} sent another in round "
            f"{round}. The state before it and the records up to it are in this error: look at "
            'the client, then go on from `state`, or build the federation with broken="exclude".'
        )
        self.client, self.round, self.state, self.records = client, round, state, records

    def __reduce__(self) -> Any:
        return type(self), (self.client, self.round, self.state, self.records)


class Remaining(NamedTuple):
    """Who is forwarded in a round.

    Attributes:
      active: the slots that are forwarded.
      excluded: who trained and sent a broken update.
      weight_sum: of those who are forwarded; exactly their number if nobody was excluded.
    """

    active: Active
    excluded: Bool[Array, " clients"]
    weight_sum: Float[Array, ""]


def is_sound(update: Params, clients: int, max_norm: Scalar | None = None) -> Bool[Array, ""]:
    """Whether a weighted update can be used: finite, and not too long.

    | update | sound |
    |---|---|
    | zero, or an empty tree | yes |
    | a NaN or an infinity in any coordinate | no |
    | longer than 1.8e19 / clients: the square of their sum could overflow float32 | no |
    | as long as `max_norm` | yes, up to the rounding of the norm |
    | longer than `max_norm` | no |
    | integers, which can't be NaN | by their norm alone |

    Args:
      update: one client's, times its weight.
      clients: of the cohort.
      max_norm: bound on the norm of `update`; times the weight, where it is of the update alone.
    """
    squares = [
        # a product: XLA's CPU back end sums an axis one element after the other
        jnp.vdot(flat, flat, precision=jax.lax.Precision.HIGHEST).astype(jnp.float32)
        for flat in (leaf.ravel().astype(wide(leaf.dtype)) for leaf in jax.tree.leaves(update))
    ]
    square = sum(squares, jnp.zeros((), jnp.float32))
    bound = jnp.float32(jnp.finfo(jnp.float32).max / clients**2)
    if max_norm is not None:
        bound = jnp.minimum(bound, jnp.square(jnp.float32(max_norm)))
    # NaN compares as False
    return square <= bound


def leave_out(weights: Weights, chosen: Active, sound: Active, least: int) -> Remaining:
    """Who remains of the clients that were chosen.

    Args:
      weights: relative to the chosen ones.
      chosen: who trained.
      sound: whose update is.
      least: with fewer than so many sound updates nobody is forwarded.
    """
    kept = chosen & sound
    excluded = chosen & ~sound
    active = kept & (jnp.sum(kept) >= least)
    count = jnp.maximum(jnp.sum(active), 1).astype(jnp.float32)
    # the weights were relative to all who trained; exactly `count` if nobody was excluded
    total = jnp.sum(jnp.where(active, weights, 0), dtype=jnp.float32)
    return Remaining(active, excluded, jnp.where(jnp.any(excluded), total, count))
