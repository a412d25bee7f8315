"""Whether runs that were paired seed by seed differ, or are the same."""

from typing import NamedTuple

import numpy as np
import scipy.stats

from mixjax import _validate
from mixjax.evaluation._arrays import Values
from mixjax.evaluation.intervals import of_runs


class Verdict(NamedTuple):
    """What paired runs say of a claim.

    Attributes:
      p_value: how likely runs as much in the claim's favour were, at most, if it didn't hold.
      holds: True where the claim is shown, False where its contrary is, None where neither is.
        Few or noisy runs show nothing: a wide interval never helps a claim.
      n: the number of runs.
    """

    p_value: float
    holds: bool | None
    n: int


def superiority(differences: Values, *, negligible: float = 0.0, level: float = 0.05) -> Verdict:
    """Is the mean difference greater than zero? A paired one-sided t test (Student 1908).

    The contrary, that it is less than `negligible`, is tested likewise; of both the claim counts.

    >>> superiority([0.20, 0.25, 0.21, 0.24]).holds
    True
    >>> superiority([0.20, -0.25, 0.21, -0.24]).holds is None
    True

    Args:
      differences: one for each run, such as accuracy without a defence less accuracy behind it.
      negligible: a difference below which nothing is gained, at least 0.
      level: how often each of both tests may err.

    Returns:
      A verdict that holds for no single run and no NaN: their p-value is NaN. Differences that are
      equal up to rounding are judged by the sign test, 2^-n, since they have no variance.
    """
    _validate.check_fraction(level, "level", 1.0)
    _validate.check_non_negative(negligible, "negligible")
    values = of_runs(differences)
    p_value = _p_greater(values, 0.0)
    refuted = _p_greater(-values, -negligible) < level
    return Verdict(p_value, True if p_value < level else False if refuted else None, values.size)


def equivalence(differences: Values, margin: float, *, level: float = 0.05) -> Verdict:
    """Is the mean difference within the margin? Two one-sided t tests (Schuirmann 1987).

    The contrary, that it is outside, is shown by either end at half of the level.

    >>> equivalence([0.001, -0.002, 0.001, 0.0], margin=0.01).holds
    True
    >>> equivalence([0.1, -0.2, 0.1, 0.0], margin=0.01).holds is None
    True

    Args:
      differences: one for each run.
      margin: how large a difference counts as none, fixed before looking.
      level: how often a claim of equivalence may err.

    Returns:
      A verdict; single runs, NaN and equal differences as for `superiority`.
    """
    _validate.check_fraction(level, "level", 1.0)
    _validate.check_positive(margin, "margin")
    values = of_runs(differences)
    p_value = float(np.maximum(_p_greater(values, -margin), _p_greater(-values, -margin)))
    outside = min(_p_greater(values, margin), _p_greater(-values, margin)) < level / 2
    return Verdict(p_value, True if p_value < level else False if outside else None, values.size)


def _p_greater(values: np.ndarray, bound: float) -> float:
    """Of the test that the mean is greater than a bound."""
    if values.size < 2 or np.isnan(values).any():
        return float("nan")
    rounding = 8 * np.finfo(np.float64).eps * np.abs(values).max()
    if np.ptp(values) <= rounding:
        return 0.5**values.size if values[0] > bound + rounding else 1.0
    return float(scipy.stats.ttest_1samp(values, bound, alternative="greater").pvalue)
