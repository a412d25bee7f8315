"""The unit of each element of a leaf, as a small static array, and how a model gets them."""

import functools
import hashlib
import inspect
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from mixjax import _validate

Path: TypeAlias = tuple[str, ...]

Key: TypeAlias = tuple[str, Hashable]
"""A unit before it is numbered: its name, and what tells it from others of that name."""

Groups: TypeAlias = tuple[Sequence[Key], np.ndarray]
"""The units that a leaf has parts of, and for its elements the place in that list."""

FEW_RUNS = 16
"""Up to so many runs a leaf is cut into slices: 4 times as fast, but each is compiled."""


class Labels:
    """The unit of each element of one leaf. Immutable and hashable; equal by content.

    Attributes:
      shape: the leaf's, without a client axis.
      array: int32, broadcasts to `shape`. An axis along which the unit never changes has size 1:
        all of them for a leaf that is part of one unit.
    """

    shape: tuple[int, ...]
    array: np.ndarray

    def __init__(self, shape: Sequence[int], array: Any) -> None:
        self.shape = tuple(shape)
        self.array = _narrowed(np.asarray(array, np.int32), self.shape)
        self.array.flags.writeable = False
        self._digest = hashlib.sha256(
            repr((self.shape, self.array.shape)).encode() + self.array.tobytes()
        ).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Labels) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return f"Labels(shape={self.shape}, array={self.array.tolist()})"

    @property
    def size(self) -> int:
        """The number of elements of the leaf."""
        return math.prod(self.shape)

    @property
    def whole(self) -> bool:
        """Whether all of the leaf is part of one unit."""
        return self.array.size == 1

    def flat(self) -> np.ndarray:
        """`[elements]`: the unit of each element of the raveled leaf."""
        return np.broadcast_to(self.array, self.shape).ravel()

    def repeated(self) -> tuple[int, np.ndarray]:
        """How often the raveled leaf repeats the same units, and these."""
        sizes = self.array.shape
        same = next((axis for axis, size in enumerate(sizes) if size > 1), len(sizes))
        own = np.broadcast_to(self.array.reshape(sizes[same:]), self.shape[same:])
        return math.prod(self.shape[:same]), own.ravel()

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """Where the raveled leaf's longest runs of one unit start."""
        if self.whole:
            return np.zeros(1, int)
        return np.concatenate([[0], 1 + np.flatnonzero(np.diff(self.flat()))])

    def runs(self) -> list[tuple[int, int, int]]:
        """`start, stop, unit` of these runs."""
        stops = np.append(self.starts[1:], self.size)
        owners = self.array.ravel() if self.whole else self.flat()[self.starts]
        return list(zip(self.starts.tolist(), stops.tolist(), owners.tolist(), strict=True))


