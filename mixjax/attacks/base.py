"""The contract of an attack: what a server prepares, computes of each update, and remembers."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Int, PyTree, Shaped

from mixjax import _validate
from mixjax.client import LocalTraining
from mixjax.observation import Observation
from mixjax.types import Memory, Params, PRNGKey
from mixjax.units import Units


class Probe(NamedTuple):
    """What a server prepares before a round.

    Attributes:
      params: the model it sends to the clients.
      references: whatever its measure and its findings need besides, such as directions.
      learns: whether the round's aggregate goes into the server's model. A server that sends a
        crafted model may keep its own aside: the model after the round is the one before.
    """

    params: Params
    references: PyTree[Any] = ()
    learns: Bool[Array, ""] | bool = True


@runtime_checkable
class Init(Protocol):
    """The memory before the first round."""

    def __call__(self, params: Params, units: Units, clients: int, /) -> Memory: ...


@runtime_checkable
class Prepare(Protocol):
    """Makes the probe of a round from the server's model and the clients' own training."""

    def __call__(
        self, key: PRNGKey, memory: Memory, params: Params, local: LocalTraining, /
    ) -> Probe: ...


@runtime_checkable
class Send(Protocol):
    """The model that one client gets, for a server whose models a proxy passes on unseen.

    `client` is the client's id, `data.ids`. All else that the attack says of the round's model is
    of `Probe.params`.
    """

    def __call__(self, probe: Probe, client: Int[Array, ""], /) -> Params: ...


@runtime_checkable
class Measure(Protocol):
    """Computes of one client's update, unit by unit, what the attack needs of it.

    The result is any pytree of arrays with a leading units axis. Row u must follow from the
    update's unit u alone, and from the probe: only then is the measure of a mixed update made of
    the rows of its units' owners, and no stack of updates is needed.
    """

    def __call__(
        self, probe: Probe, units: Units, update: Params, /
    ) -> PyTree[Shaped[Array, "units ..."]]: ...


@runtime_checkable
class Observe(Protocol):
    """Looks at a round and draws conclusions: any pytree of arrays. It never sees the truth."""

    def __call__(
        self, key: PRNGKey, memory: Memory, probe: Probe, observation: Observation, /
    ) -> tuple[Memory, PyTree[Any]]: ...


class Attack(NamedTuple):
    """What a server does on the side.

    Without `init` an attack remembers nothing, and its functions neither take nor return a
    memory: `prepare(key, params, local)` and `observe(key, probe, observation) -> findings`.

    Updates are measured and seen as they are forwarded, with their weight. Weights are relative
    to those who train: where updates were left out, a factor common to all slots remains. Rows
    that were not forwarded are zero.

    A server that remembers the longest update of each unit in each slot, and names the slot:

    >>> import jax, jax.numpy as jnp, mixjax as mx
    >>> def init(params, units, clients):
    ...     return jnp.zeros((clients, len(units.names)))
    >>> def measure(probe, units, update):
    ...     return mx.units.squared_norms(units, update)
    >>> def observe(key, longest, probe, observation):
    ...     longest = jnp.maximum(longest, observation.measures)
    ...     return longest, jnp.argmax(longest, axis=0)
    >>> attack = mx.attacks.Attack(init, None, measure, observe)

    It sees through plain federated learning that client 2 moves most:

    >>> def local(key, params, data):
    ...     move = lambda leaf: jnp.full_like(leaf, data.ids)
    ...     return mx.client.LocalResult(jax.tree.map(move, params), jnp.float32(0))
    >>> federation = mx.federation.fedavg(local, attack=attack)
    >>> state = federation.init({"a": {"w": jnp.zeros(2)}, "b": {"w": jnp.zeros(3)}}, clients=3)
    >>> data = mx.data.stack([{"x": jnp.ones((1, 2))}] * 3)
    >>> mx.federation.run(jax.random.key(0), federation, state, data, 2)[1].findings.tolist()
    [[2, 2], [2, 2]]

    Attributes:
      init: `(params, units, clients) -> memory`, or None.
      prepare: `(key, memory, params, local) -> Probe`, before the round; None sends the server's
        own model.
      measure: `(probe, units, update) -> measures`, of one client's update; or None.
      observe: `(key, memory, probe, observation) -> (memory, findings)`, after the round.
      updates: whether it reads whole updates, `observation.updates`: they are then stacked, and
        a round needs memory for one model a client.
      send: `(probe, client) -> params`, where clients get different models; None sends
        `probe.params` to all.
    """

    init: Init | None
    prepare: Callable[..., Probe] | None
    measure: Measure | None
    observe: Callable[..., Any]
    updates: bool = False
    send: Send | None = None


def check(attack: Any) -> None:
    """Refuse what is no attack, or one whose functions take something else."""
    if not isinstance(attack, Attack):
        raise _validate.InputError(
            f"expected an attack such as attacks.sim.passive(auxiliary); got {attack!r}."
        )
    memory = () if attack.init is None else ("memory",)
    for function, names, what in (
        (attack.init, ("params", "units", "clients"), "attack.init"),
        (attack.prepare, ("key", *memory, "params", "local"), "attack.prepare"),
        (attack.measure, ("probe", "units", "update"), "attack.measure"),
        (attack.observe, ("key", *memory, "probe", "observation"), "attack.observe"),
        (attack.send, ("probe", "client"), "attack.send"),
    ):
        if function is not None or what == "attack.observe":
            _validate.check_signature(function, names, what)
