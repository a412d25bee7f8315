"""Flooding: dummy updates that wash one person's out of a proxy's lists.

Each arrival at a proxy with lists of k (`mixing.proxy`) pushes out, unit by unit, one of the k
entries at random. Who can send updates of its own fills the lists with them, lets one person's
update in, and sends more: what comes out and is not its own is that person's, however finely the
update is cut. Nothing in the proxy tells dummies from people; only a price on taking part does.
Source: active attacks on mixes (Serjantov, Dingledine and Syverson 2002); for MixNN's lists it is
our reading.
"""

import math

from mixjax import _validate


def isolated(list_size: int, units: int, dummies: int) -> float:
    """The probability that all units of one update have left the lists after so many dummies.

    (1 - (1 - 1/k)^n)^U: units leave independently, each with probability 1/k at an arrival.

    >>> round(isolated(5, 4, 10), 3)
    0.635

    Args:
      list_size: entries in each list, k.
      units: of the update, U.
      dummies: that arrive after it, n; 0 is allowed.

    Raises:
      InputError: for a number out of range.
    """
    _check(list_size, units)
    if dummies != 0:
        _validate.check_positive(dummies, "dummies", integer=True)
    return (1 - (1 - 1 / list_size) ** dummies) ** units


def expected_dummies(list_size: int, units: int) -> float:
    """How many dummies arrive, in the mean, until all units of one update have left the lists.

    The maximum of U geometric numbers, sum_n 1 - (1 - (1 - 1/k)^n)^U; about
    H_U / -ln(1 - 1/k) + 1/2, H_U the harmonic number, so about k H_U.

    >>> round(expected_dummies(5, 4), 2)
    9.84

    Args:
      list_size: entries in each list, k.
      units: of the update, U.

    Raises:
      InputError: for a number out of range.
    """
    _check(list_size, units)
    if list_size == 1:
        return 1.0
    total, number = 0.0, 0
    while (left := 1 - isolated(list_size, units, number)) > 1e-12:
        total, number = total + left, number + 1
    return total


def dummies(list_size: int, units: int, probability: float = 0.99) -> int:
    """The fewest dummies after which all units of one update have left with this probability.

    They come on top of the k that fill the lists before it.

    >>> dummies(5, 4)
    27

    Args:
      list_size: entries in each list, k.
      units: of the update, U.
      probability: in [0, 1).

    Raises:
      InputError: for a number out of range.
    """
    _check(list_size, units)
    _validate.check_fraction(probability, "probability", 1.0)
    if list_size == 1:
        return 1
    stay = -math.expm1(math.log(probability) / units) if probability else 1.0
    return max(1, math.ceil(math.log(stay) / math.log1p(-1 / list_size) - 1e-12))


def _check(list_size: int, units: int) -> None:
    _validate.check_positive(list_size, "list_size", integer=True)
    _validate.check_positive(units, "units", integer=True)
