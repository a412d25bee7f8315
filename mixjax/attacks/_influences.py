"""What varies, in a flax.linen module, with each channel of each layer's output."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixjax import _validate
from mixjax.types import Params

Source: TypeAlias = tuple[str, ...] | None
"""The path of a layer whose output's channels vary; None for the network's input."""

Answer: TypeAlias = Callable[..., Any]
"""`(number of the call, next_call, args, kwargs) -> output`."""


class Influences(NamedTuple):
    """What depends on what.

    Attributes:
      calls: the path of the layer of each call, in order.
      edges: by source and number of a call, `[channels, features]`: which features of the call's
        input vary with which channels of the source.
      reach: by source, `[channels]`: which vary the network's output.
      within: by number of a call of a normalization, `[features, features]`: which channels of
        its output vary with which of its input.
    """

    calls: list[tuple[str, ...]]
    edges: dict[tuple[Source, int], np.ndarray]
    reach: dict[Source, np.ndarray]
    within: dict[int, np.ndarray]


def of(
    model: nn.Module, params: Params, inputs: Any, own: dict[tuple[str, ...], dict[str, int]]
) -> Influences:
    """Vary channel after channel, and compare.

    What is between layers runs as it is. Layers themselves don't: each gives positive numbers in
    place of its output, so that nothing depends on weights, and no channel is dead.

    Args:
      model: called as `model.apply({"params": params}, inputs)`.
      params: the model's, or their shapes.
      inputs: `[batch, ..., channels]`; only shape and dtype count.
      own: by the path of each layer, its leaves.
    """
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(generator.uniform(0.5, 1, leaf.shape), jnp.float32), params
    )
    start = jnp.asarray(generator.uniform(1, 2, inputs.shape), jnp.float32)
    calls: list[tuple[str, ...]] = []
    outputs: list[jax.Array] = []

    def play(first: Any, answer: Answer) -> tuple[list[Any], Any]:
        """The inputs of all calls, and the output, where calls are answered so."""
        seen: list[Any] = []

        def intercept(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            path = tuple(context.module.path)
            if context.method_name != "__call__" or path not in own:
                return next_call(*args, **kwargs)
            if not args or not hasattr(args[0], "shape"):
                raise _validate.InputError(
                    f"expected layer {'/'.join(path)} to take an array; got {args!r}. Name the "
                    "pairs of layers with channels.of_pairs."
                )
            if len(calls) == len(seen):
                calls.append(path)
            seen.append(args[0])
            return answer(len(seen) - 1, next_call, args, kwargs)

        with nn.intercept_methods(intercept):
            out = model.apply({"params": params}, first)
        return seen, out

    def record(number: int, next_call: Any, args: Any, kwargs: Any) -> Any:
        shape = next_call(*args, **kwargs).shape
        with jax.ensure_compile_time_eval():
            outputs.append(jnp.asarray(generator.uniform(1, 2, shape), jnp.float32))
        return outputs[number]

    seen, _ = jax.eval_shape(lambda: play(start, record))

    def input_varied(change: Any) -> Any:
        return play(_changed(start, change), lambda at, *_: outputs[at])

    def output_varied(number: int, change: Any) -> Any:
        return play(
            start, lambda at, *_: _changed(outputs[at], change) if at == number else outputs[at]
        )

    def inside_varied(number: int, change: Any) -> Any:
        found = []

        def answer(at: int, next_call: Any, args: Any, kwargs: Any) -> Any:
            if at == number:
                values = jnp.asarray(1 + np.arange(args[0].size) % 7, jnp.float32)
                values = _changed(values.reshape(args[0].shape), change)
                found.append(next_call(values, *args[1:], **kwargs))
            return outputs[at]

        play(start, answer)
        return found[0]

    normalizing = [at for at, path in enumerate(calls) if set(own[path]) == {"scale", "bias"}]
    every = range(len(calls))

    def compare(from_input: Any, from_outputs: Any, from_inside: Any) -> Any:
        return (
            _varies(input_varied, from_input),
            [_varies(lambda one, at=at: output_varied(at, one), from_outputs[at]) for at in every],
            [
                _varies(lambda one, at=at: inside_varied(at, one), changes)
                for at, changes in zip(normalizing, from_inside, strict=True)
            ],
        )

    # a program that runs once; its changes are arguments, or compiling would compute it
    program = jax.jit(compare, compiler_options={"xla_backend_optimization_level": 0})
    by_input, by_outputs, inside = jax.device_get(
        program(
            _changes(start),
            [_changes(outputs[at]) for at in every],
            [_changes(seen[at]) for at in normalizing],
        )
    )
    edges: dict[tuple[Source, int], Any] = {}
    reach: dict[Source, Any] = {}
    for path, (found, out) in zip(calls, by_outputs, strict=True):
        for reader, features in enumerate(found):
            edges[path, reader] = edges.get((path, reader), False) | features
        reach[path] = reach.get(path, False) | out.any(axis=1)
    edges |= {(None, reader): features for reader, features in enumerate(by_input[0])}
    # the input is nobody's to rescale
    reach[None] = np.ones(start.shape[-1], bool)
    return Influences(calls, edges, reach, dict(zip(normalizing, inside, strict=True)))


def _changes(like: Any) -> np.ndarray:
    """`[1 + channels, channels]`: no change, then of one channel after the other."""
    size = like.shape[-1]
    return np.concatenate([np.zeros((1, size)), 0.5 * np.eye(size)]).astype(np.float32)


def _changed(values: jax.Array, change: Any) -> jax.Array:
    """The values, each channel longer by its share."""
    return values * jnp.expand_dims(1 + change, tuple(range(values.ndim - 1)))


def _varies(vary: Callable[[Any], Any], changes: Any) -> Any:
    """Of each array that `vary` returns, `[channels, features]`: which the changes move.

    By differences and not derivatives: pooling may have a derivative of its own, backwards only.
    """

    def differs(leaf: Any) -> Any:
        moved = jnp.abs(leaf[1:] - leaf[:1])
        beside = jnp.max(jnp.abs(leaf[:1]), axis=tuple(range(leaf.ndim - 1)), keepdims=True)
        return jnp.any(moved > 1e-5 * beside, axis=tuple(range(1, leaf.ndim - 1)))

    return jax.tree.map(differs, jax.lax.map(vary, changes, batch_size=64))
