"""What a federation carries from round to round, what each round leaves, and replaying it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

from mixjax import _validate, mixing, rounds
from mixjax import measures as measures_lib
from mixjax.attacks import base
from mixjax.observation import Observation
from mixjax.types import Memory, Origins, Params


class Memories(NamedTuple):
    """What the components remember; () for those that remember nothing."""

    attack: Memory = ()
    mix: Memory = ()
    aggregate: Memory = ()


class FederationState(NamedTuple):
    """What the next round needs.

    Attributes:
      params: the server's model.
      opt_state: the server optimizer's state.
      round: the number of rounds done.
      memories: of attack, proxy and aggregation.
      attack_seed: all that the attack draws follows from it, and nothing else does.
    """

    params: Params
    opt_state: PyTree[Any]
    round: Int[Array, ""]
    memories: Memories = Memories()
    attack_seed: UInt32[Array, ""] | np.uint32 = np.uint32(0)


class Truth(NamedTuple):
    """What only the simulation knows. No attack gets it; `evaluation` joins it with findings.

    Attributes:
      origins: whose units each slot carried.
      measures: of the updates before mixing, client by client; None without an attack's measure.
        Any other mixing of the same round follows from them (`replay`).
    """

    origins: Origins
    measures: PyTree[Any]


class Record(NamedTuple):
    """What people look at after a round.

    Attributes:
      loss: each client's mean training loss; NaN for clients that stayed away or were excluded.
      observation: the server's view; its `active` tells whose updates were forwarded.
      findings: the attack's; None without one.
      truth: the simulation's own knowledge.
      metrics: what `evaluate` returned for the new model; None without it.
      excluded: clients that trained and sent a broken update.
      stepped: whether the server took a step. False where too few updates remained, where the
        aggregate or the new model was not finite, or where the attack keeps the round's crafted
        model apart (`Probe.learns`): the model is then the one of the round before.
      probe: what the attack prepared, where `keep_probe` asked for it; else None.
    """

    loss: Float[Array, " clients"]
    observation: Observation
    findings: PyTree[Any]
    truth: Truth
    metrics: PyTree[Any]
    excluded: Bool[Array, " clients"]
    stepped: Bool[Array, ""]
    probe: base.Probe | None


def replay(
    mix_keys: Key[Array, " rounds"],
    attack: base.Attack,
    start: FederationState,
    records: Record,
    mix: mixing.Mix | mixing.Draw,
) -> tuple[FederationState, Record]:
    """What an attack would have found behind another mixing of a recorded trajectory.

    The mean is the same under any mixing, and so are the next model and the measures of everybody's
    updates: the trajectory needs no training again. The attack observes the recorded measures
    round by round, permuted by fresh origins. May be jitted, and `vmap`ped over keys.

    Guarantees: with the recorded defence's mix and its keys, `rounds.round_keys(key, n).mix`, the
    records come back bit by bit, in the same program's arithmetic.

    Args:
      mix_keys: the proxy's keys, one a round.
      attack: the recorded one.
      start: the state that the records start from.
      records: of a federation with `keep_probe=True`, with a leading rounds axis.
      mix: the mixing to put in place of the recorded one.

    Returns:
      The start with the memories of attack and proxy after the last round, and the records with
      other observations, findings and origins. They hold no updates.

    Raises:
      InputError: for records without probes or measures, or an attack that reads whole updates.
    """
    if attack.updates or records.probe is None or records.truth.measures is None:
        raise _validate.InputError(
            "expected records of a federation with keep_probe=True and an attack with a measure "
            "that reads no whole updates: only measures can be mixed anew. Run it again with the "
            "other defence instead."
        )
    mix = mixing.as_mix(mix)
    count, clients = records.observation.active.shape
    columns = jax.tree.leaves(records.truth.measures)[0].shape[2]
    if records.truth.origins.shape[1] != clients:
        raise _validate.InputError(
            "expected records of a federation whose server sees slots; got one that sees the sum "
            "alone, behind secure aggregation: no mixing changes it."
        )
    if mix_keys.shape != (count,):
        raise _validate.InputError(
            f"expected one key for each of {count} rounds; got keys of shape {mix_keys.shape}. "
            "Split one with jax.random.split(key, rounds)."
        )

    def observe(memories: Memories, one: Any) -> tuple[Memories, Any]:
        mix_key, number, record = one
        active, own = record.observation.active, record.truth.measures
        mix_memory, origins = rounds.forward(mix_key, mix, memories.mix, active, columns)
        observation = Observation(active, measures_lib.mix(origins, own), None)
        key = rounds.attack_keys(start.attack_seed, number).observe
        attack_memory, findings = rounds.observe(
            key, attack, memories.attack, record.probe, observation
        )
        return memories._replace(attack=attack_memory, mix=mix_memory), record._replace(
            observation=observation, findings=findings, truth=Truth(origins, own)
        )

    memory = () if mix.init is None else mix.init(clients, columns)
    memories = start.memories._replace(mix=jax.tree.map(jnp.asarray, memory))
    numbers = start.round + jnp.arange(count, dtype=start.round.dtype)
    memories, records = jax.lax.scan(observe, memories, (mix_keys, numbers, records))
    return start._replace(memories=memories), records
