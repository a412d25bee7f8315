"""How much of what mixing took apart an attack has joined again."""

from collections.abc import Mapping

import numpy as np

from mixjax import _validate
from mixjax.evaluation._arrays import Values, share


def owners(slots: Values, origins: Values) -> np.ndarray:
    """Whose unit each assembly has: `origins[slots[assembly, unit], unit]`.

    Args:
      slots: `[..., clients, units]`, of an `attacks.unmix.Assembly`, with any leading axes.
      origins: of the same rounds, the same shape.

    Raises:
      InputError: for other shapes.
    """
    slots = _validate.host_array(slots, "slots", None)
    origins = _validate.host_array(origins, "origins", None)
    if slots.shape != origins.shape or slots.ndim < 2:
        raise _validate.InputError(
            "expected slots and origins [..., clients, units] of the same rounds; got "
            f"{list(slots.shape)} and {list(origins.shape)}."
        )
    return np.take_along_axis(origins, slots, axis=-2)


def exact_assemblies(slots: Values, origins: Values, active: Values | None = None) -> np.ndarray:
    """The share of assemblies whose units are all of one client.

    By chance it is `clients ** (1 - units)`, of the active clients.

    Args:
      slots: `[..., clients, units]`; see `owners`.
      origins: of the same rounds.
      active: `[..., clients]`, whose rows were forwarded; all by default.

    Returns:
      `[...]`; NaN where nobody is active.
    """
    own = owners(slots, origins)
    return _mean_of_active((own == own[..., :1]).all(axis=-1), active)


def joined_share(
    slots: Values,
    origins: Values,
    parameters: Mapping[str, int],
    active: Values | None = None,
) -> np.ndarray:
    """The share of parameters that belong to the owner of their assembly's largest part.

    The owner of an assembly is the client with most parameters in it. By chance it is little more
    than the share of the largest unit.

    Args:
      slots: `[..., clients, units]`; see `owners`.
      origins: of the same rounds.
      parameters: the size of each unit; see `units.parameter_counts`.
      active: `[..., clients]`, whose rows were forwarded; all by default.

    Returns:
      `[...]`; NaN where nobody is active.

    Raises:
      InputError: for sizes of another number of units.
    """
    own = owners(slots, origins)
    sizes = np.array(list(parameters.values()), float)
    if sizes.shape != own.shape[-1:]:
        raise _validate.InputError(
            f"expected the sizes of {own.shape[-1]} units; got {len(sizes)}."
        )
    # [..., units]: the parameters of the assembly that are of the same client as this unit
    same = sum((own == own[..., unit : unit + 1]) * sizes[unit] for unit in range(len(sizes)))
    return _mean_of_active(np.asarray(same).max(axis=-1) / sizes.sum(), active)


def _mean_of_active(values: np.ndarray, active: Values | None) -> np.ndarray:
    if active is None:
        return share(values, np.ones(values.shape, bool))
    active = _validate.host_array(active, "active", None).astype(bool)
    if active.shape != values.shape:
        raise _validate.InputError(
            f"expected active {list(values.shape)}; got {list(active.shape)}."
        )
    return share(values, active)
