"""Which parameters feed a hidden channel of a network, and which read it.

A channel whose activation is positively homogeneous (ReLU, also through pooling and flattening)
can be rescaled: what feeds it by a > 0, what reads it by 1/a, and the network computes the same.
A `Graph` names these parameters. `trace` finds it in a flax.linen module, `of_pairs` makes it of
pairs of layers of any other model, and `asymmetry` measures how well the symmetry holds.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import _labels, _validate
from mixjax.types import Params, ParamShapes


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
      before: the leaf of the bias before it, and for each channel of the normalization the place
        in that leaf.
      scale: the leaf of its scale.
      shift: the leaf of its own bias.
      groups: the group that each channel is normalized in.
    """

    name: str
    before: tuple[int, tuple[int, ...]]
    scale: int
    shift: int
    groups: tuple[int, ...]


class Graph(NamedTuple):
    """The hidden channels and normalizations of a model. Static and hashable."""

    hidden: tuple[Hidden, ...]
    norms: tuple[Norm, ...] = ()


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
    return Graph(tuple(hidden))


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

    def outputs(changed: dict[int, Any]) -> np.ndarray:
        rows = [changed.get(place, leaf) for place, leaf in enumerate(leaves)]
        found = apply(jax.tree.unflatten(structure, rows))
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])

    plain, result = outputs({}), {}
    for hidden in graph.hidden:
        fed: dict[int, Any] = {}
        for role in hidden.feeds:
            fed[role.leaf] = _rescaled(fed.get(role.leaf, leaves[role.leaf]), role, factor)
        both = dict(fed)
        for role in hidden.reads:
            both[role.leaf] = _rescaled(both.get(role.leaf, leaves[role.leaf]), role, 1 / factor)
        moved = np.linalg.norm(outputs(fed) - plain)
        result[hidden.name] = float(np.linalg.norm(outputs(both) - plain) / max(moved, 1e-30))
    return result


def _rescaled(leaf: Any, role: Role, factor: float) -> Any:
    """Every other channel of the leaf times the factor."""
    channels = np.array(role.channels)
    scales = np.where((channels >= 0) & (channels % 2 == 0), factor, 1.0)
    return leaf * jnp.asarray(
        np.expand_dims(scales, [at for at in range(leaf.ndim) if at != leaf.ndim + role.axis]),
        leaf.dtype,
    )


