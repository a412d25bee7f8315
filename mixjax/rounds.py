"""The body of a round, as functions that can be called alone; `federation.fedavg` joins them.

    prepare      the attack's probe: the model to send, and what updates are compared with
    choose       who takes part, of the clients that are there
    weigh        their weights, relative to those who train
    train        fold: local training, perturbation, weight; the sum, the attack's measures
    leave_out    without broken updates (`faults`)
    forward      the proxy draws origins: this is where updates are mixed
    observe      the attack sees the forwarded measures, slot by slot
    aggregate    the server's reduction of what was forwarded
    take_step    its optimizer

Keys. A run has one key; `round_keys` derives a round's from it and the round's number, and
`client_keys` a client's from these and its id. The attack's come from a seed of the server's own
(`attack_keys`), made of the first model: no key of the run follows from it, nor it from any.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from mixjax import _attacked, _axes, _validate, cohort, faults, mixing
from mixjax import client as client_lib
from mixjax import units as units_lib
from mixjax.aggregation import Aggregation
from mixjax.attacks.base import Attack, Probe
from mixjax.client import LocalTraining
from mixjax.data import ClientData
from mixjax.defences import Perturb
from mixjax.observation import Observation
from mixjax.participation import Participation
from mixjax.types import (
    Active,
    Memory,
    Origins,
    Params,
    PRNGKey,
    Scalar,
    Updates,
    Weights,
    threefry,
    times,
)

# any number that isn't one of the three keys a round is split into
PARTICIPATION = 0x9A57


class RoundKeys(NamedTuple):
    """The keys of a round: of its clients, the proxy, the aggregation and the participation."""

    clients: PRNGKey
    mix: PRNGKey
    aggregate: PRNGKey
    participation: PRNGKey


class ClientKeys(NamedTuple):
    """The keys of a client in a round."""

    train: PRNGKey
    perturb: PRNGKey


class AttackKeys(NamedTuple):
    """The keys of the attack in a round."""

    prepare: PRNGKey
    observe: PRNGKey


def round_keys(key: PRNGKey, number: Int[Array, ""] | int) -> RoundKeys:
    """The keys of round `number` of the run with this key."""
    key = jax.random.fold_in(threefry(key), number)
    clients, mix, aggregate = jax.random.split(key, 3)
    return RoundKeys(clients, mix, aggregate, jax.random.fold_in(key, PARTICIPATION))


def client_keys(key: PRNGKey, client_id: Int[Array, ""] | int) -> ClientKeys:
    """The keys of a client, from `RoundKeys.clients` and its id."""
    return ClientKeys(*jax.random.split(cohort.client_key(key, client_id)))


def attack_keys(seed: UInt32[Array, ""] | np.uint32, number: Int[Array, ""] | int) -> AttackKeys:
    """The attack's keys of round `number`, from the attack's own seed."""
    return AttackKeys(*jax.random.split(jax.random.fold_in(jax.random.key(seed), number)))


@jax.jit
def seed_of_model(params: Params) -> UInt32[Array, ""]:
    """A seed made of a model's bits: it tells nothing that the model doesn't.

    Two models have the same once in 2^32.
    """
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(params):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        # 64 bits are two words
        word = jnp.dtype(f"uint{8 * min(leaf.dtype.itemsize, 4)}")
        bits = leaf if leaf.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(leaf, word)
        bits = bits.ravel().astype(jnp.uint32)
        # odd factors, so that each bit of each number counts, and its place
        odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
        total = total * jnp.uint32(0x9E3779B1) + jnp.sum(bits * odd, dtype=jnp.uint32)
    return total


def first_memories(
    attack: Attack | None,
    mix: mixing.Mix,
    aggregation: Aggregation,
    params: Params,
    units: units_lib.Units,
    clients: int,
    *,
    summed: bool = False,
) -> tuple[Memory, Memory, Memory]:
    """What attack, proxy and aggregation remember before the first round; () for nothing.

    Of a server that sees the sum alone the attack has a single slot.
    """
    slots = 1 if summed else clients
    memories = (
        () if attack is None or attack.init is None else attack.init(params, units, slots),
        () if mix.init is None else mix.init(clients, len(units.names)),
        () if aggregation.init is None else aggregation.init(params),
    )
    for memory, name in zip(memories, ("attack", "mix", "aggregation"), strict=True):
        _validate.check_returned(memory, f"the {name}'s init")
    return jax.tree.map(jnp.asarray, memories)


def prepare(
    key: PRNGKey, attack: Attack, memory: Memory, params: Params, local: LocalTraining
) -> Probe:
    """What the server prepares, of which the clients get `Probe.params`.

    The local training that it is given trains on the server's own examples alone: where the
    clients' are streamed, ids would fetch them.
    """
    if attack.prepare is None:
        return Probe(params)

    def on_own_examples(key: PRNGKey, params: Params, data: ClientData) -> client_lib.LocalResult:
        if not jax.tree.leaves(data.examples):
            raise _validate.InputError(
                "expected an attack that trains on examples of its own; got data without any. Put "
                "the auxiliary people's into ClientData.examples: participants' can't be streamed."
            )
        return local(key, params, data)

    memories = () if attack.init is None else (memory,)
    probe = attack.prepare(key, *memories, params, on_own_examples)
    if not isinstance(probe, Probe):
        raise _validate.InputError(
            f"expected attack.prepare to return an attacks.Probe; got {type(probe).__name__}."
        )
    sent, own = _validate.form(probe.params), _validate.form(params)
    if sent != own:
        raise _validate.InputError(
            f"expected attack.prepare to send a model like the server's, {own}; got {sent}."
        )
    learns = jnp.asarray(probe.learns)
    if learns.shape != () or learns.dtype != jnp.bool_:
        raise _validate.InputError(
            f"expected Probe.learns to be True or False; got {probe.learns!r}."
        )
    return probe._replace(learns=learns)


def choose(
    key: PRNGKey, participation: Participation, number: Int[Array, ""], data: ClientData
) -> ClientData:
    """The cohort with those active who take part in the round and have examples."""
    data = data._replace(active=data.active & (data.counts > 0))
    chosen = participation(key, number, data)
    _axes.check_active(chosen, data.active.shape[0])
    return data._replace(active=chosen & data.active)


def weigh(data: ClientData, weighting: str) -> Weights:
    """Weights of mean one over the active clients, zero for the others.

    `aggregation.relative_weights` of the counts of examples ("examples") or of ones ("uniform"),
    and zeros where nobody is active.
    """
    raw = data.counts if weighting == "examples" else data.active
    weights = jnp.where(data.active, raw.astype(jnp.float32), 0)
    count = jnp.sum(data.active, dtype=jnp.float32)
    return weights * (count / jnp.maximum(jnp.sum(weights), 1))


class Trained(NamedTuple):
    """What the fold over clients leaves.

    Attributes:
      total: the sum of weighted updates, where it was asked for; else ().
      loss: each client's training loss; NaN for those who stayed away or are broken.
      sound: whose update can be used; False for those who stayed away.
      measures: of each client's weighted update; zero where it isn't sound.
      updates: the weighted updates, where a stack was asked for; zero where not sound.
    """

    total: Params | tuple[()]
    loss: Float[Array, " clients"]
    sound: Bool[Array, " clients"]
    measures: PyTree[Any]
    updates: Updates | None


def train(
    key: PRNGKey,
    local: LocalTraining,
    perturb: Perturb,
    attack: Attack | None,
    units: units_lib.Units,
    probe: Probe,
    data: ClientData,
    weights: Weights,
    *,
    summed: bool,
    stacked: bool,
    uploads: str = "updates",
    max_norm: Scalar | None = None,
    chunk_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Trained:
    """Every client's local training, perturbation and weighting, measured as it comes.

    Args:
      key: `RoundKeys.clients`.
      local: local training of one client.
      perturb: the defence's part on the client.
      attack: whose measure is taken; None takes none.
      units: the partition.
      probe: the round's; clients start from its params, or from what the attack sends each.
      data: the cohort; who is not active trains on no example.
      weights: relative to the active clients.
      summed: whether to return the sum of updates.
      stacked: whether to return the updates.
      uploads: see `federation.fedavg`.
      max_norm: see `faults.is_sound`.
      chunk_size: see `cohort.fold`.
      mesh: see `cohort.fold`.
    """
    clients = data.active.shape[0]
    send = None if attack is None else attack.send

    def one(shared: Any, client: Any) -> tuple[Any, Any]:
        (key, probe), (data, weight) = shared, client
        own = probe.params
        keys = client_keys(key, data.ids)
        # local training skips the steps of a client without examples
        counts = jnp.where(data.active, data.counts, 0)
        sent = probe.params if send is None else _attacked.sent(send, probe, data.ids)
        result = local(keys.train, sent, data._replace(counts=counts))
        client_lib.check_result(result, sent)
        update = perturb(keys.perturb, result.update)
        _validate.check_update(update, sent, "defence.perturb")
        if send is not None and uploads == "models":
            update = jax.tree.map(lambda move, *two: move + (two[0] - two[1]), update, sent, own)
        weighted = jax.tree.map(lambda leaf: times(leaf, weight), update)
        # the weighted update is judged: with two arrays a client a million take 8 GB, not 2
        longest = None if max_norm is None else max_norm * weight
        sound = data.active & faults.is_sound(weighted, clients, longest)
        measured = None
        if attack is not None and attack.measure is not None:
            measured = cohort.zero_unless(sound, _attacked.measured(attack, probe, units, weighted))
        update = cohort.zero_unless(sound, weighted)
        loss = jnp.where(sound, result.loss, jnp.nan)
        return update if summed else (), (loss, sound, measured, update if stacked else None)

    total, records = cohort.fold(
        one, (key, probe), (data, weights), chunk_size=chunk_size, mesh=mesh
    )
    return Trained(total, *records)


def forward(
    key: PRNGKey, mix: mixing.Mix, memory: Memory, active: Active, units: int
) -> tuple[Memory, Origins]:
    """The proxy's draw: whose units each slot carries.

    Where nobody is active, every slot keeps its own and the proxy learns nothing.
    """
    somebody = jnp.any(active)
    after, origins = mixing.next_draw(mix, key, memory, active | ~somebody, units)
    _axes.check_permutations(origins, active, units)
    origins = jnp.where(
        somebody, origins, jnp.arange(active.shape[0], dtype=origins.dtype)[:, None]
    )
    return choose_tree(somebody, after, memory), origins


def observe(
    key: PRNGKey, attack: Attack, memory: Memory, probe: Probe, observation: Observation
) -> tuple[Memory, PyTree[Any]]:
    """The attack's findings, from what it asked for."""
    seen = observation if attack.updates else observation._replace(updates=None)
    if attack.init is None:
        result = memory, attack.observe(key, probe, _attacked.Seen._make(seen))
    else:
        result = attack.observe(key, memory, probe, _attacked.Seen._make(seen))
        _validate.check_remembered(result, memory, "attack.observe", "findings")
    _validate.check_returned(result[1], "attack.observe")
    return result


