"""Client data as stacked, padded arrays, and partitioners that make it from a pool."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Int, PyTree, Shaped

from mixjax import _axes, _memory, _validate
from mixjax._prefetch import prefetched as prefetched


class Examples(NamedTuple):
    """Labelled examples: the batch type of the datasets and models here.

    Attributes:
      inputs: `[examples, ...]`.
      labels: `[examples]`, class indices.
    """

    inputs: Array | np.ndarray
    labels: Array | np.ndarray


class ClientData(NamedTuple):
    """The examples of a cohort, stacked and padded; one client's data without the first axis.

    Attributes:
      examples: any pytree of arrays `[clients, examples, ...]`; rows from `counts` on are padding.
      counts: how many examples each client has.
      ids: what a client's random numbers are derived from, wherever it stands in a cohort.
      active: False for padding rows and clients that stay away; they never count.
    """

    examples: PyTree[Shaped[Array, "..."]]
    counts: Int[Array, "*clients"]
    ids: Int[Array, "*clients"]
    active: Bool[Array, "*clients"]


class Attribute(NamedTuple):
    """A sensitive attribute.

    Attributes:
      name: what it is, such as "arm".
      values: the names of its values.
      of_client: index into `values` for each client.
    """

    name: str
    values: tuple[str, ...]
    of_client: np.ndarray


class Dataset(NamedTuple):
    """What every loader returns.

    Attributes:
      train: each participant's training examples.
      test: each participant's held-out examples.
      attribute: the sensitive attribute of each participant.
      people: for each participant the person it belongs to; splits must keep people together.
      classes: names of the task's classes.
    """

    train: ClientData
    test: ClientData
    attribute: Attribute
    people: np.ndarray
    classes: tuple[str, ...]


def stack(
    examples: Sequence[PyTree[Any]],
    ids: Sequence[int] | None = None,
    *,
    capacity: int | None = None,
) -> ClientData:
    """Stack clients' examples of unequal number, padded with zeros.

    >>> stack([{"x": np.ones((2, 3))}, {"x": np.ones((5, 3))}]).examples["x"].shape
    (2, 5, 3)

    Args:
      examples: for each client a pytree of arrays `[examples, ...]`, all of one structure.
      ids: distinct client ids that fit 32 bits; `0, 1, ...` by default.
      capacity: the padded number of examples, by default that of the longest client. Cohorts
        of one capacity share a compiled program.

    Raises:
      InputError: for an empty cohort, clients whose trees, trailing shapes or lengths differ, a
        capacity below the longest client's, or integers that JAX would cut to 32 bits.
    """
    _validate.check_sequence(examples, "clients' examples")
    if not len(examples):
        raise _validate.InputError("expected at least one client to stack; got an empty cohort.")
    for client, tree in enumerate(examples):
        _axes.check_client_axis(
            tree, f"the examples of client {client}", axis="examples", allow_empty=True
        )
        _validate.check_real(tree, f"the examples of client {client}")
        _axes.check_same_model(examples[0], tree, "client 0", f"client {client}")
        _check_same_dtypes(examples[0], tree, "client 0", f"client {client}")
    counts = [jax.tree.leaves(tree)[0].shape[0] for tree in examples]
    ids = range(len(examples)) if ids is None else ids
    _check_ids(ids, len(examples))
    if capacity is not None:
        _validate.check_positive(capacity, "capacity", integer=True)
    capacity = max(counts) if capacity is None else capacity
    one = sum(
        leaf.dtype.itemsize * int(np.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(examples[0])
    )
    _memory.check_memory(
        len(examples) * capacity * one, "the padded cohort", "Pass a smaller capacity.", None
    )
    if capacity < max(counts):
        raise _validate.InputError(
            f"expected a capacity of at least {max(counts)}, the longest client's; got {capacity}."
        )

    def pad(*leaves: Any) -> Array:
        padded = np.zeros((len(leaves), capacity, *leaves[0].shape[1:]), leaves[0].dtype)
        for row, leaf in zip(padded, leaves, strict=True):
            row[: len(leaf)] = leaf
        return jnp.asarray(padded)

    return ClientData(
        examples=jax.tree.map(pad, *examples),
        counts=jnp.asarray(counts, jnp.int32),
        ids=jnp.asarray(np.asarray(ids), jnp.int32),
        active=jnp.ones(len(examples), bool),
    )


def _check_ids(ids: Any, clients: int) -> None:
    array = _validate.host_array(ids, "client ids", None)
    if array.shape != (clients,) or len(set(array.tolist())) != clients:
        raise _validate.InputError(f"expected {clients} distinct client ids; got {array.tolist()}.")
    if (
        array.dtype.kind not in "iu"
        or array.max() > _validate.INT_MAX
        or array.min() < -_validate.INT_MAX - 1
    ):
        raise _validate.InputError(
            f"expected client ids that are whole numbers of 32 bits; got {array.tolist()}. "
            "Number the clients, and keep longer names outside."
        )


def _check_same_dtypes(tree: Any, other: Any, what: str, other_what: str) -> None:
    for (name, leaf), (_, partner) in zip(
        _validate.named_leaves(tree), _validate.named_leaves(other), strict=True
    ):
        if leaf.dtype != partner.dtype:
            raise _validate.InputError(
                f"expected {other_what} with the dtypes of {what}; got {name}: {partner.dtype} "
                f"against {leaf.dtype}. Convert one of them."
            )


def take(data: ClientData, rows: Any) -> ClientData:
    """The cohort of the given rows, in that order; ids travel along."""
    rows = _validate.host_array(rows, "rows of the cohort", None)
    if not rows.size:
        raise _validate.InputError("expected at least one row of the cohort; got none.")
    _check_attributes(rows, _axes.check_cohort(data), "rows of the cohort")
    return jax.tree.map(lambda leaf: leaf[rows], data)


def pad(data: ClientData, multiple: int) -> ClientData:
    """Add inactive clients without examples until `multiple` divides their number."""
    _validate.check_positive(multiple, "multiple", integer=True)
    clients = _axes.check_cohort(data)
    extra = -clients % multiple
    _memory.check_memory(
        (clients + extra) * (_memory.tree_bytes(data) // clients),
        f"a cohort of {clients + extra}",
        "Pad to a smaller multiple.",
        None,
    )
    padded = jax.tree.map(
        lambda leaf: jnp.pad(leaf, [(0, extra)] + [(0, 0)] * (leaf.ndim - 1)), data
    )
    fresh = jnp.max(data.ids) + 1 + jnp.arange(extra, dtype=data.ids.dtype)
    return padded._replace(ids=padded.ids.at[clients:].set(fresh))


def unstack(data: ClientData) -> list[PyTree[np.ndarray]]:
    """Each client's real examples, padding removed, on the host."""
    _axes.check_cohort(data)
    host = jax.device_get(data)
    return [
        jax.tree.map(lambda leaf, row=row, count=count: leaf[row, :count], host.examples)
        for row, count in enumerate(host.counts)
    ]


