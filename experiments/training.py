"""Trajectories: who takes part, and one compiled run of a federation under attack.

The mean is the same under none, shuffle, MixNN and its proxy, so is everything that follows from
it. One trajectory therefore serves every mixing; noise and an active server have their own.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import mixjax as mx
from experiments import conditions, servers
from experiments.conditions import Case
from experiments.tasks import Task
from mixjax.attacks import channels


class Setting(NamedTuple):
    """What a compiled trajectory depends on; hashable.

    Attributes:
      model: the network.
      task: how it is trained.
      case: under which attack, and what clients do to their updates. Parameters that one program
        takes all values of are left out.
      rounds: number of rounds.
      graph: the model's channels, by which an adaptive server joins layers; of no server's none.
      mixed: whether the case's mixing is done for real, on tensors, before they are averaged.
      keep_updates: whether the record keeps every update.
    """

    model: nn.Module
    task: Task
    case: Case
    rounds: int
    graph: channels.Graph = channels.Graph(())
    mixed: bool = False
    keep_updates: bool = False


HALVES = 4
"""Of each person that the server knows, besides the whole one: more to learn from."""


class Accuracies(NamedTuple):
    """Shares of examples told right.

    Attributes:
      participants: `[clients]`, on the held-out part of each participant's own data.
      outsiders: `[people]`, on all data of each of those who took no part.
    """

    participants: jax.Array
    outsiders: jax.Array


class Split(NamedTuple):
    """One seed's participants, and what the server knows of other people.

    Attributes:
      train: the participants' training data.
      test: their held-out data.
      outsiders: all data of those who take no part. They are the people that the server knows: only
        an active server's model has seen their training data.
      truth: their attribute, `[clients]`.
      auxiliary: what the server knows, arrays `[levels, values, ...]`.
      known: how many people that is, level by level; the last is all of them.
      shadows: the training data of all of them one by one, and of halves of them.
      shadow_truth: their attribute.
    """

    train: mx.data.ClientData
    test: mx.data.ClientData
    outsiders: mx.data.ClientData
    truth: np.ndarray
    auxiliary: mx.data.ClientData
    known: tuple[int, ...]
    shadows: mx.data.ClientData
    shadow_truth: np.ndarray

    @property
    def values(self) -> int:
        """The number of attribute values."""
        return self.auxiliary.counts.shape[1]

    def padded(self, multiple: int) -> "Split":
        """With as many rows as the multiple divides."""
        train, test, outsiders = (
            mx.data.pad(part, multiple) for part in (self.train, self.test, self.outsiders)
        )
        return self._replace(train=train, test=test, outsiders=outsiders)

    def reversed(self) -> "Split":
        """With the participants in reverse order: whoever they are, the same training."""
        order = np.arange(len(self.truth))[::-1]
        return self._replace(
            train=mx.data.take(self.train, order),
            test=mx.data.take(self.test, order),
            truth=self.truth[order],
        )

    def rows(self) -> mx.data.ClientData:
        """What the server knows, in one axis `[levels * values, ...]`."""
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), self.auxiliary)

    def with_all_knowledge(self) -> "Split":
        """Without the levels of fewer people."""
        last = jax.tree.map(lambda leaf: leaf[-1:], self.auxiliary)
        return self._replace(auxiliary=last, known=self.known[-1:])


class Trajectory(NamedTuple):
    """A run: where it starts, and the records of all rounds, on the host.

    The records' metrics are `Accuracies`, `[rounds, clients]`; rows past the participants are
    padding. They hold the probes: see `mx.records.replay`; the
    measures are those of `servers.measuring`.
    """

    start: mx.federation.FederationState
    records: mx.federation.Record


def split_people(dataset: mx.data.Dataset, seed: int, auxiliary: int, *, sweep: bool) -> Split:
    """Deal people at random into participants and auxiliary knowledge.

    The first people whom the server knows are those that cover all attribute values; nobody is
    on both sides.

    Args:
      dataset: all participants.
      seed: of the draw.
      auxiliary: how many people the server knows.
      sweep: whether to prepare auxiliary data of fewer people too.

    Raises:
      InputError: when the server knows nobody, too few to cover the attribute, or too many to
        leave two participants.
    """
    names = np.unique(dataset.people)
    if not 1 <= auxiliary <= len(names) - 2:
        raise mx.InputError(
            f"expected --auxiliary in 1..{len(names) - 2} for {len(names)} people; got {auxiliary}."
        )
    of_client, values = dataset.attribute.of_client, len(dataset.attribute.values)
    order = np.random.default_rng(seed).permutation(names)
    covering: list[int] = []
    missing = set(range(values))
    for name in order:
        own = set(of_client[dataset.people == name].tolist())
        if own & missing:
            covering.append(name)
            missing -= own
    if len(covering) > auxiliary:
        raise mx.InputError(
            f"expected --auxiliary of at least {len(covering)}, so that the server knows somebody "
            f"of each {dataset.attribute.name}; got {auxiliary}."
        )
    known = [*covering, *(name for name in order if name not in covering)][:auxiliary]
    counts = range(len(covering) if sweep else auxiliary, auxiliary + 1)
    # all seeds' have one capacity, and share a program
    alike = np.unique(np.stack([dataset.people, of_client]), axis=1, return_counts=True)[1].max()
    capacity = auxiliary * int(alike) * jax.tree.leaves(dataset.train.examples)[0].shape[1]
    pools = []
    for count in counts:
        rows = np.flatnonzero(np.isin(dataset.people, known[:count]))
        pools.append(
            mx.data.pool(
                mx.data.take(dataset.train, rows), of_client[rows], values, capacity=capacity
            )
        )
    outside = np.isin(dataset.people, known)
    participants, others = np.flatnonzero(~outside), np.flatnonzero(outside)
    shadows = mx.data.take(dataset.train, others)
    return Split(
        train=mx.data.take(dataset.train, participants),
        test=mx.data.take(dataset.test, participants),
        outsiders=_together(shadows, mx.data.take(dataset.test, others)),
        truth=of_client[participants],
        auxiliary=jax.tree.map(lambda *leaves: jnp.stack(leaves), *pools),
        known=tuple(counts),
        shadows=mx.attacks.shadows.halves(seed, shadows, copies=HALVES),
        shadow_truth=np.tile(of_client[others], 1 + HALVES),
    )


def _together(first: mx.data.ClientData, second: mx.data.ClientData) -> mx.data.ClientData:
    """Each client's examples of both; all seeds' have one capacity, and share a program."""
    capacity = sum(jax.tree.leaves(part.examples)[0].shape[1] for part in (first, second))
    pairs = zip(mx.data.unstack(first), mx.data.unstack(second), strict=True)
    joined = [jax.tree.map(lambda a, b: np.concatenate([a, b]), *pair) for pair in pairs]
    return mx.data.stack(joined, capacity=capacity)


def trajectory(
    setting: Setting,
    key: jax.Array,
    split: Split,
    traced: dict[str, jax.Array],
    mesh: jax.sharding.Mesh,
    *,
    every: int = 0,
    folder: Path | None = None,
) -> Trajectory:
    """Train from scratch under attack.

    Args:
      setting: compiled once for each.
      key: the run's key.
      split: participants and auxiliary data.
      traced: parameters of the case that the setting leaves out.
      mesh: spreads clients over devices.
      every: rounds between checkpoints in `folder`; none for 0, and the run is one program.
      folder: where an unfinished trajectory goes on from.
    """
    init_key, run_key = jax.random.split(key)
    params = initial(setting, init_key, split.train)
    split = split.padded(mesh.size)
    clients = split.train.counts.shape[0]
    start = federation(setting, mesh, split, traced).init(params, clients)

    if not every or folder is None:
        whole = _train_whole(setting, mesh, run_key, split, traced, start)
        return Trajectory(start, jax.device_get(whole[1]))

    def advance(state: Any, rounds: int) -> tuple[Any, Any]:
        return _train(setting._replace(rounds=rounds), mesh, run_key, split, traced, state)

    run = mx.checkpoint.run_segments(folder, key, advance, start, setting.rounds, every=every)
    return Trajectory(start, run[1])


def units(setting: Setting, split: Split) -> mx.units.Units:
    """The layers of the setting's model."""
    return mx.units.partition(initial(setting, jax.random.key(0), split.train))


