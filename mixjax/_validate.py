"""Every check of user input, and every error text.

Shapes, structures and key types are static, so they are checked while tracing. Values are
checked only where they are concrete; under `jit` the documented NaN policies apply instead.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import _memory

INT_MAX = 2**31 - 1
FLOAT_MAX = float(np.finfo(np.float32).max)


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
    array = host_array(values, what, None)
    if array.dtype.kind not in "iu":
        raise InputError(f"expected integer {what} in 0..{count - 1}; got dtype {array.dtype}.")
    outside = (array < 0) | (array >= count)
    if outside.any():
        index = tuple(int(i) for i in np.argwhere(outside)[0])
        raise InputError(
            f"expected {what} in 0..{count - 1}; got {array[outside][0]} at index {index}."
        )


def check_choice(value: Any, choices: Sequence[str], what: str) -> None:
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise InputError(f"expected {what} to be one of {listed}; got {value!r}.")


def check_positive(value: Any, what: str, *, integer: bool = False) -> None:
    if not concrete(value):
        return
    if integer and not (isinstance(value, (int, np.integer)) and not isinstance(value, bool)):
        raise InputError(f"expected {what} to be a whole number of at least 1; got {value!r}.")
    least = "a whole number of at least 1" if integer else "greater than 0"
    if integer and value > INT_MAX:
        raise InputError(f"expected {what} to be {least} and at most {INT_MAX}; got {value!r}.")
    _check_number(value, f"{what} to be {least}", lambda number: number > 0)


def check_non_negative(value: Any, what: str) -> None:
    _check_number(value, f"{what} to be at least 0", lambda number: number >= 0)


def check_number(value: Any, what: str) -> float:
    """A finite number of at least 0, on the host."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise InputError(f"expected {what} to be a finite number of at least 0; got {value!r}.")
    return number


def check_probability(value: Any, what: str) -> None:
    _check_number(value, f"{what} to be greater than 0 and less than 1", lambda p: 0 < p < 1)


def check_fraction(value: Any, what: str, below: float) -> None:
    _check_number(value, f"{what} in [0, {below})", lambda number: 0 <= number < below)


def check_share(value: Any, what: str) -> None:
    _check_number(value, f"{what} in (0, 1]", lambda number: 0 < number <= 1)


def check_seed(value: Any) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 0:
        raise InputError(f"expected a seed that is a whole number of at least 0; got {value!r}.")


def _check_number(value: Any, expected: str, holds: Callable[[Any], Any]) -> None:
    """A real number, finite in float32; a traced one passes."""
    if not concrete(value):
        return
    scalar = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not scalar:
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", jnp.bool_)
        scalar = shape == () and real(dtype)
    if not scalar or isinstance(value, complex) or not abs(value) <= FLOAT_MAX or not holds(value):
        raise InputError(f"expected {expected}; got {value!r}.")


def real(dtype: Any) -> bool:
    """Whether numbers of the dtype are real; booleans are not."""
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)


def check_real(tree: Any, what: str = "updates") -> None:
    for name, leaf in named_leaves(tree):
        if not real(leaf.dtype) and leaf.dtype != jnp.bool_:
            raise InputError(
                f"expected real numbers in {what}; got {leaf.dtype} at {name}. Convert them first."
            )


