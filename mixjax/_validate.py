"""Every check of user input, and every error text.

Shapes, structures and key types are static, so they are checked while tracing. Values are
checked only where they are concrete; under `jit` the documented NaN policies apply instead.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class InputError(ValueError):
    """Input that mixjax can't work with: what came, what was expected, what to do."""


def concrete(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves with readable paths, such as `('conv1', 'kernel')`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(str(path_names(path)), leaf) for path, leaf in leaves]


def path_names(path: Sequence[Any]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)


def check_key(key: Any) -> None:
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.ndim:
            raise InputError(
                f"expected one key; got an array of keys of shape {key.shape}. "
                "Map over them with jax.vmap."
            )
        return
    came = f"{key!r}" if isinstance(key, int) else f"{type(key).__name__}"
    if hasattr(key, "dtype"):
        came = f"an array {key.dtype}{list(key.shape)}"
    raise InputError(f"expected a typed key; got {came}. Make one with jax.random.key(seed).")


def check_client_axis(
    tree: Any, what: str = "updates", axis: str = "clients", *, allow_empty: bool = False
) -> int:
    """The length of the leading axis that all leaves of `tree` share."""
    named = named_leaves(tree)
    if not named:
        raise InputError(f"expected {what} with at least one array; got an empty pytree.")
    check_arrays(tree, what)
    shapes = [(name, tuple(leaf.shape)) for name, leaf in named]
    lengths = {shape[0] if shape else None for _, shape in shapes}
    if None in lengths or len(lengths) > 1:
        first = shapes[0]
        other = next(
            (s for s in shapes if not s[1] or not first[1] or s[1][0] != first[1][0]), first
        )
        got = ", ".join(f"{name}: {shape}" for name, shape in dict([first, other]).items())
        raise InputError(
            f"expected one shared leading `{axis}` axis in {what}; got {got}. "
            "Stack one entry for each along axis 0 of every leaf."
        )
    (length,) = lengths
    assert length is not None
    if length == 0 and not allow_empty:
        raise InputError(
            f"expected at least one entry on the `{axis}` axis of {what}; got an empty cohort "
            f"({shapes[0][0]}: {shapes[0][1]})."
        )
    return length


def check_active(active: Any, clients: int) -> None:
    if getattr(active, "shape", None) != (clients,) or active.dtype != jnp.bool_:
        came = f"{active.dtype}{list(active.shape)}" if hasattr(active, "shape") else repr(active)
        raise InputError(f"expected `active` to be bool[{clients}], one per client; got {came}.")
    if concrete(active) and not np.any(np.asarray(active)):
        raise InputError(f"expected at least one active client; all {clients} are inactive.")


def check_mixable(active: Any, clients: int) -> None:
    """Refuse to mix a cohort of one: its update would be forwarded whole."""
    count = int(np.sum(np.asarray(active))) if concrete(active) else None
    if clients == 1 or count == 1:
        raise InputError(
            f"expected at least two active clients to mix; got 1 of {clients}. "
            "A single update can't be mixed: wait for more clients, or use defences.none()."
        )


def check_weights(weights: Any, clients: int) -> None:
    if getattr(weights, "shape", None) != (clients,):
        came = list(weights.shape) if hasattr(weights, "shape") else repr(weights)
        raise InputError(f"expected `weights` of shape [{clients}], one per client; got {came}.")
    if not concrete(weights):
        return
    values = np.asarray(weights, np.float64)
    bad = np.flatnonzero(~(values >= 0) | np.isinf(values))
    if bad.size:
        raise InputError(
            f"expected finite weights >= 0; got {values[bad[0]]} for client {bad[0]} "
            f"({bad.size} of {clients} are bad)."
        )
    if values.sum() == 0:
        raise InputError(
            f"expected weights with a positive sum; all {clients} are zero. "
            "Give every client equal weight, or leave clients without examples out."
        )


def check_same_model(tree: Any, other: Any, what: str, other_what: str) -> None:
    """Both have a leading axis; below it structure and shapes must agree."""
    structure, other_structure = jax.tree.structure(tree), jax.tree.structure(other)
    if structure != other_structure:
        raise InputError(
            f"expected {other_what} with the structure of {what}, {structure}; "
            f"got {other_structure}."
        )
    for (name, leaf), (_, partner) in zip(named_leaves(tree), named_leaves(other), strict=True):
        if leaf.shape[1:] != partner.shape[1:]:
            raise InputError(
                f"expected {other_what} shaped like {what} after the first axis; got {name}: "
                f"{tuple(partner.shape)} against {tuple(leaf.shape)}."
            )


