"""Servers that send crafted models: what mixing does not hide from who chooses the model.

`isolate` sends all clients but one a model without a gradient: the only units that move are the
one's, however finely they are mixed, and even in a sum. `tag` sends each client the model with a
mark of its own. Both need a server that chooses whom it sends what, and both say *names*, where
`unmix` and `tracks` say pseudonyms. `regauge` sends all the same function in another gauge.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy.typing as npt
from jaxtyping import Array, Int, PyTree

from mixjax import _validate, measures
from mixjax import units as units_lib
from mixjax.attacks import _then
from mixjax.attacks._assign import assign
from mixjax.attacks._sums import by_channel
from mixjax.attacks.base import Attack, Probe, check
from mixjax.attacks.channels import Graph, Role, check_graph, rescaled
from mixjax.observation import Observation
from mixjax.types import Params, PRNGKey, Scalar, widest


class Isolated(NamedTuple):
    """Who was alone in a round.

    Attributes:
      client: who was alone, by its place in the cohort; -1 in an honest round.
      slots: where its units are, as the attack sees it.
      then: findings of the attack that looks at its update, as a round of one.
    """

    client: Int[Array, ""]
    slots: Int[Array, " units"]
    then: PyTree[Any] = None


class Tagged(NamedTuple):
    """Whose units are where, by name.

    Attributes:
      slots: `slots[client, unit]`, a permutation in each unit.
      then: findings of the attack that looks at what was put together.
    """

    slots: Int[Array, "clients units"]
    then: PyTree[Any] = None


class _Craft(NamedTuple):
    """The references of a server that crafts: its own and the inner attack's."""

    own: Any
    then: Any


def isolate(
    then: Attack | None = None, *, every: int = 2, ids: npt.ArrayLike | None = None
) -> Attack:
    """All clients but one get a model of zeros; its findings are `Isolated`.

    A network whose weights are all zero has no gradient but that of its last bias: all units of the
    others stay where they are, but one which hardly moves. The clients are alone in turn. Such
    rounds teach nothing and the server keeps its model aside; the others are honest.

    It reads the units one by one, whatever the mixing and granularity, and the sum of a secure
    aggregation.
    Source: Pasquini, Francati and Ateniese 2022, arXiv:2111.07380, on secure aggregation; that it
    opens a mixing is our reading.

    Args:
      then: what looks at the one's update, by its measure, in a round of one slot.
      every: the crafted rounds are those whose number `every` divides; 1 for all, so that the
        model never learns.
      ids: of the clients, in the cohort's order; by default 0, 1, ... for as many as slots.

    Raises:
      InputError: for a number out of range, or a `then` that reads whole updates.
    """
    _validate.check_positive(every, "every", integer=True)
    inner = _then.part(then)

    def init(params: Params, units: units_lib.Units, clients: int) -> Any:
        return jnp.int32(0), _of_cohort(ids, clients), inner.init(params, units, 1)

    def prepare(key: PRNGKey, memory: Any, params: Params, local: Any) -> Probe:
        number, known, own = memory
        probe = inner.prepare(key, own, params, local)
        crafted = number % every == 0
        place = number // every % known.shape[0]
        alone = jnp.where(crafted, place, -1)
        learns = ~crafted & jnp.asarray(probe.learns)
        references = _Craft((alone, known[place]), probe.references)
        return probe._replace(references=references, learns=learns)

    def send(probe: Probe, client: Array) -> Params:
        alone, name = probe.references.own
        whole = (alone < 0) | (name == client)
        return jax.tree.map(lambda leaf: jnp.where(whole, leaf, 0), probe.params)

    def measure(probe: Probe, units: units_lib.Units, update: Params) -> Any:
        moved = jax.tree.map(lambda leaf: (leaf != 0).astype(jnp.float32), update)
        squares = units_lib.squared_norms(units, update)
        counted = units_lib.squared_norms(units, moved)
        return counted, squares, inner.measure(_own(probe), units, update)

    def observe(
        key: PRNGKey, memory: Any, probe: Probe, observation: Observation
    ) -> tuple[Any, Isolated]:
        number, known, own = memory
        moved, squares, rest = observation.measures
        # most coordinates moved; of equals the longest
        longest = jnp.max(squares, axis=0, keepdims=True)
        share = squares / jnp.where(longest > 0, 2 * longest, 1)
        slots = jnp.argmax(moved + share.astype(moved.dtype), axis=0).astype(jnp.int32)
        alone, _ = probe.references.own
        row = jax.tree.map(
            lambda leaf: jnp.take_along_axis(
                leaf, slots.reshape(1, -1, *[1] * (leaf.ndim - 2)), axis=0
            ),
            rest,
        )
        seen = Observation(jnp.any(observation.active, keepdims=True), row, None)
        after, findings = inner.observe(key, own, _own(probe), seen)
        # what it sees of honest rounds is nobody's
        own = jax.tree.map(lambda new, old: jnp.where(alone >= 0, new, old), after, own)
        return (number + 1, known, own), Isolated(alone, slots, findings)

    return Attack(init, prepare, measure, observe, send=send)


