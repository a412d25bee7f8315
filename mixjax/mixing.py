"""Mixing: distributions over the origin matrix, and its application to stacked pytrees.

A round has C clients and U units. Every mixing is a distribution over an integer matrix
`origins[slot, unit]`: the update forwarded in `slot` takes `unit` from client
`origins[slot, unit]`. Inactive rows keep their own units and never enter another's.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from mixjax import _axes, _draws, _gather, _memory, _validate
from mixjax import units as units_lib
from mixjax._draws import stream as stream
from mixjax.types import Active, Memory, Origins, Params, PRNGKey, Updates, threefry

SMALL_BYTES = 2**26


@runtime_checkable
class Draw(Protocol):
    """Draws an origin matrix."""

    def __call__(self, key: PRNGKey, active: Active, units: int, /) -> Origins:
        """Draw origins for `units` units among the active clients.

        Args:
          key: the proxy's own key. It must never reach the server.
          active: which rows take part.
          units: the number of units.

        Returns:
          Origins that permute the active clients in each column and fix the inactive ones.

        Raises:
          InputError: for a mask of one client that is no traced value, if the mix can't hide one.
        """
        ...


# not a NamedTuple: `jax.jit` of a component that is called needs weak references to it
@dataclasses.dataclass(frozen=True)
class Mix:
    """A distribution over origin matrices, which may follow from the rounds before.

    Calling a mix draws the origins of a first round; a plain `Draw` is a mix without memory
    wherever one is expected.

    A lazy proxy, which draws anew every second round only:

    >>> import jax, jax.numpy as jnp, mixjax as mx
    >>> def init(clients, units):
    ...     return jnp.int32(0), jnp.zeros((clients, units), jnp.int32)
    >>> def draw(key, memory, active, units):
    ...     number, before = memory
    ...     fresh = mx.mixing.full_round()(key, active, units)
    ...     origins = jnp.where(number % 2 == 0, fresh, before)
    ...     return (number + 1, origins), origins
    >>> lazy = mx.mixing.Mix(draw, init=init)
    >>> lazy(jax.random.key(0), jnp.ones(4, bool), 2).shape
    (4, 2)
    >>> defence = mx.defences.Defence(mx.defences.none().perturb, lazy)

    Attributes:
      draw: `(key, active, units) -> origins`; with `init`,
        `(key, memory, active, units) -> (memory, origins)`.
      least: how many active clients it needs; in a round with fewer nobody is forwarded.
      init: `(clients, units) -> memory` before the first round; None remembers nothing.
    """

    draw: Callable[..., Any]
    least: int = 2
    init: Callable[[int, int], Memory] | None = None

    def __call__(self, key: PRNGKey, active: Active, units: int) -> Origins:
        if self.init is None:
            return self.draw(key, active, units)
        return self.draw(key, self.init(active.shape[0], units), active, units)[1]


def as_mix(value: Any, what: str = "") -> Mix:
    """A mix as it is, a plain `Draw` as a mix without memory that needs two clients."""
    what = f"a mix such as mixing.full_round(){what}"
    _validate.check_callable(value, what)
    mix = value if isinstance(value, Mix) else Mix(value)
    memory = () if mix.init is None else ("memory",)
    if mix.init is not None:
        _validate.check_signature(mix.init, ("clients", "units"), f"init of {what}")
    _validate.check_signature(mix.draw, ("key", *memory, "active", "units"), what)
    _validate.check_positive(mix.least, "least of a mix", integer=True)
    return mix


def keep() -> Mix:
    """Every update stays whole and in its own slot: plain federated learning."""

    def draw(key: PRNGKey, active: Active, units: int) -> Origins:
        _check_draw(key, active, units, alone=True)
        return jnp.broadcast_to(
            jnp.arange(active.shape[0], dtype=jnp.int32)[:, None], (active.shape[0], units)
        )

    return Mix(draw, least=1)


def shuffle() -> Mix:
    """One uniform permutation of the active clients, the same for all units.

    The control: it anonymises whole updates and mixes nothing.
    """

    def draw(key: PRNGKey, active: Active, units: int) -> Origins:
        _check_draw(key, active, units)
        origins = _draws.permutation(threefry(key), active)
        return jnp.broadcast_to(origins[:, None], (active.shape[0], units))

    return Mix(draw)


def full_round() -> Mix:
    """An independent uniform permutation of the active clients for each unit.

    Guarantees: every unit of every active client is forwarded exactly once, so a uniform mean
    changes only by rounding. Two units of a slot share an origin with probability 1/C.
    Source: MixNN (Boutet et al. 2021, arXiv:2109.12550), our reading of its round.
    """

    def draw(key: PRNGKey, active: Active, units: int) -> Origins:
        _check_draw(key, active, units)
        keys = jax.random.split(threefry(key), units)
        return jax.vmap(_draws.permutation, (0, None), out_axes=1)(keys, active)

    return Mix(draw)


def proxy(list_size: int) -> Mix:
    """A proxy that holds a list of `list_size` instances of each unit; see `stream`.

    Clients arrive in uniformly random order, and slots are numbered in order of emission, so
    every slot's origins are uniform over the active clients.
    Source: MixNN (Boutet et al. 2021, arXiv:2109.12550), our reading of its proxy.
    """
    _validate.check_positive(list_size, "list_size", integer=True)

    def draw(key: PRNGKey, active: Active, units: int) -> Origins:
        _check_draw(key, active, units)
        order_key, stream_key = jax.random.split(threefry(key))
        clients = active.shape[0]
        ranks = stream(stream_key, jnp.sum(active), clients, list_size, units)
        arrivals = _draws.sort_clients(order_key, active)
        rows = jnp.arange(clients, dtype=jnp.int32)
        slots = _draws.active_first(active)
        by_rank = jnp.where(
            (rows < jnp.sum(active, dtype=jnp.int32))[:, None], arrivals[ranks], slots[:, None]
        )
        return jnp.zeros((clients, units), by_rank.dtype).at[slots].set(by_rank)

    return Mix(draw)


def within(groups: npt.ArrayLike, mix: Mix | Draw | None = None) -> Mix:
    """Mix inside groups of clients only, such as buckets of about equal weight.

    Where weights differ, the length of a forwarded unit tells whose it may be; among clients of
    about one weight it tells less, but fewer stand for each other.
    Source: buckets of weights (IntraShuffler, arXiv:2606.02563), our reading.

    >>> buckets = within([0, 0, 1, 1, 1])
    >>> origins = buckets(jax.random.key(0), jnp.ones(5, bool), 3)
    >>> sorted(origins[:2, 0].tolist())
    [0, 1]

    Args:
      groups: of each client a whole number. Of a group of which one client is active, that client
        keeps its own place: nothing hides it.
      mix: what happens inside; `full_round()` by default.

    Raises:
      InputError: for groups that are no whole numbers, a mix that remembers, or, on use, another
        number of clients.
    """
    groups = _validate.host_array(groups, "groups", "iu")
    if groups.ndim != 1 or not groups.size:
        raise _validate.InputError(
            f"expected groups of one whole number a client; got shape {groups.shape}."
        )
    inner = full_round() if mix is None else as_mix(mix)
    if inner.init is not None:
        raise _validate.InputError(
            "expected a mix without memory within groups; got one that remembers. Draw each "
            "round's origins anew."
        )
    members = [np.asarray(groups == group) for group in np.unique(groups)]

    def draw(key: PRNGKey, active: Active, units: int) -> Origins:
        _check_draw(key, active, units, alone=True)
        clients = active.shape[0]
        if clients != groups.size:
            raise _validate.InputError(
                f"expected a cohort of the {groups.size} clients that have groups; got {clients}."
            )
        own = jnp.arange(clients, dtype=jnp.int32)[:, None]
        origins = jnp.broadcast_to(own, (clients, units))
        for one, member in zip(jax.random.split(key, len(members)), members, strict=True):
            here = active & member
            # a mask of nobody, or of one on the host, is no cohort
            enough = jnp.sum(here) > 1
            drawn = inner.draw(one, here | ~enough, units)
            origins = jnp.where((member & enough)[:, None], drawn, origins)
        return origins

    return Mix(draw, inner.least)


def _check_draw(key: Any, active: Any, units: Any, *, alone: bool = False) -> None:
    """The arguments of a mix."""
    _validate.check_key(key)
    clients = _axes.check_mask(active)
    _validate.check_positive(units, "units", integer=True)
    needed = 4 * clients * units
    # asking the system for its memory takes longer than a small draw
    if needed > SMALL_BYTES:
        _memory.check_memory(needed, f"an origin matrix of {clients} x {units}", "", None)
    if not alone:
        _axes.check_mixable(active, clients)


def apply(origins: Origins, updates: Updates, units: units_lib.Units) -> Updates:
    """Forward mixed updates: one gather per leaf.

    The program's size and the time to compile it don't depend on the number of units.

    Args:
      origins: the matrix drawn by a `Mix`.
      updates: any pytree of arrays with a leading clients axis.
      units: the partition that `origins` has its columns for.

    Returns:
      `mixed[slot]`, of the structure, shapes and dtypes of `updates`. Values are moved, never
      computed with.

    Raises:
      InputError: for origins of another shape or out of range, or updates of another model. Under
        `jit`, where values can't be checked, origins are clipped to the cohort.
    """
    _check_apply(origins, updates, units)
    leaves, structure = jax.tree.flatten(updates)
    mixed = [
        _gather.take(leaf, origins, labels)
        for leaf, labels in zip(leaves, units.labels, strict=True)
    ]
    return jax.tree.unflatten(structure, mixed)


@functools.partial(jax.jit, static_argnames="units", donate_argnames="updates")
def apply_in_place(origins: Origins, updates: Updates, units: units_lib.Units) -> Updates:
    """`apply` inside the memory of `updates`, which the caller gives away.

    Rows move along the cycles of each unit's permutation, so that no second stack exists: half
    of `apply`'s memory. A leaf that many units share is mixed a few columns at a time. Meant for
    the host's own call, not for use inside another `jit`.

    Guarantees: bit-equal to `apply` where each column of `origins` is a permutation, as every
    mix draws it. `updates` can't be used afterwards.

    Args:
      origins: the matrix drawn by a `Mix`.
      updates: see `apply`.
      units: see `apply`.

    Raises:
      InputError: see `apply`.
    """
    _check_apply(origins, updates, units)
    leaves, structure = jax.tree.flatten(updates)
    mixed = _gather.permute_in_place(leaves, origins, units.labels)
    return jax.tree.unflatten(structure, mixed)


def _check_apply(origins: Origins, updates: Updates, units: units_lib.Units) -> None:
    """Refuse what doesn't belong together."""
    _axes.check_units(units)
    clients = _axes.check_client_axis(updates)
    _axes.check_origins(origins, clients, len(units.names))
    _axes.check_partition(updates, units)


