"""Unmixing: join the layers of one person again, within one round and without anybody's data.

For a hidden channel j with a positively homogeneous activation, the gradient g of any loss on any
data obeys, exactly,

    <W_in[j], g_in[j]> + b[j] g_b[j] = <W_out[j], g_out[j]>

(Du, Hu and Lee 2018, arXiv:1806.00900; Kunin et al. 2021, arXiv:2012.04728). The server knows W,
the model it sent. Local training sums such gradients at moving weights, so an update obeys the
law up to the second order of the learning rate. One side is computed from a layer's update, the
other from the next layer's: as many fingerprints of one person as there are channels.

Unit u of client i contributes A_u[i] to the laws, with sum_u A_u[i] ~ 0: a measure, linear in the
update. Unmixing is finding permutations of the slots, unit by unit, that make these sums small.
A normalization has no law through it; a bias before it moves as the normalization's own biases
do less their mean over the group, up to a factor (our finding), which ties it to its layer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float, Int, PyTree

from mixjax import _axes, _validate
from mixjax import units as units_lib
from mixjax.attacks import _then
from mixjax.attacks.base import Attack, Probe
from mixjax.attacks.channels import Graph, Role
from mixjax.observation import Observation
from mixjax.types import Active, Memory, Params, PRNGKey, Updates, widest

# floors of an equation's residual, as shares of its spread: equations that hold come to count most
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)
SWEEPS, STARTS = 4, 4
TINY = np.finfo(float).tiny


class Assembly(NamedTuple):
    """What belongs together, as the attack sees it.

    Attributes:
      slots: `slots[assembly, unit]`: the slot whose unit belongs to the assembly. A permutation of
        the active slots in each unit; other rows are their own. `mixing.apply(slots, updates,
        units)` puts the updates together, `measures.mix(slots, measures)` their measures.
      confidence: of each assembly, the share of its contributions to the laws that cancels: 1 if
        every law holds exactly, about 0 for units of different people.
      then: findings of the attack that looks at what was joined.
    """

    slots: Int[Array, "clients units"]
    confidence: Float[Array, " clients"]
    then: PyTree[Any] = None


def equations(graph: Graph) -> int:
    """The number of laws: one a hidden channel, and one a channel of a normalization."""
    hidden = sum(one.size for one in graph.hidden)
    return hidden + sum(len(norm.groups) for norm in graph.norms)


def contributions(
    graph: Graph, params: Params, units: units_lib.Units, update: Params
) -> Float[Array, "units equations"]:
    """What each unit of one update contributes to the laws: a measure.

    Linear in the update. Over the units of one person it sums to zero in the laws of channels.

    Args:
      graph: the model's channels; see `channels`.
      params: the model that the update starts from.
      units: the partition.
      update: of one client.
    """
    _axes.check_units(units)
    weights, moves = jax.tree.leaves(params), jax.tree.leaves(update)
    dtype, count = widest(update), len(units.names)

    def summed(product: Array, role: Role, size: int) -> Array:
        return _by_channel(product, role, units.labels[role.leaf], count, size)

    parts = []
    for hidden in graph.hidden:
        total = jnp.zeros((count, hidden.size), dtype)
        for sign, roles in ((1, hidden.feeds), (-1, hidden.reads)):
            for role in roles:
                product = weights[role.leaf].astype(dtype) * moves[role.leaf].astype(dtype)
                total += sign * summed(product, role, hidden.size)
        parts.append(total)
    for norm in graph.norms:
        size = len(norm.groups)
        bias = summed(moves[norm.before.leaf].astype(dtype), norm.before, size)
        shift = weights[norm.scale].astype(dtype) * moves[norm.shift].astype(dtype)
        ahead = summed(shift, Role(norm.shift, -1, tuple(range(size))), size)
        # a group's mean, unit by unit: linear, so it may be cut
        same = np.equal.outer(norm.groups, norm.groups).astype(dtype)
        mean = jnp.matmul(ahead, same / same.sum(axis=0), precision=jax.lax.Precision.HIGHEST)
        parts.append(bias - (ahead - mean))
    return jnp.concatenate(parts, axis=1)


def _by_channel(
    product: Array, role: Role, labels: units_lib.Labels, units: int, size: int
) -> Array:
    """`[units, size]`: sums of a leaf's products, by unit and channel."""
    channels = np.array(role.channels)
    # a number too large drops what belongs to no channel
    if labels.whole:
        axis = product.ndim + role.axis
        row = jnp.sum(product, axis=tuple(at for at in range(product.ndim) if at != axis))
        sums = jax.ops.segment_sum(row, np.where(channels < 0, size, channels), size + 1)[:-1]
        return jnp.zeros((units, size), product.dtype).at[labels.array.item()].set(sums)
    along = channels.reshape(-1, *[1] * (-1 - role.axis))
    ids = np.where(along < 0, units * size, labels.array * size + along)
    ids = np.broadcast_to(ids, product.shape).ravel()
    return jax.ops.segment_sum(product.ravel(), ids, units * size + 1)[:-1].reshape(units, size)


