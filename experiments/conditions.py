"""What is compared: a row for each defence and each attack, which all else here reads.

A new defence is a row of `DEFENCES`, a new attack one of `ATTACKS`, with its name in `options`, and
nothing else: trajectories, figures, tables and the page of results follow from the rows.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import mixjax as mx
from experiments.servers import Undone
from experiments.tasks import Task
from mixjax.attacks import learned, sim

EPSILONS = (1.0, 8.0, 50.0)
DELTA = 1e-5
"""At which a defence's epsilon is given."""
CRAFTED = 2
"""The active server crafts every second round's model, and keeps its own aside."""
Parameters = tuple[tuple[str, Any], ...]
UnitScores = Callable[[mx.attacks.Probe, mx.units.Units, Any], jax.Array]


def _once(task: Task) -> Iterable[dict[str, Any]]:
    del task
    return [{}]


class Defence(NamedTuple):
    """A defence.

    Attributes:
      label: its name in legends, formatted with its parameters.
      color: in figures; of Okabe and Ito's, which readers with any colour vision tell apart.
      markers: in figures, one for each of its cases in turn.
      line: in figures, dashed where another may lie below.
      cases: `task -> parameters` of each case to compare; one without any by default.
      perturb: `(**parameters) -> mx.defences.Defence`, what clients do to their updates; None for
        nothing. It needs a trajectory of its own.
      mix: `(**parameters) -> mx.mixing.Mix`, what the proxy does; None for nothing. The mean is
        the same under any, so it is replayed on the trajectory that has no proxy.
      moves: what the proxy moves on its own, and an adaptive server puts back.
      measured: whether it is also trained through really mixed tensors, under a server that
        only looks: its utility is then measured and not assumed.
      reverse: whether clients are summed in reverse order, which nobody would call a defence: the
        control of how much accuracies differ by rounding alone.
      drawn: whether figures show it; tables do.
      traced: parameters of `perturb` that one compiled program takes all values of.
      epsilon: `(rounds, delta, **parameters)` -> what it guarantees; None without a guarantee.
    """

    label: str
    color: str
    markers: str = "D"
    line: str = "-"
    cases: Callable[[Task], Iterable[dict[str, Any]]] = _once
    perturb: Callable[..., mx.defences.Defence] | None = None
    mix: Callable[..., mx.mixing.Mix] | None = None
    moves: Undone = "nothing"
    measured: bool = False
    reverse: bool = False
    drawn: bool = True
    traced: tuple[str, ...] = ()
    epsilon: Callable[..., float] | None = None


class Attack(NamedTuple):
    """An attack on an attribute, whose findings are scores `[clients, values]`.

    Attributes:
      label: what the server is called in figures.
      make: `(split, mesh) -> mx.attacks.Attack`, of which the server knows `training.Split`'s
        auxiliary rows or shadow people; see `mx.attacks.sim.passive`.
      unit_scores: `(probe, units, measures) -> [clients, units, values]`, each unit's alone.
      passive: whether it sends the server's own model. References to several levels of knowledge
        can then be prepared in one trajectory, each from its own auxiliary rows. All that do
        look at the same trajectories.
      adaptive: whether it reverts what the proxy does; its guesses are then for pseudonyms.
      observe: its scores from the terms of all slots.
    """

    label: str
    make: Callable[[Any, Any], mx.attacks.Attack]
    unit_scores: UnitScores
    passive: bool
    adaptive: bool = False
    observe: Callable[..., jax.Array] = sim.observe


def noise_epsilon(rounds: int, delta: float, *, sigma: float, clip_norm: float) -> float:
    """What noise on clipped updates guarantees each client over all rounds."""
    multiplier = mx.accounting.noise_multiplier(sigma, clip_norm)
    return mx.accounting.gaussian_epsilon(multiplier, rounds, delta)


FULL_ROUND, SHUFFLE = mx.mixing.full_round(), mx.mixing.shuffle()


def _full_round(**parameters: Any) -> mx.mixing.Mix:
    """One object whatever the noise: a program is compiled for each."""
    del parameters
    return FULL_ROUND


