"""Which parameters feed a hidden channel of a network, and which read it.

A channel whose activation is positively homogeneous (ReLU, also through pooling and flattening)
can be rescaled: what feeds it by a > 0, what reads it by 1/a, and the network computes the same.
A `Graph` names these parameters. `trace` finds it in a flax.linen module, `of_pairs` makes it of
pairs of layers of any other model, and `asymmetry` measures how well the symmetry holds.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mixjax import _labels, _validate
from mixjax.types import Params, ParamShapes

if TYPE_CHECKING:
    from mixjax.attacks import _influences


class Role(NamedTuple):
    """The part that a leaf has in some hidden channels.

    Attributes:
      leaf: its place in the model's flatten order.
      axis: along which the channels lie, counted from the last (-1).
      channels: of each position along the axis, the number of the channel, or -1 for none.
    """

    leaf: int
    axis: int
    channels: tuple[int, ...]


class Hidden(NamedTuple):
    """Some hidden channels that the same leaves feed and read.

    Attributes:
      name: of the layers that feed it.
      size: the number of channels.
      feeds: the leaves that scale with the channel.
      reads: the leaves that scale against it.
    """

    name: str
    size: int
    feeds: tuple[Role, ...]
    reads: tuple[Role, ...]


class Norm(NamedTuple):
    """A normalization right after a bias.

    Attributes:
      name: of its layer.
      before: the part of the bias before it; channels are numbered as the normalization's.
      scale: the leaf of its scale.
      shift: the leaf of its own bias.
      groups: the group that each channel is normalized in.
    """

    name: str
    before: Role
    scale: int
    shift: int
    groups: tuple[int, ...]


class Graph(NamedTuple):
    """What a model's layers have to do with each other. Static and hashable.

    Attributes:
      hidden: the channels that layers feed and read.
      norms: normalizations after a bias.
      layers: for each layer with a kernel, its leaves by the layer's output channels.
    """

    hidden: tuple[Hidden, ...]
    norms: tuple[Norm, ...] = ()
    layers: tuple[tuple[Role, ...], ...] = ()

    @property
    def channels(self) -> int:
        """The number of hidden channels."""
        return sum(hidden.size for hidden in self.hidden)


def of_pairs(
    params: ParamShapes, pairs: Iterable[tuple[str, str]], *, outputs_first: bool = False
) -> Graph:
    """The graph of layers that read one another's channels, two by two.

    >>> model = {"a": {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)}, "b": {"w": jnp.zeros((8, 2))}}
    >>> graph = of_pairs(model, [("a", "b")])              # two positions of 4 channels, flattened
    >>> graph.hidden[0].reads
    (Role(leaf=2, axis=-2, channels=(0, 1, 2, 3, 0, 1, 2, 3)),)

    Args:
      params: one model's parameters, or their shapes.
      pairs: `(before, after)`, layers by their names (see `units.describe`). All leaves of
        `before` feed its channels; those of `after` with two axes or more read them. The names of
        several layers that feed the same channels, such as those of a residual block, are joined
        by a comma, and so are those of several readers.
      outputs_first: whether a kernel is `[out, in, ...]`, as in PyTorch and equinox, and not
        `[..., in, out]`. Flattened inputs then run over positions fastest.

    Raises:
      InputError: for a layer that the model doesn't have, or sizes that don't fit.
    """
    leaves = _labels.leaves_of(params)
    layers: dict[str, list[int]] = {}
    for place, leaf in enumerate(leaves):
        layers.setdefault("/".join(_labels.layer_of(leaf.path)), []).append(place)

    def members(names: str) -> list[int]:
        found = []
        for name in map(str.strip, names.split(",")):
            if name not in layers:
                raise _validate.InputError(
                    f"expected layers of the model, one of {list(layers)}; got {name!r}."
                )
            found += layers[name]
        return found

    hidden = []
    for before, after in pairs:
        feeding = [place for place in members(before) if leaves[place].shape]
        reading = [place for place in members(after) if len(leaves[place].shape) > 1]
        sizes = {leaves[place].shape[0 if outputs_first else -1] for place in feeding}
        if len(sizes) != 1 or not reading:
            raise _validate.InputError(
                f"expected leaves of {before} with one number of channels and a kernel in {after}; "
                f"got {sorted(sizes)} channels and {len(reading)} kernels."
            )
        (size,) = sizes
        feeds = tuple(
            Role(place, -len(leaves[place].shape) if outputs_first else -1, tuple(range(size)))
            for place in feeding
        )
        reads = []
        for place in reading:
            shape = leaves[place].shape
            axis = 1 - len(shape) if outputs_first else -2
            if shape[axis] % size:
                raise _validate.InputError(
                    f"expected {after} to read a multiple of the {size} channels of {before}; got "
                    f"{shape[axis]} inputs of {'/'.join(leaves[place].path)}."
                )
            positions = np.arange(shape[axis])
            of_input = positions // (shape[axis] // size) if outputs_first else positions % size
            reads.append(Role(place, axis, tuple(of_input.tolist())))
        hidden.append(Hidden(before, size, feeds, tuple(reads)))
    return Graph(tuple(hidden), (), _by_layer(leaves, layers.values(), outputs_first))


def asymmetry(
    graph: Graph, apply: Callable[[Params], Any], params: Params, factor: float = 1.25
) -> dict[str, float]:
    """How far each hidden layer is from being rescalable: 0 if its law holds exactly.

    Half of a layer's channels are rescaled, the function before and after compared, and the
    difference divided by that of rescaling what feeds them alone. A graph that is wrong gives
    about 1 or more; a homogeneous activation gives rounding; others lie between.

    Args:
      graph: what is to be checked.
      apply: `params -> outputs` of some inputs, any pytree.
      params: the model's.
      factor: of the rescaling.
    """
    _validate.check_callable(apply, "apply(params)")
    leaves, structure = jax.tree.flatten(params)

    def outputs(changed: list[Any]) -> np.ndarray:
        found = apply(jax.tree.unflatten(structure, changed))
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])

    plain, result = outputs(leaves), {}
    for hidden in graph.hidden:
        every_other = jnp.where(jnp.arange(hidden.size) % 2 == 0, jnp.float32(factor), 1)
        fed = rescaled(leaves, hidden.feeds, every_other)
        both = rescaled(fed, hidden.reads, 1 / every_other)
        moved = np.linalg.norm(outputs(fed) - plain)
        result[hidden.name] = float(np.linalg.norm(outputs(both) - plain) / max(moved, 1e-30))
    return result


def check_graph(graph: Any) -> None:
    """Refuse what is no graph, or has no channel to go by."""
    if not isinstance(graph, Graph) or not (graph.hidden or graph.norms):
        raise _validate.InputError(
            "expected a graph of at least one hidden layer, from channels.trace(model, params, "
            f"inputs) or channels.of_pairs(params, pairs); got {graph!r}."
        )


def rescaled(
    leaves: Sequence[Array], roles: Iterable[Role], scales: Float[Array, " channels"]
) -> list[Array]:
    """The leaves, each channel of the roles times its scale; what has no channel as it is.

    Args:
      leaves: of the model, in flatten order.
      roles: of a `Hidden`, what feeds it or what reads it.
      scales: of its channels.
    """
    result = list(leaves)
    for role in roles:
        leaf, channels = result[role.leaf], np.array(role.channels)
        along = jnp.where(channels < 0, 1, scales[channels]).astype(leaf.dtype)
        others = [at for at in range(leaf.ndim) if at != leaf.ndim + role.axis]
        result[role.leaf] = leaf * jnp.expand_dims(along, others)
    return result


def trace(model: Any, params: Params, inputs: Any) -> Graph:
    """The graph of a flax.linen module whose layers take and give channels last.

    Each layer's output is varied, channel by channel, and what varies at the inputs of the others
    is noted: so any operation may stand between layers, as pooling, flattening, sums of branches.
    A channel that is mixed with others outside a layer, normalized, or reaches the output, is left
    out; a normalization's own scale and bias feed the channels after it. Activations are not
    judged: see `asymmetry`.

    >>> model = mx.models.SensorCNN(classes=3)
    >>> inputs = jnp.zeros((1, 50, 6))
    >>> graph = trace(model, mx.models.initial(model, jax.random.key(0), inputs), inputs)
    >>> [(hidden.name, hidden.size) for hidden in graph.hidden]
    [('Conv_0', 16), ('Conv_1', 32), ('dense/Dense_0', 64)]

    Args:
      model: called as `model.apply({"params": params}, inputs)`, deterministic.
      params: the model's, or their shapes.
      inputs: `[batch, ..., channels]`; only shape and dtype count.

    Raises:
      InputError: for what is no flax.linen module, or a layer that doesn't take one array.
    """
    import flax.linen as nn

    from mixjax.attacks import _influences

    if not isinstance(model, nn.Module):
        raise _validate.InputError(
            f"expected a flax.linen module to trace; got {model!r}. Name the pairs of layers with "
            "channels.of_pairs."
        )
    leaves = _labels.leaves_of(params)
    own: dict[tuple[str, ...], dict[str, int]] = {}
    for place, leaf in enumerate(leaves):
        own.setdefault(leaf.path[:-1], {})[leaf.path[-1]] = place
    found = _influences.of(model, params, inputs, own)
    graph = _graph_of(found, own, [leaf.shape for leaf in leaves])
    return graph._replace(layers=_by_layer(leaves, (own[path].values() for path in own)))


def _graph_of(
    found: "_influences.Influences",
    own: dict[tuple[str, ...], dict[str, int]],
    shapes: Sequence[tuple[int, ...]],
) -> Graph:
    """Channels that are summed are one; what is read by a kernel alone is a hidden channel."""
    parent = {(path, j): (path, j) for path, out in found.reach.items() for j in range(len(out))}

    def root(node: Any) -> Any:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    bad = {(path, j) for path, out in found.reach.items() for j in np.flatnonzero(out).tolist()}
    readers: list[tuple[Any, int, int]] = []
    norms: list[Norm] = []
    for number, reader in enumerate(found.calls):
        sources = [path for path in found.reach if found.edges[path, number].any()]
        kernel = own[reader].get("kernel")
        features = found.edges[None, number].shape[1]
        linear = kernel is not None and len(shapes[kernel]) > 1 and shapes[kernel][-2] == features
        for feature in range(features):
            nodes = []
            for path in sources:
                channels = np.flatnonzero(found.edges[path, number][:, feature]).tolist()
                nodes += [(path, j) for j in channels]
                if len(channels) > 1 or not linear:
                    bad.update((path, j) for j in channels)
            for node in nodes[1:]:
                parent[root(node)] = root(nodes[0])
            if nodes and linear:
                assert kernel is not None
                readers.append((nodes[0], kernel, feature))
        norm = _norm_of(found, number, sources, own)
        norms += [] if norm is None else [norm]
    worse = {root(node) for node in bad}
    members: dict[Any, list[Any]] = {}
    for node in parent:
        if root(node) not in worse:
            members.setdefault(root(node), []).append(node)
    groups: dict[Any, dict[Any, int]] = {}
    for top, nodes in members.items():
        numbers = groups.setdefault(tuple(sorted({path for path, _ in nodes})), {})
        numbers[top] = len(numbers)
    hidden = []
    for paths, numbers in groups.items():
        feeds: dict[int, list[int]] = {}
        for top, channel in numbers.items():
            for path, j in members[top]:
                for place in own[path].values():
                    feeds.setdefault(place, [-1] * shapes[place][-1])[j] = channel
        reads: dict[int, list[int]] = {}
        for node, place, feature in readers:
            if root(node) in numbers:
                reads.setdefault(place, [-1] * shapes[place][-2])[feature] = numbers[root(node)]
        if reads:
            name = ", ".join("/".join(path) for path in paths)
            hidden.append(Hidden(name, len(numbers), _roles(feeds, -1), _roles(reads, -2)))
    return Graph(tuple(hidden), tuple(norms))


def _by_layer(
    leaves: Sequence[_labels.Leaf], layers: Iterable[Iterable[int]], outputs_first: bool = False
) -> tuple[tuple[Role, ...], ...]:
    """The leaves of each layer that has a kernel, by the kernel's output channels."""
    result = []
    for places in layers:
        shapes = {place: leaves[place].shape for place in places if leaves[place].shape}
        axis = {place: -len(shape) if outputs_first else -1 for place, shape in shapes.items()}
        sizes = {shape[axis[place]] for place, shape in shapes.items()}
        if len(sizes) == 1 and any(len(shape) > 1 for shape in shapes.values()):
            channels = tuple(range(sizes.pop()))
            result.append(tuple(Role(place, axis[place], channels) for place in shapes))
    return tuple(result)


def _roles(channels: dict[int, list[int]], axis: int) -> tuple[Role, ...]:
    return tuple(Role(place, axis, tuple(own)) for place, own in channels.items())


def _norm_of(
    found: "_influences.Influences",
    number: int,
    sources: Sequence[Any],
    own: dict[tuple[str, ...], dict[str, int]],
) -> Norm | None:
    """The normalization that a call is, if a lone biased layer stands before it."""
    if number not in found.within or len(sources) != 1 or sources[0] is None:
        return None
    (path,), layer = sources, found.calls[number]
    before = found.edges[path, number]
    if "bias" not in own[path] or not (before.sum(axis=0) == 1).all():
        return None
    # each feature is one channel of the layer before
    channels = np.full(len(before), -1)
    channels[np.argmax(before, axis=0)] = np.arange(before.shape[1])
    groups = tuple(np.argmax(found.within[number], axis=0).tolist())
    role = Role(own[path]["bias"], -1, tuple(channels.tolist()))
    return Norm("/".join(layer), role, own[layer]["scale"], own[layer]["bias"], groups)
