"""How often an attack is right, and how sure we are: NumPy and SciPy, on the host.

This module alone joins scores with true attributes and origins. Three accuracies answer three
questions; each stands next to the chance level, which is the share of the commonest value:

* attribution: is the guess for slot s the attribute of participant s? Any uniform permutation,
  even of whole updates, brings it to `permuted_attribution`.
* set level: does the multiset of guesses match the cohort's histogram? No permutation changes it.
* unit level: is the attribute of the *owner of a unit instance* guessed right from that unit
  alone? No permutation changes it.

An accuracy is NaN where nothing is active, the AUC also where all have one attribute value.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.spatial
import scipy.stats
from jaxtyping import Array

from mixjax import _validate, mixing
from mixjax import units as units_lib
from mixjax.attacks import sim
from mixjax.observation import Statistics, mix_statistics
from mixjax.types import PRNGKey, Updates

Values = Any
"""Array-likes of leading axes such as seeds and rounds; guesses and truths end in clients."""


# drawing this many origins at once is faster than one matrix after the other
DRAW_ELEMENTS = 2**18


class Interval(NamedTuple):
    """A mean over `n` runs with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def guesses(scores: Values) -> np.ndarray:
    """The attribute value with the highest score: `[..., attributes] -> [...]`."""
    array = _validate.host_array(scores, "scores", ndim=1)
    if not array.shape[-1] or np.isnan(array).any():
        raise _validate.InputError(
            "expected scores of at least one attribute value, none of them NaN; got shape "
            f"{array.shape} with {np.isnan(array).sum()} NaN."
        )
    return np.argmax(array, axis=-1)


def attribution(guesses: Values, truth: Values, active: Values | None = None) -> np.ndarray:
    """Share of slots whose guess is the attribute of the participant of that number.

    Args:
      guesses: `[..., clients]`.
      truth: `[..., clients]`, broadcast against `guesses`.
      active: which slots count; all by default.

    Returns:
      `[...]`, in [0, 1]; NaN where nothing is active.
    """
    guesses, truth, active = _aligned(guesses, truth, active)
    return _share(guesses == truth, active)


def balanced_accuracy(
    guesses: Values, truth: Values, values: int, active: Values | None = None
) -> np.ndarray:
    """Mean over attribute values of the share of its participants guessed right: `[...]`.

    Chance is one over the number of values present, whatever their frequencies.
    """
    guesses, truth, active = _aligned(guesses, truth, active)
    _validate.check_positive(values, "values", integer=True)
    _validate.check_memory(8 * values * guesses.size, f"{values} attribute values", "", None)
    recalls = [_share(guesses == value, active & (truth == value)) for value in range(values)]
    return _mean_over_present(recalls)


def set_level(
    guesses: Values, truth: Values, values: int, active: Values | None = None
) -> np.ndarray:
    """Overlap of the histogram of guesses with that of the cohort: sum_a min(g_a, n_a) / C."""
    guesses, truth, active = _aligned(guesses, truth, active)
    _validate.check_positive(values, "values", integer=True)
    _validate.check_memory(8 * values * guesses.size, f"{values} attribute values", "", None)
    overlap = sum(
        np.minimum(
            np.sum((guesses == value) & active, axis=-1),
            np.sum((truth == value) & active, axis=-1),
        )
        for value in range(values)
    )
    return np.asarray(overlap / np.maximum(np.sum(active, axis=-1), 1))


def unit_level(
    unit_scores: Values, origins: Values, truth: Values, active: Values | None = None
) -> np.ndarray:
    """Share of unit instances whose owner's attribute is guessed from that unit alone.

    Args:
      unit_scores: `[..., slots, units, attributes]` of the forwarded units.
      origins: `[..., slots, units]`.
      truth: `[..., clients]`.
      active: `[..., slots]`.

    Returns:
      `[..., units]`.
    """
    guessed = guesses(unit_scores)
    origins = _validate.host_array(origins, "origins", "iu", ndim=2)
    truth = _validate.host_array(truth, "truth", "iu", ndim=1)
    if guessed.ndim < 2 or guessed.shape[-2:] != origins.shape[-2:]:
        raise _validate.InputError(
            f"expected unit_scores [..., slots, units, attributes] and origins [..., slots, "
            f"units]; got shapes {np.shape(unit_scores)} and {origins.shape}."
        )
    slots = np.zeros(guessed.shape[:-1], int)
    _, truth, present = _aligned(slots, truth, active)
    _validate.check_origin_rows(origins, truth.shape[-1])
    shape = np.broadcast_shapes(guessed.shape, origins.shape, (*truth.shape, 1))
    truth = np.broadcast_to(truth[..., None], shape)
    owners = np.take_along_axis(truth, np.broadcast_to(origins, shape), axis=-2)
    present = np.broadcast_to(present[..., None], shape)
    right = np.swapaxes(guessed == owners, -1, -2)
    return _share(right, np.swapaxes(present, -1, -2))


