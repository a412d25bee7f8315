"""What `experiments.adversaries` compares: a row for each defence and each change of the setting.

A new row of `STUDIES` is trained, attacked, written, printed and drawn like the others.
"""

import zlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

import mixjax as mx
from experiments import conditions
from experiments.servers import Undone
from experiments.tasks import Task
from mixjax.attacks import Attack, channels, crafted
from mixjax.client import LocalTraining

MARK = 0.2
"""Of a server's marks: their strength."""


class Groups(NamedTuple):
    """Granularity of `count` groups of coordinates drawn at random."""

    count: int

    def __call__(self, path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        """The group of each element of a leaf."""
        rng = np.random.default_rng(zlib.crc32("/".join(path).encode()))
        return rng.integers(0, self.count, shape)


class Network(nn.Module):
    """Two convolutions and a hidden layer over recordings, in variants.

    Attributes:
      classes: outputs.
      activation: relu, leaky_relu, gelu or tanh.
      groups: of a GroupNorm after each convolution; 0 for none.
      residual: whether a branch leads around the second convolution.
    """

    classes: int
    activation: str = "relu"
    groups: int = 0
    residual: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits of recordings `[batch, samples, channels]`."""
        act = getattr(nn, self.activation)
        hidden = inputs
        for features in (16, 32):
            hidden = nn.Conv(features, (5,))(hidden)
            if self.groups:
                hidden = mx.models.GroupNorm(self.groups)(hidden)
            hidden = act(hidden)
            if self.residual and features == 32:
                hidden = act(hidden + nn.Conv(32, (5,))(act(nn.Conv(32, (5,))(hidden))))
            hidden = mx.ops.max_pool(hidden, (2,))
        hidden = act(nn.Dense(64)(hidden.reshape(len(hidden), -1)))
        return nn.Dense(self.classes)(hidden)


class Scenario(NamedTuple):
    """A setting under attack; hashable, compiled once.

    Attributes:
      label: in tables and figures.
      moves: what the proxy moves on its own.
      list_size: entries in each of its lists; None mixes the whole round.
      granularity: how it cuts the model.
      sigma: noise on each coordinate of the update, clipped at the task's norm; 0 for neither.
      kept: share of the update's coordinates that are sent.
      share: of the participants that take part in a round.
      people: how many participants; None for the dataset's own.
      network: the model; None for the task's.
      adam: whether clients use Adam in place of SGD.
      training: fields of the task that take the place of its own.
      rescaled: "random" or "received", the gauge that clients send their models in; see
        `mixjax.rescaling`.
      bound: on log a of its factors.
      lengths: whether the server joins by lengths, which a gauge betrays, and not by the law.
      summed: whether the server sees the sum alone.
      crafts: what the server does to the models it sends; see `attacks.crafted`. Rounds in which
        it isolates somebody are every second.
      uploads: what clients send back, "updates" or "models".
      preferred: share of preferred classes, where participants are dealt; None for the run's own.
      central: epsilon of all rounds, by noise on the mean of clipped updates; 0 for none.
    """

    label: str
    moves: Undone = "units"
    list_size: int | None = None
    granularity: mx.units.Granularity = "layer"
    sigma: float = 0.0
    kept: float = 1.0
    share: float = 1.0
    people: int | None = None
    network: nn.Module | None = None
    adam: bool = False
    training: tuple[tuple[str, Any], ...] = ()
    rescaled: str = ""
    bound: float | None = None
    lengths: bool = False
    summed: bool = False
    crafts: Literal["", "isolate", "tag", "balanced", "spread"] = ""
    uploads: str = "updates"
    preferred: float | None = None
    central: float = 0.0

    def task(self, task: Task) -> Task:
        """The task with the scenario's changes."""
        return task._replace(**dict(self.training))

    def mix(self) -> mx.mixing.Mix:
        """What the proxy does."""
        if self.moves == "nothing":
            return mx.mixing.keep()
        if self.moves == "updates":
            return mx.mixing.shuffle()
        if self.list_size is None:
            return mx.mixing.full_round()
        return mx.mixing.proxy(self.list_size)

    def defence(self, task: Task) -> mx.defences.Defence:
        """What clients and proxy do."""
        parts = [conditions.with_mix(mx.defences.none(), self.mix())]
        if self.summed:
            parts.append(mx.defences.secure_aggregation())
        if self.kept < 1:
            parts.insert(0, mx.defences.top_k(self.kept))
        if self.sigma:
            parts.insert(0, mx.defences.noisy_gradient(self.sigma, task.clip_norm))
        if self.central:
            parts.insert(0, mx.defences.clipped(task.clip_norm))
        return mx.defences.compose(*parts)

    def aggregate(self, task: Task, people: int) -> mx.aggregation.Aggregation:
        """What the server makes of the updates."""
        if not self.central:
            return mx.aggregation.mean
        return mx.aggregation.noisy_mean(conditions.noise_of(self.central, task) / people)

    def optimizer(self, task: Task) -> optax.GradientTransformation:
        """The clients'."""
        if self.adam:
            return optax.adam(task.learning_rate)
        return optax.sgd(task.learning_rate, momentum=task.momentum)

    def local(self, task: Task, model: nn.Module, graph: channels.Graph) -> LocalTraining:
        """What every client does."""
        local = mx.client.local_training(
            mx.models.cross_entropy(model),
            self.optimizer(task),
            batch_size=task.batch_size,
            epochs=task.epochs,
        )
        if self.rescaled == "random":
            assert self.bound is not None
            return mx.rescaling.at_random(local, graph, bound=self.bound)
        if self.rescaled == "received":
            return mx.rescaling.to_received(local, graph, bound=self.bound)
        return local

    def gauge(self) -> float | None:
        """The standard deviation of log a that the server reckons with."""
        if not self.lengths:
            return None
        return (self.bound or 0) / 3**0.5 if self.rescaled == "random" else 0.0

    def craft(self, knowing: Attack, ids: Any) -> Attack | None:
        """The server that names people by the models it sends them; None without."""
        if self.crafts == "isolate":
            return crafted.isolate(knowing, ids=ids)
        return crafted.tag(knowing, strength=MARK, ids=ids) if self.crafts == "tag" else None

    def participation(self, people: int) -> mx.participation.Participation:
        """Who takes part in a round."""
        if self.share == 1:
            return mx.participation.everyone()
        return mx.participation.uniform(max(2, round(self.share * people)))

    def epsilon(self, task: Task, rounds: int, delta: float) -> float | None:
        """What the noise guarantees each client over all rounds; None without."""
        if self.central:
            return self.central
        if not self.sigma:
            return None
        return conditions.noise_epsilon(rounds, delta, sigma=self.sigma, clip_norm=task.clip_norm)


def active(task: Task, classes: int) -> list[Scenario]:
    """Servers that choose what they send, against what stands between."""
    del classes
    low = task.noise[0]
    return [
        Scenario("honest, MixNN"),
        Scenario("honest, neurons", granularity="neurons"),
        Scenario("isolate, MixNN", crafts="isolate"),
        Scenario("isolate, neurons", crafts="isolate", granularity="neurons"),
        Scenario(f"isolate, MixNN, σ={low:g}", crafts="isolate", sigma=low),
        Scenario("isolate, sum only", "nothing", crafts="isolate", summed=True),
        Scenario("tag, models, MixNN", crafts="tag", uploads="models"),
        Scenario("tag, models, neurons", crafts="tag", uploads="models", granularity="neurons"),
        Scenario("tag, updates, MixNN", crafts="tag"),
        Scenario(f"honest, MixNN, σ={low:g}", sigma=low),
        Scenario(f"balanced, MixNN, σ={low:g}", crafts="balanced", sigma=low),
        Scenario(f"spread, MixNN, σ={low:g}", crafts="spread", sigma=low),
        Scenario("spread, neurons", crafts="spread", granularity="neurons"),
    ]


def defences(task: Task, classes: int) -> list[Scenario]:
    """What stands between the clients and the server."""
    del classes
    cut: Sequence[tuple[str, mx.units.Granularity]] = (
        ("leaves", "leaf"),
        ("neurons", "neurons"),
        ("64 chunks", mx.units.chunks(64)),
        ("512 random groups", Groups(512)),
    )
    low, middle = task.noise[0], task.noise[1]
    return [
        Scenario("plain FL", "nothing"),
        Scenario("shuffle", "updates"),
        Scenario("MixNN"),
        Scenario(f"MixNN, lists of {task.list_size}", list_size=task.list_size),
        *(Scenario(f"MixNN, {name}", granularity=granularity) for name, granularity in cut),
        Scenario("sum only", "nothing", summed=True),
        Scenario("MixNN, half take part", share=0.5),
        Scenario("MixNN, top 1 %", kept=0.01),
        Scenario("MixNN, one local step", training=(("batch_size", 10**6), ("epochs", 1))),
        *(
            Scenario(f"{name}, σ={sigma:g}", moves, sigma=sigma)
            for sigma in (low / 4, low, middle)
            for name, moves in (("noise", "nothing"), ("shuffle", "updates"), ("MixNN", "units"))
        ),
    ]


def epochs(task: Task, classes: int) -> list[Scenario]:
    """How long clients train."""
    del classes
    return [
        Scenario(f"{count}", training=(("epochs", count),)) for count in (1, 2, 5, 10, task.epochs)
    ]


def learning_rates(task: Task, classes: int) -> list[Scenario]:
    """Of local SGD."""
    del classes
    rates = [task.learning_rate * factor for factor in (0.04, 0.2, 1, 2)]
    return [Scenario(f"{rate:g}", training=(("learning_rate", rate),)) for rate in rates]


def optimizers(task: Task, classes: int) -> list[Scenario]:
    """What clients train with."""
    del task, classes
    return [
        Scenario("SGD", training=(("momentum", 0.0),)),
        Scenario("momentum 0.9", training=(("momentum", 0.9),)),
        Scenario("Adam 1e-3", adam=True, training=(("learning_rate", 1e-3),)),
    ]


def architectures(task: Task, classes: int) -> list[Scenario]:
    """What is trained; of recordings only."""
    del task
    variants: dict[str, nn.Module] = {
        "MLP": mx.models.MLP(classes, (128, 64)),
        "CNN": Network(classes),
        "CNN, GroupNorm": Network(classes, groups=4),
        "CNN, residual": Network(classes, residual=True),
        "CNN, GELU": Network(classes, activation="gelu"),
        "CNN, tanh": Network(classes, activation="tanh"),
    }
    return [Scenario(name, network=network) for name, network in variants.items()]


def participants(task: Task, classes: int) -> list[Scenario]:
    """How many there are; more than the dataset has are dealt halves of its people's examples."""
    del task, classes
    return [Scenario(f"{people:,}", people=people) for people in (10, 30, 100, 300, 1000)]


def noise(task: Task, classes: int) -> list[Scenario]:
    """On clipped updates behind MixNN: where joining ends."""
    del classes
    levels = [task.noise[0] * factor for factor in (0.05, 0.1, 0.2, 0.5, 1, 2, 5)]
    return [Scenario(f"{sigma:g}", sigma=sigma) for sigma in levels]


def groups(task: Task, classes: int) -> list[Scenario]:
    """Random groups of coordinates: how fine before every coupling dies."""
    del task, classes
    return [Scenario(f"{n:,}", granularity=Groups(n)) for n in (4, 16, 64, 256, 1024, 4096)]


def rescaling(task: Task, classes: int) -> list[Scenario]:
    """Clients that send the same function in another gauge, and both servers."""
    del task, classes
    gauges: list[tuple[str, float | None]] = [("random", bound) for bound in (0.01, 0.1, 0.3, 1.0)]
    gauges += [("received", bound) for bound in (0.03, 0.1, 0.3, None)]
    return [
        Scenario(
            f"{form}, {'any' if bound is None else f'{bound:g}'}, {server}",
            rescaled=form,
            bound=bound,
            lengths=server == "lengths",
        )
        for form, bound in gauges
        for server in ("law", "lengths")
    ]


def batch_sizes(task: Task, classes: int) -> list[Scenario]:
    """Of local SGD."""
    del task, classes
    return [Scenario(f"{size}", training=(("batch_size", size),)) for size in (2, 4, 8, 16, 32)]


def widths(task: Task, classes: int) -> list[Scenario]:
    """Hidden layers of a perceptron."""
    del task
    return [
        Scenario(f"{width}", network=mx.models.MLP(classes, (width, width)))
        for width in (4, 16, 64, 256)
    ]


def shares(task: Task, classes: int) -> list[Scenario]:
    """How many of the participants take part in a round."""
    del task, classes
    return [Scenario(f"{share:.0%}", share=share) for share in (0.25, 0.5, 0.75, 1.0)]


def list_sizes(task: Task, classes: int) -> list[Scenario]:
    """Entries in each of the proxy's lists."""
    del task, classes
    return [Scenario(f"{size}", list_size=size) for size in (1, 2, 3, 5, 8)]


def preferences(task: Task, classes: int) -> list[Scenario]:
    """How much participants prefer some classes, where they are dealt from a pool."""
    del task, classes
    return [Scenario(f"{share:.0%}", preferred=share) for share in (0.4, 0.45, 0.5, 0.6, 0.8)]


def central(task: Task, classes: int) -> list[Scenario]:
    """Many participants, of whom a server sees a sum with noise that guards each."""
    del task, classes
    return [
        Scenario("1,000, honest", "nothing", people=1000),
        *(
            Scenario(
                f"{people:,}, ε={epsilon:g}" if epsilon else f"{people:,}, sum only",
                "nothing",
                people=people,
                summed=True,
                central=epsilon,
            )
            for people in (1000, 10_000)
            for epsilon in (0.0, *conditions.EPSILONS)
        ),
    ]


def core(task: Task, classes: int) -> list[Scenario]:
    """The three that the others are compared with."""
    return defences(task, classes)[:3]


STUDIES = {
    "core": core,
    "active": active,
    "defences": defences,
    "participants": participants,
    "epochs": epochs,
    "learning_rates": learning_rates,
    "optimizers": optimizers,
    "architectures": architectures,
    "noise": noise,
    "groups": groups,
    "rescaling": rescaling,
    "batch_sizes": batch_sizes,
    "widths": widths,
    "shares": shares,
    "list_sizes": list_sizes,
    "preferences": preferences,
    "central": central,
}