def check_same_dtypes(tree: Any, other: Any, what: str, other_what: str) -> None:
    for (name, leaf), (_, partner) in zip(named_leaves(tree), named_leaves(other), strict=True):
        if leaf.dtype != partner.dtype:
            raise InputError(
                f"expected {other_what} with the dtypes of {what}; got {name}: {partner.dtype} "
                f"against {leaf.dtype}. Convert one of them."
            )


def check_finite(tree: Any, what: str) -> None:
    for name, leaf in named_leaves(tree):
        if not concrete(leaf) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        values = np.asarray(leaf)
        # a finite sum proves it without a mask the size of the data; an overflow takes the slow way
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(values.sum(dtype=np.float64)):
                continue
        bad = int(np.size(values) - np.isfinite(values).sum())
        if bad:
            raise InputError(
                f"expected finite numbers in {what}; got {bad} NaN or infinite values at {name}. "
                "Remove or repair those rows first."
            )


def check_attributes(values: Any, count: int, what: str = "attribute values") -> None:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise InputError(f"expected integer {what} in 0..{count - 1}; got dtype {array.dtype}.")
    outside = (array < 0) | (array >= count)
    if outside.any():
        index = tuple(int(i) for i in np.argwhere(outside)[0])
        raise InputError(
            f"expected {what} in 0..{count - 1}; got {array[outside][0]} at index {index}."
        )


def check_choice(value: Any, choices: Sequence[str], what: str) -> None:
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise InputError(f"expected {what} to be one of {listed}; got {value!r}.")


def check_positive(value: Any, what: str, *, integer: bool = False) -> None:
    if not concrete(value):
        return
    if integer and not (isinstance(value, (int, np.integer)) and not isinstance(value, bool)):
        raise InputError(f"expected {what} to be a whole number of at least 1; got {value!r}.")
    if not value > 0:
        least = "a whole number of at least 1" if integer else "greater than 0"
        raise InputError(f"expected {what} to be {least}; got {value!r}.")


def check_non_negative(value: Any, what: str) -> None:
    if concrete(value) and not value >= 0:
        raise InputError(f"expected {what} to be at least 0; got {value!r}.")


def check_real(value: Any, what: str) -> float:
    """A finite number of at least 0, on the host."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise InputError(f"expected {what} to be a finite number of at least 0; got {value!r}.")
    return number


def check_probability(value: Any, what: str) -> None:
    if not 0 < value < 1:
        raise InputError(f"expected {what} to be greater than 0 and less than 1; got {value!r}.")


def check_share(value: Any, what: str) -> None:
    if not 0 < value <= 1:
        raise InputError(f"expected {what} to be greater than 0 and at most 1; got {value!r}.")


def check_fraction(value: float, what: str, below: float) -> None:
    if not 0 <= value < below:
        raise InputError(f"expected {what} in [0, {below}); got {value!r}.")


def check_origins(origins: Any, clients: int, units: int) -> None:
    shape = getattr(origins, "shape", None)
    if shape != (clients, units) or not jnp.issubdtype(origins.dtype, jnp.integer):
        came = f"{origins.dtype}{list(shape)}" if shape is not None else repr(origins)
        raise InputError(
            f"expected integer origins of shape [{clients}, {units}], clients by units; "
            f"got {came}. Draw them with a mix for this cohort and partition."
        )


def check_mesh(mesh: jax.sharding.Mesh, clients: int) -> int:
    """The number of devices on the mesh's clients axis."""
    if "clients" not in mesh.axis_names:
        raise InputError(
            f"expected a mesh with an axis named 'clients'; got axes {mesh.axis_names}. "
            "Make one with sharding.clients_mesh()."
        )
    devices = mesh.shape["clients"]
    if clients % devices:
        raise InputError(
            f"expected a number of clients that the mesh's {devices} devices divide; got "
            f"{clients}. Pad the cohort with data.pad(data, {devices})."
        )
    return devices


