"""Local training of one client. Cohorts map it over the client axis; see `cohort`."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from mixjax import _axes, _validate
from mixjax.data import ClientData
from mixjax.types import Params, PRNGKey, threefry


@runtime_checkable
class LossFn(Protocol):
    """The loss of a batch: `[batch]`, one value an example, or their mean, a scalar."""

    def __call__(self, params: Params, batch: PyTree[Any], key: PRNGKey, /) -> Array: ...


class LocalResult(NamedTuple):
    """What one client's training gives.

    Attributes:
      update: `trained - received` parameters.
      loss: mean training loss over the examples as they were visited; NaN without examples.
    """

    update: Params
    loss: Float[Array, ""]


@runtime_checkable
class LocalTraining(Protocol):
    """Local training of one client: a pure function, without a client axis."""

    def __call__(self, key: PRNGKey, params: Params, data: ClientData, /) -> LocalResult: ...


def local_training(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    epochs: int = 1,
) -> LocalTraining:
    """Epochs of shuffled mini-batches with an optimizer that starts afresh each round.

    Each epoch visits each of the client's examples once, in a new random order; the last batch
    may be smaller. The gradient of a batch is that of its mean loss. A client with fewer
    examples than the cohort's longest takes fewer steps.

    Typed keys in the optimizer's state (`optax.noisy_sgd`) are made each client's and round's own.

    Guarantees: padded examples are never read, whatever they hold. A client without examples
    returns a zero update.

    Losses that couple examples (batch statistics, contrastive losses) are not supported: the last
    batch of an epoch is filled up with copies of one example, whose losses are left out, and a
    scalar loss sees one example at a time. `couples_examples` tells such a loss; use GroupNorm
    or frozen statistics in place of batch statistics.

    Args:
      loss_fn: `(params, batch, key) -> losses`, of shape `[batch]`. A scalar is read as a mean
        over examples and evaluated one example at a time under `vmap`, so that padding can be
        left out.
      optimizer: any optax optimizer; its state lives for one round.
      batch_size: examples a step.
      epochs: passes over the client's examples.

    Returns:
      `(key, params, data) -> LocalResult` for one client.
    """
    _validate.check_callable(loss_fn, "a loss (params, batch, key)")
    _validate.check_optimizer(optimizer, "an optax optimizer such as optax.sgd(0.1)")
    _validate.check_positive(batch_size, "batch_size", integer=True)
    _validate.check_positive(epochs, "epochs", integer=True)

    def mean_loss(
        params: Params, batch: PyTree[Any], real: Bool[Array, " batch"], key: PRNGKey
    ) -> Float[Array, ""]:
        losses = per_example_losses(loss_fn, params, batch, key, real.shape[0])
        losses = jnp.where(real, losses, 0)
        return jnp.sum(losses) / jnp.maximum(jnp.sum(real), 1).astype(losses.dtype)

    def train(key: PRNGKey, params: Params, data: ClientData) -> LocalResult:
        _validate.check_key(key)
        key = threefry(key)
        capacity = _axes.check_client_axis(data.examples, "examples", axis="examples")
        size = min(batch_size, capacity)
        steps = -(-capacity // size)

        def step(carry: tuple[Params, Any], index: Any) -> tuple[tuple[Params, Any], Array]:
            # a step without a real example must not move momentum or schedules either
            return jax.lax.cond(jnp.any(index[1]), learn, skip, carry, index)

        def learn(carry: tuple[Params, Any], index: Any) -> tuple[tuple[Params, Any], Array]:
            params, opt_state = carry
            rows, real, step_key = index
            batch = jax.tree.map(lambda leaf: leaf[rows], data.examples)
            loss, gradient = jax.value_and_grad(mean_loss)(params, batch, real, step_key)
            result = optimizer.update(gradient, opt_state, params)
            _validate.check_optimized(result, opt_state, params)
            updates, opt_state = result
            total = loss.astype(jnp.float32) * jnp.sum(real).astype(jnp.float32)
            return (optax.apply_updates(params, updates), opt_state), total

        def skip(carry: tuple[Params, Any], index: Any) -> tuple[tuple[Params, Any], Array]:
            return carry, jnp.zeros((), jnp.float32)

        def epoch(carry: tuple[Params, Any], key: PRNGKey) -> tuple[tuple[Params, Any], Array]:
            order_key, loss_key = jax.random.split(key)
            rows = _shuffled_rows(order_key, data.counts, capacity, steps * size)
            real = jnp.arange(steps * size, dtype=data.counts.dtype) < data.counts
            steps_of_epoch: Any = (
                rows.reshape(steps, size),
                real.reshape(steps, size),
                jax.random.split(loss_key, steps),
            )
            carry, losses = jax.lax.scan(step, carry, steps_of_epoch)
            return carry, jnp.sum(losses)

        carry = (params, _own_randomness(key, optimizer.init(params)))
        (trained, _), losses = jax.lax.scan(epoch, carry, jax.random.split(key, epochs))
        update = jax.tree.map(jnp.subtract, trained, params)
        return LocalResult(update, jnp.sum(losses) / (epochs * data.counts).astype(jnp.float32))

    return train


def couples_examples(loss_fn: LossFn, params: Params, batch: PyTree[Any], key: PRNGKey) -> bool:
    """Whether the loss of one example depends on the others of its batch, as with BatchNorm.

    On the host, by putting other examples in the place of the first two: the losses of the rest
    must not change; of a scalar loss, the effects of both changes must add up.

    Args:
      loss_fn: see `local_training`.
      params: of the model; where gradients vanish everywhere nothing shows.
      batch: at least three different examples, `[batch, ...]`.
      key: of the loss; the same for all batches, so that dropout stays as it is.

    Raises:
      InputError: for fewer than three examples.
    """
    size = _axes.check_client_axis(batch, "the batch", axis="examples")
    if size < 3:
        raise _validate.InputError(f"expected at least three examples; got {size}.")

    def losses(first: int, second: int) -> np.ndarray:
        rows = np.array([first, second, *range(2, size)])
        changed = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], batch)
        return np.asarray(loss_fn(params, changed, key), np.float64)

    own, one, other, both = losses(0, 1), losses(2, 1), losses(0, 2), losses(2, 2)
    if own.ndim:
        gaps = [np.abs(own - one)[1:], np.abs(own - other)[2:], np.abs(own - other)[:1]]
        gap = max(float(part.max()) for part in gaps)
    else:
        gap = float(np.abs(own - one - other + both))
    # a hundred roundings of float32
    return bool(gap > 1e-5 * np.abs([own, one, other, both]).max())


def _own_randomness(key: PRNGKey, opt_state: Any) -> Any:
    """An optimizer's fresh state whose keys, which are everybody's, become this client's own."""

    def own(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jax.random.fold_in(leaf, jax.random.bits(key, (), jnp.uint32))

    return jax.tree.map(own, opt_state)


def check_result(result: Any, params: Params) -> None:
    """Refuse what local training of one's own returns in place of a `LocalResult`.

    Raises:
      InputError: for another type, an update of another structure or shape than the model, or a
        loss that is no number.
    """
    if not isinstance(result, LocalResult):
        raise _validate.InputError(
            f"expected local training to return a client.LocalResult(update, loss); got "
            f"{type(result).__name__}."
        )
    _validate.check_update(result.update, params, "local training")
    loss = result.loss
    shape, dtype = getattr(loss, "shape", ()), getattr(loss, "dtype", type(loss))
    if shape != () or not _validate.real(dtype):
        came = f"{dtype}{list(shape)}" if hasattr(loss, "dtype") else repr(loss)
        raise _validate.InputError(
            f"expected local training to return its loss as one real number; got {came}."
        )


def streamed(
    local: LocalTraining, examples_fn: Callable[[Int[Array, ""]], PyTree[Any]]
) -> LocalTraining:
    """Local training on examples that are made where they are used, one client at a time.

    For cohorts whose data does not fit in memory: pass `ClientData` with `examples=()`, and
    only a chunk of clients' examples exists at any time.

    Args:
      local: local training of one client.
      examples_fn: `client_id -> examples`, traced: it generates them or indexes an array.

    Returns:
      Local training that makes the examples of data without any; others it trains on as they are.
    """
    _validate.check_callable(local, "local training such as client.local_training(...)")
    _validate.check_callable(examples_fn, "a function from a client's id to its examples")

    def train(key: PRNGKey, params: Params, data: ClientData) -> LocalResult:
        if jax.tree.leaves(data.examples):
            return local(key, params, data)
        return local(key, params, data._replace(examples=examples_fn(data.ids)))

    return train


def per_example_losses(
    loss_fn: LossFn, params: Params, batch: PyTree[Any], key: PRNGKey, size: int
) -> Float[Array, " batch"]:
    """The losses of a batch of `size` examples, whichever form `loss_fn` returns them in.

    Raises:
      InputError: where it returns neither a scalar nor one loss an example.
    """
    shape = jax.eval_shape(loss_fn, params, batch, key)
    if getattr(shape, "shape", None) == (size,):
        return loss_fn(params, batch, key)
    if getattr(shape, "shape", None) != ():
        raise _validate.InputError(
            f"expected the loss of a batch of {size} as an array of shape [{size}] or a scalar; "
            f"got {shape}."
        )

    def one(example: PyTree[Any], key: PRNGKey) -> Array:
        return loss_fn(params, jax.tree.map(lambda leaf: leaf[None], example), key)

    return jax.vmap(one)(batch, jax.random.split(key, size))


def _shuffled_rows(
    key: PRNGKey, count: Int[Array, ""], capacity: int, length: int
) -> Int[Array, " length"]:
    """The `count` real rows in random order, then copies of the first of them."""
    row = jnp.arange(capacity, dtype=count.dtype)
    order = jnp.argsort(
        jnp.where(row < count, jax.random.uniform(key, (capacity,), jnp.float32), 2.0)
    )
    order = jnp.pad(order, (0, length - capacity))
    return jnp.where(jnp.arange(length, dtype=count.dtype) < count, order, order[0])
