"""What a server learns of a whole cohort: how many of its participants have which attribute value.

It needs nobody's identity. Whatever follows from the multisets of units, each unit's on its own, is
the same under any mixing, to the last bit.
"""

import numpy as np

from mixjax import _memory, _validate
from mixjax.evaluation._arrays import Values, aligned
from mixjax.evaluation.accuracies import guesses


def histogram(truth: Values, values: int, active: Values | None = None) -> np.ndarray:
    """The share of the active with each attribute value: `[..., values]`; NaN of nobody.

    >>> histogram([0, 1, 1, 1], 3).tolist()
    [0.25, 0.75, 0.0]
    """
    _validate.check_positive(values, "values", integer=True)
    _, truth, active = aligned(truth, truth, active)
    _memory.check_memory(8 * values * truth.size, f"{values} attribute values", "", None)
    counts = np.stack([np.sum((truth == a) & active, axis=-1) for a in range(values)], axis=-1)
    return _shares(counts, np.sum(active, axis=-1))


def histogram_of_units(unit_scores: Values, active: Values | None = None) -> np.ndarray:
    """The attribute's histogram estimated from single units, classified and counted.

    Each instance of a unit counts for the value it scores highest for; units count alike. Numbers
    of instances are all it is made of, so any mixing leaves it the same to the last bit. Weak units
    pull it towards what they take everybody for: judge it on cohorts that differ (`subcohorts`).

    Args:
      unit_scores: `[..., clients, units, attributes]`, of each unit alone.
      active: `[..., clients]`, who belongs to the cohort; all by default.

    Returns:
      `[..., attributes]`, sums to 1; NaN of nobody.
    """
    scores = _validate.host_array(unit_scores, "unit_scores", ndim=3)
    clients, units, attributes = scores.shape[-3:]
    if not clients or not units:
        raise _validate.InputError(
            "expected unit_scores [..., clients, units, attributes] of a client and a unit or "
            f"more; got shape {scores.shape}."
        )
    chosen = guesses(scores)[..., None] == np.arange(attributes)
    votes = np.sum(chosen, axis=-2)
    shape = votes.shape[:-1]
    _, _, present = aligned(np.zeros(shape, int), np.zeros(shape, int), active)
    counts = np.matmul(present[..., None, :].astype(np.int64), votes)[..., 0, :]
    return _shares(counts, units * np.sum(present, axis=-1))


def overlap(estimate: Values, histogram: Values) -> np.ndarray:
    """The part of two histograms that agrees: 1 - total variation distance, `[...]`.

    >>> round(float(overlap([0.5, 0.5, 0.0], [0.25, 0.5, 0.25])), 3)
    0.75
    """
    first = _validate.host_array(estimate, "estimate", "iuf", ndim=1)
    second = _validate.host_array(histogram, "histogram", "iuf", ndim=1)
    if first.shape[-1:] != second.shape[-1:] or not first.shape[-1]:
        raise _validate.InputError(
            "expected two histograms over the same attribute values; got shapes "
            f"{first.shape} and {second.shape}."
        )
    return np.asarray(np.sum(np.minimum(first, second), axis=-1))


def subcohorts(seed: int, truth: Values, values: int, size: int, draws: int) -> np.ndarray:
    """Random cohorts of some of the clients, whose composition varies as much as it can.

    How many have which value is drawn first, all ways that are possible being equally likely, and
    then who they are. What a client sends does not depend on the others, so these are cohorts that
    a server might have seen.

    Args:
      seed: of the draws.
      truth: `[clients]`.
      values: the number of attribute values.
      size: clients in each cohort.
      draws: how many cohorts.

    Returns:
      Who belongs, `bool[draws, clients]`.

    Raises:
      InputError: for more in a cohort than there are.
    """
    _validate.check_seed(seed)
    for number, name in ((values, "values"), (size, "size"), (draws, "draws")):
        _validate.check_positive(number, name, integer=True)
    truth = _validate.host_array(truth, "truth", "iu", ndim=1)
    if truth.ndim != 1 or size > truth.size:
        raise _validate.InputError(
            f"expected truth [clients] of at least {size}, the size of a cohort; got shape "
            f"{truth.shape}."
        )
    if truth.min() < 0 or truth.max() >= values:
        raise _validate.InputError(
            f"expected truth in 0..{values - 1}, the attribute values; got "
            f"{truth.min()}..{truth.max()}."
        )
    _memory.check_memory(8 * draws * max(truth.size, values), f"{draws} cohorts", "", None)
    rng = np.random.default_rng(seed)
    most = np.bincount(truth, minlength=values)
    chosen = np.zeros((draws, truth.size), bool)
    for row in chosen:
        counts = _composition(rng, most, size)
        for value, count in enumerate(counts):
            row[rng.permutation(np.flatnonzero(truth == value))[:count]] = True
    return chosen


def _composition(rng: np.random.Generator, most: np.ndarray, size: int) -> np.ndarray:
    """Uniform among the ways to make `size` of at most so many of each value."""
    # ways[a][n]: to make n of the values from a on
    ways = [np.eye(1, size + 1)[0]]
    for limit in most[::-1]:
        ways.insert(0, np.convolve(ways[0], np.ones(min(limit, size) + 1))[: size + 1])
    left, counts = size, []
    for limit, after in zip(most, ways[1:], strict=True):
        weights = after[left - np.arange(min(limit, left) + 1)]
        counts.append(int(rng.choice(weights.size, p=weights / weights.sum())))
        left -= counts[-1]
    return np.array(counts)


def _shares(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    total = total[..., None]
    return np.where(total > 0, counts / np.maximum(total, 1), np.nan)
