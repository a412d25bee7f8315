"""What has a clients axis: updates, masks, weights, cohorts, origins, partitions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixjax._validate.runs import check_memory
from mixjax._validate.values import (
    INT_MAX,
    InputError,
    check_arrays,
    check_finite,
    check_key,
    check_positive,
    check_real,
    check_sequence,
    concrete,
    host_array,
    named_leaves,
    real,
)


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
    check_mask(active, clients)
    if concrete(active) and not np.any(np.asarray(active)):
        raise InputError(f"expected at least one active client; all {clients} are inactive.")


def check_mask(active: Any, clients: int | None = None) -> int:
    shape = getattr(active, "shape", None)
    fits = shape is not None and len(shape) == 1 and clients in (None, *shape)
    if not fits or active.dtype != jnp.bool_:
        came = f"{active.dtype}{list(shape)}" if shape is not None else repr(active)
        length = "clients" if clients is None else clients
        raise InputError(f"expected `active` to be bool[{length}], one per client; got {came}.")
    return shape[0]


def check_draw(key: Any, active: Any, units: Any, *, alone: bool = False) -> None:
    """The arguments of a mix."""
    check_key(key)
    clients = check_mask(active)
    check_positive(units, "units", integer=True)
    check_memory(4 * clients * units, f"an origin matrix of {clients} x {units}", "", None)
    if not alone:
        check_mixable(active, clients)


def check_mixable(active: Any, clients: int) -> None:
    """Refuse to mix a cohort of one: its update would be forwarded whole."""
    count = int(np.sum(np.asarray(active))) if concrete(active) else None
    if clients == 1 or count == 1:
        raise InputError(
            f"expected at least two active clients to mix; got 1 of {clients}. "
            "A single update can't be mixed: wait for more clients, or use defences.none()."
        )


def check_weights(weights: Any, clients: int) -> None:
    if getattr(weights, "shape", None) != (clients,) or not real(weights.dtype):
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


def check_arrivals(arrivals: Any, capacity: int) -> None:
    if not concrete(arrivals):
        return
    array = host_array(arrivals, "arrivals", "iu")
    if array.ndim or not 0 <= int(array) <= capacity:
        raise InputError(f"expected arrivals in 0..{capacity}, the capacity; got {arrivals!r}.")


def check_ids(ids: Any, clients: int) -> None:
    array = host_array(ids, "client ids", None)
    if array.shape != (clients,) or len(set(array.tolist())) != clients:
        raise InputError(f"expected {clients} distinct client ids; got {array.tolist()}.")
    if array.dtype.kind not in "iu" or array.max() > INT_MAX or array.min() < -INT_MAX - 1:
        raise InputError(
            f"expected client ids that are whole numbers of 32 bits; got {array.tolist()}. "
            "Number the clients, and keep longer names outside."
        )


def check_units(units: Any) -> None:
    if not getattr(units, "names", ()) or not hasattr(units, "labels"):
        raise InputError(
            f"expected a partition with at least one unit; got {units!r}. "
            "Make one with units.partition."
        )


def check_schedule(mask: Any) -> None:
    array = mask if hasattr(mask, "dtype") else host_array(mask, "a schedule", None)
    if array.dtype != jnp.bool_ or array.ndim not in (1, 2) or 0 in array.shape:
        raise InputError(
            "expected a schedule of bool[clients] or bool[rounds, clients]; got "
            f"{array.dtype}{list(array.shape)}."
        )


def check_per_client(values: Any, clients: int, what: str) -> None:
    if getattr(values, "shape", None) != (clients,):
        came = list(values.shape) if hasattr(values, "shape") else repr(values)
        raise InputError(
            f"expected one entry of {what} for each of {clients} clients; got {came}. "
            "Rows that data.pad adds count too."
        )


def check_durations(durations: Any) -> None:
    if not concrete(durations):
        return
    values = host_array(durations, "durations")
    if values.ndim != 1 or not np.all(values >= 0):
        raise InputError(
            "expected durations >= 0 of shape [clients], or a function that draws them; got "
            f"{values!r}."
        )


def check_origins(origins: Any, clients: int, units: int) -> None:
    shape = getattr(origins, "shape", None)
    if shape != (clients, units) or not jnp.issubdtype(origins.dtype, jnp.integer):
        came = f"{origins.dtype}{list(shape)}" if shape is not None else repr(origins)
        raise InputError(
            f"expected integer origins of shape [{clients}, {units}], clients by units; "
            f"got {came}. Draw them with a mix for this cohort and partition."
        )
    check_origin_rows(origins, clients)


def check_permutations(origins: Any, active: Any, units: int) -> None:
    """Origins as a mix must draw them."""
    check_origins(origins, active.shape[0], units)
    if not concrete(origins) or not concrete(active):
        return
    columns, rows = np.asarray(origins), np.arange(active.shape[0])[:, None]
    moved = np.where(np.asarray(active)[:, None], columns, rows)
    wrong = (np.sort(moved, axis=0) != rows).any(axis=0) | (moved != columns).any(axis=0)
    if wrong.any():
        unit = int(np.flatnonzero(wrong)[0])
        raise InputError(
            "expected a mix that permutes the active clients in each column and leaves the others "
            f"in their slots; unit {unit} got {columns[:10, unit].tolist()}"
            f"{'...' if len(columns) > 10 else ''}. Every unit of every active client must be "
            "forwarded exactly once."
        )


def check_origin_rows(origins: Any, clients: int) -> None:
    if not concrete(origins):
        return
    rows = np.asarray(origins)
    outside = np.argwhere((rows < 0) | (rows >= clients))
    if outside.size:
        index = tuple(int(i) for i in outside[0])
        raise InputError(
            f"expected origins in 0..{clients - 1}, the clients; got {rows[index]} at {index}."
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


def check_params(params: Any) -> None:
    if not named_leaves(params):
        raise InputError("expected a model with parameters; got an empty pytree.")
    check_arrays(params, "the model")
    check_real(params, "the model")


def check_partition(updates: Any, units: Any, what: str = "updates") -> None:
    """The leaves of `updates` must have the shapes that a partition covers, after an axis."""
    named = named_leaves(updates)
    own = [tuple(leaf.shape[1:]) for _, leaf in named]
    shapes = [labels.shape for labels in units.labels]
    if own != shapes:
        name = next((n for (n, _), a, b in zip(named, own, shapes, strict=False) if a != b), "")
        raise InputError(
            f"expected {what} of the model that was partitioned, leaves of shapes {shapes} a "
            f"client; got {own}{f', which differ first at {name}' if name else ''}. Partition "
            "this model with units.partition."
        )


def check_statistics(statistics: Any) -> None:
    shapes = [
        tuple(getattr(getattr(statistics, name, None), "shape", ()))
        for name in ("dots", "squared_norms", "direction_squared_norms")
    ]
    dots, squares, directions = shapes
    fits = len(dots) >= 2 and dots[:-1] == squares and directions == dots[-2:]
    if not fits:
        raise InputError(
            "expected observation.Statistics with dots [clients, units, attributes], squared_norms "
            "[clients, units] and direction_squared_norms [units, attributes]; got shapes "
            f"{shapes}."
        )
    for name in ("dots", "squared_norms", "direction_squared_norms"):
        dtype = getattr(statistics, name).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(f"expected statistics that are floats; got {dtype} in {name}.")


def check_window(window: Sequence[int], spatial: Sequence[int]) -> None:
    check_sequence(window, "a pooling window")
    if len(window) != len(spatial) or any(width < 1 for width in window):
        raise InputError(
            f"expected a pooling window of {len(spatial)} positive sizes for spatial axes "
            f"{tuple(spatial)}; got {tuple(window)}."
        )


def check_groups(groups: int, channels: int) -> None:
    whole = isinstance(groups, (int, np.integer)) and not isinstance(groups, bool)
    if not whole or groups < 1 or channels % groups:
        raise InputError(
            f"expected groups to be a whole number that divides the {channels} channels; "
            f"got {groups!r}."
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
    if not all(hasattr(data, name) for name in ("examples", "counts", "ids", "active")):
        raise InputError(
            f"expected {what} as a data.ClientData; got {type(data).__name__}. "
            "Stack examples with data.stack."
        )
    clients = check_client_axis(data, what, axis)
    check_mask(data.active, clients)
    for name in ("counts", "ids"):
        values = getattr(data, name)
        whole = hasattr(values, "dtype") and jnp.issubdtype(values.dtype, jnp.integer)
        if not whole or values.shape != (clients,):
            raise InputError(
                f"expected `{name}` of {what} to be int[{clients}], one for each; got "
                f"{getattr(values, 'dtype', type(values).__name__)}"
                f"{list(getattr(values, 'shape', []))}."
            )
    if not concrete(data.active) or not concrete(data.counts):
        return clients
    check_active(data.active, clients)
    counts = np.asarray(data.counts)
    if not named_leaves(data.examples):
        # streamed: the examples are made where they are used
        return clients
    lengths = {leaf.shape[1] if leaf.ndim > 1 else None for _, leaf in named_leaves(data.examples)}
    if None in lengths or len(lengths) > 1:
        shapes = {name: tuple(leaf.shape) for name, leaf in named_leaves(data.examples)}
        raise InputError(
            f"expected examples of shape [{axis}, examples, ...] in {what}; got {shapes}."
        )
    (capacity,) = lengths
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
