"""Trajectories: who takes part, and one compiled run of a federation under attack.

The mean is the same under none, shuffle, MixNN and its proxy, so is everything that follows from
it. One trajectory therefore serves every mixing; noise and an active server have their own.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import mixjax as mx


class Setting(NamedTuple):
    """What a compiled trajectory depends on; hashable.

    Attributes:
      model: the network.
      attack: "passive" or "active".
      clip_norm: bound on the norm of updates, which clients then add noise to; None for neither.
      mixed: whether layers are mixed for real, as tensors, before they are averaged.
      keep_updates: whether the record keeps every update.
      rounds: number of rounds.
      epochs: local epochs.
      batch_size: examples a local step.
      learning_rate: of local SGD.
      momentum: of local SGD.
    """

    model: nn.Module
    attack: str
    clip_norm: float | None
    mixed: bool
    keep_updates: bool
    rounds: int
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float


class Split(NamedTuple):
    """One seed's participants, and what the server knows of other people.

    Attributes:
      train: the participants' training data.
      test: their held-out data.
      truth: their attribute, `[clients]`.
      auxiliary: rows of `values` attribute values for each of `known`.
      values: the number of attribute values.
      known: numbers of people that the server knows, in order; the last is all of them.
    """

    train: mx.data.ClientData
    test: mx.data.ClientData
    truth: np.ndarray
    auxiliary: mx.data.ClientData
    values: int
    known: tuple[int, ...]

    def with_all_knowledge(self) -> "Split":
        """Without the auxiliary rows of fewer people."""
        rows = range(self.auxiliary.counts.shape[0])[-self.values :]
        return self._replace(
            auxiliary=mx.data.take(self.auxiliary, list(rows)), known=self.known[-1:]
        )


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
    capacity = auxiliary * jax.tree.leaves(dataset.train.examples)[0].shape[1]
    pools = []
    for count in counts:
        rows = np.flatnonzero(np.isin(dataset.people, known[:count]))
        pools.append(
            mx.data.pool(
                mx.data.take(dataset.train, rows), of_client[rows], values, capacity=capacity
            )
        )
    participants = np.flatnonzero(~np.isin(dataset.people, known))
    return Split(
        train=mx.data.take(dataset.train, participants),
        test=mx.data.take(dataset.test, participants),
        truth=of_client[participants],
        auxiliary=jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *pools),
        values=values,
        known=tuple(counts),
    )


def trajectory(
    setting: Setting,
    key: jax.Array,
    split: Split,
    sigma: float,
    mesh: jax.sharding.Mesh,
    *,
    every: int = 0,
    folder: Path | None = None,
) -> mx.federation.Record:
    """Train from scratch under attack.

    Args:
      setting: compiled once for each.
      key: the run's key.
      split: participants and auxiliary data.
      sigma: the noise, if the setting has any.
      mesh: spreads clients over devices.
      every: rounds between checkpoints in `folder`; none for 0, and the run is one program.
      folder: where an unfinished trajectory goes on from.

    Returns:
      Records of all rounds, on the host. Their metrics are the test accuracies
      `[rounds, clients]`; rows past the participants are padding.
    """
    train, test = (mx.data.pad(part, mesh.size) for part in (split.train, split.test))
    init_key, run_key = jax.random.split(key)
    params = initial(setting, init_key, split.train)
    data = (run_key, train, test, split.auxiliary, jnp.float32(sigma))
    start = mx.federation.fedavg(local_training(setting)).init(params)
    if not every or folder is None:
        return jax.device_get(_train(setting, mesh, *data, start)[1])

    def advance(state: Any, rounds: int) -> tuple[Any, Any]:
        return _train(setting._replace(rounds=rounds), mesh, *data, state)

    return mx.checkpoint.run_segments(folder, key, advance, start, setting.rounds, every=every)[1]


def units(setting: Setting, split: Split) -> mx.units.Units:
    """The layers of the setting's model."""
    return mx.units.partition(initial(setting, jax.random.key(0), split.train))


def local_training(setting: Setting) -> mx.client.LocalTraining:
    """What every client does."""
    return mx.client.local_training(
        mx.models.cross_entropy(setting.model),
        optax.sgd(setting.learning_rate, momentum=setting.momentum),
        batch_size=setting.batch_size,
        epochs=setting.epochs,
    )


def initial(setting: Setting, key: jax.Array, train: mx.data.ClientData) -> Any:
    """The first model."""
    example = jax.tree.map(lambda leaf: leaf[0, :1], train.examples)
    return mx.models.initial(setting.model, key, example.inputs)


@functools.partial(jax.jit, static_argnames=("setting", "mesh"))
def _train(
    setting: Setting,
    mesh: jax.sharding.Mesh,
    key: jax.Array,
    train: mx.data.ClientData,
    test: mx.data.ClientData,
    auxiliary: mx.data.ClientData,
    sigma: jax.Array,
    state: mx.federation.FederationState,
) -> tuple[mx.federation.FederationState, mx.federation.Record]:
    model = setting.model

    def test_accuracy(params: Any) -> jax.Array:
        def one(params: Any, client: mx.data.ClientData) -> tuple[tuple[()], jax.Array]:
            logits: Any = model.apply({"params": params}, client.examples.inputs)
            right = jnp.argmax(logits, axis=-1) == client.examples.labels
            real = jnp.arange(right.shape[0]) < client.counts
            return (), jnp.sum(right & real) / client.counts

        return mx.cohort.fold(one, params, test, mesh=mesh)[1]

    local = local_training(setting)
    rows = auxiliary.counts.shape[0]
    attack = getattr(mx.attacks.sim, setting.attack)(
        auxiliary, mesh=mesh if rows % mesh.size == 0 else None
    )
    defence = mx.defences.none()
    if setting.clip_norm is not None:
        defence = mx.defences.noisy_gradient(sigma, setting.clip_norm)
    if setting.mixed:
        defence = mx.defences.compose(defence, mx.defences.mixnn())
    federation = mx.federation.fedavg(
        local,
        defence=defence,
        attack=attack,
        aggregate=_materialized_mean if setting.mixed else mx.aggregation.mean,
        evaluate=test_accuracy,
        keep_updates=setting.keep_updates,
        mesh=mesh,
    )
    return mx.federation.run(key, federation, state, train, setting.rounds)


def _materialized_mean(updates: Any, active: jax.Array) -> Any:
    """The mean of the mixed tensors themselves: what the shortcut must agree with."""
    return mx.aggregation.mean(updates, active)
