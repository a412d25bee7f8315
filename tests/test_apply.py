"""Mixing applied to stacks: every element comes from its unit's origin, for any labels."""

from typing import Any, NamedTuple

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixjax as mx
from mixjax import _gather

fixed = hypothesis.settings(derandomize=True, deadline=None, max_examples=20)


def permutations(clients: int, units: int, seed: int = 0) -> jax.Array:
    columns = np.tile(np.arange(clients)[:, None], (1, units))
    return jnp.asarray(np.random.default_rng(seed).permuted(columns, axis=0))


apply_jit = jax.jit(mx.mixing.apply, static_argnums=2)


class Pair(NamedTuple):
    first: Any
    second: Any


def first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def tree(clients: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "body": Pair(
            jnp.asarray(rng.normal(size=(clients, 6, 4)), jnp.float32),
            jnp.asarray(rng.normal(size=(clients, 20)), jnp.bfloat16),
        ),
        "counts": (jnp.asarray(rng.integers(-9, 9, (clients, 4)), jnp.int32),),
        "flags": [
            jnp.asarray(rng.integers(0, 2, (clients, 18)), bool),
            jnp.asarray(rng.integers(0, 255, clients), jnp.uint8),
        ],
        "none": jnp.zeros((clients, 0, 2)),
    }


