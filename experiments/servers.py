"""What a server that adapts to the defence does with what it sees, on any recorded trajectory.

Every trajectory is measured for it: the laws that tie layers, sketches, and ∇Sim's terms. What a
server concludes is replayed: one that takes slots for people, or one that first undoes what the
proxy did. It joins layers where layers were mixed, follows updates where slots change, and scores
them in the order of pseudonyms.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mixjax as mx
from experiments import knowledge
from mixjax.attacks import Attack, channels, sim, tracks, unmix

Undone = Literal["nothing", "updates", "units"]


class Findings(NamedTuple):
    """What a server concludes of a round.

    Attributes:
      slots: `[rows, units]`: where each row's units were.
      scores: `[rows, ...]`, ∇Sim's of the rows.
    """

    slots: jax.Array
    scores: jax.Array


def measuring(attack: Attack, score: Attack, graph: channels.Graph, levels: int) -> Attack:
    """∇Sim at several levels of knowledge, which measures what any server here may want.

    Args:
      attack: of `sim` or alike, made with the rows of all levels.
      score: its scores from its terms; see `scoring`.
      graph: the model's channels.
      levels: of knowledge; see `knowledge.by_level`.
    """
    known = knowledge.by_level(attack, levels)
    plain = looking(graph, score, "nothing")
    measured = measure(graph, known)
    if known.init is None:
        return Attack(None, known.prepare, measured, plain.observe)

    def observe(key: Any, memory: Any, probe: Any, seen: mx.observation.Observation) -> Any:
        own = seen._replace(measures=terms(seen.measures))
        memory, _ = known.observe(key, memory, probe, own)
        return memory, plain.observe(key, probe, seen)

    return Attack(known.init, known.prepare, measured, observe)


def measure(graph: channels.Graph, score: Attack) -> mx.attacks.base.Measure:
    """Couplings, sketches and the terms of ∇Sim: what `looking` reads."""
    own = unmix.attack(graph, tracks.attack(score)).measure
    assert own is not None
    return own


@functools.cache
def looking(
    graph: channels.Graph, score: Attack, undone: Undone, gauge: float | None = None
) -> Attack:
    """The server's conclusions from the measures of `measuring`; its findings are `Findings`.

    One object for equal arguments: replaying it is compiled once.

    Args:
      graph: the model's channels.
      score: ∇Sim from its terms; see `scoring`.
      undone: what it reverts: nothing, moves of whole updates, or of units.
      gauge: see `unmix.attack`.
    """
    follow = tracks.attack(score)
    join = unmix.attack(graph, follow, gauge=gauge)

    def plain(key: Any, probe: Any, seen: mx.observation.Observation) -> Findings:
        _, (sketches, terms) = seen.measures
        scores = score.observe(key, probe, seen._replace(measures=terms))
        own = jnp.arange(sketches.shape[0], dtype=jnp.int32)[:, None]
        return Findings(jnp.broadcast_to(own, sketches.shape[:2]), scores)

    def followed(key: Any, memory: Any, probe: Any, seen: mx.observation.Observation) -> Any:
        own = seen._replace(measures=seen.measures[1])
        memory, found = follow.observe(key, memory, probe, own)
        return memory, Findings(found.slots, found.then)

    def joined(key: Any, memory: Any, probe: Any, seen: mx.observation.Observation) -> Any:
        memory, found = join.observe(key, memory, probe, seen)
        slots = jnp.take_along_axis(found.slots, found.then.slots, axis=0)
        return memory, Findings(slots, found.then.then)

    return {
        "nothing": Attack(None, None, None, plain),
        "updates": Attack(follow.init, None, None, followed),
        "units": Attack(join.init, None, None, joined),
    }[undone]


@functools.cache
def scoring(levels: int, observe: Callable[..., Any] = sim.observe) -> Attack:
    """∇Sim's scores from its terms alone, for every slot; or those of another that has them."""
    return knowledge.by_level(Attack(None, None, None, observe), levels)


def terms(tree: Any) -> Any:
    """∇Sim's part of the measures of `measuring`."""
    return tree[1][1]


def largest(units: mx.units.Units) -> int:
    """The unit of most parameters, the first of equals."""
    return int(np.argmax(list(mx.units.parameter_counts(units).values())))


def commonest(owners: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Who each row is: the owner of most of its appearances, 0 for one that never appears.

    Args:
      owners: `[rounds, rows]`.
      here: in which rounds a row appears.
    """
    counted = [np.bincount(own[seen]) for own, seen in zip(owners.T, here.T, strict=True)]
    return np.array([int(count.argmax()) if count.size else 0 for count in counted])
