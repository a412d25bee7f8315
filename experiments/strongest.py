"""The server that does all it can: it joins, follows, names, and asks ∇Sim and whose records.

It joins what was mixed and follows it from round to round, or names people by the models it sends
them. Beside it stand ∇Sim on slots, which takes slots for people, and ∇Sim on the tracks of single
units, which joins nothing.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

import mixjax as mx
from experiments import servers, tasks, training
from experiments.scenarios import Scenario
from mixjax.attacks import Attack, Probe, channels, crafted, sim, tracks

FOLLOWED = 16
"""Units up to which each is followed alone."""
SPREADS = {"balanced": 0.0, "spread": 2.0}
"""Of the gauges that a server sends its model in."""
SCORE = Attack(None, None, sim.measure, sim.observe)


class Seen(NamedTuple):
    """What the server concludes of a round, row by row of its own order.

    Attributes:
      slots: `[rows, units]`, where each row's units were.
      scores: `[rows, values]`, ∇Sim's of its whole updates.
      unit_slots: `[rows, followed]`, where some units were, each followed alone.
      unit_scores: `[rows, followed, values]`, ∇Sim's of these units.
      slot_scores: `[clients, values]`, ∇Sim's of the slots as they came.
      source: `[records]`, the row that source inference takes for a record's owner.
      slot_source: `[records]`, the same of the slots as they came.
      gain: `[records]`, by how much the best of whole models lowers a record's loss: by more for
        records that were trained on.
      slot_gain: `[records]`, the same of the slots as they came.
      named: `[rows]`, which rows the server takes for people in this round.
    """

    slots: jax.Array
    scores: jax.Array
    unit_slots: jax.Array
    unit_scores: jax.Array
    slot_scores: jax.Array
    source: jax.Array
    slot_source: jax.Array
    gain: jax.Array
    slot_gain: jax.Array
    named: jax.Array


class Plan(NamedTuple):
    """What a scenario's program is compiled for; hashable."""

    scenario: Scenario
    task: tasks.Task
    model: nn.Module
    graph: channels.Graph
    units: mx.units.Units
    rounds: int

    @property
    def followed(self) -> tuple[int, ...]:
        """The units that are followed alone: all, or of many the largest."""
        count = len(self.units.names)
        return tuple(range(count)) if count <= FOLLOWED else (servers.largest(self.units),)


def server(plan: Plan, split: training.Split, records: Any) -> Attack:
    """Everything at once; its findings are `Seen`."""
    knowing, scenario = sim.passive(split.rows()), plan.scenario
    as_people = servers.looking(plan.graph, SCORE, "nothing")
    undoing = servers.looking(plan.graph, SCORE, scenario.moves, scenario.gauge())
    loss_fn = mx.models.cross_entropy(plan.model)
    craft = scenario.craft(knowing, split.train.ids)
    measured = servers.measure(plan.graph, SCORE)
    people = len(split.truth)

    def init(params: Any, units: mx.units.Units, clients: int) -> Any:
        whole = () if undoing.init is None else undoing.init(params, units, clients)
        crafting = () if craft is None or craft.init is None else craft.init(params, units, people)
        return whole, tracks.start(clients, len(plan.followed)), crafting

    def prepare(key: Any, memory: Any, params: Any, local: Any) -> Probe:
        assert knowing.prepare is not None
        if craft is not None and craft.prepare is not None:
            return craft.prepare(key, memory[2], params, local)
        return knowing.prepare(key, params, local)

    def measure(probe: Probe, units: mx.units.Units, update: Any) -> Any:
        own = measured(inner(probe), units, update)
        return own, craft and craft.measure and craft.measure(probe, units, update)

    def inner(probe: Probe) -> Probe:
        return probe if craft is None else probe._replace(references=probe.references.then)

    def observe(key: Any, memory: Any, probe: Probe, seen: mx.observation.Observation) -> Any:
        whole, alone, crafting = memory
        whole_key, alone_key, source_key = jax.random.split(key, 3)
        by_craft = seen._replace(measures=seen.measures[1], updates=None)
        found = None
        if craft is not None:
            crafting, found = craft.observe(key, crafting, probe, by_craft)
        probe, seen = inner(probe), seen._replace(measures=seen.measures[0])
        _, (sketches, terms) = seen.measures
        own, slot_scores = as_people.observe(key, probe, seen)
        named = jnp.ones(people, bool)
        if isinstance(found, crafted.Isolated):
            rows = jnp.arange(people)[:, None]
            named = rows[:, 0] == found.client
            slots = jnp.where(named[:, None], found.slots, rows)
            scores = jnp.where(named[:, None], found.then, 0)
        elif found is not None:
            slots, scores = found.slots, found.then
        elif undoing.init is None:
            slots, scores = own, slot_scores
        else:
            whole, (slots, scores) = undoing.observe(whole_key, whole, probe, seen)
        units_alone = list(plan.followed)
        places = own[:, units_alone]
        if scenario.moves != "nothing":
            rows = sketches[:, units_alone]
            alone, places = tracks.follow(alone_key, alone, rows, seen.active, each_unit=True)
        lengths = sim.direction_squared_norms(probe.references, plan.units)
        dots, squares = terms
        cosines = sim.unit_cosine(sim.Statistics(dots, squares, lengths))[:, units_alone]
        losses = functools.partial(
            mx.attacks.source.record_losses, source_key, loss_fn, probe.params, records=records
        )
        still = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape), leaf.dtype), probe.params)
        before = losses(still)[0]
        joined = (
            seen.updates if scenario.summed else mx.mixing.apply(slots, seen.updates, plan.units)
        )
        under_joined, under_slots = losses(joined), losses(seen.updates)
        result = Seen(
            slots,
            scores,
            places,
            jnp.take_along_axis(cosines, places[..., None], axis=0),
            slot_scores,
            jnp.argmin(under_joined, axis=0),
            jnp.argmin(under_slots, axis=0),
            before - jnp.min(under_joined, axis=0),
            before - jnp.min(under_slots, axis=0),
            named,
        )
        if scenario.summed:
            result = of_the_sum(result, craft is not None, people)
        return (whole, alone, crafting), result

    send = None if craft is None else craft.send
    attack = Attack(init, prepare, measure, observe, updates=True, send=send)
    if scenario.crafts in SPREADS:
        return crafted.regauge(plan.graph, attack, spread=SPREADS[scenario.crafts])
    return attack


def of_the_sum(seen: Seen, isolating: bool, people: int) -> Seen:
    """What a server that sees the sum alone says of everybody, who all look alike to it.

    Where it isolates somebody, the sum is that person's.
    """
    rows = jnp.arange(people, dtype=jnp.int32)[:, None]

    def all_alike(leaf: jax.Array) -> jax.Array:
        return jnp.broadcast_to(leaf, (people, *leaf.shape[1:]))

    return seen._replace(
        slots=jnp.broadcast_to(rows, (people, seen.slots.shape[1])),
        scores=all_alike(seen.scores),
        unit_slots=jnp.broadcast_to(rows, (people, seen.unit_slots.shape[1])),
        unit_scores=all_alike(seen.unit_scores),
        slot_scores=all_alike(seen.slot_scores),
        named=seen.named if isolating else jnp.zeros(people, bool),
    )
