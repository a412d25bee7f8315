"""Small flax.linen networks for the datasets, the loss of any network and its first parameters.

None of the networks has BatchNorm: its statistics are data.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import Array, Float

from mixjax import _validate, ops
from mixjax.client import LossFn
from mixjax.data import Examples
from mixjax.types import Params, PRNGKey


class MLP(nn.Module):
    """Dense layers with ReLU between them, on flattened inputs `[batch, ...]`.

    Attributes:
      classes: outputs.
      hidden: widths of the hidden layers.
    """

    classes: int
    hidden: Sequence[int] = (128, 64)

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        hidden = inputs.reshape(inputs.shape[0], -1)
        for width in self.hidden:
            hidden = nn.relu(nn.Dense(width)(hidden))
        return nn.Dense(self.classes)(hidden)


class SensorCNN(nn.Module):
    """Two 1-D convolutions and two dense layers, on windows `[batch, time, channels]`.

    The first convolution has stride 2, the second is followed by max-pooling by 2.

    Attributes:
      classes: outputs.
      features: channels of the convolutions.
      hidden: widths of the hidden dense layers.
      kernel: samples under a convolution's window.
    """

    classes: int
    features: tuple[int, int] = (16, 32)
    hidden: Sequence[int] = (64,)
    kernel: int = 5

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        first, second = self.features
        hidden = nn.relu(_conv(first, (self.kernel,), strides=2)(inputs))
        hidden = nn.relu(_conv(second, (self.kernel,))(hidden))
        return MLP(self.classes, self.hidden, name="dense")(ops.max_pool(hidden, (2,)))


class ImageCNN(nn.Module):
    """Two 2-D convolutions and three dense layers, on images `[batch, height, width, channels]`.

    The first dense layer holds most parameters, so the cosine of whole updates is mostly its:

    >>> import jax, mixjax as mx
    >>> images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    >>> params = jax.eval_shape(ImageCNN(classes=10).init, jax.random.key(0), images)["params"]
    >>> mx.units.describe(params)
    unit           parameters  share  leaves
    Conv_0                896   0.2%  Conv_0/bias Conv_0/kernel
    Conv_1             18,496   3.3%  Conv_1/bias Conv_1/kernel
    GroupNorm_0            64   0.0%  GroupNorm_0/bias GroupNorm_0/scale
    GroupNorm_1           128   0.0%  GroupNorm_1/bias GroupNorm_1/scale
    dense/Dense_0     524,416  94.8%  dense/Dense_0/bias dense/Dense_0/kernel
    dense/Dense_1       8,256   1.5%  dense/Dense_1/bias dense/Dense_1/kernel
    dense/Dense_2         650   0.1%  dense/Dense_2/bias dense/Dense_2/kernel
    total             552,906

    Attributes:
      classes: outputs.
      features: channels of the 3x3 convolutions, each followed by max-pooling by 2, GroupNorm
        and ReLU.
      hidden: widths of the hidden dense layers.
      groups: of each GroupNorm (Wu and He 2018, arXiv:1803.08494); 0 for none.
    """

    classes: int
    features: Sequence[int] = (32, 64)
    hidden: Sequence[int] = (128, 64)
    groups: int = 8

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        for width in self.features:
            inputs = ops.max_pool(_conv(width, (3, 3))(inputs), (2, 2))
            if self.groups:
                inputs = GroupNorm(self.groups)(inputs)
            inputs = nn.relu(inputs)
        return MLP(self.classes, self.hidden, name="dense")(inputs)


class GroupNorm(nn.Module):
    """`flax.linen.GroupNorm` by `ops.group_norm`; parameters `scale` and `bias`, `[channels]`.

    Attributes:
      groups: a divisor of the number of channels.
    """

    groups: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        channels = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return ops.group_norm(inputs, scale, bias, self.groups)


def cross_entropy(model: nn.Module) -> LossFn:
    """The loss of classification: -log softmax(logits)[label], of each example.

    >>> model = MLP(classes=3)
    >>> params = initial(model, jax.random.key(0), jnp.zeros((1, 4)))
    >>> batch = mx.data.Examples(jnp.zeros((2, 4)), jnp.array([0, 2]))
    >>> cross_entropy(model)(params, batch, jax.random.key(1))    # log 3: it knows nothing yet
    Array([1.0986123, 1.0986123], dtype=float32)

    Args:
      model: `inputs [batch, ...] -> logits [batch, classes]`, which needs neither random numbers
        nor variables other than its parameters.

    Returns:
      `(params, batch, key) -> losses [batch]`, of `data.Examples` whose labels are class indices.
      The key is not used.

    Raises:
      InputError: if `model` is no flax.linen module.
    """
    _check_module(model)

    def loss_fn(params: Params, batch: Examples, key: PRNGKey) -> Float[Array, " batch"]:
        del key
        logits: Any = model.apply({"params": params}, batch.inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)

    return loss_fn


def initial(model: nn.Module, key: PRNGKey, inputs: Array | np.ndarray) -> Params:
    """A network's first parameters: `model.init(key, inputs)["params"]`, compiled in a moment.

    Guarantees: the same bits for the same arguments on one device. They differ from those of
    flax's own call by rounding, as programs that are compiled otherwise do.

    >>> params = initial(ImageCNN(classes=10), jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    >>> jax.tree.map(jnp.shape, params["Conv_0"])
    {'bias': (32,), 'kernel': (3, 3, 3, 32)}

    Args:
      model: hashable, as flax.linen modules are whose attributes are numbers and tuples.
      key: which the parameters follow from.
      inputs: one example or more, `[batch, ...]`; only the shape and dtype count.

    Raises:
      InputError: if `model` is no hashable flax.linen module, or has variables other than
        parameters.
      ValueError: from JAX, under another `jax.jit`: it is a program of its own.
    """
    _check_module(model)
    _validate.check_key(key)
    try:
        hash(model)
    except TypeError:
        raise _validate.InputError(
            f"expected a model whose attributes are hashable; got {model!r}. Give tuples for lists."
        ) from None
    return _initial(model, key, inputs)


def _check_module(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise _validate.InputError(
            f"expected a flax.linen module such as models.MLP(classes=10); got {model!r}."
        )


# optimizing a program that runs for milliseconds costs seconds
@functools.partial(
    jax.jit, static_argnames="model", compiler_options={"xla_backend_optimization_level": 0}
)
def _initial(model: nn.Module, key: PRNGKey, inputs: Array) -> Params:
    variables = model.init(key, inputs)
    others = sorted(set(variables) - {"params"})
    if others:
        raise _validate.InputError(
            f"expected a model with parameters only; got variables {others} too. Use GroupNorm "
            "for BatchNorm: clients would share the statistics of their data."
        )
    return variables["params"]


def _conv(features: int, kernel: tuple[int, ...], strides: int = 1) -> nn.Conv:
    return nn.Conv(features, kernel, strides, conv_general_dilated=ops.conv_general_dilated)