def check_candidates(params: Any, updates: Any, examples: Any) -> int:
    """The number of slots of `updates`, for each of which `examples` holds candidate records."""
    clients = check_client_axis(updates)
    check_arrays(params, "params")
    stacked = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[None], params))
    check_same_model(stacked, updates, "params", "updates")
    slots = check_client_axis(examples, "the candidate records")
    if slots != clients:
        raise InputError(
            f"expected candidate records for each of {clients} updates; got them for {slots}."
        )
    records = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[0], examples))
    check_client_axis(records, "each slot's candidates", axis="records")
    return clients


def check_arrays(tree: Any, what: str) -> None:
    for name, leaf in named_leaves(tree):
        if not hasattr(leaf, "shape"):
            raise InputError(
                f"expected arrays in {what}; got {type(leaf).__name__} at {name}. "
                "Remove leaves that are not arrays (equinox: eqx.filter(model, eqx.is_array)), and "
                "wrap numbers in jnp.asarray."
            )


def check_partition(updates: Any, sizes: list[int]) -> None:
    """The leaves of `updates` must have the sizes that a partition covers."""
    named = named_leaves(updates)
    own = [int(np.prod(leaf.shape[1:])) for _, leaf in named]
    if own != sizes:
        name = next((n for (n, _), a, b in zip(named, own, sizes, strict=False) if a != b), "")
        raise InputError(
            f"expected updates of the model that was partitioned, leaves of {sizes} elements a "
            f"client; got {own}{f', which differ first at {name}' if name else ''}. Partition "
            "this model with units.partition."
        )


def check_window(window: Sequence[int], spatial: Sequence[int]) -> None:
    if len(window) != len(spatial) or any(width < 1 for width in window):
        raise InputError(
            f"expected a pooling window of {len(spatial)} positive sizes for spatial axes "
            f"{tuple(spatial)}; got {tuple(window)}."
        )


def check_krum(active: Any, clients: int, byzantine: int, select: int) -> None:
    for value, name in ((byzantine, "byzantine"), (select, "select")):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise InputError(f"expected a whole number for {name} in Krum; got {value!r}.")
    present = int(np.sum(np.asarray(active))) if concrete(active) else clients
    if byzantine < 0 or present < byzantine + 3:
        raise InputError(
            f"expected byzantine >= 0 and at least byzantine + 3 active clients for Krum; got "
            f"byzantine={byzantine} with {present} active clients."
        )
    if not 1 <= select <= present:
        raise InputError(f"expected select in 1..{present} for Krum; got {select}.")


def check_auxiliary(auxiliary: Any) -> None:
    check_cohort(auxiliary, "auxiliary data", axis="attributes")
    check_finite(auxiliary.examples, "auxiliary data")
    if concrete(auxiliary.counts):
        empty = np.flatnonzero(np.asarray(auxiliary.counts) == 0)
        if empty.size:
            raise InputError(
                f"expected auxiliary examples of every attribute value; value {empty[0]} has "
                "none. Add auxiliary people with this value."
            )


def check_cohort(data: Any, what: str = "the cohort", axis: str = "clients") -> int:
    """The number of clients of a `ClientData`."""
    if not hasattr(data, "examples") or not hasattr(data, "counts"):
        raise InputError(
            f"expected {what} as a data.ClientData; got {type(data).__name__}. "
            "Stack examples with data.stack."
        )
    clients = check_client_axis(data, what, axis)
    if not concrete(data.active) or not concrete(data.counts):
        return clients
    check_active(data.active, clients)
    counts = np.asarray(data.counts)
    if not named_leaves(data.examples):
        # streamed: the examples are made where they are used
        return clients
    name, first = named_leaves(data.examples)[0]
    if first.ndim < 2:
        raise InputError(
            f"expected examples of shape [{axis}, examples, ...] in {what}; got {name}: "
            f"{tuple(first.shape)}."
        )
    capacity = first.shape[1]
    outside = np.flatnonzero((counts < 0) | (counts > capacity))
    if outside.size:
        raise InputError(
            f"expected example counts in 0..{capacity}, the padded length, in {what}; got "
            f"{counts[outside[0]]} for {axis[:-1]} {outside[0]}."
        )
    return clients


def check_participants(data: Any) -> None:
    check_cohort(data)
    if concrete(data.active) and concrete(data.counts):
        present = np.asarray(data.active) & (np.asarray(data.counts) > 0)
        if not np.any(present):
            raise InputError("expected at least one active client with examples; got none.")