def host_array(values: Any, what: str, kinds: str | None = "iuf", ndim: int = 0) -> np.ndarray:
    """Array-likes as NumPy sees them, of one of the dtype kinds and at least `ndim` axes."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):
        raise InputError(f"expected {what} as an array; got {values!r}.") from None
    # JAX's own floats, such as bfloat16, have the kind of raw bytes
    kind = "f" if jnp.issubdtype(array.dtype, jnp.floating) else array.dtype.kind
    if (kinds is not None and kind not in kinds) or array.ndim < ndim:
        names = {"i": "integers", "u": "", "f": "real numbers", "b": "booleans"}
        listed = " or ".join(filter(None, (names[one] for one in kinds or "")))
        axes = f" with at least {ndim} axes" if ndim else ""
        raise InputError(
            f"expected {what} as an array of {listed}{axes}; got {array.dtype}{list(array.shape)}."
        )
    return array


def check_arrivals(arrivals: Any, capacity: int) -> None:
    if not concrete(arrivals):
        return
    array = host_array(arrivals, "arrivals", "iu")
    if array.ndim or not 0 <= int(array) <= capacity:
        raise InputError(f"expected arrivals in 0..{capacity}, the capacity; got {arrivals!r}.")


def check_sequence(values: Any, what: str) -> None:
    array = hasattr(values, "shape") and len(values.shape) > 0
    if not array and not isinstance(values, (list, tuple, range)):
        raise InputError(f"expected {what} as a list; got {values!r}.")


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
    if not getattr(units, "names", ()) or not hasattr(units, "segments"):
        raise InputError(
            f"expected a partition with at least one unit; got {units!r}. "
            "Make one with units.partition."
        )


def check_callable(value: Any, what: str) -> None:
    if not callable(value):
        raise InputError(f"expected {what}; got {value!r}.")


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


def check_arrays(tree: Any, what: str) -> None:
    for name, leaf in named_leaves(tree):
        dtype = getattr(leaf, "dtype", jnp.bool_)
        known = (jnp.number, jnp.bool_, jax.dtypes.prng_key)
        if not any(jnp.issubdtype(dtype, kind) for kind in known):
            raise InputError(f"expected numbers in {what}; got dtype {dtype} at {name}.")
        if not hasattr(leaf, "shape"):
            raise InputError(
                f"expected arrays in {what}; got {type(leaf).__name__} at {name}. "
                "Remove leaves that are not arrays (equinox: eqx.filter(model, eqx.is_array)), and "
                "wrap numbers in jnp.asarray."
            )


def check_params(params: Any) -> None:
    if not named_leaves(params):
        raise InputError("expected a model with parameters; got an empty pytree.")
    check_arrays(params, "the model")
    check_real(params, "the model")


def check_partition(updates: Any, sizes: list[int], what: str = "updates") -> None:
    """The leaves of `updates` must have the sizes that a partition covers."""
    named = named_leaves(updates)
    own = [int(np.prod(leaf.shape[1:])) for _, leaf in named]
    if own != sizes:
        name = next((n for (n, _), a, b in zip(named, own, sizes, strict=False) if a != b), "")
        raise InputError(
            f"expected {what} of the model that was partitioned, leaves of {sizes} elements a "
            f"client; got {own}{f', which differ first at {name}' if name else ''}. Partition "
            "this model with units.partition."
        )


def tree_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_memory(needed: int, what: str, advice: str, mesh: jax.sharding.Mesh | None) -> None:
    """Refuse what can't fit, before it is compiled; `needed` is a lower bound."""
    total = _memory.total_bytes(mesh)
    if total is not None and needed > total:
        raise InputError(
            f"expected a run that fits the memory of {total:,} bytes; {what} needs at least "
            f"{needed:,}. {advice}"
        )


