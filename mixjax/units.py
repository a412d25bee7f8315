"""Units: the parts of a model that mixing moves on their own.

A unit is a set of a model's parameters. By default it is a *layer*: the leaves that share a
parent in the parameter tree, so a layer's kernel and bias move together. Finer cuts go through
leaves: `"neurons"`, `"coordinates"`, `chunks(n)`, or any function of a leaf's path and shape.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mixjax import _axes, _labels, _validate
from mixjax._labels import Labels as Labels
from mixjax.types import Directions, Params, ParamShapes, widest

SHOWN, SHOWN_OF_MANY = 40, 20


class Units(NamedTuple):
    """Which unit each parameter belongs to. Static and hashable; equal by content.

    Attributes:
      names: the units' names, all different.
      labels: for each leaf in flatten order, the number of the unit of each element.
    """

    names: tuple[str, ...]
    labels: tuple[Labels, ...]


class Chunks(NamedTuple):
    """Granularity of `count` nearly equal runs of the flattened model; see `chunks`."""

    count: int


Granularity: TypeAlias = str | Chunks | Callable[..., Any]
"""One of `GRANULARITIES`, `chunks(n)`, or a function of a leaf's path, or of its path and shape;
see `partition`."""

GRANULARITIES = ("model", "layer", "leaf", "neurons", "coordinates")


def chunks(count: int) -> Chunks:
    """A granularity that cuts the flattened model into `count` runs of nearly equal length.

    Lengths differ by at most one; `count` is at most the number of parameters.

    Raises:
      InputError: for a count that is no whole number of at least 1; from `partition`, for more
        chunks than parameters.
    """
    _validate.check_positive(count, "chunks(count)", integer=True)
    return Chunks(count)


def partition(params: ParamShapes, granularity: Granularity = "layer") -> Units:
    """Cut a model into units.

    A layer is the leaves that share a parent (flax, haiku, equinox, nested dicts). Dotted names
    such as `conv1.weight` group by their prefix. A leaf directly under the root is a layer of
    its own. Boxes (variables of flax.nnx, flax.linen's partitioning metadata) are seen through.

    * `"model"`, `"layer"`, `"leaf"`: whole leaves.
    * `"neurons"`: channel j of a layer, the slices `[..., j]` of all its leaves, with what feeds
      it: `Dense_0[3]`. Outputs come last in flax, haiku and our models. Where they come first
      (equinox, PyTorch) pass a function of path and shape. A scalar leaf is a unit by the name
      of its layer.
    * `"coordinates"`: every parameter alone.
    * `chunks(n)`: runs of the flattened model.
    * a function of a leaf's path (a tuple of strings), or of its path and shape if it requires
      two arguments. It returns the name of the unit that has the whole leaf, or an array of
      integers or strings that broadcasts to the leaf's shape: the group of each element. Leaves
      share the units they name alike; integer 7 is the unit `group 7`.

    >>> model = {"dense": {"weight": jnp.zeros((2, 3)), "bias": jnp.zeros(2)}}
    >>> def outputs_first(path, shape):
    ...     names = np.array([f"{path[0]}[{channel}]" for channel in range(shape[0])])
    ...     return names.reshape(-1, *[1] * (len(shape) - 1))
    >>> parameter_counts(partition(model, outputs_first))
    {'dense[0]': 4, 'dense[1]': 4}

    Args:
      params: one model's parameters, or their shapes; no client axis.
      granularity: see above.

    Returns:
      The units, in the order in which their first elements appear. Different units have
      different names: a later namesake is told apart by a number, `a/b (2)`. A leaf without
      elements joins the first unit where a granularity cuts leaves.

    Raises:
      InputError: for an unknown granularity, a function that returns something else, an empty
        model, more chunks than parameters, or a model that comes out as one unit though it was
        to be cut: mixing it would be a shuffle of whole updates.
    """
    if not jax.tree.leaves(params):
        raise _validate.InputError("expected a model with parameters; got an empty pytree.")
    _validate.check_arrays(params, "the model")
    leaves = _labels.leaves_of(params)
    groups = _groups(leaves, granularity)
    units = Units(*_labels.number(groups, [leaf.shape for leaf in leaves]))
    if len(units.names) < 2 and granularity != "model" and not isinstance(granularity, Chunks):
        came = f"one, {units.names[0]!r}" if units.names else "none"
        raise _validate.InputError(
            f"expected at least two units under granularity {granularity!r}; the model comes out "
            f"as {came}, so mixing would be a shuffle of whole updates. Pass "
            "granularity='leaf', chunks(n) or a function from path to layer name, or "
            "granularity='model' if a shuffle is what you want."
        )
    return units


def _groups(leaves: list[_labels.Leaf], granularity: Any) -> list[_labels.Groups]:
    if isinstance(granularity, Chunks):
        return _labels.chunks(granularity.count, leaves)
    if callable(granularity):
        return _labels.by_function(granularity, leaves)
    _validate.check_choice(granularity, GRANULARITIES, "granularity")
    cut: dict[str, Callable[[_labels.Leaf], _labels.Groups]] = {
        "model": lambda leaf: _labels.whole(("model",)),
        "layer": lambda leaf: _labels.whole(_labels.layer_of(leaf.path)),
        "leaf": lambda leaf: _labels.whole(_labels.dotted(leaf.path)),
        "neurons": _labels.neurons,
        "coordinates": _labels.coordinates,
    }
    return [cut[granularity](leaf) for leaf in leaves]


def parameter_counts(units: Units) -> dict[str, int]:
    """The number of parameters in each unit, by name; 0 for a unit of empty leaves."""
    _axes.check_units(units)
    counts = np.zeros(len(units.names), np.int64)
    for labels in units.labels:
        each = labels.size // labels.array.size
        counts += each * np.bincount(labels.array.ravel(), minlength=len(counts))
    return dict(zip(units.names, counts.tolist(), strict=True))


def describe(params: ParamShapes, granularity: Granularity = "layer") -> None:
    """Print the units, their leaves and parameter counts; of more than 40 units the first 20.

    >>> model = {"conv": {"kernel": jnp.zeros((3, 8)), "bias": jnp.zeros(8)},
    ...          "dense": {"kernel": jnp.zeros((8, 2))}}
    >>> describe(model)
    unit   parameters  share  leaves
    conv           32  66.7%  conv/bias conv/kernel
    dense          16  33.3%  dense/kernel
    total          48

    Args:
      params: see `partition`.
      granularity: see `partition`.

    Raises:
      InputError: see `partition`.
    """
    units = partition(params, granularity)
    counts = parameter_counts(units)
    total = sum(counts.values())
    shown = units.names if len(units.names) <= SHOWN else units.names[:SHOWN_OF_MANY]
    leaves: list[list[str]] = [[] for _ in units.names]
    for leaf, labels in zip(_labels.leaves_of(params), units.labels, strict=True):
        for unit in np.unique(labels.array):
            leaves[unit].append("/".join(leaf.path))
    width = max(len(name) for name in (*shown, "total", "unit"))
    print(f"{'unit':{width}}  parameters  share  leaves")
    for name, own in zip(shown, leaves, strict=False):
        share = counts[name] / max(total, 1)
        print(f"{name:{width}}  {counts[name]:10,d}  {share:5.1%}  {' '.join(own)}")
    if len(shown) < len(units.names):
        print(f"... and {len(units.names) - len(shown):,d} more units")
    print(f"{'total':{width}}  {total:10,d}")


def dots(units: Units, update: Params, directions: Directions) -> Float[Array, "units attributes"]:
    """Inner products of one update with each direction, unit by unit.

    Products and sums are at least float32, at full matrix precision; 0 for a unit without
    elements. Sums of a leaf that many units share are made by label, in a program whose size
    doesn't depend on their number.

    Args:
      units: the model's partition.
      update: one model's parameters.
      directions: the same with a leading `attributes` axis.

    Raises:
      InputError: for another model than the one that was partitioned, or complex numbers.
    """
    _axes.check_update(units, update, "the update")
    _axes.check_client_axis(directions, "directions", axis="attributes")
    _validate.check_real(directions, "directions")
    _axes.check_partition(directions, units, "directions")

    def part(flat: Array, rows: Array) -> Array:
        # by a matrix of one column: XLA's CPU back end is slower at a vector
        return jnp.matmul(rows, flat[:, None], precision=jax.lax.Precision.HIGHEST)[:, 0]

    return _reduce(units, part, update, directions)


def squared_norms(units: Units, update: Params) -> Float[Array, " units"]:
    """Squared Euclidean norm of each unit of one update; squares and sums at least float32.

    Args:
      units: the model's partition.
      update: one model's parameters.

    Returns:
      `[units]`; 0 for a unit without elements. See `dots` for many units.

    Raises:
      InputError: see `dots`.
    """
    _axes.check_update(units, update, "the update")

    # a product: XLA's CPU back end sums an axis one element after the other
    def part(flat: Array, same: Array) -> Array:
        return jnp.vdot(flat, same, precision=jax.lax.Precision.HIGHEST)

    return _reduce(units, part, update, update)


def _reduce(units: Units, part: Callable[..., Array], *trees: Params) -> Array:
    """Products of the trees, summed over each unit: by `part` over few runs, else by label."""
    runs: list[tuple[int, Array]] = []
    labelled: list[tuple[np.ndarray, Array]] = []
    dtype = widest(jax.tree.map(jnp.asarray, trees))
    for *leaves, labels in zip(*map(jax.tree.leaves, trees), units.labels, strict=True):
        wide = [jnp.asarray(leaf).astype(dtype) for leaf in leaves]
        if labels.starts.size <= _labels.FEW_RUNS:
            flat = [leaf.reshape(*leaf.shape[: leaf.ndim - len(labels.shape)], -1) for leaf in wide]
            for start, stop, unit in labels.runs():
                runs.append((unit, part(*(leaf[..., start:stop] for leaf in flat))))
        else:
            labelled.append((labels.array.ravel(), _label_sums(labels, *wide)))
    if not labelled:
        totals: list[Any] = [jnp.zeros((), dtype)] * len(units.names)
        for unit, total in runs:
            totals[unit] += total
        return jnp.stack(totals)
    if runs:
        owners, sums = zip(*runs, strict=True)
        labelled.append((np.array(owners), jnp.stack(sums)))
    owners, sums = zip(*labelled, strict=True)
    return jax.ops.segment_sum(jnp.concatenate(sums), np.concatenate(owners), len(units.names))


def _label_sums(labels: Labels, *leaves: Array) -> Array:
    """`[labels, ...]`: sums over the axes along which the unit doesn't change."""
    product = functools.reduce(_product, leaves)
    leading = product.ndim - len(labels.shape)
    constant = [axis for axis, size in enumerate(labels.array.shape, leading) if size == 1]
    sums = jnp.sum(product, axis=tuple(constant))
    return jnp.moveaxis(sums.reshape(*product.shape[:leading], -1), -1, 0)


def _product(one: Array, other: Array) -> Array:
    rank = max(one.ndim, other.ndim)
    return jnp.expand_dims(one, range(rank - one.ndim)) * other
