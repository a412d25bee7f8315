"""Permutations of slots, unit by unit, under which the couplings of every person fit.

Coordinate descent: each step moves one unit's slots, or those of units that hang together, by a
linear assignment to what the others leave. Equations count by their precision, which follows the
residuals. It starts from the unit that is coupled most, and joins the one next that shares most
with what is joined.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse.csgraph
from jaxtyping import Array, Float, Int

from mixjax import _validate
from mixjax.types import PRNGKey

# floors of an equation's residual, as shares of its spread: equations that hold come to count most
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)
SWEEPS, STARTS = 4, 4
# of more units the couplings are many, and other starts have found nothing else
FEW_UNITS = 64
TINY = np.finfo(float).tiny


class System(NamedTuple):
    """The couplings of all slots, on the host. An equation is a law or a shared feature.

    Attributes:
      parts: `[units, slots, equations]`, without the mean over slots.
      has: `[units, equations]`, which units an equation speaks of.
      shared: `[equations]`, whether the units are alike and not in sum zero.
    """

    parts: np.ndarray
    has: np.ndarray
    shared: np.ndarray


def called(
    solver: Callable[..., tuple[np.ndarray, np.ndarray]],
    key: PRNGKey,
    shape: tuple[int, int],
    seen: tuple[Any, ...],
) -> tuple[Int[Array, "clients units"], Float[Array, " clients"]]:
    """Slots and confidence by `solver(seed, *seen)`, on the host, from a compiled program."""
    like = (jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape[:1], jnp.float32))
    seed = jax.random.bits(key, (), jnp.uint32)
    return jax.pure_callback(solver, like, seed, *seen, vmap_method="sequential")


def check_finite(rows: Any, active: Any) -> None:
    """Refuse active clients of whose updates a measure is not finite."""
    rows = np.asarray(rows)
    finite = np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))
    broken = np.flatnonzero(np.asarray(active) & ~finite)
    if broken.size:
        raise _validate.InputError(
            f"expected finite updates of active clients; got NaN, infinite or too large numbers of "
            f"client {broken[0]}. Leave it out with active."
        )


def solve(
    laws: Any, shared: Any, active: Any, seed: int, loose: int
) -> tuple[np.ndarray, np.ndarray]:
    """Slots of each assembly, and how much of its couplings fits.

    Slots are dealt out first: an assignment returns the identity where nothing is known.

    Args:
      laws: `[clients, units, equations]`, contributions slot by slot.
      shared: `[clients, units, features]`.
      active: `[clients]`, whose rows were forwarded.
      seed: of the deal.
      loose: the number of first laws that hold as they are; later ones up to a factor.
    """
    laws, shared = np.asarray(laws, np.float64), np.asarray(shared, np.float64)
    active = np.asarray(active)
    clients, units, _ = laws.shape
    slots = np.tile(np.arange(clients, dtype=np.int32)[:, None], (1, units))
    confidence = np.zeros(clients, np.float32)
    present = np.flatnonzero(active)
    if present.size == 0:
        return slots, confidence
    rng = np.random.default_rng(seed)
    deals = np.stack([rng.permutation(present) for _ in range(units)])
    rows = np.concatenate([laws, shared], axis=2)
    parts = np.stack([rows[deal, unit] for unit, deal in enumerate(deals)])
    system = _system(parts, loose, laws.shape[2])
    order = _best_order(system)
    fits, whole = _fit(system, order)
    weights = _weights(system, fits, SHARES[-1])
    left, all_of_it = np.sum(fits * weights, axis=-1), np.sum(whole * weights, axis=-1)
    slots[present] = np.stack([deal[own] for deal, own in zip(deals, order, strict=True)], axis=1)
    confidence[present] = np.where(
        all_of_it > 0, 1 - left / np.where(all_of_it > 0, all_of_it, 1), 0
    )
    return slots, confidence


def _system(parts: np.ndarray, loose: int, laws: int) -> System:
    parts = parts - parts.mean(axis=1, keepdims=True)
    # what holds up to a factor: by the spread over slots, which no mixing hides
    spread = np.sqrt(np.mean(parts[:, :, loose:] ** 2, axis=1, keepdims=True))
    parts[:, :, loose:] /= np.where(spread > 0, spread, 1)
    has = (parts != 0).any(axis=1)
    # one unit alone says nothing
    parts[:, :, has.sum(axis=0) < 2] = 0
    has = has & (has.sum(axis=0) > 1)
    return System(parts, has, np.arange(parts.shape[2]) >= laws)


def _placed(parts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`[units, assemblies, equations]`: the parts in their order."""
    return np.take_along_axis(parts, order[..., None], axis=1)


