"""From a trajectory's records to one JSON-ready row a round, for every mixing."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mixjax as mx
from experiments.training import Split
from mixjax.attacks import sim

# mixings that attribution is averaged over: one draw's guesses are those of chance, plus luck
DRAWS = 200
RADII = tuple(round(0.1 * step, 1) for step in range(1, 31))
NEIGHBOUR_EVERY = 5


class Case(NamedTuple):
    """What is compared: a line of the table.

    Attributes:
      defence: "none", "noisy", "shuffle", "mixnn" or "mixnn_proxy".
      attack: "passive" or "active".
      sigma: standard deviation of the noise; None without.
      list_size: entries in each of the proxy's lists; None without.
    """

    defence: str
    attack: str
    sigma: float | None = None
    list_size: int | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Case":
        """The case that a row or an entry of the summary belongs to."""
        return cls(*(row[field] for field in cls._fields))

    def mix(self) -> mx.mixing.Mix | None:
        """The mixing to apply to an unmixed trajectory; None for none."""
        if self.defence == "shuffle":
            return mx.mixing.shuffle()
        if self.defence == "mixnn":
            return mx.mixing.full_round()
        if self.defence == "mixnn_proxy":
            assert self.list_size is not None
            return mx.mixing.proxy(self.list_size)
        return None

    def mixing_alone(self) -> "Case":
        """The case without what its mixing does not depend on: one program serves all alike."""
        return self._replace(attack="", sigma=None)


def mix_record(key: jax.Array, record: mx.federation.Record, case: Case) -> mx.federation.Record:
    """The record of the same trajectory behind the case's proxy: fresh origins each round."""
    if case.mix() is None:
        return record
    own = record.truth.statistics
    assert own is not None
    seen, origins = jax.device_get(
        _mix_rounds(key, record.observation.active, own, case.mixing_alone())
    )
    # the updates that the record may keep are the unmixed ones
    return record._replace(
        observation=record.observation._replace(statistics=seen, updates=None),
        truth=record.truth._replace(origins=origins),
    )


@functools.partial(jax.jit, static_argnames="case")
def _mix_rounds(
    key: jax.Array, active: jax.Array, own: mx.observation.Statistics, case: Case
) -> tuple[mx.observation.Statistics, jax.Array]:
    mix = case.mix()
    assert mix is not None
    keys = jax.random.split(key, active.shape[0])
    units = own.squared_norms.shape[-1]
    origins = jax.vmap(lambda key, active: mix(key, active, units))(keys, active)
    return jax.vmap(mx.observation.mix_statistics)(origins, own), origins


_cosine = jax.jit(jax.vmap(sim.cosine))
_unit_cosine = jax.jit(jax.vmap(sim.unit_cosine))


def rows(
    case: Case,
    seed: int,
    record: mx.federation.Record,
    split: Split,
    units: mx.units.Units,
    key: jax.Array,
) -> list[dict[str, Any]]:
    """One row for each round.

    Attribution of a mixed case is the mean over `DRAWS` mixings of the trajectory; whatever else
    depends on the mixing is of the one that `record` has.

    Args:
      case: what was run.
      seed: which split of people.
      record: records of all rounds; rows past the participants are padding.
      split: the participants and what the server knows. Directions of fewer auxiliary people, if
        any, come first.
      units: the model's partition.
      key: of the mixings.
    """
    truth, values = split.truth, split.values
    clients = len(truth)
    seen = record.observation.statistics
    assert seen is not None
    dots, squares = seen.dots[:, :clients], seen.squared_norms[:, :clients]
    levels = dots.shape[-1] // values
    by_level = []
    for level in range(levels):
        columns = slice(level * values, (level + 1) * values)
        part = mx.observation.Statistics(
            dots[..., columns], squares, seen.direction_squared_norms[..., columns]
        )
        by_level.append(_cosine(part))
    scores = np.asarray(by_level[-1])
    accumulated = np.cumsum(scores, axis=0)
    guesses = mx.evaluation.guesses(scores)
    per_unit = mx.evaluation.unit_level(
        _unit_cosine(part), record.truth.origins[:, :clients], truth
    )
    background = [
        mx.evaluation.attribution(mx.evaluation.guesses(np.cumsum(level, axis=0)), truth)
        for level in by_level
    ]
    table = {
        "accuracy": record.metrics[:, :clients].mean(axis=1),
        "loss": record.loss[:, :clients].mean(axis=1),
        "attribution": mx.evaluation.attribution(guesses, truth),
        "attribution_accumulated": background[-1],
        "balanced_accuracy": mx.evaluation.balanced_accuracy(guesses, truth, values),
        "auc": mx.evaluation.auc(scores, truth),
        "auc_accumulated": mx.evaluation.auc(accumulated, truth),
        "set_level": mx.evaluation.set_level(guesses, truth, values),
    }
    if case.mix() is not None:
        own = record.truth.statistics
        assert own is not None
        own = own._replace(
            dots=own.dots[..., -values:],
            direction_squared_norms=own.direction_squared_norms[..., -values:],
        )
        drawn = _attribution_over_draws(
            key, record.observation.active, own, truth, case.mixing_alone()
        )
        table["attribution"], table["attribution_accumulated"] = jax.device_get(drawn)
    chance = float(mx.evaluation.chance(truth))
    result = []
    for index in range(len(scores)):
        row: dict[str, Any] = {"seed": seed, **case._asdict(), "round": index + 1}
        row |= {"granularity": "layer", "chance": chance}
        row |= {name: float(column[index]) for name, column in table.items()}
        row["unit_level"] = dict(zip(units.names, per_unit[index].tolist(), strict=True))
        row["participants"] = record.metrics[index, :clients].tolist()
        if levels > 1:
            row["background"] = {
                str(people): float(level[index])
                for people, level in zip(split.known, background, strict=True)
            }
        if record.observation.updates is not None and (index + 1) % NEIGHBOUR_EVERY == 0:
            row |= _neighbours(record.observation.updates, index, clients, units)
        result.append(row)
    return result


@functools.partial(jax.jit, static_argnames="case")
def _attribution_over_draws(
    key: jax.Array,
    active: jax.Array,
    own: mx.observation.Statistics,
    truth: np.ndarray,
    case: Case,
) -> tuple[jax.Array, jax.Array]:
    """Attribution of each round, and of scores summed up to it: means over mixings."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen, _ = _mix_rounds(key, active, own, case)
        scores = jax.vmap(sim.cosine)(seen)[:, : truth.shape[0]]
        right = [
            jnp.mean(jnp.argmax(part, axis=-1) == truth, axis=-1, dtype=jnp.float32)
            for part in (scores, jnp.cumsum(scores, axis=0))
        ]
        return right[0], right[1]

    draws = jax.lax.map(one, jax.random.split(key, DRAWS), batch_size=50)
    return jnp.mean(draws[0], axis=0), jnp.mean(draws[1], axis=0)


def _neighbours(
    updates: Any, index: int, clients: int, units: mx.units.Units
) -> dict[str, dict[str, Any]]:
    current = jax.tree.map(lambda leaf: leaf[index, :clients], updates)
    previous = jax.tree.map(lambda leaf: leaf[index - 1, :clients], updates)
    within = mx.evaluation.neighbours(current, units, RADII).mean(axis=0)
    nearest_is_own = (mx.evaluation.relink_rank(previous, current, units) == 1).mean(axis=0)
    return {
        "neighbours": dict(zip(units.names, within.tolist(), strict=True)),
        "relinked": dict(zip(units.names, nearest_is_own.tolist(), strict=True)),
    }