def only_sum(
    attack: Attack | None, probe: Probe, units: units_lib.Units, mean: Params, active: Active
) -> Observation:
    """What the server sees behind secure aggregation: the mean, as the round's only slot."""
    measured = None
    if attack is not None and attack.measure is not None:
        measured = jax.tree.map(
            lambda leaf: leaf[None], _attacked.measured(attack, probe, units, mean)
        )
    updates = jax.tree.map(lambda leaf: leaf[None], mean)
    return Observation(jnp.any(active)[None], measured, updates)


def aggregate(
    key: PRNGKey,
    aggregation: Aggregation,
    memory: Memory,
    total: PyTree[Any],
    forwarded: PyTree[Any],
    remaining: faults.Remaining,
) -> tuple[Memory, Params]:
    """The server's reduction of the forwarded updates, by the weights of those who remain.

    Args:
      key: `RoundKeys.aggregate`.
      aggregation: with a memory, if only an empty one.
      memory: the aggregation's.
      total: the sum of all weighted updates, for an additive aggregation.
      forwarded: their stack, for any other.
      remaining: see `faults.leave_out`.
    """
    active, weight_sum = remaining.active, remaining.weight_sum
    if aggregation.additive:
        rows = jax.tree.map(lambda leaf: (leaf / weight_sum.astype(leaf.dtype))[None], total)
        active = jnp.ones(1, bool)
    else:
        correction = jnp.maximum(jnp.sum(active), 1).astype(jnp.float32) / weight_sum
        rows = jax.tree.map(lambda leaf: times(leaf, correction), forwarded)
    if aggregation.init is None:
        after, mean = memory, aggregation.reduce(rows, active)
    else:
        result = aggregation.reduce(key, memory, rows, active)
        _validate.check_remembered(result, memory, "aggregate", "an aggregate")
        after, mean = result
    came, like = jax.tree.map(jnp.shape, mean), jax.tree.map(lambda leaf: leaf.shape[1:], rows)
    if came != like:
        raise _validate.InputError(
            f"expected an aggregate shaped like one update, {like}; got {came}."
        )
    _validate.check_real(mean, "the aggregate")
    return after, mean


def take_step(
    optimizer: optax.GradientTransformation, params: Params, opt_state: Any, mean: Params
) -> tuple[Params, Any]:
    """A step of the server's optimizer along the aggregate."""
    gradient = jax.tree.map(lambda leaf, like: -leaf.astype(like.dtype), mean, params)
    result = optimizer.update(gradient, opt_state, params)
    _validate.check_optimized(result, opt_state, params)
    steps, opt_state = result
    return optax.apply_updates(params, steps), opt_state


def zero_rows(active: Active, tree: PyTree[Any]) -> PyTree[Any]:
    """Zeros in the rows that aren't active."""
    return jax.vmap(cohort.zero_unless)(active, tree)


def choose_tree(condition: Array, first: Any, second: Any) -> Any:
    """The first tree where the condition holds, else the second."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)


def all_finite(*trees: Any) -> Bool[Array, ""]:
    """Whether every number is finite."""
    leaves = jax.tree.leaves(trees)
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
