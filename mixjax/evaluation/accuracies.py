"""How often guesses are right, of people and of single units."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mixjax import _axes, _memory, _validate, mixing
from mixjax.attacks import sim
from mixjax.attacks.sim import Statistics
from mixjax.evaluation._arrays import Values, aligned, mean_over_present, share
from mixjax.types import PRNGKey

# drawing this many origins at once is faster than one matrix after the other
DRAW_ELEMENTS = 2**18


def guesses(scores: Values) -> np.ndarray:
    """The attribute value with the highest score: `[..., attributes] -> [...]`."""
    array = _validate.host_array(scores, "scores", ndim=1)
    if not array.shape[-1] or np.isnan(array).any():
        raise _validate.InputError(
            "expected scores of at least one attribute value, none of them NaN; got shape "
            f"{array.shape} with {np.isnan(array).sum()} NaN."
        )
    return np.argmax(array, axis=-1)


def attribution(guesses: Values, truth: Values, active: Values | None = None) -> np.ndarray:
    """Share of slots whose guess is the attribute of the participant of that number.

    Args:
      guesses: `[..., clients]`.
      truth: `[..., clients]`, broadcast against `guesses`.
      active: which slots count; all by default.

    Returns:
      `[...]`, in [0, 1]; NaN where nothing is active.
    """
    guesses, truth, active = aligned(guesses, truth, active)
    return share(guesses == truth, active)


def balanced_accuracy(
    guesses: Values, truth: Values, values: int, active: Values | None = None
) -> np.ndarray:
    """Mean over attribute values of the share of its participants guessed right: `[...]`.

    Chance is one over the number of values present, whatever their frequencies.
    """
    guesses, truth, active = _aligned_by_value(guesses, truth, values, active)
    recalls = [share(guesses == value, active & (truth == value)) for value in range(values)]
    return mean_over_present(recalls)


def unit_level(
    unit_scores: Values, origins: Values, truth: Values, active: Values | None = None
) -> np.ndarray:
    """Share of unit instances whose owner's attribute is guessed from that unit alone.

    Args:
      unit_scores: `[..., slots, units, attributes]` of the forwarded units.
      origins: `[..., slots, units]`.
      truth: `[..., clients]`.
      active: `[..., slots]`.

    Returns:
      `[..., units]`.
    """
    guessed = guesses(unit_scores)
    origins = _validate.host_array(origins, "origins", "iu", ndim=2)
    truth = _validate.host_array(truth, "truth", "iu", ndim=1)
    if guessed.ndim < 2 or guessed.shape[-2:] != origins.shape[-2:]:
        raise _validate.InputError(
            f"expected unit_scores [..., slots, units, attributes] and origins [..., slots, "
            f"units]; got shapes {np.shape(unit_scores)} and {origins.shape}."
        )
    slots = np.zeros(guessed.shape[:-1], int)
    _, truth, present = aligned(slots, truth, active)
    _axes.check_origin_rows(origins, truth.shape[-1])
    shape = np.broadcast_shapes(guessed.shape, origins.shape, (*truth.shape, 1))
    truth = np.broadcast_to(truth[..., None], shape)
    owners = np.take_along_axis(truth, np.broadcast_to(origins, shape), axis=-2)
    present = np.broadcast_to(present[..., None], shape)
    right = np.swapaxes(guessed == owners, -1, -2)
    return share(right, np.swapaxes(present, -1, -2))


def chance(truth: Values, active: Values | None = None) -> np.ndarray:
    """Accuracy of always guessing the commonest value among the active: `[...]`."""
    _, truth, active = aligned(truth, truth, active)
    counts = [np.sum((truth == value) & active, axis=-1) for value in np.unique(truth)]
    return np.asarray(np.max(np.stack(counts), axis=0) / np.maximum(np.sum(active, axis=-1), 1))


def permuted_attribution(
    guesses: Values, truth: Values, values: int, active: Values | None = None
) -> np.ndarray:
    """Expected attribution under a uniform permutation of slots: sum_a (n_a / C)(m_a / C)."""
    guesses, truth, active = _aligned_by_value(guesses, truth, values, active)
    return np.asarray(
        sum(share(guesses == a, active) * share(truth == a, active) for a in range(values))
    )


def attribution_over_draws(
    key: PRNGKey,
    statistics: Statistics,
    truth: Values,
    mix: mixing.Mix | mixing.Draw,
    active: Values | None = None,
    *,
    draws: int,
) -> np.ndarray:
    """Attribution of passive ∇Sim under many draws of a mixing of one round, on the device.

    Args:
      key: of the draws.
      statistics: of the round's updates before mixing.
      truth: `[clients]`.
      mix: the distribution of origins. Build it once: each is compiled anew.
      active: `[clients]`; all by default.
      draws: how many.

    Returns:
      `[draws]`. Their mean estimates the expected attribution; divide their deviation by the
      root of `draws` for its standard error.
    """
    _validate.check_key(key)
    _validate.check_positive(draws, "draws", integer=True)
    _axes.check_statistics(statistics)
    mix = mixing.as_mix(mix)
    truth = _validate.host_array(truth, "truth", "iu")
    clients = statistics.squared_norms.shape[0]
    present = np.ones(clients, bool) if active is None else active
    present = _validate.host_array(present, "active", "b")
    if np.shape(truth) != (clients,) or present.shape != (clients,):
        raise _validate.InputError(
            f"expected truth and active of shape [{clients}], one for each client; got "
            f"{np.shape(truth)} and {present.shape}."
        )
    _axes.check_active(present, clients)
    arrays = (jnp.asarray(truth.astype(np.int32)), jnp.asarray(present))
    if present.sum() < mix.least:
        _axes.check_mixable(arrays[1], clients)
    return np.asarray(_attribution_over_draws(key, statistics, *arrays, mix, draws))


@functools.partial(jax.jit, static_argnames=("mix", "draws"))
def _attribution_over_draws(
    key: PRNGKey,
    statistics: Statistics,
    truth: Array,
    active: Array,
    mix: mixing.Mix,
    draws: int,
) -> Array:
    def one(draw: Array) -> Array:
        origins = mix(jax.random.fold_in(key, draw), active, statistics.squared_norms.shape[-1])
        scores = sim.cosine(sim.mix_statistics(origins, statistics))
        right = (jnp.argmax(scores, axis=-1).astype(truth.dtype) == truth) & active
        return jnp.sum(right) / jnp.sum(active)

    clients, units = statistics.squared_norms.shape
    batch = min(max(DRAW_ELEMENTS // (clients * units), 1), draws)
    return jax.lax.map(one, jnp.arange(draws), batch_size=batch)


def _aligned_by_value(
    guesses: Values, truth: Values, values: int, active: Values | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    guesses, truth, active = aligned(guesses, truth, active)
    _validate.check_positive(values, "values", integer=True)
    _memory.check_memory(8 * values * guesses.size, f"{values} attribute values", "", None)
    return guesses, truth, active
