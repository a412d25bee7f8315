"""How sure a mean over runs, or one run's proportion, is."""

from typing import NamedTuple

import numpy as np
import scipy.stats

from mixjax import _validate
from mixjax.evaluation._arrays import Values


class Interval(NamedTuple):
    """A mean over `n` runs with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


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


def student(
    values: Values, confidence: float = 0.95, *, within: tuple[float, float] | None = None
) -> Interval:
    """Mean over runs with Student's interval, which holds for few runs (Student 1908, by SciPy).

    Exact for normal values; a NaN among them makes all of it NaN, and so does a single run of its
    bounds. Equal values have an interval of no width: runs agree, which is no proof of the mean.

    >>> mean, low, high, n = student([0.4, 0.5, 0.6])
    >>> round(low, 3), round(high, 3)
    (0.252, 0.748)

    Args:
      values: one for each run.
      confidence: how often the interval covers the mean.
      within: the range that a mean can't leave, (0, 1) for shares. Ends beyond it are cut, at no
        cost of coverage.
    """
    _validate.check_fraction(confidence, "confidence", 1.0)
    values = of_runs(values)
    mean, n = float(values.mean()), int(values.size)
    if n < 2:
        return Interval(mean, float("nan"), float("nan"), n)
    error = values.std(ddof=1) / np.sqrt(n)
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, n - 1) * error)
    low, high = mean - half, mean + half
    if within is not None:
        # a mean of values at the edge may pass it by rounding
        low, high = min(max(low, within[0]), mean), max(min(high, within[1]), mean)
    return Interval(mean, low, high, n)


def of_runs(values: Values) -> np.ndarray:
    """One number for each run, as doubles; refuses none, and infinite ones."""
    values = _validate.host_array(values, "values").astype(np.float64)
    if values.ndim != 1 or not values.size or np.isinf(values).any():
        raise _validate.InputError(
            f"expected one finite value for each run; got an array of shape {values.shape}."
        )
    return values