def _shuffle(**parameters: Any) -> mx.mixing.Mix:
    del parameters
    return SHUFFLE


def _unit_cosines(probe: mx.attacks.Probe, units: mx.units.Units, terms: sim.Terms) -> jax.Array:
    lengths = sim.direction_squared_norms(probe.references, units)
    return sim.unit_cosine(sim.Statistics(*terms, lengths))


def _learned_units(probe: mx.attacks.Probe, units: mx.units.Units, terms: sim.Terms) -> jax.Array:
    return learned.unit_scores(sim.Terms(*terms), jnp.ones(terms[1].shape[0], bool))


def noise_of(epsilon: float, task: Task) -> float:
    """The noise on a clipped update that guarantees this over all rounds; see `noise_epsilon`."""
    multiplier = mx.accounting.gaussian_noise_multiplier(epsilon, DELTA, task.rounds)
    # a client's data may be replaced by any other: the distance is twice the bound
    return 2 * multiplier * task.clip_norm


def _at_epsilons(task: Task) -> list[dict[str, Any]]:
    """Guarantees that people use."""
    return [
        {"epsilon": one, "sigma": noise_of(one, task), "clip_norm": task.clip_norm}
        for one in EPSILONS
    ]


def _private(epsilon: Any, sigma: Any, clip_norm: float) -> mx.defences.Defence:
    del epsilon
    return mx.defences.noisy_gradient(sigma, clip_norm)


def _private_epsilon(rounds: int, delta: float, *, epsilon: float, **noise: float) -> float:
    del epsilon
    return noise_epsilon(rounds, delta, **noise)


NOISY = Defence(
    "noise σ={sigma:g}",
    "#E69F00",
    markers="o^v>",
    cases=lambda task: [{"sigma": s, "clip_norm": task.clip_norm} for s in task.noise],
    perturb=mx.defences.noisy_gradient,
    traced=("sigma",),
    epsilon=noise_epsilon,
)

DEFENCES = {
    "none": Defence("plain FL", "#000000"),
    "reversed": Defence("plain FL, reversed", "#666666", markers="<", line=":", reverse=True),
    "noisy": NOISY,
    "private": Defence(
        "noise ε={epsilon:g}",
        "#E69F00",
        markers="123",
        line=":",
        cases=_at_epsilons,
        drawn=False,
        perturb=_private,
        traced=("epsilon", "sigma"),
        epsilon=_private_epsilon,
    ),
    "clipped": Defence(
        "clipped to {norm:g}",
        "#999999",
        markers="x",
        drawn=False,
        cases=lambda task: [{"norm": task.clip_norm}],
        perturb=mx.defences.clipped,
    ),
    "sum_only": Defence(
        "sum only",
        "#F0E442",
        markers="*",
        perturb=mx.defences.secure_aggregation,
        drawn=False,
    ),
    "top_k": Defence(
        "top {fraction:.0%}",
        "#CC79A7",
        markers="P*X",
        cases=lambda task: [{"fraction": share} for share in task.kept],
        perturb=mx.defences.top_k,
    ),
    "shuffle": Defence(
        "shuffle (control)",
        "#56B4E9",
        markers="h",
        line="-.",
        mix=_shuffle,
        moves="updates",
    ),
    "mixnn": Defence(
        "MixNN", "#D55E00", markers="s", line="--", mix=_full_round, moves="units", measured=True
    ),
    "mixnn_proxy": Defence(
        "MixNN, lists of {list_size}",
        "#009E73",
        markers="d",
        line="-.",
        cases=lambda task: [{"list_size": task.list_size}],
        mix=mx.mixing.proxy,
        moves="units",
    ),
    "shuffle_noisy": NOISY._replace(
        label="shuffle, noise σ={sigma:g}",
        color="#56B4E9",
        markers="234",
        line=":",
        drawn=False,
        mix=_shuffle,
        moves="updates",
    ),
    "mixnn_noisy": NOISY._replace(
        label="MixNN, noise σ={sigma:g}",
        color="#0072B2",
        markers="PX*",
        line="--",
        mix=_full_round,
        moves="units",
    ),
}

