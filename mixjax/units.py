"""Units: the parts of a model that mixing moves on their own.

A unit is a set of slices of leaves. By default it is a *layer*: the leaves that share a parent
in the parameter tree, so a layer's kernel and bias move together.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mixjax import _validate
from mixjax.types import Directions, Params, ParamShapes
from mixjax.types import wide as wide_dtype


class Segment(NamedTuple):
    """Elements `start:stop` of a raveled leaf (without client axis) that belong to `unit`."""

    start: int
    stop: int
    unit: int


class Units(NamedTuple):
    """Which unit each parameter belongs to. Static and hashable.

    Attributes:
      names: the units' names.
      segments: for each leaf in flatten order, the segments that cover it.
    """

    names: tuple[str, ...]
    segments: tuple[tuple[Segment, ...], ...]


class Chunks(NamedTuple):
    """Granularity of `count` nearly equal runs of the flattened model; see `chunks`."""

    count: int


Granularity: TypeAlias = str | Chunks | Callable[[tuple[str, ...]], str]
"""`"model"`, `"layer"`, `"leaf"`, `chunks(n)`, or a function from a leaf's path to its layer."""

GRANULARITIES = ("model", "layer", "leaf")


def chunks(count: int) -> Chunks:
    """A granularity that cuts the flattened model into `count` runs of nearly equal length."""
    _validate.check_positive(count, "chunks(count)", integer=True)
    return Chunks(count)


