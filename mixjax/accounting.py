"""Differential privacy of the noisy baseline, and what shuffling adds to it: floats on the host.

Mixing alone has no differential-privacy meaning: it moves values and hides none of them. The
numbers here come from noise that each client adds to its *whole* update. A guarantee of one unit
says nothing about the others, and units that are mixed apart are as many messages of one person:
their joint guarantee is that of the whole noisy update (`joint_noise_multiplier`), whatever a
proxy does with them. Mixing takes nothing from it, and adds nothing that is counted here.

Every guarantee is of one client's update as a whole, hence of all its examples together. It does
not cover who takes part, nor weights that depend on the data, such as example counts.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from mixjax import _validate

RELATIONS = ("replace", "zero_out")

# Brent's method stops within this relative distance of the root, and results are moved by twice
# as much to the safe side
TOLERANCE = 1e-12

# probability of the counts that `shuffled_delta` leaves out, and adds to its result
TAIL = 1e-40


def noise_multiplier(sigma: float, clip_norm: float, *, relation: str = "replace") -> float:
    """Standard deviation of the noise over the sensitivity of one client's clipped update.

    What is compared decides the sensitivity. Two updates of norm at most S may point in opposite
    directions, so they differ by up to 2 S; an update and zero differ by up to S.

    >>> noise_multiplier(1.0, 0.5), noise_multiplier(1.0, 0.5, relation="zero_out")
    (1.0, 2.0)

    Args:
      sigma: of `defences.noisy_gradient`.
      clip_norm: its bound S on the norm of a client's update.
      relation: "replace" compares a client's data with any other data: sigma / (2 S). It is
        the relation of local differential privacy, for a server that sees each client's own
        update, and the one that shuffling bounds need. "zero_out" compares with a client that
        sends noise only: sigma / S, so the same noise has a smaller epsilon.

    Returns:
      The noise multiplier of one round for the functions below.
    """
    sigma = _check_number(sigma, "sigma")
    _validate.check_positive(_check_number(clip_norm, "clip norm"), "clip norm")
    _validate.check_choice(relation, RELATIONS, "relation")
    return sigma / (2 * clip_norm if relation == "replace" else clip_norm)


def joint_noise_multiplier(multipliers: Sequence[float]) -> float:
    """Noise multiplier of all units of a client together: (sum_u z_u^-2)^(-1/2).

    For units that are clipped and noised one by one; where the whole update is, as
    `defences.noisy_gradient` does, `noise_multiplier` is of the whole already. Units of norms S_u
    with one sigma make what a whole update of norm sqrt(sum_u S_u^2) does.

    What `gaussian_epsilon` makes of it holds for a server that gets all units, mixed in any way:
    mixing is drawn apart from the data, hence post-processing. `shuffled_epsilon` can't lower it:
    it needs a finite epsilon of the whole update, which Gaussian noise does not have.

    >>> layer = noise_multiplier(1.0, 0.5)
    >>> joint_noise_multiplier([layer] * 4)
    0.5

    Guarantees: exact for independent noise, up to rounding; 0 if a unit has no noise.
    Source: Dong, Roth and Su 2019, arXiv:1905.02383, Section 3: Gaussian mechanisms compose to one.

    Args:
      multipliers: `noise_multiplier` of each unit, by its own sigma and clip norm.

    Raises:
      InputError: for no unit, or a multiplier that is no finite number of at least 0.
    """
    _validate.check_sequence(multipliers, "multipliers")
    _validate.check_some(list(multipliers), "noise multiplier of a unit")
    return 1 / math.hypot(*(_shift(multiplier, 1) for multiplier in multipliers))


def gaussian_delta(noise_multiplier: float, rounds: int, epsilon: float) -> float:
    """The smallest delta of so many rounds of the Gaussian mechanism at `epsilon`.

    With m = sqrt(rounds) / noise_multiplier it is Phi(m/2 - epsilon/m) - e^epsilon
    Phi(-m/2 - epsilon/m). Rounds may depend on what the earlier ones gave.

    Guarantees: exact for this mechanism, not a bound, up to a relative rounding error of about
    1e-15 max(1, 1/m); 1 without noise.
    Source: Balle and Wang 2018, arXiv:1805.06530, Theorem 8; adaptive rounds at multiplier z
    compose to one at z / sqrt(rounds): Dong, Roth and Su 2019, arXiv:1905.02383, Section 3.

    Args:
      noise_multiplier: of each round; see `noise_multiplier`.
      rounds: in which the client takes part.
      epsilon: at least 0.
    """
    shift = _shift(noise_multiplier, rounds)
    epsilon = _check_number(epsilon, "epsilon")
    return math.exp(_log_delta(shift, epsilon)) if math.isfinite(shift) else 1.0


def gaussian_epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """The smallest epsilon of so many rounds of the Gaussian mechanism at `delta`.

    Guarantees: a relative 1e-12 or so above the exact value, plus the rounding of
    `gaussian_delta`; infinite without noise.
    Source: as `gaussian_delta`.

    >>> round(gaussian_epsilon(noise_multiplier(2.0, 0.5), rounds=20, delta=1e-5), 2)
    11.48

    Args:
      noise_multiplier: of each round; see `noise_multiplier`.
      rounds: in which the client takes part.
      delta: between 0 and 1, well below one over the number of clients.
    """
    shift = _shift(noise_multiplier, rounds)
    _check_probability(delta, "delta")
    if not math.isfinite(shift):
        return math.inf
    log_delta = math.log(delta)
    if _log_delta(shift, 0.0) <= log_delta:
        return 0.0
    # the first term of delta alone is below delta here
    high = shift * (shift / 2 - float(special.ndtri(delta)))
    root = _root(lambda epsilon: _log_delta(shift, epsilon) - log_delta, 0.0, high)
    return root * (1 + 2 * TOLERANCE)


def gaussian_noise_multiplier(epsilon: float, delta: float, rounds: int) -> float:
    """The smallest noise multiplier of each round at which all of them are (epsilon, delta)-DP.

    For a standard deviation, multiply by the sensitivity: 2 clip_norm under the "replace"
    relation of `noise_multiplier`, clip_norm under "zero_out".

    Guarantees: as `gaussian_epsilon`.
    Source: as `gaussian_delta`.

    Args:
      epsilon: of all rounds together, at least 0.
      delta: between 0 and 1.
      rounds: in which the client takes part.
    """
    epsilon = _check_number(epsilon, "epsilon")
    _check_probability(delta, "delta")
    _validate.check_positive(rounds, "rounds", integer=True)
    log_delta = math.log(delta)
    # two shifts known to be private enough: by the first term of delta, and by delta at epsilon 0
    quantile = -float(special.ndtri(delta))
    reach = math.hypot(quantile, math.sqrt(2 * epsilon))
    by_term = 2 * epsilon / (quantile + reach) if quantile > 0 else reach - quantile
    low = 0.99 * max(by_term, 2 * math.sqrt(2) * float(special.erfinv(delta)))
    high = 2 * low
    while _log_delta(high, epsilon) <= log_delta:
        high *= 2
    shift = _root(lambda shift: log_delta - _log_delta(shift, epsilon), low, high)
    return math.sqrt(rounds) / shift * (1 + 2 * TOLERANCE)


def shuffled_delta(epsilon0: float, clients: int, epsilon: float, *, messages: int) -> float:
    """A bound on delta at `epsilon` of one round of shuffled reports, each epsilon0-LDP.

    It is of one message a client, and refuses layers that are mixed apart: they are many.

    With A ~ Bin(C, 1/2) and C ~ Bin(clients - 1, e^-epsilon0), it is the hockey-stick divergence
    between the law that is (A + 1, C - A) with probability p = e^epsilon0 / (1 + e^epsilon0) and
    (A, C - A + 1) otherwise, and its mirror image, which has 1 - p for p.

    It compares two data sets of one client, as seen by a server that gets all reports in
    uniformly random order. It needs

    * pure local differential privacy of the *whole* update, which is then one message: U units
      with epsilon_u each make epsilon0 = U epsilon_u. `mixing.full_round()` and `mixing.proxy()`
      have the law of a shuffle of whole updates followed by more permutations, so it holds for
      them as for `mixing.shuffle()`, and shows no more.
    * noise: without it there is nothing to amplify, and Gaussian noise has no finite epsilon0;
      see `joint_noise_multiplier`.
    * clients that all perturb and weight their updates in the same way.

    Guarantees: an upper bound, up to rounding; zero from epsilon0 on.
    Source: Feldman, McMillan and Talwar 2020, arXiv:2012.12803, Section 3, evaluated
    numerically; its closed form holds only for epsilon0 <= ln(clients / (16 ln(4 / delta))).

    Args:
      epsilon0: of each client's whole report, with delta 0, against replacing its data.
      clients: active clients of the round.
      epsilon: at least 0.
      messages: how many messages of a client, each epsilon0-LDP, are shuffled apart. It has to be
        said, and to be 1.

    Raises:
      InputError: for more messages than one, or other numbers out of range.
    """
    _check_messages(messages)
    epsilon0 = _check_number(epsilon0, "epsilon0")
    epsilon = _check_number(epsilon, "epsilon")
    _validate.check_positive(clients, "clients", integer=True)
    if epsilon >= epsilon0:
        return 0.0
    blanket = (clients - 1, math.exp(-epsilon0))
    # the upper quantile from that of the complement: `isf` gives up at tails this thin
    fewest = float(stats.binom.ppf(TAIL, *blanket))
    missing = float(stats.binom.ppf(TAIL, clients - 1, -math.expm1(-epsilon0)))
    counts = np.arange(fewest, clients - missing)
    # Of C + 1 reports, the ratio of the two laws grows with the first entry, and passes
    # e^epsilon at this share of them: the divergence given C is the excess beyond it.
    share = math.expm1(-epsilon - epsilon0) / math.expm1(-epsilon0) / (1 + math.exp(-epsilon))
    # The last entry is beyond it also where the share rounds to 1.
    first = np.minimum(np.floor((counts + 1) * share), counts)
    own = -math.expm1(epsilon - epsilon0) / (1 + math.exp(-epsilon0))
    log_beyond = stats.binom.logsf(first, counts, 0.5)
    excess = own * stats.binom.pmf(first, counts, 0.5)
    excess -= np.exp(epsilon + log_beyond) - np.exp(log_beyond)
    inside = np.sum(stats.binom.pmf(counts, *blanket) * np.maximum(excess, 0))
    return min(float(inside) + 2 * TAIL, 1.0)


def shuffled_epsilon(epsilon0: float, clients: int, delta: float, *, messages: int) -> float:
    """A bound on epsilon at `delta` of one round of shuffled reports, each epsilon0-LDP.

    >>> round(shuffled_epsilon(1.0, clients=1000, delta=1e-6, messages=1), 3)
    0.182

    Args:
      epsilon0: of each client's *whole* report; see `shuffled_delta`, also for what it means.
      clients: active clients of the round.
      delta: between 0 and 1.
      messages: 1; see `shuffled_delta`.

    Returns:
      The least epsilon of this bound, at most `epsilon0`. For few clients it is `epsilon0`
      itself or little less.
    """
    _check_probability(delta, "delta")
    if shuffled_delta(epsilon0, clients, 0.0, messages=messages) <= delta:
        return 0.0
    root = _root(
        lambda e: shuffled_delta(epsilon0, clients, e, messages=messages) - delta, 0.0, epsilon0
    )
    return min(root * (1 + 2 * TOLERANCE), epsilon0)


def _shift(noise_multiplier: float, rounds: int) -> float:
    """Distance of the two Gaussians' means over their deviation, after all rounds."""
    noise_multiplier = _check_number(noise_multiplier, "noise_multiplier")
    _validate.check_positive(rounds, "rounds", integer=True)
    return math.sqrt(rounds) / noise_multiplier if noise_multiplier else math.inf


