"""Weighting before mixing, and aggregation of the forwarded updates.

An aggregation is `(updates, active) -> aggregate`. None takes weights: after mixing a slot's
layers belong to different clients, so a weight can only go with an update *before* it is mixed
(`scale`). Without an active client, which only `jit` lets through, an aggregate is NaN.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mixjax import _axes, _noise, _validate
from mixjax.types import (
    Active,
    Memory,
    Params,
    PRNGKey,
    Scalar,
    Updates,
    Weights,
    floating,
    times,
    widest,
)
from mixjax.types import wide as wide_dtype

Function = TypeVar("Function", bound=Callable[..., Any])


@runtime_checkable
class Reduce(Protocol):
    """Reduces forwarded updates to one."""

    def __call__(self, updates: Updates, active: Active, /) -> Params: ...


# not a NamedTuple: `jax.jit` of a component that is called needs weak references to it
@dataclasses.dataclass(frozen=True)
class Aggregation:
    """What the server makes of the forwarded updates.

    Calling an aggregation reduces the updates of a first round; a plain `Reduce` is an
    aggregation without memory that isn't additive wherever one is expected.

    The mean, smoothed over rounds; it follows from the mean alone, so no stack is made for it:

    >>> import jax, jax.numpy as jnp, mixjax as mx
    >>> def reduce(key, before, updates, active):
    ...     now = mx.aggregation.mean(updates, active)
    ...     smooth = jax.tree.map(lambda old, new: 0.5 * (old + new), before, now)
    ...     return smooth, smooth
    >>> def init(params):
    ...     return jax.tree.map(jnp.zeros_like, params)
    >>> smoothed = mx.aggregation.Aggregation(reduce, additive=True, init=init)
    >>> smoothed({"w": jnp.array([[2.0], [4.0]])})["w"].tolist()
    [1.5]

    Attributes:
      reduce: `(updates, active) -> aggregate`; with `init`,
        `(key, memory, updates, active) -> (memory, aggregate)`.
      additive: whether it follows from the mean of the forwarded updates alone. A federation then
        sums them as they come, makes no stack, and hands over their mean as the only row.
      init: `params -> memory` before the first round; None remembers nothing.
      whole: whether it needs whole updates at once and not leaf by leaf, as `krum` does: a run
        that can't hold the stack twice is then refused.
    """

    reduce: Callable[..., Any]
    additive: bool = False
    init: Callable[[Params], Memory] | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        # what `help` shows of an aggregation that is a public name
        object.__setattr__(self, "__doc__", self.reduce.__doc__)

    def __call__(self, updates: Updates, active: Active | None = None) -> Params:
        active = _all_active(active, _axes.check_client_axis(updates))
        if self.init is None:
            return self.reduce(updates, active)
        params = jax.tree.map(lambda leaf: leaf[0], updates)
        return self.reduce(jax.random.key(0), self.init(params), updates, active)[1]


def as_aggregation(value: Any) -> Aggregation:
    """An aggregation as it is, a plain `Reduce` as one that has no memory and needs the stack.

    A function that needs whole updates, as `krum` does, says so by an attribute `whole`; a
    `functools.partial` of it need not.
    """
    what = "an aggregation such as aggregation.mean"
    _validate.check_callable(value, what)
    if isinstance(value, Aggregation):
        made = value
    else:
        made = Aggregation(value, whole=getattr(getattr(value, "func", value), "whole", False))
    memory = () if made.init is None else ("key", "memory")
    if made.init is not None:
        _validate.check_signature(made.init, ("params",), f"init of {what}")
    _validate.check_signature(made.reduce, (*memory, "updates", "active"), what)
    return made


def noisy_mean(sigma: Scalar) -> Aggregation:
    """The mean with Gaussian noise N(0, sigma²) on each coordinate: central DP-FedAvg.

    Of updates clipped to S and weighted equally (`defences.clipped`, `weighting="uniform"`), C of
    them in every round, the noise multiplier is C sigma / (2 S) where one client's data are
    replaced by any other; see `accounting`. It guards what is learned, and against a server only
    behind secure aggregation (`defences.secure_aggregation`), which then sees the noisy mean.
    Source: McMahan et al. 2018, arXiv:1710.06963, with a fixed cohort.

    Args:
      sigma: standard deviation in the units of the mean.
    """
    _validate.check_non_negative(sigma, "sigma")

    def reduce(key: PRNGKey, memory: Memory, updates: Updates, active: Active) -> Any:
        return memory, _noise.add(key, mean(updates, active), sigma)

    return Aggregation(reduce, additive=True, init=lambda params: ())


def relative_weights(weights: Weights, active: Active | None = None) -> Weights:
    """Weights scaled to a mean of one over the active clients, zero for the others.

    For example counts n_i this is C n_i / sum(n): what `scale` multiplies client i's update by
    so that the uniform mean of the scaled updates is the mean weighted by n.

    Raises:
      InputError: for weights that are negative, not finite or sum to zero. Under `jit`, where
        values can't be checked, a zero sum gives NaN.
    """
    clients = (getattr(weights, "shape", ()) or (0,))[0]
    _check_weights(weights, clients)
    active = _all_active(active, clients)
    weights = jnp.where(active, weights, 0)
    weights = weights.astype(wide_dtype(weights.dtype))
    _check_weights(weights, clients)
    return weights * (jnp.sum(active, dtype=weights.dtype) / jnp.sum(weights))


def scale(updates: Updates, weights: Weights, active: Active | None = None) -> Updates:
    """Scale update i by C w_i / sum(w), so that the uniform mean is the weighted one.

    Do this before mixing. Note that an update's norm then tells its client's weight.

    Raises:
      InputError: see `relative_weights`.
    """
    updates, clients = _stacked(updates)
    _check_weights(weights, clients)
    factors = relative_weights(weights, active)
    return jax.tree.map(lambda leaf: times(leaf, _on_rows(factors, leaf)), updates)


def _check_weights(weights: Any, clients: int) -> None:
    if getattr(weights, "shape", None) != (clients,) or not _validate.real(weights.dtype):
        came = list(weights.shape) if hasattr(weights, "shape") else repr(weights)
        raise _validate.InputError(
            f"expected `weights` of shape [{clients}], one per client; got {came}."
        )
    if not _validate.concrete(weights):
        return
    values = np.asarray(weights, np.float64)
    bad = np.flatnonzero(~(values >= 0) | np.isinf(values))
    if bad.size:
        raise _validate.InputError(
            f"expected finite weights >= 0; got {values[bad[0]]} for client {bad[0]} "
            f"({bad.size} of {clients} are bad)."
        )
    if values.sum() == 0:
        raise _validate.InputError(
            f"expected weights with a positive sum; all {clients} are zero. "
            "Give every client equal weight, or leave clients without examples out."
        )


def _mean(updates: Updates, active: Active | None = None) -> Params:
    """The mean over active clients, accumulated in at least float32.

    Guarantees: unchanged by any mixing but for the rounding of a sum in another order, at most
    2 C eps times the mean absolute value of the coordinate; exactly unchanged where all partial
    sums are representable, as for integers of moderate size. NaN in an inactive row is ignored.
    """
    updates, clients = _stacked(updates)
    rows = _all_active(active, clients)

    def one(leaf: Array) -> Array:
        wide = wide_dtype(leaf.dtype)
        if clients == 1:
            # no arithmetic: a federation's mean is an only row, and goes through bit by bit
            return jnp.where(rows[0], leaf[0].astype(floating(leaf.dtype)), jnp.nan)
        kept = leaf if active is None else jnp.where(_on_rows(rows, leaf), leaf, 0)
        # a product with the mask: jnp.mean over the leading axis runs at a fiftieth of the
        # memory bandwidth on CPU
        total = jnp.tensordot(
            rows.astype(wide), kept.astype(wide), 1, precision=jax.lax.Precision.HIGHEST
        )
        return (total / jnp.sum(rows).astype(wide)).astype(floating(leaf.dtype))

    return jax.tree.map(one, updates)


mean = Aggregation(_mean, additive=True)


def coordinate_median(updates: Updates, active: Active | None = None) -> Params:
    """The median of each coordinate over active clients. Unchanged by mixing, exactly.

    Source: Yin et al. 2018, arXiv:1803.01498.
    """
    updates, clients = _stacked(updates)
    active = _all_active(active, clients)
    count = jnp.sum(active)

    def one(leaf: Array) -> Array:
        rows = _sorted_rows(leaf, active)
        low, high = rows[(count - 1) // 2], rows[count // 2]
        half = jnp.asarray(0.5, rows.dtype)
        # halves before the sum, which could overflow
        return jnp.where(low == high, low, low * half + high * half)

    return jax.tree.map(one, updates)


def trimmed_mean(updates: Updates, active: Active | None = None, *, trim: float = 0.1) -> Params:
    """The mean of each coordinate without its `floor(trim C)` smallest and largest values.

    Unchanged by mixing, exactly: it sums sorted values.
    Source: Yin et al. 2018, arXiv:1803.01498.
    """
    _validate.check_fraction(trim, "trim", 0.5)
    updates, clients = _stacked(updates)
    active = _all_active(active, clients)
    count = jnp.sum(active)
    # in float32, 0.3 x 10 would fall just below or above 3 by the luck of rounding
    cut = jnp.floor(trim * count.astype(jnp.float32) + 1e-4).astype(count.dtype)
    row = jnp.arange(clients)
    kept = (row >= cut) & (row < count - cut)

    def one(leaf: Array) -> Array:
        rows = _sorted_rows(leaf, active)
        wide = wide_dtype(rows.dtype)
        total = jnp.sum(jnp.where(_on_rows(kept, rows), rows, 0), axis=0, dtype=wide)
        return (total / (count - 2 * cut).astype(wide)).astype(rows.dtype)

    return jax.tree.map(one, updates)


def _judges_whole_updates(reduce: Function) -> Function:
    """See `Aggregation.whole`."""
    setattr(reduce, "whole", True)  # noqa: B010, a function's type has no such attribute
    return reduce


@_judges_whole_updates
def krum(
    updates: Updates, active: Active | None = None, *, byzantine: int, select: int = 1
) -> Params:
    """The mean of the `select` updates that lie closest to their neighbours.

    An update's score is the sum of squared distances to its C - byzantine - 2 nearest active
    neighbours. It judges whole updates, so mixing changes it.
    Source: Blanchard et al. 2017, arXiv:1703.02757; `select` > 1 is its Multi-Krum.

    Raises:
      InputError: unless C >= byzantine + 3 and 1 <= select <= C, C the active clients. Under
        `jit`, where they can't be counted, the result is then NaN.
    """
    updates, clients = _stacked(updates)
    active = _all_active(active, clients)
    _check_krum(active, clients, byzantine, select)
    # distances to the mean first: a part common to all would drown the differences in rounding
    center = mean(updates, active)
    dtype = widest(updates)
    gram = jnp.zeros((clients, clients), dtype)
    for leaf, middle in zip(jax.tree.leaves(updates), jax.tree.leaves(center), strict=True):
        rows = leaf.astype(dtype) - middle.astype(dtype)[None]
        rows = jnp.where(active[:, None], rows.reshape(clients, -1), 0)
        gram += jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.diagonal(gram)
    distances = jnp.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0)
    usable = active[:, None] & active[None, :] & ~jnp.eye(clients, dtype=bool)
    nearest = jnp.sort(jnp.where(usable, distances, jnp.inf), axis=1)
    counted = jnp.arange(clients) < jnp.sum(active) - byzantine - 2
    scores = jnp.sum(jnp.where(counted[None, :], nearest, 0), axis=1)
    order = jnp.argsort(jnp.where(active, scores, jnp.inf))
    chosen = jnp.zeros(clients, bool).at[order[:select]].set(True)
    enough = jnp.sum(active) >= max(byzantine + 3, select)
    return jax.tree.map(
        lambda leaf: jnp.where(enough, leaf, jnp.nan), mean(updates, chosen & active)
    )


def _check_krum(active: Any, clients: int, byzantine: int, select: int) -> None:
    for value, name in ((byzantine, "byzantine"), (select, "select")):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise _validate.InputError(
                f"expected a whole number for {name} in Krum; got {value!r}."
            )
    present = int(np.sum(np.asarray(active))) if _validate.concrete(active) else clients
    if byzantine < 0 or present < byzantine + 3:
        raise _validate.InputError(
            f"expected byzantine >= 0 and at least byzantine + 3 active clients for Krum; got "
            f"byzantine={byzantine} with {present} active clients."
        )
    if not 1 <= select <= present:
        raise _validate.InputError(f"expected select in 1..{present} for Krum; got {select}.")


def _stacked(updates: Updates) -> tuple[Updates, int]:
    clients = _axes.check_client_axis(updates)
    _validate.check_real(updates)
    # NumPy's float64 become JAX's floats here, and booleans numbers
    arrays = jax.tree.map(jnp.asarray, updates)
    return jax.tree.map(
        lambda a: a.astype(jnp.float32) if a.dtype == jnp.bool_ else a, arrays
    ), clients


def _all_active(active: Active | None, clients: int) -> Active:
    if active is None:
        return jnp.ones(clients, bool)
    _axes.check_active(active, clients)
    return active


def _on_rows(values: Array, leaf: Array) -> Array:
    return values.reshape(-1, *[1] * (leaf.ndim - 1))


def _sorted_rows(leaf: Array, active: Active) -> Array:
    """Each coordinate in ascending order over active clients, infinities after them."""
    leaf = leaf.astype(floating(leaf.dtype))
    return jnp.sort(jnp.where(_on_rows(active, leaf), leaf, jnp.inf), axis=0)
