"""What is left of anonymity: from a posterior over the owner of each slot.

`[..., slots, owners]`, each row the probabilities that an adversary gives each person. Who knows
nothing has a uniform one: log2 C bits, a set of C, (C + 1) / 2 guesses.
"""

import math

import numpy as np
import scipy.special

from mixjax import _validate
from mixjax.evaluation._arrays import Values

# rows of a softmax in float32 or of products of such stay far within it
TOLERANCE = 1e-3


def entropy(posterior: Values, active: Values | None = None) -> np.ndarray:
    """Shannon entropy of the owner of each slot, in bits: log2 C for C alike, 0 if certain.

    Its mean over slots is the conditional entropy that `fano_bound` takes; over log2 C it is the
    degree of anonymity of Diaz et al. 2002, "Towards measuring anonymity".

    >>> entropy([[0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]])
    array([2., 0.])

    Args:
      posterior: `[..., slots, owners]`, rows of probabilities. Rows that sum to 1 up to 0.001 are
        scaled to 1.
      active: `[..., slots]`, whose rows count; all by default. The others may hold anything.

    Returns:
      `[..., slots]`; NaN in slots that are not active.

    Raises:
      InputError: for other shapes, or active rows with a NaN, a negative number or another sum.

    Source: Serjantov and Danezis 2002, "Towards an information theoretic metric for anonymity".
    """
    rows, counted = _rows(posterior, active)
    bits = np.sum(scipy.special.entr(rows), axis=-1) / np.log(2)
    return np.where(counted, bits, np.nan)


def effective_set_size(posterior: Values, active: Values | None = None) -> np.ndarray:
    """2 ** entropy: how many people alike would leave an adversary as uncertain, 1..C.

    Arguments, result, errors and source as for `entropy`.
    """
    return np.exp2(entropy(posterior, active))


def guessing_entropy(posterior: Values, active: Values | None = None) -> np.ndarray:
    """Expected number of guesses until the owner is named, likeliest first: 1..(C + 1) / 2.

    >>> guessing_entropy([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
    array([1.75, 1.  ])

    Arguments, result and errors as for `entropy`. At least 2 ** entropy / 4 + 1 where the entropy
    is at least 2 bits.

    Source: Massey 1994, "Guessing and entropy".
    """
    rows, counted = _rows(posterior, active)
    likeliest_first = -np.sort(-rows, axis=-1)
    guesses = likeliest_first @ np.arange(1.0, rows.shape[-1] + 1)
    return np.where(counted, guesses, np.nan)


def fano_bound(conditional_entropy: Values, owners: int) -> np.ndarray:
    """The least probability of error of any guess of the owner, whatever the attack.

    The least p with h(p) + p log2(C - 1) >= H, with h the binary entropy: Fano's inequality in
    its exact, implicit form, solved by bisection. The usual weak form (H - 1) / log2 C is below.

    >>> fano_bound([0.0, 1.0, 2.0], owners=4).round(3)
    array([0.   , 0.189, 0.75 ])

    Guarantees: never above the root, and below it by rounding only: 1e-15 or so, up to 1e-8 near
    the flat end at log2 C. It is (C - 1) / C there.

    Args:
      conditional_entropy: H in bits, `[...]`, of the owner given all that the adversary sees: the
        mean of `entropy` over slots, or over runs too.
      owners: C, how many people it may be.

    Returns:
      `[...]`, in [0, (C - 1) / C]; NaN where the entropy is NaN.

    Raises:
      InputError: for entropies outside of [0, log2 C].

    Source: Fano 1961; Cover and Thomas 2006, "Elements of information theory", Section 2.10.
    """
    _validate.check_positive(owners, "owners", integer=True)
    bits = _validate.host_array(conditional_entropy, "conditional_entropy").astype(np.float64)
    most = np.log2(owners)
    outside = bits[(bits < 0) | (bits > most + TOLERANCE)]
    if outside.size:
        raise _validate.InputError(
            f"expected entropies in bits between 0 and log2 of {owners} owners, {most:.3g}; got "
            f"{outside[0]:.6g}. Divide nats by ln 2."
        )
    if owners == 1:
        return np.where(np.isnan(bits), np.nan, 0.0)
    limit = (owners - 1) / owners
    low, high = np.zeros(bits.shape), np.full(bits.shape, limit)
    for _ in range(100):
        middle = (low + high) / 2
        less = _fano(middle, owners) < bits
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    return np.where(np.isnan(bits), np.nan, np.where(bits >= most, limit, low))


def _fano(error: np.ndarray, owners: int) -> np.ndarray:
    right = scipy.special.entr(error) + scipy.special.entr(1 - error)
    return right / np.log(2) + error * np.log2(owners - 1)


def _rows(posterior: Values, active: Values | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows in float64 that sum to 1, uniform where they don't count."""
    rows = _validate.host_array(posterior, "posterior", "iuf", ndim=1).astype(np.float64)
    if not rows.shape[-1]:
        raise _validate.InputError(
            f"expected a posterior [..., slots, owners] of at least one owner; got {rows.shape}."
        )
    counted = np.ones(rows.shape[:-1], bool)
    if active is not None:
        active = _validate.host_array(active, "active", "b")
        try:
            counted = np.broadcast_to(active, rows.shape[:-1])
        except ValueError:
            raise _validate.InputError(
                f"expected active [..., slots] for a posterior [..., slots, owners]; got "
                f"{list(active.shape)} and {list(rows.shape)}."
            ) from None
    rows = np.where(counted[..., None], rows, 1 / rows.shape[-1])
    sound = np.asarray(np.all((rows >= 0) & (rows <= 1 + TOLERANCE), axis=-1))
    sums = np.where(sound[..., None], rows, 0).sum(axis=-1)
    wrong = ~sound | (np.abs(sums - 1) > TOLERANCE)
    if wrong.any():
        place = tuple(map(int, np.argwhere(wrong)[0]))
        raise _validate.InputError(
            "expected rows of probabilities that sum to 1 in the posterior; got row "
            f"{list(place)}: numbers from {rows[place].min():.4g} to {rows[place].max():.4g}, sum "
            f"{math.fsum(rows[place]):.4g}. Divide rows by their sums, give one of which nothing "
            "is known equal numbers, and leave slots out by active."
        )
    return rows / sums[..., None], counted