def check_stack_memory(
    params: Any,
    clients: int,
    chunk_size: int | None,
    mesh: jax.sharding.Mesh | None,
    *,
    stacks: int,
    advice: str,
) -> None:
    """Stacks of every client's update, and the parameters and gradients of a chunk of clients."""
    if chunk_size is not None:
        check_positive(chunk_size, "chunk_size", integer=True)
    model = tree_bytes(params)
    size = clients * model
    check_memory(
        stacks * size, f"{stacks} x {clients} clients x {model:,} bytes of updates", advice, mesh
    )
    chunk = min(chunk_size or 1, clients)
    check_memory(
        2 * chunk * model,
        f"training {chunk} clients of {model:,} bytes at once",
        "Pass a smaller chunk_size.",
        mesh,
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


def check_component(value: Any, fields: Sequence[str], what: str) -> None:
    if not all(callable(getattr(value, field, None)) for field in fields):
        raise InputError(f"expected {what}; got {value!r}.")


def check_window(window: Sequence[int], spatial: Sequence[int]) -> None:
    check_sequence(window, "a pooling window")
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


def check_json(value: Any, what: str) -> Any:
    """The value as JSON gives it back: tuples as lists, keys as strings."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"expected JSON values in {what}; {error}. Put numbers, texts, lists and dicts there."
        ) from None


def check_same_config(saved: Any, config: Any, where: Any) -> None:
    old, new = dict(_flat_items(saved)), dict(_flat_items(config))
    lines = [
        f"  {name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} now"
        for name in [*old, *(name for name in new if name not in old)]
        if old.get(name) != new.get(name)
    ]
    if lines:
        listed = "\n".join(lines)
        raise InputError(
            f"expected the config that {where} was made under; it differs in\n{listed}\n"
            "Resume with the same, or start afresh elsewhere."
        )


def _flat_items(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted names and JSON texts of what nested dicts hold."""
    if not isinstance(value, dict) or not value:
        return [(prefix, json.dumps(value))] if prefix else []
    return [
        item
        for name, inner in value.items()
        for item in _flat_items(inner, f"{prefix}.{name}" if prefix else str(name))
    ]


def check_same_run(saved: dict[str, Any], run: dict[str, Any], folder: Path) -> None:
    check_same_config(saved["config"], run["config"], folder)
    for name, what in (
        ("key_kind", "the kind of key"),
        ("key", "the key"),
        ("start", "the starting state"),
    ):
        if saved[name] != run[name]:
            raise InputError(
                f"expected {what} of the run in {folder} to resume it; got another. "
                "Pass the same, or start afresh in another folder."
            )


def check_same_leaves(form: Sequence[Any], found: Sequence[Any], folder: Path) -> None:
    for index, (like, leaf) in enumerate(zip(form, found, strict=True)):
        if (like.shape, like.dtype) != (leaf.shape, leaf.dtype):
            raise InputError(
                f"expected a state like the one saved in {folder}; got {like.dtype}"
                f"{list(like.shape)} for leaf {index}, where {leaf.dtype}{list(leaf.shape)} was "
                "saved."
            )


def check_same_records(forms: Sequence[Any], parts: Sequence[Any], path: Path) -> None:
    new = [(form.dtype.itemsize, form.shape[1:]) for form in forms]
    old = [(part.dtype.itemsize, part.shape[1:]) for part in parts]
    if new != old:
        shapes = [[list(shape) for _, shape in kind if len(shape)][:3] for kind in (old, new)]
        raise InputError(
            f"expected records shaped like those of earlier rounds in {path}, {len(old)} arrays "
            f"{shapes[0]}...; got {len(new)} arrays {shapes[1]}.... Resume with the same "
            "federation and as many clients, padding included."
        )


def check_run_folder(folder: Path, parts: Sequence[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"expected a folder for the run; {folder} is a file.")
    others = [path.name for path in folder.iterdir()] if folder.exists() else []
    others = sorted(set(others) - set(parts))
    if others:
        raise InputError(
            f"expected a new or empty folder, or a run's; {folder} holds {others[0]!r}. Name a "
            "folder of the run's own: it is closed to other users."
        )


def check_rounds_left(done: int, rounds: int, folder: Path) -> None:
    if done > rounds:
        raise InputError(
            f"expected at least the {done} rounds that the run in {folder} has done; got "
            f"{rounds}. Ask for as many or more, or start afresh in another folder."
        )


def check_any_checkpoint(faults: Sequence[str], lost: bool, folder: Path) -> None:
    """Refuse a folder where work was done of which no checkpoint is good."""
    if faults or lost:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise InputError(
            f"found no good checkpoint in {folder}.{listed}\n"
            "Restore the folder from a copy, or delete it to start afresh."
        )