def parity(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Two units in turns along each leaf."""
    return np.arange(int(np.prod(shape))).reshape(shape) % 2


GRANULARITIES = [
    *("model", "layer", "leaf", "neurons", "coordinates"),
    *map(mx.units.chunks, (1, 4, 60)),
    *(lambda path: str("0" in path), parity),
]


def loop(origins: jax.Array, updates: Any, units: mx.units.Units) -> Any:
    """`apply`, element by element."""
    mixed = []
    for leaf, labels in zip(jax.tree.leaves(updates), units.labels, strict=True):
        rows = np.asarray(leaf).reshape(len(leaf), leaf[0].size)
        expected = np.zeros_like(rows)
        for element, unit in enumerate(labels.flat()):
            for slot in range(len(rows)):
                origin = np.clip(int(origins[slot, unit]), 0, len(rows) - 1)
                expected[slot, element] = rows[origin, element]
        mixed.append(expected.reshape(leaf.shape))
    return jax.tree.unflatten(jax.tree.structure(updates), mixed)


def same(mixed: Any, expected: Any) -> None:
    assert jax.tree.structure(mixed) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(mixed), jax.tree.leaves(expected), strict=True):
        assert (leaf.dtype, leaf.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_apply_agrees_with_a_loop_over_elements(granularity: mx.units.Granularity) -> None:
    updates = tree(5)
    units = mx.units.partition(first(updates), granularity)
    origins = permutations(5, len(units.names))
    same(apply_jit(origins, updates, units), loop(origins, updates, units))
    repeated = origins.at[:, ::2].set(3)
    same(apply_jit(repeated, updates, units), loop(repeated, updates, units))
    outside = origins.at[0].set(-1).at[1].set(99)
    same(apply_jit(outside, updates, units), loop(outside, updates, units))


@pytest.mark.parametrize("block_bytes", [1, 40, 400])
@hypothesis.settings(fixed, max_examples=6)
@hypothesis.given(
    shape=st.sampled_from([(40,), (7, 5), (3, 4, 5), (2, 1, 11, 1)]),
    data=st.data(),
)
def test_any_labels_of_elements_are_mixed_in_blocks_of_any_size(
    block_bytes: int, shape: tuple[int, ...], data: st.DataObject
) -> None:
    axes = tuple(data.draw(st.sampled_from((1, size))) for size in shape)
    labels = data.draw(hnp.arrays(np.int8, axes, elements=st.integers(-3, 30)))
    updates = [jnp.arange(4 * int(np.prod(shape))).reshape(4, *shape), jnp.arange(4.0)]
    units = mx.units.partition(first(updates), lambda path, shape: labels if shape else "scalar")
    origins = permutations(4, len(units.names))
    expected = loop(origins, updates, units)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_gather, "BLOCK_BYTES", block_bytes)
        same(
            jax.jit(_gather._permute_blocks, static_argnums=2)(
                updates[0], origins, units.labels[0]
            ),
            expected[0],
        )


def test_elsewhere_than_on_a_cpu_all_elements_are_taken_at_once() -> None:
    updates = tree(5)
    units = mx.units.partition(first(updates), "coordinates")
    origins = permutations(5, len(units.names))
    taken = [
        _gather._take_at_once(leaf, origins, labels)
        for leaf, labels in zip(jax.tree.leaves(updates), units.labels, strict=True)
    ]
    same(taken, jax.tree.leaves(loop(origins, updates, units)))


def equations(granularity: mx.units.Granularity, function: Any, *arguments: Any) -> int:
    """The size of the program for a model of 4,000 parameters, inner programs included."""
    model = {"a": {"w": jnp.zeros((50, 50))}, "b": {"w": jnp.zeros((30, 50))}}
    units = mx.units.partition(model, granularity)
    stack = jax.tree.map(lambda leaf: jnp.zeros((3, *leaf.shape)), model)
    origins = jnp.zeros((3, len(units.names)), int)
    if function in (mx.mixing.apply, mx.mixing.apply_in_place):
        return str(jax.make_jaxpr(function, static_argnums=2)(origins, stack, units)).count(" = ")
    more = (stack,) if function is mx.units.dots else ()
    return str(jax.make_jaxpr(function, static_argnums=0)(units, model, *more)).count(" = ")


@pytest.mark.parametrize(
    "function",
    [mx.mixing.apply, mx.mixing.apply_in_place, mx.units.dots, mx.units.squared_norms],
)
def test_programs_do_not_grow_with_the_number_of_units(function: Any) -> None:
    sizes = [
        equations(granularity, function)
        for granularity in (mx.units.chunks(50), mx.units.chunks(2000), "coordinates")
    ]
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("clients", [1, 2, 9])
def test_mixing_in_place_moves_the_same_rows_and_takes_the_memory(
    granularity: mx.units.Granularity, clients: int
) -> None:
    updates = tree(clients)
    units = mx.units.partition(first(updates), granularity)
    origins = permutations(clients, len(units.names))
    expected = jax.device_get(mx.mixing.apply(origins, updates, units))
    given = jax.tree.map(jnp.copy, updates)
    memory = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(given)]
    mixed = mx.mixing.apply_in_place(origins, given, units)
    jax.tree.map(np.testing.assert_array_equal, mixed, expected)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(mixed)] == memory


masks = hnp.arrays(bool, 7).filter(lambda mask: mask.sum() >= 2)


@hypothesis.settings(fixed, max_examples=6)
@hypothesis.given(
    shapes=st.lists(st.sampled_from([(), (3,), (2, 2)]), min_size=2, max_size=4),
    granularity=st.sampled_from(["model", "layer", "leaf", "coordinates", mx.units.chunks(2)]),
    mask=masks,
    seed=st.integers(0, 2**31 - 1),
)
def test_mix_moves_whole_units_and_keeps_each_units_multiset(
    shapes: list[tuple[int, ...]], granularity: mx.units.Granularity, mask: np.ndarray, seed: int
) -> None:
    # every element tells its client, so a unit torn apart shows
    owner = np.arange(7, dtype=np.float32)
    updates = [
        jnp.asarray(np.broadcast_to(owner.reshape(7, *[1] * len(shape)), (7, *shape)))
        for shape in shapes
    ]
    mixed = mx.mix(jax.random.key(seed), updates, active=jnp.asarray(mask), granularity=granularity)
    units = mx.units.partition([jnp.zeros(shape) for shape in shapes], granularity)
    carried: list[list[np.ndarray]] = [[] for _ in units.names]
    for leaf, labels in zip(mixed, units.labels, strict=True):
        for element, unit in zip(np.asarray(leaf).reshape(7, -1).T, labels.flat(), strict=True):
            carried[unit].append(element)
    for parts in carried:
        elements = np.stack(parts, axis=1)
        assert (elements == elements[:, :1]).all()
        assert sorted(elements[:, 0]) == list(owner)
        assert (elements[~mask, 0] == owner[~mask]).all()


def layers(clients: int, *leading: int) -> dict[str, dict[str, jax.Array]]:
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(*leading, clients, *shape)), jnp.float32)

    return {
        "a": {"b": normal(2), "w": normal(6, 4)},
        "b": {"w": normal(2, 2)},
        "c": {"w": normal()},
    }


def equal(tree: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize(
    "granularity", ["layer", "neurons", "coordinates", mx.units.chunks(4), parity]
)
def test_apply_is_linear_and_its_gradient_is_the_inverse_permutation(
    granularity: mx.units.Granularity,
) -> None:
    updates = layers(6)
    units = mx.units.partition(first(updates), granularity)
    origins = permutations(6, len(units.names))
    weights = jax.tree.map(jnp.cos, updates)

    def total(updates: Any) -> jax.Array:
        mixed = mx.mixing.apply(origins, updates, units)
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights, mixed)), jnp.float32(0))

    def forward(updates: Any) -> Any:
        return apply_jit(origins, updates, units)

    inverse = jnp.argsort(origins, axis=0)
    equal(jax.jit(jax.grad(total))(updates), apply_jit(inverse, weights, units))
    equal(apply_jit(inverse, forward(updates), units), updates)
    combined = jax.tree.map(lambda a, b: 2 * a - b, updates, weights)
    parts = jax.tree.map(lambda a, b: 2 * a - b, forward(updates), forward(weights))
    equal(forward(combined), parts)


@pytest.mark.parametrize("granularity", ["layer", "neurons", mx.units.chunks(29)])
def test_apply_is_the_same_eager_jitted_and_vmapped_over_rounds(
    granularity: mx.units.Granularity,
) -> None:
    rounds = layers(6, 3)
    updates = first(rounds)
    units = mx.units.partition(first(updates), granularity)
    origins = jnp.stack([permutations(6, len(units.names), seed) for seed in range(3)])
    eager = mx.mixing.apply(origins[0], updates, units)
    equal(eager, apply_jit(origins[0], updates, units))
    mapped = jax.vmap(mx.mixing.apply, (0, 0, None))(origins, rounds, units)
    equal(eager, first(mapped))
    equal(
        mx.mixing.apply(origins[2], jax.tree.map(lambda leaf: leaf[2], rounds), units),
        jax.tree.map(lambda leaf: leaf[2], mapped),
    )


def test_mix_is_reproducible_follows_its_method_and_differs_between_keys() -> None:
    updates, key, mix = layers(6), jax.random.key(8), jax.jit(mx.mix)
    mixed = mix(key, updates)
    equal(mixed, mx.mix(key, updates))
    equal(updates, mx.mix(key, updates, method=mx.mixing.keep()))
    assert not np.array_equal(mixed["a"]["w"], mix(jax.random.key(9), updates)["a"]["w"])


def test_composition_mixes_what_the_first_forwards() -> None:
    updates = layers(6)
    units = mx.units.partition(first(updates))
    one, two = permutations(6, 3, 1), permutations(6, 3, 2)
    composed = mx.mixing.compose(lambda *_: one, lambda *_: two)(
        jax.random.key(0), jnp.ones(6, bool), 3
    )
    once = apply_jit(one, updates, units)
    equal(apply_jit(composed, updates, units), apply_jit(two, once, units))


@pytest.mark.usefixtures("narrow")
def test_mixing_refuses_integers_that_it_would_change(unchecked: None) -> None:
    updates = {"a": {"w": np.full((3, 2), 7)}, "b": {"w": np.full((3, 1), 2**31 + 1)}}
    with pytest.raises(mx.InputError, match=r"in updates; got 2147483649 at \('b', 'w'\) \(int64"):
        mx.mix(jax.random.key(0), updates)
    units = mx.units.partition(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), updates))
    with pytest.raises(mx.InputError, match="fit int32 in updates"):
        mx.mixing.apply(jnp.zeros((3, 2), jnp.int32), updates, units)
    updates["b"]["w"] = np.full((3, 1), 2**31 - 1)
    assert mx.mix(jax.random.key(0), updates)["b"]["w"].tolist() == [[2**31 - 1]] * 3