def auc(scores: Values, truth: Values, active: Values | None = None) -> np.ndarray:
    """Area under the ROC curve, one value against the rest, averaged over the values present.

    Args:
      scores: `[..., clients, attributes]`.
      truth: `[..., clients]`.
      active: `[..., clients]`.

    Returns:
      `[...]`; 0.5 is chance, ties count half. With two values the margin between their scores
      is ranked.
    """
    scores = _validate.host_array(scores, "scores").astype(np.float64)
    if scores.ndim < 2 or not scores.shape[-1] or not np.isfinite(scores).all():
        raise _validate.InputError(
            f"expected scores of shape [..., clients, attributes], finite; got {scores.shape}."
        )
    values = scores.shape[-1]
    if values == 2:
        margin = scores[..., 1] - scores[..., 0]
        scores = np.stack([-margin, margin], axis=-1)
    _, truth, active = _aligned(np.zeros(scores.shape[:-1], int), truth, active)
    areas = [
        _members_against_others(_area, scores[..., value], truth == value, active)
        for value in range(values)
    ]
    return _mean_over_present(areas)


def membership_auc(scores: Values, members: Values, active: Values | None = None) -> np.ndarray:
    """Probability that a member scores higher than a non-member: area under the ROC curve.

    Args:
      scores: `[..., records]`; pool slots by reshaping them into one axis.
      members: `[..., records]`, true for records that were used.
      active: `[..., records]`, false for padding; all by default.

    Returns:
      `[...]`; 0.5 is chance, ties count half. NaN without members or others, or for NaN scores.
    """
    return _members_against_others(_area, scores, members, active)


def true_positive_rate(
    scores: Values,
    members: Values,
    active: Values | None = None,
    *,
    false_positive_rate: float = 0.01,
) -> np.ndarray:
    """The largest share of members that a threshold finds within a rate of false alarms.

    With k the largest number of the n non-members that has k / n <= `false_positive_rate`,
    members are the records that score *above* the non-member in place k + 1. Ties with it
    count as non-members, so the rate is never exceeded.
    Source: the criterion of Carlini et al. 2022, arXiv:2112.03570.

    Arguments and result as for `membership_auc`; chance is about `false_positive_rate`.
    """
    _validate.check_share(false_positive_rate, "false_positive_rate")

    def rate(own: np.ndarray, other: np.ndarray) -> float:
        shares = np.arange(other.size + 1) / other.size
        allowed = int(np.searchsorted(shares, false_positive_rate, side="right")) - 1
        if allowed == other.size:
            return 1.0
        return float(np.mean(own > np.sort(other)[::-1][allowed]))

    return _members_against_others(rate, scores, members, active)


def _area(own: np.ndarray, other: np.ndarray) -> float:
    ranks = scipy.stats.rankdata(np.concatenate([own, other]))[: own.size]
    wins = np.sum(ranks) - own.size * (own.size + 1) / 2
    return wins / (own.size * other.size)


def _members_against_others(
    metric: Callable[[np.ndarray, np.ndarray], float],
    scores: Values,
    members: Values,
    active: Values | None,
) -> np.ndarray:
    scores, members, active = _aligned(
        scores, members, active, ("scores", "members"), ("iuf", "biu")
    )
    scores = scores.astype(np.float64)
    result = np.full(scores.shape[:-1], np.nan)
    for run in np.ndindex(result.shape):
        values, used = scores[run][active[run]], members[run][active[run]].astype(bool)
        if used.any() and not used.all() and not np.isnan(values).any():
            result[run] = metric(values[used], values[~used])
    return result


def chance(truth: Values, active: Values | None = None) -> np.ndarray:
    """Accuracy of always guessing the commonest value among the active: `[...]`."""
    _, truth, active = _aligned(truth, truth, active)
    counts = [np.sum((truth == value) & active, axis=-1) for value in np.unique(truth)]
    return np.asarray(np.max(np.stack(counts), axis=0) / np.maximum(np.sum(active, axis=-1), 1))


