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


def bootstrap(values: Values, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean over runs with the 95 % percentile bootstrap interval of Efron 1979.

    A NaN among the values makes all of it NaN.

    >>> bootstrap([0.5, 0.5, 0.5])
    Interval(mean=0.5, low=0.5, high=0.5, n=3)
    """
    _validate.check_positive(resamples, "resamples", integer=True)
    _validate.check_seed(seed)
    values = _of_runs(values)
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (resamples, values.size)).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high), int(values.size))


def student(values: Values, confidence: float = 0.95) -> Interval:
    """Mean over runs with Student's interval, which holds for few runs (Student 1908, by SciPy).

    Exact for normal values; a NaN among them makes all of it NaN, and so does a single run of its
    bounds.

    >>> mean, low, high, n = student([0.4, 0.5, 0.6])
    >>> round(low, 3), round(high, 3)
    (0.252, 0.748)
    """
    _validate.check_fraction(confidence, "confidence", 1.0)
    values = _of_runs(values)
    mean, n = float(values.mean()), int(values.size)
    if n < 2:
        return Interval(mean, float("nan"), float("nan"), n)
    error = values.std(ddof=1) / np.sqrt(n)
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, n - 1) * error)
    return Interval(mean, mean - half, mean + half, n)


def _of_runs(values: Values) -> np.ndarray:
    values = _validate.host_array(values, "values").astype(np.float64)
    if values.ndim != 1 or not values.size or np.isinf(values).any():
        raise _validate.InputError(
            f"expected one finite value for each run; got an array of shape {values.shape}."
        )
    return values