def _fit(system: System, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[assemblies, equations]`: squares that do not fit, and all squares."""
    joined = _placed(system.parts, order)
    return _left(system, joined.sum(axis=0), whole := np.sum(joined**2, axis=0)), whole


def _left(system: System, total: np.ndarray, whole: np.ndarray) -> np.ndarray:
    count = np.maximum(system.has.sum(axis=0), 1)
    return np.where(system.shared, np.maximum(whole - total**2 / count, 0), total**2)


def _weights(system: System, left: np.ndarray, share: float) -> np.ndarray:
    """Precisions of the equations, with a floor of a share of their spread.

    The more units a law speaks of, the better it can be made to fit by units of different people:
    what is left of it counts for as many.
    """
    others = np.maximum(system.has.sum(axis=0) - 1, 1)
    spread = np.square(system.parts).mean(axis=1).sum(axis=0)
    left, floor = left.mean(axis=0), share * spread
    variance = np.where(
        system.shared, left / others + floor / (others + 1), (left + floor) * others
    )
    return np.where(spread > 0, 1 / np.maximum(variance, TINY), 0)


def _assign(
    system: System, own: np.ndarray, others: np.ndarray, counted: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The order of some units' rows, moved as one, that fits what the others sum to.

    Args:
      system: the couplings.
      own: `[assemblies, equations]`, sums over the units that move.
      others: the same over the other units.
      counted: `[equations]`, how many others an equation speaks of.
      weights: of the equations.
    """
    scale = np.where(system.shared, -1 / np.maximum(counted, 1), 1.0)
    # a matrix of zeros on either side adds nothing
    used = np.flatnonzero((own != 0).any(axis=0) & (counted > 0))
    target = others[:, used] * (scale * weights)[used]
    return scipy.optimize.linear_sum_assignment(target @ own[:, used].T)[1]


def _blocks(strength: np.ndarray, anchor: int) -> list[np.ndarray]:
    """Sets of units that move as one: each alone, and what hangs together away from the anchor.

    Two units joined wrongly to the rest but rightly to each other move together or not at all. The
    sets are the branches of the tree that ties each unit to those it is coupled with most.
    """
    units = len(strength)
    alone = [np.array([unit]) for unit in range(units) if unit != anchor]
    if not 2 < units <= FEW_UNITS:
        return alone
    pairs = np.minimum(strength[:, None], strength[None]).sum(axis=2)
    pairs = pairs / max(pairs.max(), TINY)
    # a tree of least sums; zero would be no edge
    tree = scipy.sparse.csgraph.minimum_spanning_tree(2 - pairs)
    order, parents = scipy.sparse.csgraph.breadth_first_order(tree, anchor, directed=False)
    branch = np.eye(units, dtype=bool)
    for unit in order[:0:-1]:
        branch[parents[unit]] |= branch[unit]
    return alone + [
        np.flatnonzero(branch[unit]) for unit in range(units) if 1 < branch[unit].sum() < units
    ]


def _best_order(system: System) -> np.ndarray:
    """The best of several descents: couplings that many units share have local minima."""
    whole = np.square(system.parts).mean(axis=1).sum(axis=0)
    coupled = np.square(system.parts).mean(axis=1) @ np.where(
        whole > 0, 1 / np.maximum(whole, TINY), 0
    )
    firsts = np.argsort(-coupled)[: STARTS if len(coupled) <= FEW_UNITS else 1]
    orders = [_descend(system, _greedy(system, first)) for first in firsts.tolist()]

    def loss(order: np.ndarray) -> float:
        left, all_of_it = (part.mean(axis=0) for part in _fit(system, order))
        # what reweighting minimizes: equations count by their relative precision
        share = left[all_of_it > 0] / all_of_it[all_of_it > 0]
        return float(np.sum(np.log(share + SHARES[-1] ** 2)))

    return min(orders, key=loss)


def _greedy(system: System, first: int) -> np.ndarray:
    """Units joined one after the other, next the one that shares most with those joined."""
    parts, has = system.parts, system.has
    units, slots, _ = parts.shape
    strength = np.square(parts).mean(axis=1)
    whole = strength.sum(axis=0)
    weights = np.where(whole > 0, 1 / np.maximum(whole, TINY), 0)
    order = np.tile(np.arange(slots), (units, 1))
    cover, sums, counted = strength[first].copy(), parts[first].copy(), has[first].astype(int)
    rest = np.ones(units, bool)
    rest[first] = False
    while rest.any():
        shared = np.minimum(strength, cover) @ weights
        unit = int(np.argmax(np.where(rest, shared, -1)))
        rest[unit] = False
        order[unit] = _assign(system, parts[unit], sums, counted, weights)
        sums += parts[unit][order[unit]]
        cover += strength[unit]
        counted += has[unit]
    return order


def _descend(system: System, order: np.ndarray) -> np.ndarray:
    """Units and branches of them put where the others leave least, until nothing moves."""
    parts, has = system.parts, system.has
    joined = _placed(parts, order)
    total, whole = joined.sum(axis=0), np.sum(joined**2, axis=0)
    count = has.sum(axis=0)
    strength = np.square(parts).mean(axis=1)
    for share in SHARES:
        weights = _weights(system, _left(system, total, whole), share)
        blocks = _blocks(strength * weights, int(np.argmax(strength @ weights)))
        for _ in range(SWEEPS):
            changed = False
            for block in blocks:
                before = np.stack([parts[unit][order[unit]] for unit in block])
                own, counted = before.sum(axis=0), count - has[block].sum(axis=0)
                best = _assign(system, own, total - own, counted, weights)
                if np.array_equal(best, np.arange(len(best))):
                    continue
                changed = True
                order[block] = order[block][:, best]
                total = total - own + own[best]
                squares = np.square(before).sum(axis=0)
                whole = whole - squares + squares[best]
            if not changed:
                break
    return order
