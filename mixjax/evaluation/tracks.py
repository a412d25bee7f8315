"""How well pseudonyms follow people from round to round.

An attack gives each forwarded update, or each unit of it, a pseudonym that it believes to be one
person's in all rounds. For units, move their axis to the front: each is a run of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mixjax import _validate
from mixjax.evaluation._arrays import Values, aligned

NOBODY = -1


class _Table(NamedTuple):
    """How often each pair of a pseudonym and an owner occurs, sorted by pseudonym."""

    pseudonym: np.ndarray
    owner: np.ndarray
    count: np.ndarray


def purity(pseudonyms: Values, owners: Values, active: Values | None = None) -> np.ndarray:
    """The share of appearances that belong to the commonest owner of their pseudonym.

    >>> rounds = [[0, 1], [0, 1], [1, 0]]
    >>> round(float(purity(rounds, [[5, 6], [5, 6], [5, 6]])), 3)
    0.667

    Guarantees: the same under any renaming of pseudonyms or owners. It is 1 where each pseudonym
    is one person's, also where a person has several; `adjusted_rand_index` counts that against
    an attack. Its chance level is `chance_purity`.

    Args:
      pseudonyms: `[..., rounds, slots]`, whole numbers from 0; -1 for none, which is not counted.
      owners: `[..., rounds, slots]`, whose each one truly is, broadcast against `pseudonyms`.
      active: `[..., rounds, slots]`, which slots were forwarded; all by default.

    Returns:
      `[...]`, in (0, 1]; NaN where nobody has a pseudonym.

    Raises:
      InputError: for other shapes, numbers below -1, or an owner below 0 of a counted slot.
    """
    return _over_runs(
        lambda pseudonyms, owners, rounds: _purity(pseudonyms, owners),
        *_counted(pseudonyms, owners, active),
    )


def chance_purity(
    pseudonyms: Values,
    owners: Values,
    active: Values | None = None,
    *,
    seed: int,
    draws: int = 200,
) -> np.ndarray:
    """Expected purity of the same pseudonyms dealt at random among the slots of each round.

    It is well above one over the number of people, the more so the fewer the rounds: somebody
    is always commonest. Of so many draws it is the mean, since only for a constant cohort the
    expectation has a closed form.

    Args:
      pseudonyms: see `purity`, as all that follows.
      owners: whose each slot is.
      active: which slots were forwarded.
      seed: of the draws; the same gives the same bits.
      draws: how many. Purity is a mean over people, so one draw alone is close.

    Returns:
      `[...]`; NaN where nobody has a pseudonym.
    """
    _validate.check_seed(seed)
    _validate.check_positive(draws, "draws", integer=True)
    rng = np.random.default_rng(seed)

    def expected(pseudonyms: np.ndarray, owners: np.ndarray, rounds: np.ndarray) -> float:
        dealt = (np.lexsort((rng.random(len(rounds)), rounds)) for _ in range(draws))
        return float(np.mean([_purity(pseudonyms[order], owners) for order in dealt]))

    return _over_runs(expected, *_counted(pseudonyms, owners, active))


def adjusted_rand_index(
    pseudonyms: Values, owners: Values, active: Values | None = None
) -> np.ndarray:
    """Agreement of pseudonyms and owners on which appearances are of one person.

    With n_ij appearances of pseudonym i and owner j, sums over pairs C(n, 2) of them:

        (sum_ij C(n_ij, 2) - E) / ((A + B) / 2 - E),   E = A B / C(n, 2)

    with A those of the pseudonyms' totals and B of the owners'. It is 1 where both agree on all
    pairs, and 0 on average where pseudonyms are dealt at random among *all* appearances; dealt
    among those of each round it is a little more, of the order of one over the appearances.

    Source: Hubert and Arabie 1985, "Comparing partitions".

    Arguments and errors as for `purity`, and the same under any renaming.

    Returns:
      `[...]`, at most 1; NaN where nobody has a pseudonym.
    """
    return _over_runs(
        lambda pseudonyms, owners, rounds: _adjusted_rand(_table(pseudonyms, owners)),
        *_counted(pseudonyms, owners, active),
    )


def _counted(
    pseudonyms: Values, owners: Values, active: Values | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one shape, with a mask of the appearances that count."""
    pseudonyms, owners, active = aligned(
        pseudonyms, owners, active, ("pseudonyms", "owners"), ends="slots"
    )
    if pseudonyms.ndim < 2:
        raise _validate.InputError(
            f"expected pseudonyms and owners [..., rounds, slots]; got {list(pseudonyms.shape)}. "
            "Give one round an axis of length 1."
        )
    if (pseudonyms < NOBODY).any():
        raise _validate.InputError(
            f"expected pseudonyms that are numbers from 0, or {NOBODY} for none; got "
            f"{pseudonyms.min()}."
        )
    counted = active & (pseudonyms != NOBODY)
    if (owners[counted] < 0).any():
        raise _validate.InputError(
            "expected an owner of at least 0 for each slot with a pseudonym; got "
            f"{owners[counted].min()}. Leave slots out by active."
        )
    return pseudonyms, owners, counted


def _over_runs(
    index: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
    pseudonyms: np.ndarray,
    owners: np.ndarray,
    counted: np.ndarray,
) -> np.ndarray:
    """`index(pseudonyms, owners, rounds)` of each run's appearances, round after round."""
    result = np.full(pseudonyms.shape[:-2], np.nan)
    for run in np.ndindex(result.shape):
        kept = counted[run]
        if kept.any():
            result[run] = index(pseudonyms[run][kept], owners[run][kept], np.nonzero(kept)[0])
    return result


def _table(pseudonyms: np.ndarray, owners: np.ndarray) -> _Table:
    rows, columns = (np.unique(one, return_inverse=True)[1] for one in (pseudonyms, owners))
    width = columns.max() + 1
    pairs, counts = np.unique(rows * width + columns, return_counts=True)
    return _Table(pairs // width, pairs % width, counts)


def _purity(pseudonyms: np.ndarray, owners: np.ndarray) -> float:
    table = _table(pseudonyms, owners)
    starts = np.flatnonzero(np.diff(table.pseudonym, prepend=-1))
    return np.maximum.reduceat(table.count, starts).sum() / table.count.sum()


def _adjusted_rand(table: _Table) -> float:
    together = _pairs(table.count)
    rows, columns = (_pairs(np.bincount(of, table.count)) for of in (table.pseudonym, table.owner))
    # one appearance has no pairs: it agrees with itself
    expected = rows * columns / max(_pairs(table.count.sum(keepdims=True)), 1)
    most = (rows + columns) / 2
    # only where both are one whole, or both all apart, and so agree
    if most == expected:
        return 1.0
    return (together - expected) / (most - expected)


def _pairs(counts: np.ndarray) -> float:
    return float(np.sum(counts * (counts - 1.0)) / 2)