def _log_delta(shift: float, epsilon: float) -> float:
    low, high = epsilon / shift - shift / 2, epsilon / shift + shift / 2
    # e^epsilon times the density at `high` is that at `low`: with both tails relative to it
    # neither the factor overflows nor the difference of tiny numbers underflows
    far = special.erfcx(high / math.sqrt(2))
    if low <= 0:
        return math.log(special.ndtr(-low) - math.exp(-(low**2) / 2) * far / 2)
    difference = (special.erfcx(low / math.sqrt(2)) - far) / 2
    return math.log(difference) - low**2 / 2 if difference > 0 else -math.inf


def _root(decreasing: Callable[[float], float], low: float, high: float) -> float:
    root: Any = optimize.brentq(decreasing, low, high, xtol=1e-300, rtol=TOLERANCE, maxiter=500)
    return float(root)


def _check_number(value: Any, what: str) -> float:
    """A finite number of at least 0, on the host."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise _validate.InputError(
            f"expected {what} to be a finite number of at least 0; got {value!r}."
        )
    return number


def _check_messages(messages: Any) -> None:
    _validate.check_positive(messages, "messages", integer=True)
    if messages > 1:
        raise _validate.InputError(
            f"expected reports of one message a client; got {messages} messages, such as layers "
            "that are mixed apart. They are one person's and tell of each other: shuffling does "
            "not amplify the privacy of one alone. Give the epsilon of the whole update as "
            f"epsilon0, {messages} times that of one message, with messages=1; for Gaussian noise "
            "use gaussian_epsilon with joint_noise_multiplier."
        )


def _check_probability(value: Any, what: str) -> None:
    _validate._check_number(
        value, f"{what} to be greater than 0 and less than 1", lambda p: 0 < p < 1
    )
