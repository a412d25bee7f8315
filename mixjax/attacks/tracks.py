"""Tracks: give whoever sends updates a pseudonym, and keep it from round to round.

A proxy changes slots every round. But people differ, in the same way each time: what an update
has beyond the mean of its round resembles what the same person's had before. The server remembers
a sketch of each pseudonym's last updates and joins the next round's by cosine, one to one. It
needs nobody's data. What stays unknown is the name behind a pseudonym.
Source: after the fingerprint attack on shuffled gradients, arXiv:2310.05960; sketches of updates
without their mean are our reading.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from mixjax import _validate, measures
from mixjax import units as units_lib
from mixjax.attacks import _then
from mixjax.attacks._assign import assign
from mixjax.attacks.base import Attack, Probe
from mixjax.observation import Observation
from mixjax.types import Active, Memory, Params, PRNGKey


class Tracks(NamedTuple):
    """What is remembered of each pseudonym; parts are units, or one part the whole update.

    Attributes:
      seen: unit-length sketches without the round's mean, of its last appearances.
      times: how many of them there are.
    """

    seen: Float[Array, "pseudonyms parts last width"]
    times: Int[Array, "pseudonyms parts"]


class Followed(NamedTuple):
    """Who is who.

    Attributes:
      slots: `slots[pseudonym, unit]`: where the pseudonym's unit is in this round. A permutation
        in each unit; pseudonyms that are absent have the slots that were not forwarded.
      then: findings of the attack that looks at the updates in the pseudonyms' order.
    """

    slots: Int[Array, "clients units"]
    then: PyTree[Any]


def attack(
    then: Attack | None = None,
    *,
    each_unit: bool = False,
    width: int = 256,
    last: int = 3,
    newcomer: float = 0.1,
    seed: int = 0,
) -> Attack:
    """The server that follows updates from round to round; its findings are `Followed`.

    `then` sees each round in the order of pseudonyms, as if nobody had moved: what it accumulates
    over rounds is one person's as long as the track is. Behind a shuffle that is all it takes;
    behind MixNN join whole updates first, `unmix.attack(graph, then=tracks.attack(...))`, or
    follow each unit on its own.

    >>> server = attack(mx.attacks.sim.passive(mx.data.stack([{"x": jnp.ones((1, 2))}] * 2)))

    Args:
      then: what looks at the updates in their new order, by its measure.
      each_unit: whether to follow units on their own and not whole updates: a row then holds
        units of different people, each of them always the same one's.
      width: of the sketches; see `measures.sketch`. A server remembers clients * parts * last *
        width numbers, and a round measures clients * units * width.
      last: how many appearances of each pseudonym are remembered.
      newcomer: the cosine that a pseudonym not yet seen counts for; only matters where people
        stay away.
      seed: of the sketches' signs.

    Raises:
      InputError: for a number out of range, or a `then` that reads whole updates.
    """
    _validate.check_positive(width, "width", integer=True)
    _validate.check_positive(last, "last", integer=True)
    inner = _then.part(then)

    def init(params: Params, units: units_lib.Units, clients: int) -> tuple[Tracks, Memory]:
        parts = len(units.names) if each_unit else 1
        seen = jnp.zeros((clients, parts, last, width), jnp.float32)
        return Tracks(seen, jnp.zeros((clients, parts), jnp.int32)), inner.init(
            params, units, clients
        )

    def prepare(key: PRNGKey, memory: Any, params: Params, local: Any) -> Probe:
        return inner.prepare(key, memory[1], params, local)

    def measure(probe: Probe, units: units_lib.Units, update: Params) -> Any:
        rows = measures.sketch(jax.random.key(seed), units, update, width)
        return rows, inner.measure(probe, units, update)

    def observe(
        key: PRNGKey, memory: Any, probe: Probe, observation: Observation
    ) -> tuple[Any, Followed]:
        tracks, own = memory
        own_key, then_key = jax.random.split(key)
        sketches, rest = observation.measures
        units = sketches.shape[1]
        rows = sketches if each_unit else jnp.sum(sketches, axis=1, keepdims=True)
        tracks, slots = follow(own_key, tracks, rows, observation.active, newcomer=newcomer)
        slots = jnp.broadcast_to(slots, (slots.shape[0], units))
        own, findings = inner.observe(
            then_key, own, probe, _then.reordered(slots, observation, rest)
        )
        return (tracks, own), Followed(slots, findings)

    return Attack(init, prepare, measure, observe)


def follow(
    key: PRNGKey,
    tracks: Tracks,
    rows: Float[Array, "clients parts width"],
    active: Active,
    *,
    newcomer: float = 0.1,
) -> tuple[Tracks, Int[Array, "pseudonyms parts"]]:
    """Join one round's rows to the tracks, part by part.

    Args:
      key: breaks ties.
      tracks: the rounds before.
      rows: sketches, slot by slot.
      active: whose rows were forwarded.
      newcomer: see `attack`.

    Returns:
      The tracks with this round, and the slot of each pseudonym.
    """
    last = tracks.seen.shape[2]
    rows = directions(rows, active)
    known = jnp.minimum(tracks.times, last)
    # rows that are not filled are zero
    mean = jnp.sum(tracks.seen, axis=2) / jnp.maximum(known, 1)[..., None].astype(jnp.float32)
    likeness = jnp.einsum("tpw,spw->pts", mean, rows, precision=jax.lax.Precision.HIGHEST)
    gain = jnp.where((known > 0).T[:, :, None], likeness, jnp.float32(newcomer))
    # slots that are empty go to whoever is left
    gain = jnp.where(active[None, None], gain, 0.0)
    slots = jax.vmap(assign)(jax.random.split(key, rows.shape[1]), gain).T
    now = jnp.take_along_axis(rows, slots[..., None], axis=0)
    found = active[slots]
    newest = jnp.concatenate([now[:, :, None], tracks.seen[:, :, :-1]], axis=2)
    seen = jnp.where(found[..., None, None], newest, tracks.seen)
    return Tracks(seen, tracks.times + found.astype(jnp.int32)), slots


def repair(
    key: PRNGKey,
    rows: Float[Array, "rounds clients parts width"],
    active: Bool[Array, "rounds clients"],
    slots: Int[Array, "rounds pseudonyms parts"],
    *,
    sweeps: int = 3,
) -> Int[Array, "rounds pseudonyms parts"]:
    """The tracks of a finished run, each round joined anew to all others, earlier and later ones.

    Coordinate ascent on the sum of cosines between all rounds of a pseudonym: it never falls. The
    first rounds, joined when little was known, gain most.

    Args:
      key: breaks ties.
      rows: sketches, slot by slot; for whole updates one part, the sum over units.
      active: whose rows were forwarded.
      slots: of the tracks to repair, as `follow` found them.
      sweeps: how often each round is joined.
    """
    _validate.check_positive(sweeps, "sweeps", integer=True)
    rows = jax.vmap(directions)(rows, active)
    rounds = rows.shape[0]
    where = jnp.arange(rounds)

    def aligned(number: Array, slots: Array) -> Array:
        return jnp.take_along_axis(rows[number], slots[number][..., None], axis=0)

    def one(carry: Any, step: Any) -> tuple[Any, None]:
        slots, total = carry
        number, key = step
        others = total - aligned(number, slots)
        gain = jnp.einsum("tpw,spw->pts", others, rows[number], precision=jax.lax.Precision.HIGHEST)
        found = jax.vmap(assign)(jax.random.split(key, gain.shape[0]), gain).T
        slots = slots.at[number].set(found.astype(slots.dtype))
        return (slots, others + aligned(number, slots)), None

    total = jnp.sum(jax.vmap(aligned, (0, None))(where, slots), axis=0)
    steps = (jnp.tile(where, sweeps), jax.random.split(key, sweeps * rounds))
    (slots, _), _ = jax.lax.scan(one, (slots, total), steps)
    return slots


def directions(
    rows: Float[Array, "clients parts width"], active: Active
) -> Float[Array, "clients parts width"]:
    """The rows without the mean of the active ones, at unit length; zero for the others."""
    rows, weight = rows.astype(jnp.float32), active[:, None, None].astype(jnp.float32)
    mean = jnp.sum(rows * weight, axis=0, keepdims=True) / jnp.maximum(jnp.sum(weight), 1)
    rows = (rows - mean) * weight
    lengths = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(lengths > 0, lengths, 1)
