"""Which updates lie near each other, and whether a client's stand out from round to round."""

import itertools
from collections.abc import Iterator

import jax
import numpy as np
import scipy.spatial

from mixjax import _axes, _validate
from mixjax import units as units_lib
from mixjax.evaluation._arrays import Values
from mixjax.types import Updates


def unit_distances(updates: Updates, others: Updates, units: units_lib.Units) -> np.ndarray:
    """Euclidean distances between the units of two stacks of updates.

    Args:
      updates: one stack.
      others: another of the same model.
      units: the partition.

    Returns:
      `[clients, clients, units]`: from each row of `updates` to each of `others`; 0 in a unit
      without elements.

    Raises:
      InputError: for stacks of different models, or of another model than was partitioned.
    """
    return np.stack(list(_distances(updates, others, units)), axis=-1)


def neighbours(updates: Updates, units: units_lib.Units, radii: Values) -> np.ndarray:
    """For each client and unit, how many *other* updates lie within each radius.

    Args:
      updates: one round's updates.
      units: the partition.
      radii: `[radii]`, as multiples of the root mean square norm of the unit over clients.

    Returns:
      `[clients, units, radii]`.

    Raises:
      InputError: for radii that are no numbers, or updates of another model.
    """
    radii = _validate.host_array(radii, "radii", ndim=1).ravel()
    _axes.check_client_axis(updates)
    squares = [np.sum(rows**2, axis=1) for rows in _unit_rows(updates, units)]
    scales = np.sqrt(np.mean(squares, axis=1))
    counts = [
        np.sum(distances[..., None] <= scale * radii, axis=1) - 1
        for distances, scale in zip(_distances(updates, updates, units), scales, strict=True)
    ]
    return np.stack(counts, axis=1)


def relink_rank(previous: Updates, current: Updates, units: units_lib.Units) -> np.ndarray:
    """Rank of a client's own previous update among all, by distance to its current one.

    Args:
      previous: the updates of one round.
      current: those of the same clients in another.
      units: the partition.

    Returns:
      `[clients, units]`; 1 means that the nearest one is its own: the unit can be relinked.

    Raises:
      InputError: for different clients or models.
    """
    counts = [_axes.check_client_axis(stack) for stack in (previous, current)]
    if counts[0] != counts[1]:
        raise _validate.InputError(
            f"expected the same clients in both rounds; got {counts[0]} and {counts[1]}."
        )
    ranks = [
        1 + np.sum(distances < np.diagonal(distances)[:, None], axis=1)
        for distances in _distances(current, previous, units)
    ]
    return np.stack(ranks, axis=1)


def _distances(updates: Updates, others: Updates, units: units_lib.Units) -> Iterator[np.ndarray]:
    """`[clients, clients]` of one unit after the other."""
    _axes.check_client_axis(updates)
    _axes.check_client_axis(others)
    _axes.check_same_model(updates, others, "updates", "others")
    pairs = zip(_unit_rows(updates, units), _unit_rows(others, units), strict=True)
    return (scipy.spatial.distance.cdist(*pair) for pair in pairs)


def _unit_rows(updates: Updates, units: units_lib.Units) -> list[np.ndarray]:
    """`[clients, elements]` of each unit."""
    _axes.check_units(units)
    _validate.check_real(updates)
    _axes.check_partition(updates, units)
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(updates)]
    rows = np.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)
    owners = np.concatenate([labels.flat() for labels in units.labels])
    order = np.argsort(owners, kind="stable")
    edges = np.searchsorted(owners[order], np.arange(len(units.names) + 1))
    # a copy by unit: columns of one unit lie side by side
    columns = np.take(rows.T, order, axis=0)
    return [columns[start:stop].T for start, stop in itertools.pairwise(edges)]