def mix(
    key: PRNGKey,
    updates: Updates,
    *,
    active: Active | None = None,
    granularity: units_lib.Granularity = "layer",
    method: Mix | Draw | None = None,
) -> Updates:
    """Mix stacked updates between clients, layer by layer.

    >>> updates = {"a": {"w": jnp.arange(4.0)}, "b": {"w": 10 + jnp.arange(4.0)}}
    >>> mixed = mix(jax.random.key(0), updates)
    >>> bool(mixed["a"]["w"].mean() == updates["a"]["w"].mean())
    True

    Args:
      key: a typed key. Whoever has it can undo the mixing.
      updates: any pytree of arrays with a leading clients axis.
      active: rows that take part; all by default. The others stay as they are.
      granularity: what moves together; see `units.partition`.
      method: the distribution of origins; `full_round()` by default.

    Returns:
      The mixed updates, of the same structure, shapes and dtypes. Their mean over clients is
      that of `updates` up to the rounding of a sum in another order.

    Raises:
      InputError: leaves with different leading axes, fewer than two active clients, an unknown
        granularity, a model of one layer, a key that is not typed, a method that draws no
        permutations, or integers that JAX would cut to 32 bits.
    """
    _validate.check_key(key)
    clients = _axes.check_client_axis(updates)
    active = jnp.ones(clients, bool) if active is None else active
    _axes.check_active(active, clients)
    _axes.check_mixable(active, clients)
    units = units_lib.partition(jax.eval_shape(_first, updates), granularity)
    method = full_round() if method is None else as_mix(method, " as method")
    origins = method(key, active, len(units.names))
    _axes.check_permutations(origins, active, len(units.names))
    return apply(origins, updates, units)