def partition(params: ParamShapes, granularity: Granularity = "layer") -> Units:
    """Cut a model into units.

    A layer is the leaves that share a parent (flax, haiku, equinox, nested dicts). Dotted names
    such as `conv1.weight` group by their prefix. A leaf directly under the root is a layer of
    its own.

    Args:
      params: one model's parameters, or their shapes; no client axis.
      granularity: `"layer"`, `"leaf"`, `"model"`, `chunks(n)`, or a function that maps a leaf's
        path, a tuple of strings, to the name of its layer.

    Returns:
      The units, in the order in which their first leaves appear.

    Raises:
      InputError: for an unknown granularity, an empty model, or a model that comes out as one
        unit though it was to be cut: mixing it would be a shuffle of whole updates.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    if not flat:
        raise _validate.InputError("expected a model with parameters; got an empty pytree.")
    _validate.check_arrays(params, "the model")
    paths = [_validate.path_names(path) for path, _ in flat]
    sizes = [math.prod(leaf.shape) for _, leaf in flat]
    if isinstance(granularity, Chunks):
        return _partition_chunks(granularity.count, sizes)
    if not callable(granularity):
        _validate.check_choice(granularity, GRANULARITIES, "granularity")
    owners = [_unit_path(path, granularity) for path in paths]
    unique = list(dict.fromkeys(owners))
    if len(unique) == 1 and granularity != "model":
        raise _validate.InputError(
            f"expected at least two units under granularity {granularity!r}; the model comes out "
            f"as one, {'/'.join(unique[0])!r}, so mixing would be a shuffle of whole updates. Pass "
            "granularity='leaf', chunks(n) or a function from path to layer name, or "
            "granularity='model' if a shuffle is what you want."
        )
    segments = tuple(
        (Segment(0, size, unique.index(owner)),) for size, owner in zip(sizes, owners, strict=True)
    )
    return Units(tuple("/".join(owner) for owner in unique), segments)


def _unit_path(path: tuple[str, ...], granularity: Any) -> tuple[str, ...]:
    if callable(granularity):
        name = granularity(path)
        if not isinstance(name, str):
            raise _validate.InputError(
                f"expected the granularity function to return a layer name; got {name!r} for "
                f"leaf {path}."
            )
        return (name,)
    if granularity == "model":
        return ("model",)
    parts = path[:-1] + tuple(path[-1].split(".")) if path else ("model",)
    if granularity == "layer" and len(parts) > 1:
        parts = parts[:-1]
    return parts


def _partition_chunks(count: int, sizes: list[int]) -> Units:
    total = sum(sizes)
    if count > total:
        raise _validate.InputError(
            f"expected at most {total} chunks for a model of {total} parameters; got {count}."
        )
    edges = [total * index // count for index in range(count + 1)]
    segments, offset = [], 0
    for size in sizes:
        segments.append(
            tuple(
                Segment(max(low - offset, 0), min(high - offset, size), unit)
                for unit, (low, high) in enumerate(itertools.pairwise(edges))
                if low < offset + size and high > offset
            )
        )
        offset += size
    return Units(tuple(f"chunk{unit}" for unit in range(count)), tuple(segments))


def parameter_counts(units: Units) -> dict[str, int]:
    """The number of parameters in each unit."""
    _validate.check_units(units)
    counts = dict.fromkeys(units.names, 0)
    for segment in (segment for leaf in units.segments for segment in leaf):
        counts[units.names[segment.unit]] += segment.stop - segment.start
    return counts


def describe(params: ParamShapes, granularity: Granularity = "layer") -> None:
    """Print the units, their leaves and parameter counts.

    >>> model = {"conv": {"kernel": jnp.zeros((3, 8)), "bias": jnp.zeros(8)},
    ...          "dense": {"kernel": jnp.zeros((8, 2))}}
    >>> describe(model)
    unit   parameters  share  leaves
    conv           32  66.7%  conv/bias conv/kernel
    dense          16  33.3%  dense/kernel
    total          48
    """
    units = partition(params, granularity)
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    leaves: dict[str, list[str]] = {name: [] for name in units.names}
    for (path, _), segments in zip(flat, units.segments, strict=True):
        for segment in segments:
            leaves[units.names[segment.unit]].append("/".join(_validate.path_names(path)))
    counts = parameter_counts(units)
    total = sum(counts.values())
    width = max(len(name) for name in (*units.names, "total", "unit"))
    print(f"{'unit':{width}}  parameters  share  leaves")
    for name, count in counts.items():
        print(
            f"{name:{width}}  {count:10,d}  {count / max(total, 1):5.1%}  {' '.join(leaves[name])}"
        )
    print(f"{'total':{width}}  {total:10,d}")


def dots(units: Units, update: Params, directions: Directions) -> Float[Array, "units attributes"]:
    """Inner products of one update with each direction, unit by unit.

    Products and sums are at least float32, at full matrix precision.
    """
    _check_model(units, update, "the update")
    _validate.check_client_axis(directions, "directions", axis="attributes")
    _validate.check_real(directions, "directions")
    _validate.check_partition(directions, _sizes(units), "directions")

    def part(flat: Array, rows: Array) -> Array:
        # by a matrix of one column: XLA's CPU back end is slower at a vector
        return jnp.matmul(rows, flat[:, None], precision=jax.lax.Precision.HIGHEST)[:, 0]

    return _reduce(units, part, update, jax.tree.map(_as_rows, directions))


def squared_norms(units: Units, update: Params) -> Float[Array, " units"]:
    """Squared Euclidean norm of each unit of one update; squares and sums at least float32."""
    _check_model(units, update, "the update")
    # a product: XLA's CPU back end sums an axis one element after the other
    return _reduce(
        units, lambda flat: jnp.vdot(flat, flat, precision=jax.lax.Precision.HIGHEST), update
    )


def _check_model(units: Units, update: Params, what: str) -> None:
    _validate.check_units(units)
    _validate.check_arrays(update, what)
    _validate.check_real(update, what)
    _validate.check_partition(
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), update),
        _sizes(units),
        what,
    )


def _sizes(units: Units) -> list[int]:
    return [sum(stop - start for start, stop, _ in segments) for segments in units.segments]


def _as_rows(leaf: Array) -> Array:
    return leaf.reshape(leaf.shape[0], -1)


def _reduce(units: Units, part: Callable[..., Array], update: Params, *others: Any) -> Array:
    """Sum `part` over the segments of each unit; the last axis of every operand is sliced."""
    totals: list[Any] = [0.0] * len(units.names)
    trees = (jax.tree.map(jnp.ravel, update), *jax.tree.map(jnp.asarray, others))
    for *leaves, segments in zip(*map(jax.tree.leaves, trees), units.segments, strict=True):
        wide = [leaf.astype(wide_dtype(leaf.dtype)) for leaf in leaves]
        for start, stop, unit in segments:
            totals[unit] += part(*(leaf[..., start:stop] for leaf in wide))
    return jnp.stack(totals)