def pool(
    data: ClientData, groups: npt.ArrayLike, count: int, *, capacity: int | None = None
) -> ClientData:
    """Concatenate the examples of clients of the same group: one row per group.

    This makes the auxiliary data of an attack: `groups` are the attribute values of auxiliary
    participants, and row a holds all their examples with value a.

    Args:
      data: the clients to pool.
      groups: for each client its group, `0..count-1`.
      count: the number of groups.
      capacity: see `stack`.

    Raises:
      InputError: for groups out of range, or a group without a client.
    """
    _axes.check_cohort(data)
    _validate.check_positive(count, "count", integer=True)
    of_client = _validate.host_array(groups, "groups", None)
    _check_attributes(of_client, count, "groups")
    clients = unstack(data)
    if of_client.shape != (len(clients),):
        raise _validate.InputError(
            f"expected one group for each of {len(clients)} clients; got shape {of_client.shape}."
        )
    # no more are looked at than could be there
    missing = sorted(set(range(min(count, len(clients) + 1))) - set(of_client.tolist()))
    if missing:
        raise _validate.InputError(
            f"expected clients in each of {count} groups; groups {missing} have none. "
            "Add auxiliary people with these attribute values."
        )
    return stack(
        [
            jax.tree.map(
                lambda *leaves: np.concatenate(leaves),
                *(client for client, own in zip(clients, of_client, strict=True) if own == group),
            )
            for group in range(count)
        ],
        capacity=capacity,
    )


