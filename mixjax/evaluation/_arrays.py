"""Arrays of guesses and truths, brought to one shape and averaged."""

from typing import Any

import numpy as np

from mixjax import _validate

Values = Any
"""Array-likes of leading axes such as seeds and rounds; guesses and truths end in clients."""


def aligned(
    guesses: Values,
    truth: Values,
    active: Values | None,
    names: tuple[str, str] = ("guesses", "truth"),
    kinds: tuple[str, str] = ("iu", "iu"),
    ends: str = "clients or records",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    guesses = _validate.host_array(guesses, names[0], kinds[0], ndim=1)
    truth = _validate.host_array(truth, names[1], kinds[1], ndim=1)
    if active is None:
        active = np.ones(truth.shape[-1:], bool)
    active = _validate.host_array(active, "active", "b", ndim=1)
    if not truth.shape[-1]:
        raise _validate.InputError("expected at least one client to evaluate; got none.")
    try:
        arrays = np.broadcast_arrays(guesses, truth, active)
    except ValueError:
        raise _validate.InputError(
            f"expected {names[0]}, {names[1]} and active with matching shapes and {ends} last; "
            f"got {guesses.shape}, {truth.shape} and {active.shape}."
        ) from None
    return arrays[0], arrays[1], arrays[2]


def share(right: np.ndarray, counted: np.ndarray) -> np.ndarray:
    total = np.sum(counted, axis=-1)
    hits = np.sum(np.where(counted, right, 0), axis=-1)
    return np.where(total > 0, hits / np.maximum(total, 1), np.nan)


def mean_over_present(shares: list[np.ndarray]) -> np.ndarray:
    stacked = np.stack(shares)
    present = np.sum(~np.isnan(stacked), axis=0)
    return np.where(present > 0, np.nansum(stacked, axis=0) / np.maximum(present, 1), np.nan)
