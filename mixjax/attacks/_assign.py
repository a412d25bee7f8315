"""One-to-one assignments inside a compiled program.

They are SciPy's, called back: on two cores 0.2 ms for 20 clients and 8 ms for 300, where optax's
Hungarian algorithm took 40 and 20 ms; for 1,000 it is the other way round, 130 against 30 ms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float, Int

from mixjax.types import PRNGKey


def assign(key: PRNGKey, gain: Float[Array, "rows columns"]) -> Int[Array, " rows"]:
    """The column of each row, one to one, for which the sum of gains is largest.

    Columns are dealt out first: where gains are equal, an assignment would return the identity.

    Args:
      key: of the deal.
      gain: square, finite.
    """
    order = jax.random.permutation(key, gain.shape[1])
    like = jax.ShapeDtypeStruct(order.shape, jnp.int32)
    chosen = jax.pure_callback(_assign, like, gain[:, order], vmap_method="sequential")
    return order[chosen].astype(jnp.int32)


def _assign(gain: Array) -> np.ndarray:
    return scipy.optimize.linear_sum_assignment(-np.asarray(gain))[1].astype(np.int32)