def _check_attributes(values: Any, count: int, what: str = "attribute values") -> None:
    array = _validate.host_array(values, what, None)
    if array.dtype.kind not in "iu":
        raise _validate.InputError(
            f"expected integer {what} in 0..{count - 1}; got dtype {array.dtype}."
        )
    outside = (array < 0) | (array >= count)
    if outside.any():
        index = tuple(int(i) for i in np.argwhere(outside)[0])
        raise _validate.InputError(
            f"expected {what} in 0..{count - 1}; got {array[outside][0]} at index {index}."
        )


def iid(seed: int, examples: int, clients: int) -> list[np.ndarray]:
    """Indices of a uniformly random partition into parts of nearly equal size."""
    _validate.check_seed(seed)
    _validate.check_positive(examples, "examples", integer=True)
    _check_partition(examples, clients)
    order = np.random.default_rng(seed).permutation(examples)
    return list(np.array_split(order, clients))


def dirichlet(
    seed: int, labels: np.ndarray, clients: int, concentration: float
) -> list[np.ndarray]:
    """Label-skewed partition: each class is spread over clients by a Dirichlet draw.

    Every example goes to exactly one client; a small concentration leaves some clients few
    examples or none.
    Source: Hsu, Qi, Brown 2019, arXiv:1909.06335, in its per-class form.
    """
    _validate.check_seed(seed)
    labels = _validate.host_array(labels, "labels", ndim=1).ravel()
    _check_partition(labels.size, clients)
    _validate.check_positive(concentration, "concentration")
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(clients, float(concentration)))
        edges = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for part, piece in zip(parts, np.split(members, edges), strict=True):
            part.append(piece)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def preference_groups(
    seed: int,
    labels: np.ndarray,
    clients: int,
    groups: Sequence[Sequence[int]],
    *,
    per_client: int,
    preferred: float = 0.8,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Clients in groups that prefer some classes: the groups are the sensitive attribute.

    Clients are dealt to groups in turn. Each gets `per_client` examples without replacement: a
    share `preferred` from its group's classes, the rest from all others.
    Source: our reading of the preference groups of MixNN (arXiv:2109.12550).

    Returns:
      The examples' indices for each client, and each client's group.

    Raises:
      InputError: when there are not enough examples of the classes asked for.
    """
    _validate.check_seed(seed)
    labels = _validate.host_array(labels, "labels", ndim=1).ravel()
    _check_partition(labels.size, clients)
    _validate.check_fraction(preferred, "preferred", 1.0 + 1e-9)
    _validate.check_positive(per_client, "per_client", integer=True)
    _validate.check_sequence(groups, "groups of classes")
    for group in groups:
        _validate.check_sequence(group, "the classes of a group")
    if not len(groups):
        raise _validate.InputError("expected at least one group of classes; got none.")
    rng = np.random.default_rng(seed)
    of_client = np.arange(clients) % len(groups)
    classes = [list(groups[int(group)]) for group in of_client]
    own_count = round(per_client * preferred)
    unused = rng.permutation(len(labels))
    parts = []
    for own_classes in classes:
        is_own = np.isin(labels[unused], own_classes)
        own, other = unused[is_own][:own_count], unused[~is_own][: per_client - own_count]
        if len(own) + len(other) < per_client:
            raise _validate.InputError(
                f"expected {own_count} unused examples of classes {own_classes} and "
                f"{per_client - own_count} of others; {is_own.sum()} and {(~is_own).sum()} are "
                "left. Ask for fewer clients or examples each."
            )
        part = np.concatenate([own, other])
        unused = unused[~np.isin(unused, part)]
        parts.append(rng.permutation(part))
    return parts, of_client


def _check_partition(examples: int, clients: int) -> None:
    _validate.check_positive(clients, "clients", integer=True)
    if examples < clients:
        raise _validate.InputError(
            f"expected at least as many examples as clients; got {examples} for {clients}."
        )