def permuted_attribution(
    guesses: Values, truth: Values, values: int, active: Values | None = None
) -> np.ndarray:
    """Expected attribution under a uniform permutation of slots: sum_a (n_a / C)(m_a / C)."""
    guesses, truth, active = _aligned(guesses, truth, active)
    _validate.check_positive(values, "values", integer=True)
    _validate.check_memory(8 * values * guesses.size, f"{values} attribute values", "", None)
    return np.asarray(
        sum(_share(guesses == a, active) * _share(truth == a, active) for a in range(values))
    )


def unit_distances(updates: Updates, others: Updates, units: units_lib.Units) -> np.ndarray:
    """Euclidean distances between the units of two stacks of updates.

    Returns:
      `[clients, clients, units]`: from each row of `updates` to each of `others`.
    """
    _validate.check_client_axis(updates)
    _validate.check_client_axis(others)
    _validate.check_same_model(updates, others, "updates", "others")
    first, second = _unit_rows(updates, units), _unit_rows(others, units)
    pairs = zip(first, second, strict=True)
    return np.stack([scipy.spatial.distance.cdist(*pair) for pair in pairs], axis=-1)


def neighbours(updates: Updates, units: units_lib.Units, radii: Values) -> np.ndarray:
    """For each client and unit, how many *other* updates lie within each radius.

    Args:
      updates: one round's updates.
      units: the partition.
      radii: `[radii]`, as multiples of the root mean square norm of the unit over clients.

    Returns:
      `[clients, units, radii]`.
    """
    radii = _validate.host_array(radii, "radii", ndim=1).ravel()
    distances = unit_distances(updates, updates, units)
    scale = [np.sqrt(np.mean(np.sum(rows**2, axis=1))) for rows in _unit_rows(updates, units)]
    within = distances[..., None] <= np.asarray(scale)[:, None] * radii
    return np.sum(within, axis=1) - 1


def relink_rank(previous: Updates, current: Updates, units: units_lib.Units) -> np.ndarray:
    """Rank of a client's own previous update among all, by distance to its current one.

    Returns:
      `[clients, units]`; 1 means that the nearest one is its own: the unit can be relinked.
    """
    distances = unit_distances(current, previous, units)
    if distances.shape[0] != distances.shape[1]:
        raise _validate.InputError(
            f"expected the same clients in both rounds; got {distances.shape[1]} and "
            f"{distances.shape[0]}."
        )
    own = np.diagonal(distances).T
    return 1 + np.sum(distances < own[:, None], axis=1)


def _unit_rows(updates: Updates, units: units_lib.Units) -> list[np.ndarray]:
    _validate.check_units(units)
    _validate.check_real(updates)
    sizes = [sum(stop - start for start, stop, _ in leaf) for leaf in units.segments]
    _validate.check_partition(updates, sizes)
    parts: list[list[np.ndarray]] = [[] for _ in units.names]
    for leaf, segments in zip(jax.tree.leaves(updates), units.segments, strict=True):
        rows = np.asarray(leaf, np.float64).reshape(leaf.shape[0], -1)
        for start, stop, unit in segments:
            parts[unit].append(rows[:, start:stop])
    return [np.concatenate(part, axis=1) for part in parts]


def attribution_over_draws(
    key: PRNGKey,
    statistics: Statistics,
    truth: Values,
    mix: mixing.Mix,
    active: Values | None = None,
    *,
    draws: int,
) -> np.ndarray:
    """Attribution of passive ∇Sim under many draws of a mixing of one round, on the device.

    Args:
      key: of the draws.
      statistics: of the round's updates before mixing.
      truth: `[clients]`.
      mix: the distribution of origins. Build it once: each is compiled anew.
      active: `[clients]`; all by default.
      draws: how many.

    Returns:
      `[draws]`. Their mean estimates the expected attribution; divide their deviation by the
      root of `draws` for its standard error.
    """
    _validate.check_key(key)
    _validate.check_positive(draws, "draws", integer=True)
    _validate.check_statistics(statistics)
    _validate.check_callable(mix, "a mix such as mixing.full_round()")
    truth = _validate.host_array(truth, "truth", "iu")
    clients, units = statistics.squared_norms.shape
    present = np.ones(clients, bool) if active is None else active
    present = _validate.host_array(present, "active", "b")
    if np.shape(truth) != (clients,) or present.shape != (clients,):
        raise _validate.InputError(
            f"expected truth and active of shape [{clients}], one for each client; got "
            f"{np.shape(truth)} and {present.shape}."
        )
    _validate.check_active(present, clients)
    arrays = (jnp.asarray(truth.astype(np.int32)), jnp.asarray(present))
    if present.sum() < mixing.least_clients(mix, clients, units):
        _validate.check_mixable(arrays[1], clients)
    return np.asarray(_attribution_over_draws(key, statistics, *arrays, mix, draws))