def local_training(setting: Setting) -> mx.client.LocalTraining:
    """What every client does."""
    return mx.client.local_training(
        mx.models.cross_entropy(setting.model),
        optax.sgd(setting.task.learning_rate, momentum=setting.task.momentum),
        batch_size=setting.task.batch_size,
        epochs=setting.task.epochs,
    )


def initial(setting: Setting, key: jax.Array, train: mx.data.ClientData) -> Any:
    """The first model."""
    example = jax.tree.map(lambda leaf: leaf[0, :1], train.examples)
    return mx.models.initial(setting.model, key, example.inputs)


def graph_of(model: nn.Module, split: Split) -> channels.Graph:
    """The channels of the model, as an adaptive server finds them."""
    inputs = split.train.examples.inputs[0, :1]
    return channels.trace(model, mx.models.initial(model, jax.random.key(0), inputs), inputs)


def accuracy_on(
    model: nn.Module, test: mx.data.ClientData, mesh: jax.sharding.Mesh | None = None
) -> Callable[[Any], jax.Array]:
    """`params -> [clients]`: the share of each one's examples told right."""

    def one(params: Any, client: mx.data.ClientData) -> tuple[tuple[()], jax.Array]:
        logits: Any = model.apply({"params": params}, client.examples.inputs)
        right = jnp.argmax(logits, axis=-1) == client.examples.labels
        real = jnp.arange(right.shape[0]) < client.counts
        return (), jnp.sum(right & real) / client.counts

    return lambda params: mx.cohort.fold(one, params, test, mesh=mesh)[1]