def attack(graph: Graph, then: Attack | None = None) -> Attack:
    """The server that unmixes each round on its own; its findings are an `Assembly`.

    `then` sees each round in the order of assemblies: whole updates, as behind a shuffle.

    >>> model = {"a": {"w": jnp.zeros((3, 4))}, "b": {"w": jnp.zeros((4, 2))}}
    >>> graph = mx.attacks.channels.of_pairs(model, [("a", "b")])
    >>> server = attack(graph, then=mx.attacks.tracks.attack())

    Args:
      graph: the model's channels; see `channels`.
      then: what looks at what was joined, by its measure.

    Raises:
      InputError: for a graph without channels, or a `then` that reads whole updates.
    """
    _check_graph(graph)
    inner = _then.part(then)

    def measure(probe: Probe, units: units_lib.Units, update: Params) -> Any:
        laws = contributions(graph, probe.params, units, update)
        return laws, inner.measure(probe, units, update)

    def observe(
        key: PRNGKey, memory: Memory, probe: Probe, observation: Observation
    ) -> tuple[Memory, Assembly]:
        own_key, then_key = jax.random.split(key)
        laws, rest = observation.measures
        clients, units = laws.shape[:2]
        like = (
            jax.ShapeDtypeStruct((clients, units), jnp.int32),
            jax.ShapeDtypeStruct((clients,), jnp.float32),
        )
        slots, confidence = jax.pure_callback(
            lambda *seen: solve(graph, *seen),
            like,
            jax.random.bits(own_key, (), jnp.uint32),
            laws,
            observation.active,
            vmap_method="sequential",
        )
        seen = _then.reordered(slots, observation, rest)
        memory, findings = inner.observe(then_key, memory, probe, seen)
        return memory, Assembly(slots, confidence, findings)

    return Attack(inner.init, inner.prepare, measure, observe)


def assemble(
    key: PRNGKey,
    params: Params,
    updates: Updates,
    graph: Graph,
    *,
    active: Active | None = None,
    granularity: units_lib.Granularity = "layer",
) -> Assembly:
    """Join the units of a stack of mixed updates, as any server can.

    >>> model = mx.models.MLP(classes=2, hidden=(8, 8))
    >>> inputs = jax.random.normal(jax.random.key(0), (5, 10, 4))
    >>> params = mx.models.initial(model, jax.random.key(1), inputs[0])
    >>> def train(inputs):
    ...     loss = lambda params: jnp.mean(model.apply({"params": params}, inputs)[:, 0] ** 2)
    ...     return jax.tree.map(lambda leaf: -0.01 * leaf, jax.grad(loss)(params))
    >>> mixed = mx.mix(jax.random.key(2), jax.vmap(train)(inputs))
    >>> graph = mx.attacks.channels.trace(model, params, inputs[0])
    >>> assembly = assemble(jax.random.key(3), params, mixed, graph)
    >>> whole = mx.mixing.apply(assembly.slots, mixed, mx.units.partition(params))

    Args:
      key: breaks ties.
      params: the model that the updates start from.
      updates: what the server received: any pytree with a leading clients axis.
      graph: the model's channels; see `channels`.
      active: whose rows were forwarded; all by default.
      granularity: how the proxy cut the model.

    Raises:
      InputError: for updates of another model.
    """
    _validate.check_key(key)
    _check_graph(graph)
    clients = _axes.check_client_axis(updates)
    units = units_lib.partition(params, granularity)
    _axes.check_partition(updates, units)
    if active is None:
        active = jnp.ones(clients, bool)
    _axes.check_active(active, clients)

    rows = jax.vmap(lambda update: contributions(graph, params, units, update))(updates)
    found = solve(graph, jax.random.bits(key, (), jnp.uint32), rows, active)
    return Assembly(*map(jnp.asarray, found))