@functools.partial(jax.jit, static_argnames=("mix", "draws"))
def _attribution_over_draws(
    key: PRNGKey,
    statistics: Statistics,
    truth: Array,
    active: Array,
    mix: mixing.Mix,
    draws: int,
) -> Array:
    def one(draw: Array) -> Array:
        origins = mix(jax.random.fold_in(key, draw), active, statistics.squared_norms.shape[-1])
        scores = sim.cosine(mix_statistics(origins, statistics))
        right = (jnp.argmax(scores, axis=-1) == truth) & active
        return jnp.sum(right) / jnp.sum(active)

    clients, units = statistics.squared_norms.shape
    batch = min(max(DRAW_ELEMENTS // (clients * units), 1), draws)
    return jax.lax.map(one, jnp.arange(draws), batch_size=batch)


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of one run's proportion (Wilson 1927, by SciPy).

    >>> [round(bound, 3) for bound in wilson(14, 20)]
    [0.481, 0.855]
    """
    _validate.check_fraction(confidence, "confidence", 1.0)
    counts = all(isinstance(value, (int, np.integer)) for value in (successes, trials))
    if not counts or not 0 < trials <= _validate.INT_MAX or not 0 <= successes <= trials:
        raise _validate.InputError(
            f"expected 0 <= successes <= trials and a trial; got {successes} of {trials}."
        )
    interval = scipy.stats.binomtest(successes, trials).proportion_ci(confidence, "wilson")
    return float(interval.low), float(interval.high)


def bootstrap(values: Values, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean over runs with the 95 % percentile bootstrap interval of Efron 1979.

    A NaN among the values makes all of it NaN.

    >>> bootstrap([0.5, 0.5, 0.5])
    Interval(mean=0.5, low=0.5, high=0.5, n=3)
    """
    _validate.check_positive(resamples, "resamples", integer=True)
    _validate.check_seed(seed)
    values = _validate.host_array(values, "values").astype(np.float64)
    if values.ndim != 1 or not values.size or np.isinf(values).any():
        raise _validate.InputError(
            f"expected one finite value for each run; got an array of shape {values.shape}."
        )
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (resamples, values.size)).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high), int(values.size))


def _aligned(
    guesses: Values,
    truth: Values,
    active: Values | None,
    names: tuple[str, str] = ("guesses", "truth"),
    kinds: tuple[str, str] = ("iu", "iu"),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    guesses = _validate.host_array(guesses, names[0], kinds[0], ndim=1)
    truth = _validate.host_array(truth, names[1], kinds[1], ndim=1)
    if active is None:
        active = np.ones(truth.shape[-1:], bool)
    active = _validate.host_array(active, "active", "b", ndim=1)
    if not truth.shape[-1]:
        raise _validate.InputError("expected at least one client to evaluate; got none.")
    try:
        aligned = np.broadcast_arrays(guesses, truth, active)
    except ValueError:
        raise _validate.InputError(
            f"expected {names[0]}, {names[1]} and active with matching shapes and clients or "
            f"records last; got {guesses.shape}, {truth.shape} and {active.shape}."
        ) from None
    return aligned[0], aligned[1], aligned[2]


def _share(right: np.ndarray, counted: np.ndarray) -> np.ndarray:
    total = np.sum(counted, axis=-1)
    hits = np.sum(np.where(counted, right, 0), axis=-1)
    return np.where(total > 0, hits / np.maximum(total, 1), np.nan)


def _mean_over_present(shares: list[np.ndarray]) -> np.ndarray:
    stacked = np.stack(shares)
    present = np.sum(~np.isnan(stacked), axis=0)
    return np.where(present > 0, np.nansum(stacked, axis=0) / np.maximum(present, 1), np.nan)
