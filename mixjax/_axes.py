"""Checks of what has a leading axis: updates, masks, cohorts, origins, partitions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import _validate


def check_client_axis(
    tree: Any, what: str = "updates", axis: str = "clients", *, allow_empty: bool = False
) -> int:
    """The length of the leading axis that all leaves of `tree` share."""
    named = _validate.named_leaves(tree)
    if not named:
        raise _validate.InputError(f"expected {what} with at least one array; got an empty pytree.")
    _validate.check_arrays(tree, what)
    shapes = [(name, tuple(leaf.shape)) for name, leaf in named]
    lengths = {shape[0] if shape else None for _, shape in shapes}
    if None in lengths or len(lengths) > 1:
        first = shapes[0]
        other = next(
            (s for s in shapes if not s[1] or not first[1] or s[1][0] != first[1][0]), first
        )
        got = ", ".join(f"{name}: {shape}" for name, shape in dict([first, other]).items())
        raise _validate.InputError(
            f"expected one shared leading `{axis}` axis in {what}; got {got}. "
            "Stack one entry for each along axis 0 of every leaf."
        )
    (length,) = lengths
    assert length is not None
    if length == 0 and not allow_empty:
        raise _validate.InputError(
            f"expected at least one entry on the `{axis}` axis of {what}; got an empty cohort "
            f"({shapes[0][0]}: {shapes[0][1]})."
        )
    _validate.check_integers_fit(tree, what)
    return length


def check_active(active: Any, clients: int) -> None:
    check_mask(active, clients)
    if _validate.concrete(active) and not np.any(np.asarray(active)):
        raise _validate.InputError(
            f"expected at least one active client; all {clients} are inactive."
        )


def check_mask(active: Any, clients: int | None = None) -> int:
    shape = getattr(active, "shape", None)
    fits = shape is not None and len(shape) == 1 and clients in (None, *shape)
    if not fits or active.dtype != jnp.bool_:
        came = f"{active.dtype}{list(shape)}" if shape is not None else repr(active)
        length = "clients" if clients is None else clients
        raise _validate.InputError(
            f"expected `active` to be bool[{length}], one per client; got {came}."
        )
    return shape[0]


def check_mixable(active: Any, clients: int) -> None:
    """Refuse to mix a cohort of one: its update would be forwarded whole."""
    count = int(np.sum(np.asarray(active))) if _validate.concrete(active) else None
    if clients == 1 or count == 1:
        raise _validate.InputError(
            f"expected at least two active clients to mix; got 1 of {clients}. "
            "A single update can't be mixed: wait for more clients, or use defences.none()."
        )


def check_same_model(tree: Any, other: Any, what: str, other_what: str) -> None:
    """Both have a leading axis; below it structure and shapes must agree."""
    structure, other_structure = jax.tree.structure(tree), jax.tree.structure(other)
    if structure != other_structure:
        raise _validate.InputError(
            f"expected {other_what} with the structure of {what}, {structure}; "
            f"got {other_structure}."
        )
    for (name, leaf), (_, partner) in zip(
        _validate.named_leaves(tree), _validate.named_leaves(other), strict=True
    ):
        if leaf.shape[1:] != partner.shape[1:]:
            raise _validate.InputError(
                f"expected {other_what} shaped like {what} after the first axis; got {name}: "
                f"{tuple(partner.shape)} against {tuple(leaf.shape)}."
            )


def check_updates_of(params: Any, updates: Any) -> int:
    """The number of updates, each of the model `params`."""
    clients = check_client_axis(updates)
    _validate.check_arrays(params, "params")
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), params)
    check_same_model(stacked, updates, "params", "updates")
    return clients


def check_units(units: Any) -> None:
    if not getattr(units, "names", ()) or not hasattr(units, "labels"):
        raise _validate.InputError(
            f"expected a partition with at least one unit; got {units!r}. "
            "Make one with units.partition."
        )


def check_origins(origins: Any, clients: int, units: int) -> None:
    shape = getattr(origins, "shape", None)
    if shape != (clients, units) or not jnp.issubdtype(origins.dtype, jnp.integer):
        came = f"{origins.dtype}{list(shape)}" if shape is not None else repr(origins)
        raise _validate.InputError(
            f"expected integer origins of shape [{clients}, {units}], clients by units; "
            f"got {came}. Draw them with a mix for this cohort and partition."
        )
    check_origin_rows(origins, clients)


def check_permutations(origins: Any, active: Any, units: int) -> None:
    """Origins as a mix must draw them."""
    check_origins(origins, active.shape[0], units)
    if not _validate.concrete(origins) or not _validate.concrete(active):
        return
    columns, rows = np.asarray(origins), np.arange(active.shape[0])[:, None]
    moved = np.where(np.asarray(active)[:, None], columns, rows)
    wrong = (np.sort(moved, axis=0) != rows).any(axis=0) | (moved != columns).any(axis=0)
    if wrong.any():
        unit = int(np.flatnonzero(wrong)[0])
        raise _validate.InputError(
            "expected a mix that permutes the active clients in each column and leaves the others "
            f"in their slots; unit {unit} got {columns[:10, unit].tolist()}"
            f"{'...' if len(columns) > 10 else ''}. Every unit of every active client must be "
            "forwarded exactly once."
        )


def check_origin_rows(origins: Any, clients: int) -> None:
    if not _validate.concrete(origins):
        return
    rows = np.asarray(origins)
    outside = np.argwhere((rows < 0) | (rows >= clients))
    if outside.size:
        index = tuple(int(i) for i in outside[0])
        raise _validate.InputError(
            f"expected origins in 0..{clients - 1}, the clients; got {rows[index]} at {index}."
        )


def check_params(params: Any) -> None:
    """A model that can be trained: every leaf has a gradient."""
    if not _validate.named_leaves(params):
        raise _validate.InputError("expected a model with parameters; got an empty pytree.")
    _validate.check_arrays(params, "the model")
    _validate.check_real(params, "the model")
    for name, leaf in _validate.named_leaves(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise _validate.InputError(
                f"expected parameters that have a gradient; got {leaf.dtype} at {name}. Keep "
                "counters, masks and keys out of them: let the loss hold them."
            )


def check_partition(updates: Any, units: Any, what: str = "updates") -> None:
    """The leaves of `updates` must have the shapes that a partition covers, after an axis."""
    named = _validate.named_leaves(updates)
    own = [tuple(leaf.shape[1:]) for _, leaf in named]
    shapes = [labels.shape for labels in units.labels]
    if own != shapes:
        name = next((n for (n, _), a, b in zip(named, own, shapes, strict=False) if a != b), "")
        raise _validate.InputError(
            f"expected {what} of the model that was partitioned, leaves of shapes {shapes} a "
            f"client; got {own}{f', which differ first at {name}' if name else ''}. Partition "
            "this model with units.partition."
        )


def check_update(units: Any, update: Any, what: str) -> None:
    """One real update, of the model that was partitioned."""
    check_units(units)
    _validate.check_arrays(update, what)
    _validate.check_real(update, what)
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), update)
    check_partition(stacked, units, what)


def check_statistics(statistics: Any) -> None:
    shapes = [
        tuple(getattr(getattr(statistics, name, None), "shape", ()))
        for name in ("dots", "squared_norms", "direction_squared_norms")
    ]
    dots, squares, directions = shapes
    fits = len(dots) >= 2 and dots[:-1] == squares and directions == dots[-2:]
    if not fits:
        raise _validate.InputError(
            "expected observation.Statistics with dots [clients, units, attributes], squared_norms "
            "[clients, units] and direction_squared_norms [units, attributes]; got shapes "
            f"{shapes}."
        )
    for name in ("dots", "squared_norms", "direction_squared_norms"):
        dtype = getattr(statistics, name).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise _validate.InputError(
                f"expected statistics that are floats; got {dtype} in {name}."
            )


def check_cohort(data: Any, what: str = "the cohort", axis: str = "clients") -> int:
    """The number of clients of a `ClientData`."""
    if not all(hasattr(data, name) for name in ("examples", "counts", "ids", "active")):
        raise _validate.InputError(
            f"expected {what} as a data.ClientData; got {type(data).__name__}. "
            "Stack examples with data.stack."
        )
    clients = check_client_axis(data, what, axis)
    check_mask(data.active, clients)
    for name in ("counts", "ids"):
        values = getattr(data, name)
        whole = hasattr(values, "dtype") and jnp.issubdtype(values.dtype, jnp.integer)
        if not whole or values.shape != (clients,):
            raise _validate.InputError(
                f"expected `{name}` of {what} to be int[{clients}], one for each; got "
                f"{getattr(values, 'dtype', type(values).__name__)}"
                f"{list(getattr(values, 'shape', []))}."
            )
    if not _validate.concrete(data.active) or not _validate.concrete(data.counts):
        return clients
    check_active(data.active, clients)
    if _validate.concrete(data.ids):
        ids = np.asarray(data.ids)
        wide = np.flatnonzero((ids < -(2**31)) | (ids >= 2**32))
        if wide.size:
            raise _validate.InputError(
                f"expected ids that fit 32 bits, which the keys of clients follow from, in {what}; "
                f"got {ids[wide[0]]}. Number the clients."
            )
    counts = np.asarray(data.counts)
    if not _validate.named_leaves(data.examples):
        # streamed: the examples are made where they are used
        return clients
    lengths = {
        leaf.shape[1] if leaf.ndim > 1 else None
        for _, leaf in _validate.named_leaves(data.examples)
    }
    if None in lengths or len(lengths) > 1:
        shapes = {name: tuple(leaf.shape) for name, leaf in _validate.named_leaves(data.examples)}
        raise _validate.InputError(
            f"expected examples of shape [{axis}, examples, ...] in {what}; got {shapes}."
        )
    (capacity,) = lengths
    outside = np.flatnonzero((counts < 0) | (counts > capacity))
    if outside.size:
        raise _validate.InputError(
            f"expected example counts in 0..{capacity}, the padded length, in {what}; got "
            f"{counts[outside[0]]} for {axis[:-1]} {outside[0]}."
        )
    return clients
