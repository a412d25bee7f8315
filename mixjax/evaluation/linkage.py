"""Which updates lie near each other, and whether a client's stand out from round to round."""

import jax
import numpy as np
import scipy.spatial

from mixjax import _validate
from mixjax import units as units_lib
from mixjax.evaluation._arrays import Values
from mixjax.types import Updates


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
