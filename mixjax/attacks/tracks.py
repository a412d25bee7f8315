"""Tracks: give whoever sends updates a pseudonym, and keep it from round to round.

A proxy changes slots every round. But people differ, in the same way each time: what an update
has beyond the mean of its round resembles what the same person's had before. The server remembers
a sketch of each pseudonym's last updates and joins the next round's by cosine, one to one: by the
mean over units, so that a large layer full of noise does not drown a small telling one. It needs
nobody's data. What stays unknown is the name behind a pseudonym.
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
    """What is remembered of each pseudonym.

    Attributes:
      seen: sketches of its units at length one without the round's mean, of its last appearances.
      times: how often each unit appeared.
    """

    seen: Float[Array, "pseudonyms units last width"]
    times: Int[Array, "pseudonyms units"]


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
    newcomer: float = 0.3,
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
      width: of the sketches; see `measures.sketch`. A server remembers clients * units * last *
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
        return start(clients, len(units.names), last, width), inner.init(params, units, clients)

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
        rows, rest = observation.measures
        tracks, slots = follow(
            own_key, tracks, rows, observation.active, each_unit=each_unit, newcomer=newcomer
        )
        own, findings = inner.observe(
            then_key, own, probe, _then.reordered(slots, observation, rest)
        )
        return (tracks, own), Followed(slots, findings)

    return Attack(init, prepare, measure, observe, send=inner.send)


def start(clients: int, units: int, last: int = 3, width: int = 256) -> Tracks:
    """The memory before the first round; see `attack`."""
    seen = jnp.zeros((clients, units, last, width), jnp.float32)
    return Tracks(seen, jnp.zeros((clients, units), jnp.int32))


def follow(
    key: PRNGKey,
    tracks: Tracks,
    rows: Float[Array, "clients units width"],
    active: Active,
    *,
    each_unit: bool = False,
    newcomer: float = 0.3,
) -> tuple[Tracks, Int[Array, "pseudonyms units"]]:
    """Join one round's rows to the tracks.

    Args:
      key: breaks ties.
      tracks: the rounds before.
      rows: sketches, slot by slot.
      active: whose rows were forwarded.
      each_unit: see `attack`.
      newcomer: see `attack`.

    Returns:
      The tracks with this round, and the slot of each pseudonym's units.
    """
    last = tracks.seen.shape[2]
    rows = directions(rows, active)
    known = jnp.minimum(tracks.times, last)
    # places that are not filled yet are zero
    mean = jnp.sum(tracks.seen, axis=2) / jnp.maximum(known, 1)[..., None].astype(jnp.float32)
    likeness = _likeness(mean, rows)
    gain = jnp.where((known > 0).T[:, :, None], likeness, jnp.float32(newcomer))
    # slots that are empty go to whoever is left
    gain = jnp.where(active[None, None], gain, 0.0)
    slots = _assigned(key, gain, each_unit)
    now = jnp.take_along_axis(rows, slots[..., None], axis=0)
    found = active[slots]
    newest = jnp.concatenate([now[:, :, None], tracks.seen[:, :, :-1]], axis=2)
    seen = jnp.where(found[..., None, None], newest, tracks.seen)
    return Tracks(seen, tracks.times + found.astype(jnp.int32)), slots


def _likeness(mean: Array, rows: Array) -> Float[Array, "units pseudonyms slots"]:
    return jnp.einsum("tuw,suw->uts", mean, rows, precision=jax.lax.Precision.HIGHEST)


def _assigned(key: PRNGKey, gain: Array, each_unit: bool) -> Int[Array, "pseudonyms units"]:
    """The slot of each pseudonym's units, one to one, for whole rows by the mean over units."""
    units = gain.shape[0]
    if not each_unit:
        gain = jnp.mean(gain, axis=0, keepdims=True)
    slots = jax.vmap(assign)(jax.random.split(key, gain.shape[0]), gain).T
    return jnp.broadcast_to(slots, (slots.shape[0], units))


def repair(
    key: PRNGKey,
    rows: Float[Array, "rounds clients units width"],
    active: Bool[Array, "rounds clients"],
    slots: Int[Array, "rounds pseudonyms units"],
    *,
    each_unit: bool = False,
    sweeps: int = 3,
) -> Int[Array, "rounds pseudonyms units"]:
    """The tracks of a finished run, each round joined anew to all others, earlier and later ones.

    Coordinate ascent on the sum of cosines between all rounds of a pseudonym: it never falls. The
    first rounds, joined when little was known, gain most.

    Args:
      key: breaks ties.
      rows: sketches, slot by slot.
      active: whose rows were forwarded.
      slots: of the tracks to repair, as `follow` found them.
      each_unit: as they were found.
      sweeps: how often each round is joined.
    """
    _validate.check_positive(sweeps, "sweeps", integer=True)
    rows = jax.vmap(directions)(rows, active)
    rounds = jnp.arange(rows.shape[0])

    def aligned(number: Array, slots: Array) -> Array:
        return jnp.take_along_axis(rows[number], slots[number][..., None], axis=0)

    def one(carry: Any, step: Any) -> tuple[Any, None]:
        slots, total = carry
        number, key = step
        others = total - aligned(number, slots)
        found = _assigned(key, _likeness(others, rows[number]), each_unit)
        slots = slots.at[number].set(found.astype(slots.dtype))
        return (slots, others + aligned(number, slots)), None

    total = jnp.sum(jax.vmap(aligned, (0, None))(rounds, slots), axis=0)
    steps = (jnp.tile(rounds, sweeps), jax.random.split(key, sweeps * len(rounds)))
    (slots, _), _ = jax.lax.scan(one, (slots, total), steps)
    return slots


def directions(
    rows: Float[Array, "clients units width"], active: Active
) -> Float[Array, "clients units width"]:
    """The rows without the mean of the active ones, at unit length; zero for the others."""
    rows, weight = rows.astype(jnp.float32), active[:, None, None].astype(jnp.float32)
    mean = jnp.sum(rows * weight, axis=0, keepdims=True) / jnp.maximum(jnp.sum(weight), 1)
    rows = (rows - mean) * weight
    lengths = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(lengths > 0, lengths, 1)
