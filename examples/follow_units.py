"""An attack of your own, with a memory: follow each unit from round to round.

Mixing gives every unit a new slot each round. This server gives every unit of every slot a
pseudonym instead: it remembers how each pseudonym's unit looked in the round before, without
what all have in common, and joins the rounds by cosine, one to one. It knows nobody's data.

    python -m examples.follow_units        # real smartwatch recordings, behind MixNN

The file uses the public contract alone (`mixjax.attacks.Attack`): a measure of one update, a
memory, and what it finds. It runs under any granularity, jitted, vmapped, or resumed from a
checkpoint.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mixjax as mx


class Tracks(NamedTuple):
    """What is remembered of each pseudonym, `[pseudonyms, units, ...]`.

    Attributes:
      seen: its unit's sketch when it was last seen, the mean over slots taken off.
      known: whether it has been seen at all.
    """

    seen: jax.Array
    known: jax.Array


def follow_units(width: int = 64) -> mx.attacks.Attack:
    """The attack; its findings are `pseudonyms[slot, unit]`, -1 for slots that are empty.

    Args:
      width: of the sketch that a unit is remembered by.
    """

    def init(params: Any, units: mx.units.Units, clients: int) -> Tracks:
        shape = (clients, len(units.names))
        return Tracks(jnp.zeros((*shape, width), jnp.float32), jnp.zeros(shape, bool))

    def measure(probe: mx.attacks.Probe, units: mx.units.Units, update: Any) -> jax.Array:
        # the same signs in every round, or no two could be compared
        return mx.measures.sketch(jax.random.key(0), units, update, width)

    def observe(
        key: Any, memory: Tracks, probe: mx.attacks.Probe, observation: mx.observation.Observation
    ) -> tuple[Tracks, jax.Array]:
        active, rows = observation.active, observation.measures
        weight = active[:, None, None].astype(rows.dtype)
        mean = jnp.sum(rows * weight, axis=0, keepdims=True) / jnp.maximum(jnp.sum(weight), 1)
        rows = (rows - mean) * weight
        keys = jax.random.split(key, rows.shape[1])
        join = jax.vmap(_join, (0, 1, 1, None, 1), 1)
        slots, pseudonyms = join(keys, memory.seen, memory.known, active, rows)
        # the slot that each pseudonym was found in; an empty one tells nothing new
        found = jnp.take_along_axis(jnp.broadcast_to(active[:, None], slots.shape), slots, 0)
        now = jnp.take_along_axis(rows, slots[..., None], 0)
        seen = jnp.where(found[..., None], now, memory.seen)
        findings = jnp.where(active[:, None], pseudonyms, -1)
        return Tracks(seen, memory.known | found), findings

    return mx.attacks.Attack(init, None, measure, observe)


def _join(
    key: Any, seen: jax.Array, known: jax.Array, active: jax.Array, rows: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One unit: the slot of each pseudonym, and the pseudonym of each slot."""
    likeness = _unit_length(seen) @ _unit_length(rows).T
    # empty slots go to whoever is left
    gain = jnp.where(active[None], jnp.where(known[:, None], likeness, 0.0), -2.0)
    # an assignment returns the identity where nothing is known: deal the slots out first
    order = jax.random.permutation(key, active.shape[0])
    # in JAX's default floats, as optax's own numbers are
    assigned = optax.assignment.hungarian_algorithm(-gain[:, order].astype(float))
    slots = jnp.zeros_like(order).at[assigned[0]].set(order[assigned[1]])
    return slots, jnp.argsort(slots)


def _unit_length(rows: jax.Array) -> jax.Array:
    lengths = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(lengths > 0, lengths, 1)


def by_unit(*arrays: Any) -> list[np.ndarray]:
    """Each with its last axis, of units, in front: a unit's rounds are judged on their own."""
    return [np.moveaxis(np.asarray(array), -1, 0) for array in arrays]


def main(rounds: int = 10) -> None:
    """Follow 20 participants of the smartwatch recordings, and print how well it went."""
    dataset = mx.datasets.watch()
    model = mx.models.SensorCNN(classes=len(dataset.classes))
    inputs = dataset.train.examples.inputs
    params = model.init(jax.random.key(1), inputs[0, :1])["params"]

    def loss_fn(params: Any, batch: mx.data.Examples, key: Any) -> jax.Array:
        logits: Any = model.apply({"params": params}, batch.inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)

    local = mx.client.local_training(loss_fn, optax.sgd(0.05, momentum=0.9), batch_size=16)
    federation = mx.federation.fedavg(local, defence=mx.defences.mixnn(), attack=follow_units())
    state = federation.init(params, clients=len(inputs))
    _, records = mx.federation.run(jax.random.key(2), federation, state, dataset.train, rounds)
    origins = np.asarray(records.truth.origins)
    pure = mx.evaluation.purity(*by_unit(records.findings, origins))
    blind = np.random.default_rng(0).permuted(np.asarray(records.findings), axis=1)
    print(f"{rounds} rounds of {len(inputs)} participants behind MixNN: the share of a pseudonym's")
    print("appearances that are its commonest owner's, and the same of pseudonyms dealt at random")
    names = mx.units.partition(params).names
    for name, share, chance in zip(
        names, pure, mx.evaluation.purity(*by_unit(blind, origins)), strict=True
    ):
        print(f"  {name:16} {share:.3f}  {chance:.3f}")


if __name__ == "__main__":
    main()