PASSIVE = Attack(
    "passive server",
    lambda split, mesh: sim.passive(split.rows(), mesh=mesh),
    _unit_cosines,
    passive=True,
)

ATTACKS = {
    "passive": PASSIVE,
    "adaptive": PASSIVE._replace(label="adaptive server", adaptive=True),
    "learned": Attack(
        "learning server",
        lambda split, mesh: learned.attack(split.shadows, split.shadow_truth, split.values),
        _learned_units,
        passive=False,
        observe=learned.observe,
    ),
    "active": Attack(
        "active server",
        lambda split, mesh: sim.active(split.rows(), every=CRAFTED, mesh=mesh),
        _unit_cosines,
        passive=False,
    ),
}


class Case(NamedTuple):
    """A line of the table: a defence with its parameters, under an attack.

    Attributes:
      defence: of `DEFENCES`.
      attack: of `ATTACKS`.
      parameters: the defence's, sorted by name.
    """

    defence: str
    attack: str
    parameters: Parameters = ()

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Case":
        """The case that a row or an entry of the summary belongs to; the inverse of `keys`."""
        return cls(row["defence"], row["attack"], tuple(sorted(row["parameters"].items())))

    def keys(self) -> dict[str, Any]:
        """What tells the case's rows apart on disk, the same keys for all defences."""
        return {**self._asdict(), "parameters": dict(self.parameters)}

    @property
    def row(self) -> Defence:
        """The defence."""
        return DEFENCES[self.defence]

    @property
    def server(self) -> Attack:
        """The attack."""
        return ATTACKS[self.attack]

    @property
    def undone(self) -> Undone:
        """What the server reverts of what the proxy does."""
        return self.row.moves if self.server.adaptive else "nothing"

    @property
    def label(self) -> str:
        """Its name in legends."""
        return self.row.label.format(**dict(self.parameters))

    @property
    def perturbs(self) -> bool:
        """Whether clients change their updates, and with them the trajectory."""
        return self.row.perturb is not None

    def split_traced(self) -> tuple["Case", dict[str, Any]]:
        """Without the parameters that one compiled program takes all values of, and these."""
        values = dict(self.parameters)
        traced = {name: jnp.float32(values.pop(name)) for name in self.row.traced}
        return self._replace(parameters=tuple(values.items())), traced

    def with_traced(self, traced: dict[str, Any]) -> "Case":
        """The inverse of `split_traced`."""
        return self._replace(parameters=(*self.parameters, *traced.items()))

    def mix(self) -> mx.mixing.Mix | None:
        """What the proxy does; None for nothing. The same object for all equal parameters."""
        make = self.row.mix
        return None if make is None else _mix(make, self.parameters)

    def epsilon(self, rounds: int, delta: float) -> float | None:
        """The privacy loss of all rounds; None without a guarantee."""
        bound = self.row.epsilon
        return None if bound is None else bound(rounds, delta, **dict(self.parameters))

    def perturbation(self) -> mx.defences.Defence:
        """What clients do to their updates."""
        make = self.row.perturb
        return mx.defences.none() if make is None else make(**dict(self.parameters))

    def build(self) -> mx.defences.Defence:
        """The whole defence."""
        return with_mix(self.perturbation(), self.mix())


def with_mix(defence: mx.defences.Defence, mix: mx.mixing.Mix | None) -> mx.defences.Defence:
    """The defence, of which no update leaves the proxy but mixed."""
    return defence if mix is None else defence._replace(mix=mix)


def cases(defences: Iterable[str], attack: str, task: Task) -> list[Case]:
    """Every defence with every set of its parameters."""
    return [
        Case.of({"defence": name, "attack": attack, "parameters": parameters})
        for name in defences
        for parameters in DEFENCES[name].cases(task)
    ]


# one object for equal parameters: a program is compiled for each
@functools.cache
def _mix(make: Callable[..., mx.mixing.Mix], parameters: Parameters) -> mx.mixing.Mix:
    return make(**dict(parameters))