class _Call(NamedTuple):
    """A call of a module without submodules: `[channels, features]` of what depends on what."""

    path: tuple[str, ...]
    features: int


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

    if not isinstance(model, nn.Module):
        raise _validate.InputError(
            f"expected a flax.linen module to trace; got {model!r}. Name the pairs of layers with "
            "channels.of_pairs."
        )
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(generator.uniform(0.5, 1, leaf.shape), jnp.float32), params
    )
    leaves = {leaf.path: place for place, leaf in enumerate(_labels.leaves_of(params))}
    shapes = [leaf.shape for leaf in _labels.leaves_of(params)]
    own: dict[tuple[str, ...], dict[str, int]] = {}
    for path, place in leaves.items():
        own.setdefault(path[:-1], {})[path[-1]] = place
    calls: list[_Call] = []
    positive: list[Any] = []

    def probed(changes: Any, first: Any, within: int | None = None) -> Any:
        """The inputs of all calls and the output, where calls' outputs change by these factors.

        With `within`, the output of that call where its input changes instead.
        """
        seen: list[Any] = []
        inner: list[Any] = []

        def intercept(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            path = tuple(context.module.path)
            if context.method_name != "__call__" or path not in own:
                return next_call(*args, **kwargs)
            if not args or not hasattr(args[0], "shape"):
                raise _validate.InputError(
                    f"expected layer {'/'.join(path)} to take an array; got {args!r}. Name the "
                    "pairs of layers with channels.of_pairs."
                )
            number = len(seen)
            seen.append(args[0])
            if changes is None:
                out = next_call(*args, **kwargs)
                calls.append(_Call(path, out.shape[-1]))
                positive.append(generator.uniform(1, 2, out.shape))
            elif number == within:
                values = 1 + np.arange(args[0].size).reshape(args[0].shape) % 7
                inner.append(next_call(_changed(values, changes[number]), *args[1:], **kwargs))
            # any positive numbers will do: what follows depends on the channels, not on weights
            change = None if number == within or changes is None else changes[number]
            return _changed(positive[number], change)

        with nn.intercept_methods(intercept):
            out = model.apply({"params": params}, first)
        return inner[0] if within is not None else (seen, out)

    start = _changed(generator.uniform(1, 2, inputs.shape), None)
    seen, _ = jax.eval_shape(lambda: probed(None, start))
    none: list[Any] = [np.zeros(call.features, np.float32) for call in calls]

    def with_change(number: int, change: Any) -> list[Any]:
        return [change if at == number else zero for at, zero in enumerate(none)]

    # for each call and the network's input: what varies with it, channel by channel
    tasks: list[tuple[Callable[[Any], Any], int]] = []
    for number, call in enumerate(calls):
        tasks.append(
            (lambda change, at=number: probed(with_change(at, change), start), call.features)
        )
    tasks.append((lambda change: probed(none, _changed(start, change)), start.shape[-1]))
    normalizing = [at for at, call in enumerate(calls) if set(own[call.path]) == {"scale", "bias"}]
    for number in normalizing:
        tasks.append(
            (
                lambda change, at=number: probed(with_change(at, change), start, at),
                seen[number].shape[-1],
            )
        )
    # a program that runs once
    compiled = jax.jit(
        lambda all_changes: [
            _influence(vary, changes) for (vary, _), changes in zip(tasks, all_changes, strict=True)
        ],
        compiler_options={"xla_backend_optimization_level": 0},
    )
    # differences and not derivatives: pooling may have a derivative of its own, backwards only
    influences = jax.tree.map(
        np.asarray,
        compiled(
            [
                np.concatenate([np.zeros((1, size)), 0.5 * np.eye(size)]).astype(np.float32)
                for _, size in tasks
            ]
        ),
    )
    edges: dict[tuple[tuple[str, ...] | None, int], Any] = {}
    reach: dict[tuple[str, ...] | None, Any] = {}
    for call, (found, out) in zip(calls, influences, strict=False):
        for reader, features in enumerate(found):
            edges[call.path, reader] = edges.get((call.path, reader), False) | features
        reach[call.path] = reach.get(call.path, False) | out.any(axis=1)
    for reader, features in enumerate(influences[len(calls)][0]):
        edges[None, reader] = features
    reach[None] = np.ones(start.shape[-1], bool)
    blocks = dict(zip(normalizing, influences[len(calls) + 1 :], strict=True))
    return _graph_of(calls, edges, reach, blocks, own, shapes)


def _influence(vary: Callable[[Any], Any], changes: Any) -> Any:
    """Of each array that `vary` returns, `[changes, features]`: which differ from the first's."""

    def differs(leaf: Any) -> Any:
        moved = jnp.abs(leaf[1:] - leaf[:1])
        beside = jnp.max(jnp.abs(leaf[:1]), axis=tuple(range(leaf.ndim - 1)), keepdims=True)
        return jnp.any(moved > 1e-5 * beside, axis=tuple(range(1, leaf.ndim - 1)))

    return jax.tree.map(differs, jax.lax.map(vary, changes, batch_size=64))


def _changed(values: Any, change: Any) -> Any:
    """The values, each channel longer by its share."""
    values = jnp.asarray(values, jnp.float32)
    if change is None:
        return values
    return values * jnp.expand_dims(1 + change, tuple(range(values.ndim - 1)))


def _graph_of(
    calls: Sequence[_Call],
    edges: dict[Any, Any],
    reach: dict[Any, Any],
    blocks: dict[int, Any],
    own: dict[Any, dict[str, int]],
    shapes: Sequence[tuple[int, ...]],
) -> Graph:
    """Channels that are summed are one; what is read by a kernel alone is a hidden channel."""
    parent = {(path, j): (path, j) for path, out in reach.items() for j in range(len(out))}

    def root(node: Any) -> Any:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    bad = {(path, j) for path, out in reach.items() for j in np.flatnonzero(out).tolist()}
    readers: list[tuple[Any, int, int]] = []
    norms: list[Norm] = []
    for number, call in enumerate(calls):
        sources = [path for path in reach if edges[path, number].any()]
        kernel = own[call.path].get("kernel")
        features = edges[None, number].shape[1]
        linear = kernel is not None and len(shapes[kernel]) > 1 and shapes[kernel][-2] == features
        for feature in range(features):
            nodes = []
            for path in sources:
                own_channels = np.flatnonzero(edges[path, number][:, feature]).tolist()
                nodes += [(path, j) for j in own_channels]
                if len(own_channels) > 1 or not linear:
                    bad.update((path, j) for j in own_channels)
            for node in nodes[1:]:
                parent[root(node)] = root(nodes[0])
            if nodes and linear:
                assert kernel is not None
                readers.append((nodes[0], kernel, feature))
        norm = _norm_of(call, number, sources, edges, blocks, own)
        norms += [] if norm is None else [norm]
    worse = {root(node) for node in bad}
    groups: dict[Any, dict[Any, int]] = {}
    members: dict[Any, list[Any]] = {}
    for node in parent:
        if root(node) not in worse:
            members.setdefault(root(node), []).append(node)
    for top, nodes in members.items():
        channels = groups.setdefault(tuple(sorted({path for path, _ in nodes})), {})
        channels[top] = len(channels)
    hidden = []
    for paths, channels in groups.items():
        feeds: dict[tuple[int, int], list[int]] = {}
        for top in channels:
            for path, j in members[top]:
                for place in own[path].values():
                    size = shapes[place][-1]
                    feeds.setdefault((place, -1), [-1] * size)[j] = channels[top]
        reads: dict[tuple[int, int], list[int]] = {}
        for node, place, feature in readers:
            if root(node) in channels:
                row = reads.setdefault((place, -2), [-1] * shapes[place][-2])
                row[feature] = channels[root(node)]
        if reads:
            name = ", ".join("/".join(path) for path in paths)
            hidden.append(Hidden(name, len(channels), _roles(feeds), _roles(reads)))
    return Graph(tuple(hidden), tuple(norms))


def _roles(found: dict[tuple[int, int], list[int]]) -> tuple[Role, ...]:
    return tuple(Role(*where, tuple(channels)) for where, channels in found.items())


def _norm_of(
    call: _Call,
    number: int,
    sources: Sequence[Any],
    edges: dict[Any, Any],
    blocks: dict[int, Any],
    own: dict[Any, dict[str, int]],
) -> Norm | None:
    """The normalization that a call is, if a lone biased layer stands before it."""
    leaves = own[call.path]
    if set(leaves) != {"scale", "bias"} or len(sources) != 1 or sources[0] is None:
        return None
    before, (path,) = edges[sources[0], number], sources
    if "bias" not in own[path] or not (before.sum(axis=0) == 1).all():
        return None
    places = tuple(np.argmax(before, axis=0).tolist())
    groups = tuple(np.argmax(blocks[number], axis=0).tolist())
    name = "/".join(call.path)
    return Norm(name, (own[path]["bias"], places), leaves["scale"], leaves["bias"], groups)