def compose(*parts: Mix | Draw) -> Mix:
    """Mix by the first, mix what it forwards by the second, and so on.

    Args:
      parts: at least one; of one it is that one.

    Raises:
      InputError: without a part, or for one that is no mix.
    """
    _validate.check_some(parts, "mix such as mixing.full_round()")
    mixes = [as_mix(part) for part in parts]
    if len(mixes) == 1:
        return mixes[0]

    def init(clients: int, units: int) -> tuple[Memory, ...]:
        return tuple(() if mix.init is None else mix.init(clients, units) for mix in mixes)

    def draw(key: PRNGKey, memories: Any, active: Active, units: int) -> tuple[Memory, Origins]:
        _check_draw(key, active, units, alone=True)
        keys = jax.random.split(key, len(mixes))
        drawn = [
            next_draw(mix, one, memory, active, units)
            for mix, one, memory in zip(mixes, keys, memories, strict=True)
        ]
        origins = drawn[0][1]
        for _, outer in drawn[1:]:
            origins = jnp.take_along_axis(origins, outer, axis=0)
        return tuple(memory for memory, _ in drawn), origins

    def draw_only(key: PRNGKey, active: Active, units: int) -> Origins:
        return draw(key, ((),) * len(mixes), active, units)[1]

    least = max(mix.least for mix in mixes)
    if all(mix.init is None for mix in mixes):
        return Mix(draw_only, least)
    return Mix(draw, least, init)


def next_draw(
    mix: Mix, key: PRNGKey, memory: Memory, active: Active, units: int
) -> tuple[Memory, Origins]:
    """The next round's memory and origins, of a mix with a memory or without."""
    if mix.init is None:
        return memory, mix.draw(key, active, units)
    result = mix.draw(key, memory, active, units)
    _validate.check_remembered(result, memory, "mix.draw", "origins")
    return result


def _first(updates: Updates) -> Params:
    return jax.tree.map(lambda leaf: leaf[0], updates)