def solve(graph: Graph, seed: Any, rows: Any, active: Any) -> tuple[np.ndarray, np.ndarray]:
    """Slots and confidence of an `Assembly` of measured slots, on the host.

    Coordinate descent on the weighted sum of squared residuals: each step moves one unit's slots
    by a linear assignment; weights follow the residuals. Starts from the unit that contributes
    most, and joins the one that shares most equations with what is joined. Slots are dealt out
    first: an assignment returns the identity where nothing is known.

    Args:
      graph: whose laws were measured.
      seed: of the deal.
      rows: `[clients, units, equations]`, contributions slot by slot.
      active: whose rows were forwarded.
    """
    rows, active = np.asarray(rows, np.float64), np.asarray(active)
    clients, units, _ = rows.shape
    slots = np.tile(np.arange(clients, dtype=np.int32)[:, None], (1, units))
    confidence = np.zeros(clients, np.float32)
    present = np.flatnonzero(active)
    if present.size == 0:
        return slots, confidence
    rng = np.random.default_rng(int(seed))
    deals = np.stack([rng.permutation(present) for _ in range(units)])
    parts = np.stack([rows[deal, unit] for unit, deal in enumerate(deals)])
    parts -= parts.mean(axis=1, keepdims=True)
    loose = equations(Graph(graph.hidden))
    # a coupling holds up to a factor: the spread over slots, which no mixing hides
    spread = np.sqrt(np.mean(parts[:, :, loose:] ** 2, axis=1, keepdims=True))
    parts[:, :, loose:] /= np.where(spread > 0, spread, 1)
    strength = np.square(parts).mean(axis=1)
    total = strength.sum(axis=0)
    order = _best_order(parts, strength, total)
    joined = _placed(parts, order)
    residual = joined.sum(axis=0)
    weights = _weights(residual, total, SHARES[-1])
    left = np.sum(residual**2 * weights, axis=-1)
    whole = np.sum(np.sum(joined**2, axis=0) * weights, axis=-1)
    slots[present] = np.stack([deal[own] for deal, own in zip(deals, order, strict=True)], axis=1)
    confidence[present] = np.where(whole > 0, 1 - left / np.where(whole > 0, whole, 1), 0)
    return slots, confidence


def _placed(parts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`[units, assemblies, equations]`: the parts in their order."""
    return np.take_along_axis(parts, order[..., None], axis=1)


def _inverse(spread: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.where(total > 0, 1 / np.maximum(spread, TINY), 0)


def _weights(residual: np.ndarray, total: np.ndarray, share: float) -> np.ndarray:
    return _inverse(np.square(residual).mean(axis=0) + share * total, total)


def _assign(target: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The order of the rows that cancels the target best."""
    return scipy.optimize.linear_sum_assignment((target * weights) @ rows.T)[1]


def _best_order(parts: np.ndarray, strength: np.ndarray, total: np.ndarray) -> np.ndarray:
    """The best of several descents: laws that share many units have local minima."""
    firsts = np.argsort(-(strength @ _inverse(total, total)))[:STARTS]
    orders = [
        _descend(parts, _greedy(parts, strength, total, first), strength, total)
        for first in firsts.tolist()
    ]

    def loss(order: np.ndarray) -> float:
        residual = _placed(parts, order).sum(axis=0)
        left = np.square(residual).mean(axis=0)[total > 0] / total[total > 0]
        # what reweighting minimizes: laws count by their relative precision
        return float(np.sum(np.log(left + SHARES[-1] ** 2)))

    return min(orders, key=loss)


def _greedy(parts: np.ndarray, strength: np.ndarray, total: np.ndarray, first: int) -> np.ndarray:
    """Units joined one after the other, next the one that shares most with those joined."""
    units, slots, _ = parts.shape
    weights = _inverse(total, total)
    order = np.tile(np.arange(slots), (units, 1))
    cover, sums = strength[first].copy(), parts[first].copy()
    rest = [unit for unit in range(units) if unit != first]
    while rest:
        shared = [np.minimum(strength[unit], cover) @ weights for unit in rest]
        unit = rest.pop(int(np.argmax(shared)))
        order[unit] = _assign(sums, parts[unit], weights)
        sums += parts[unit][order[unit]]
        cover += strength[unit]
    return order


def _descend(
    parts: np.ndarray, order: np.ndarray, strength: np.ndarray, total: np.ndarray
) -> np.ndarray:
    """One unit after the other put where the others leave least, until nothing moves."""
    residual = _placed(parts, order).sum(axis=0)
    for share in SHARES:
        weights = _weights(residual, total, share)
        anchor = int(np.argmax(strength @ weights))
        for _ in range(SWEEPS):
            changed = False
            for unit in range(len(parts)):
                if unit == anchor:
                    continue
                others = residual - parts[unit][order[unit]]
                best = _assign(others, parts[unit], weights)
                changed |= not np.array_equal(best, order[unit])
                order[unit] = best
                residual = others + parts[unit][best]
            if not changed:
                break
    return order


def _check_graph(graph: Any) -> None:
    if not isinstance(graph, Graph) or not (graph.hidden or graph.norms):
        raise _validate.InputError(
            "expected a graph of at least one hidden layer, from channels.trace(model, params, "
            f"inputs) or channels.of_pairs(params, pairs); got {graph!r}."
        )