def federation(
    setting: Setting,
    mesh: jax.sharding.Mesh,
    split: Split,
    traced: dict[str, jax.Array],
) -> mx.federation.Federation:
    """The federation under attack."""
    levels, values = split.auxiliary.counts.shape
    even = levels * values % mesh.size == 0
    server = setting.case.server
    attack = server.make(split, mesh if even else None)
    score = servers.scoring(levels, server.observe)
    defence = setting.case.with_traced(traced).perturbation()
    if setting.mixed:
        mixing = conditions.with_mix(mx.defences.none(), setting.case.mix())
        defence = mx.defences.compose(defence, mixing)
    return mx.federation.fedavg(
        local_training(setting),
        defence=defence,
        attack=servers.measuring(attack, score, setting.graph, levels),
        # the mean of the mixed tensors themselves: what the shortcut must agree with
        aggregate=dataclasses.replace(mx.aggregation.mean, additive=not setting.mixed),
        evaluate=lambda params: Accuracies(
            *(
                accuracy_on(setting.model, part, mesh)(params)
                for part in (split.test, split.outsiders)
            )
        ),
        keep_updates=setting.keep_updates,
        keep_probe=True,
        mesh=mesh,
    )


def _train(
    setting: Setting,
    mesh: jax.sharding.Mesh,
    key: jax.Array,
    split: Split,
    traced: dict[str, jax.Array],
    state: mx.federation.FederationState,
) -> tuple[mx.federation.FederationState, mx.federation.Record]:
    federated = federation(setting, mesh, split, traced)
    return mx.federation.run(key, federated, state, split.train, setting.rounds)


# XLA's older emitters compile these programs of many small kernels in half the time, and the rounds
# are as fast (watch, CPU)
_train_whole = jax.jit(
    _train,
    static_argnames=("setting", "mesh"),
    compiler_options={"xla_cpu_use_fusion_emitters": False},
)