def tag(
    then: Attack | None = None,
    *,
    strength: Scalar = 0.1,
    width: int = 256,
    ids: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Attack:
    """Every client gets the model with a mark of its own; its findings are `Tagged`.

    If clients send back models (`fedavg(uploads="models")`) their units carry the marks, and an
    assignment tells whose each is, by name. If they send updates, differences to what they got,
    what is left of a mark is its pull on training, of second order. The marks of all clients sum
    to zero: under equal weights the mean is free of them.

    Args:
      then: what looks at the units by name, by its measure.
      strength: standard deviation of the marks, as a share of the root mean square of the model's
        numbers.
      width: of the sketches that marks are told by; see `measures.sketch`.
      ids: of the clients, in the cohort's order; 0, 1, ... by default.
      seed: of the marks.

    Raises:
      InputError: for a number out of range, or a `then` that reads whole updates.
    """
    _validate.check_positive(strength, "strength")
    _validate.check_positive(width, "width", integer=True)
    _validate.check_seed(seed)
    inner = _then.part(then)
    sketch_key, code_key = jax.random.split(jax.random.key(seed))

    def init(params: Params, units: units_lib.Units, clients: int) -> Any:
        codes = jax.random.normal(code_key, (clients, width), jnp.float32)
        codes -= jnp.mean(codes, axis=0, keepdims=True)
        return codes, _of_cohort(ids, clients), inner.init(params, units, clients)

    def prepare(key: PRNGKey, memory: Any, params: Params, local: Any) -> Probe:
        codes, known, own = memory
        probe = inner.prepare(key, own, params, local)
        return probe._replace(references=_Craft((codes, known), probe.references))

    def send(probe: Probe, client: Array) -> Params:
        sent, dtype = probe.params, widest(probe.params)
        whole = units_lib.partition(sent, "model")
        codes, known = probe.references.own
        code = codes[jnp.argmax(known == client)][None].astype(dtype)
        # the sketch is linear: back through it every coordinate gets its bucket's number
        _, back = jax.vjp(lambda update: measures.sketch(sketch_key, whole, update, width), sent)
        leaves = jax.tree.leaves(sent)
        squares = sum(jnp.sum(jnp.square(leaf.astype(dtype))) for leaf in leaves)
        scale = strength * jnp.sqrt(squares / sum(leaf.size for leaf in leaves))
        return jax.tree.map(
            lambda leaf, mark: leaf + (scale * mark.astype(dtype)).astype(leaf.dtype),
            sent,
            back(code)[0],
        )

    def measure(probe: Probe, units: units_lib.Units, update: Params) -> Any:
        rows = measures.sketch(sketch_key, units, update, width)
        return rows, inner.measure(_own(probe), units, update)

    def observe(
        key: PRNGKey, memory: Any, probe: Probe, observation: Observation
    ) -> tuple[Any, Tagged]:
        codes, known, own = memory
        own_key, then_key = jax.random.split(key)
        rows, rest = observation.measures
        active = observation.active[:, None, None]
        count = jnp.maximum(jnp.sum(observation.active), 1).astype(rows.dtype)
        mean = jnp.sum(jnp.where(active, rows, 0), axis=0, keepdims=True) / count
        gain = jnp.einsum(
            "cw,suw->ucs",
            codes,
            jnp.where(active, rows - mean, 0).astype(codes.dtype),
            precision=jax.lax.Precision.HIGHEST,
        )
        slots = jax.vmap(assign)(jax.random.split(own_key, len(gain)), gain).T
        seen = _then.reordered(slots, observation, rest)
        own, findings = inner.observe(then_key, own, _own(probe), seen)
        return (codes, known, own), Tagged(slots, findings)

    return Attack(init, prepare, measure, observe, send=send)


def regauge(graph: Graph, then: Attack, *, spread: Scalar = 0.0) -> Attack:
    """All clients get the same function in another gauge; its findings are those of `then`.

    What feeds a hidden channel is made exp(s) times as long as what reads it, and the function
    stays as it is (see `rescaling`). At a spread of 0 both are equally long: noise on the update
    then disturbs the channel's law least. At a large one s takes equidistant values in [-spread,
    spread] over a layer's channels, and every channel moves on a scale of its own.

    Args:
      graph: the model's channels.
      then: the attack, whatever it reads.
      spread: at least 0, the largest |s|.

    Raises:
      InputError: for no graph, no attack, or a negative spread.
    """
    check_graph(graph)
    _validate.check_non_negative(spread, "spread")
    check(then)
    own_prepare = then.prepare

    def prepare(key: PRNGKey, *rest: Any) -> Probe:
        *memory, params, local = rest
        sent = _regauged(graph, spread, params)
        return Probe(sent) if own_prepare is None else own_prepare(key, *memory, sent, local)

    return then._replace(prepare=prepare)


def _regauged(graph: Graph, spread: Scalar, params: Params) -> Params:
    leaves, structure = jax.tree.flatten(params)
    dtype = widest(params)

    def squares(roles: tuple[Role, ...], size: int) -> Array:
        parts = [by_channel(jnp.square(leaves[r.leaf].astype(dtype)), r, size) for r in roles]
        return sum(parts, jnp.zeros(size, dtype))

    for hidden in graph.hidden:
        feeds, reads = squares(hidden.feeds, hidden.size), squares(hidden.reads, hidden.size)
        known = (feeds > 0) & (reads > 0)
        ratio = jnp.where(known, reads, 1) / jnp.where(known, feeds, 1)
        wanted = jnp.asarray(spread, dtype) * jnp.linspace(-1, 1, hidden.size, dtype=dtype)
        log = jnp.where(known, jnp.log(ratio) / 4 + wanted / 2, 0)
        leaves = rescaled(leaves, hidden.feeds, jnp.exp(log))
        leaves = rescaled(leaves, hidden.reads, jnp.exp(-log))
    return jax.tree.unflatten(structure, leaves)


def _of_cohort(ids: npt.ArrayLike | None, clients: int) -> Int[Array, " clients"]:
    """The ids of a cohort of so many."""
    if ids is None:
        return jnp.arange(clients, dtype=jnp.int32)
    known = jnp.asarray(ids)
    # behind secure aggregation there are more clients than slots
    fits = known.ndim == 1 and known.size and (clients == 1 or known.size == clients)
    if not fits or not jnp.issubdtype(known.dtype, jnp.integer):
        raise _validate.InputError(
            f"expected the ids of a cohort of {clients} clients, whole numbers; got "
            f"{known.dtype}{list(known.shape)}."
        )
    return known.astype(jnp.int32)


def _own(probe: Probe) -> Probe:
    """The inner attack's probe."""
    return probe._replace(references=probe.references.then)
