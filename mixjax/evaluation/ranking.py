"""How well scores rank what an attack looks for above the rest."""

from collections.abc import Callable

import numpy as np
import scipy.stats

from mixjax import _validate
from mixjax.evaluation._arrays import Values, aligned, mean_over_present


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
    _, truth, active = aligned(np.zeros(scores.shape[:-1], int), truth, active)
    areas = [_areas(scores[..., value], truth == value, active) for value in range(values)]
    return mean_over_present(areas)


def membership_auc(scores: Values, members: Values, active: Values | None = None) -> np.ndarray:
    """Probability that a member scores higher than a non-member: area under the ROC curve.

    Args:
      scores: `[..., records]`; pool slots by reshaping them into one axis.
      members: `[..., records]`, true for records that were used.
      active: `[..., records]`, false for padding; all by default.

    Returns:
      `[...]`; 0.5 is chance, ties count half. NaN without members or others, or for NaN scores.
    """
    scores, members, active = _aligned(scores, members, active)
    return _areas(scores, members, active)


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


def _areas(scores: np.ndarray, members: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Areas under the ROC curves of all runs at once, from the members' ranks."""
    own, others = (np.sum(active & which, axis=-1) for which in (members, ~members))
    # what is inactive ranks last: ranks, unlike scores, are never infinite, and can't tie with it
    ranks = scipy.stats.rankdata(np.where(active, scores, 0), axis=-1)
    ranks = scipy.stats.rankdata(np.where(active, ranks, np.inf), axis=-1)
    wins = np.sum(np.where(active & members, ranks, 0), axis=-1) - own * (own + 1) / 2
    defined = (own > 0) & (others > 0) & ~np.any(active & np.isnan(scores), axis=-1)
    return np.where(defined, wins / np.maximum(own * others, 1), np.nan)


def _members_against_others(
    metric: Callable[[np.ndarray, np.ndarray], float],
    scores: Values,
    members: Values,
    active: Values | None,
) -> np.ndarray:
    scores, members, active = _aligned(scores, members, active)
    result = np.full(scores.shape[:-1], np.nan)
    for run in np.ndindex(result.shape):
        values, used = scores[run][active[run]], members[run][active[run]]
        if used.any() and not used.all() and not np.isnan(values).any():
            result[run] = metric(values[used], values[~used])
    return result


def _aligned(
    scores: Values, members: Values, active: Values | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, members, active = aligned(
        scores, members, active, ("scores", "members"), ("iuf", "biu")
    )
    return scores.astype(np.float64), members.astype(bool), active
