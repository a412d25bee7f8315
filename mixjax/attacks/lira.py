"""Membership by likelihood ratios: would a model that trained on the record be this sure of it?

A record's confidence is compared with what it is under shadow models, of which about half trained
on the record. What a model finds easy without having seen it then counts for nothing, as it does
in scores that have no reference.
Source: LiRA, the online attack, of Carlini et al. 2022, arXiv:2112.03570, Algorithm 1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mixjax import _validate

# of a deviation: confidences that are all alike have none, and no ratio either
LEAST = 1e-6


def confidence(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """How sure a model is of the true class: log(p / (1 - p)), nearly normal over models.

    Computed from logits, as their class's own minus the log of the sum of all others' exponentials:
    finite wherever logits are, where p itself would be rounded to 0 or 1.

    >>> confidence(jnp.log(jnp.array([0.8, 0.1, 0.1])), jnp.array(0))  # log(0.8 / 0.2)
    Array(1.3862..., dtype=float32)

    Args:
      logits: of two classes or more.
      labels: the true classes.

    Source: Carlini et al. 2022, section VI-B.
    """
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    own = jnp.sum(jnp.where(true, logits, jnp.zeros_like(logits)), axis=-1)
    return own - jax.nn.logsumexp(logits, axis=-1, where=~true)


def scores(
    observed: Float[Array, "..."],
    shadows: Float[Array, "models ..."],
    used: Bool[Array, "models ..."],
    *,
    pooled: bool = False,
) -> Float[Array, "..."]:
    """Log-likelihood ratio of the observed confidence: a model with the record against one without.

    With m, s of the shadow models that used a record and n, t of those that did not, means and
    deviations, `log N(x; m, s) - log N(x; n, t)`.

    Args:
      observed: confidences under the model that is attacked; `shadows` without their first axis,
        after any leading axes.
      shadows: each record's confidence under each shadow model.
      used: whether that model trained on that record.
      pooled: one deviation for all records, with and without each: better for few shadow models,
        below some 64 in the source.

    Returns:
      Higher means likelier a member: judge it with `evaluation.membership_auc` and
      `evaluation.true_positive_rate`. NaN for a record that fewer than two shadow models used, or
      fewer than two did not: their spread is not known. Zero for records that shadow models are
      alike about, whatever they used.

    Raises:
      InputError: for shapes that don't fit together.

    Source: Carlini et al. 2022, Algorithm 1, and section VI-D for `pooled`.
    """
    if shadows.shape != used.shape or observed.shape[-(shadows.ndim - 1) :] != shadows.shape[1:]:
        raise _validate.InputError(
            "expected shadows and used of one shape [models, records], and observed "
            f"[..., records] of the same records; got {shadows.shape}, {used.shape} and "
            f"{observed.shape}."
        )
    inside, outside = (_likelihood(observed, shadows, which, pooled) for which in (used, ~used))
    return inside - outside


def _likelihood(observed: Array, shadows: Array, which: Array, pooled: bool) -> Array:
    """Log density of the normal law that is fitted to the chosen models' confidences."""
    count = which.sum(axis=0)
    safe = jnp.maximum(count, 1).astype(shadows.dtype)
    zero = jnp.zeros_like(shadows)
    mean = jnp.where(which, shadows, zero).sum(axis=0) / safe
    squares = jnp.where(which, jnp.square(shadows - mean[None]), zero).sum(axis=0)
    if pooled:
        variance = jnp.broadcast_to(squares.sum() / count.sum().astype(shadows.dtype), mean.shape)
    else:
        variance = squares / safe
    deviation = jnp.maximum(jnp.sqrt(variance), jnp.asarray(LEAST, shadows.dtype))
    few = jnp.broadcast_to(count < 2, observed.shape)
    mean, deviation = (jnp.broadcast_to(part, observed.shape) for part in (mean, deviation))
    density = jax.scipy.stats.norm.logpdf(observed, mean, deviation)
    return jnp.where(few, jnp.asarray(jnp.nan, observed.dtype), density)