def _narrowed(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An own copy of `array` with size 1 along each axis on which it is constant."""
    array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    for axis in range(array.ndim):
        first = array.take([0], axis)
        if array.shape[axis] > 1 and (array == first).all():
            array = first
    return array.copy()


def number(groups: Iterable[Groups], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, Any]:
    """Distinct names and labels; units are numbered as they first appear."""
    numbers: dict[Key, int] = {}
    labels = []
    for (keys, places), shape in zip(groups, shapes, strict=True):
        if 0 in shape and np.size(places) != 1:
            keys, places = [], np.zeros((), np.int32)
        own = [numbers.setdefault(key, len(numbers)) for key in keys]
        labels.append(Labels(shape, np.take(own or [0], places)))
    return distinct([name for name, _ in numbers]), tuple(labels)


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each later namesake with a number that makes it differ from all others."""
    taken, used, result = set(names), set(), []
    counts: dict[str, Iterator[int]] = {}
    for name in names:
        if name in used:
            count = counts.setdefault(name, itertools.count(2))
            name = next(new for i in count if (new := f"{name} ({i})") not in taken)
            taken.add(name)
        used.add(name)
        result.append(name)
    return tuple(result)


class Leaf(NamedTuple):
    """A leaf's path, boxes left out, and its shape."""

    path: Path
    shape: tuple[int, ...]


def leaves_of(tree: Any) -> list[Leaf]:
    """In flatten order."""
    return [Leaf(_validate.path_names(path), tuple(leaf.shape)) for path, leaf in _walk(tree, ())]


def _walk(tree: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Paths and leaves. A box adds no step to a path."""
    for steps, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_box)[0]:
        if _is_box(node):
            inner = jax.tree.leaves(node, is_leaf=lambda child, box=node: child is not box)
            for child in inner:
                yield from _walk(child, path + steps)
        else:
            yield path + steps, node


def _is_box(node: Any) -> bool:
    """Whether the node only says something about its content.

    Boxes are flax.linen's `AxisMetadata` (`with_partitioning`) and flax.nnx's `Variable`, known
    by their methods: a container of one's own may well have a field called `value`.
    """
    kind = type(node)
    linen = ("unbox", "replace_boxed")
    nnx = ("raw_value", "get_metadata")
    return any(all(hasattr(kind, name) for name in names) for names in (linen, nnx))


def layer_of(path: Path) -> Path:
    """A leaf's parent; dotted names group by their prefix. At the root, the leaf itself."""
    parts = dotted(path)
    return parts[:-1] if len(parts) > 1 else parts


def dotted(path: Path) -> Path:
    return path[:-1] + tuple(path[-1].split(".")) if path else ("model",)


def whole(path: Path) -> Groups:
    """All of the leaf in the unit of that path."""
    return [("/".join(path), path)], np.zeros((), np.int32)


def neurons(leaf: Leaf) -> Groups:
    """Slices along the last axis, by layer."""
    layer = layer_of(leaf.path)
    if not leaf.shape:
        return whole(layer)
    name, channels = "/".join(layer), leaf.shape[-1]
    return [(f"{name}[{j}]", (layer, j)) for j in range(channels)], np.arange(channels)


def coordinates(leaf: Leaf) -> Groups:
    """Every element alone."""
    path = dotted(leaf.path)
    name = "/".join(path)
    keys = [
        (name + (f"[{','.join(map(str, index))}]" if index else ""), (path, index))
        for index in np.ndindex(*leaf.shape)
    ]
    return keys, np.arange(len(keys)).reshape(leaf.shape)


def chunks(count: int, leaves: Sequence[Leaf]) -> list[Groups]:
    """`count` runs of the flattened model whose lengths differ by at most one."""
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    total = sum(sizes)
    if count > total:
        raise _validate.InputError(
            f"expected at most {total} chunks for a model of {total} parameters; got {count}."
        )
    edges = np.array([total * index // count for index in range(count + 1)])
    groups: list[Groups] = []
    offset = 0
    for leaf, size in zip(leaves, sizes, strict=True):
        first = int(np.searchsorted(edges, offset, side="right")) - 1
        last = int(np.searchsorted(edges, offset + size, side="left"))
        keys = [(f"chunk{index}", index) for index in range(first, last)] if size else []
        lengths = np.diff(np.clip(edges[first : last + 1] - offset, 0, size))
        places = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        groups.append((keys, places.reshape(leaf.shape)))
        offset += size
    return groups


def by_function(function: Callable[..., Any], leaves: Sequence[Leaf]) -> list[Groups]:
    """The groups that a user's function of path, or of path and shape, returns."""
    arguments = _arguments(function)
    # a function that uses jax.numpy may be asked while a step is traced
    with jax.ensure_compile_time_eval():
        return [_named(function(*leaf[:arguments]), leaf) for leaf in leaves]


def _arguments(function: Callable[..., Any]) -> int:
    """1 for a function of the path, 2 for one of path and shape."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [one for one in parameters if one.default is one.empty]
    count = sum(one.kind in positional for one in required)
    takes_any = any(one.kind in (*positional, one.VAR_POSITIONAL) for one in parameters)
    keywords = [one.name for one in required if one.kind is one.KEYWORD_ONLY]
    if count > 2 or not takes_any or keywords:
        raise _validate.InputError(
            "expected a granularity function of a leaf's path, or of its path and shape; got "
            f"{function!r}, which needs {[one.name for one in required]}. Bind the others."
        )
    return max(count, 1)


def _named(result: Any, leaf: Leaf) -> Groups:
    if isinstance(result, str):
        return [(result, "name")], np.zeros((), np.int32)
    if not hasattr(result, "shape") or not hasattr(result, "dtype"):
        raise _validate.InputError(
            "expected the granularity function to return a layer name, or an array of integers or "
            f"strings that broadcasts to the leaf's shape; got {result!r} for leaf {leaf.path}."
        )
    array = _validate.host_array(result, f"groups of leaf {leaf.path}", None)
    if array.dtype.kind not in "iuUT" or not _broadcasts(array.shape, leaf.shape):
        raise _validate.InputError(
            "expected the granularity function to return groups that are integers or strings and "
            f"broadcast to {leaf.shape} for leaf {leaf.path}; got {array.dtype}"
            f"{list(array.shape)}."
        )
    values, first, places = np.unique(array, return_index=True, return_inverse=True)
    order = np.argsort(first)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(order.size)
    kind = "number" if array.dtype.kind in "iu" else "name"
    prefix = "group " if kind == "number" else ""
    keys = [(f"{prefix}{value}", kind) for value in values[order].tolist()]
    return keys, np.asarray(ranks[places]).reshape(array.shape)


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False
