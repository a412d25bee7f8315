"""Mixing: the laws of the origin matrix, and the gather that applies it."""

import itertools
from typing import Any, NamedTuple

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import mixjax as mx
from mixjax import _gather

fixed = hypothesis.settings(derandomize=True, deadline=None, max_examples=20)
ALL = np.ones(4, bool)
SOME = np.array([True, False, True, False, True, True])
MIXES = {
    "keep": mx.mixing.keep(),
    "shuffle": mx.mixing.shuffle(),
    "full_round": mx.mixing.full_round(),
    "proxy_2": mx.mixing.proxy(2),
    "proxy_20": mx.mixing.proxy(20),
    "composed": mx.mixing.compose(mx.mixing.proxy(2), mx.mixing.shuffle()),
}
JITTED = {name: jax.jit(mix, static_argnums=2) for name, mix in MIXES.items()}


def draw(mix: mx.mixing.Mix, active: np.ndarray, units: int, draws: int) -> np.ndarray:
    """`[draws, slot, unit]` among the active rows, these numbered from 0."""
    keys = jax.random.split(jax.random.key(1), draws)
    origins = np.asarray(jax.jit(jax.vmap(lambda key: mix(key, jnp.asarray(active), units)))(keys))
    return np.searchsorted(np.flatnonzero(active), origins[:, active])


def encode(outcomes: np.ndarray) -> np.ndarray:
    """One integer for each whole matrix."""
    digits = outcomes.reshape(len(outcomes), -1)
    return digits @ 8 ** np.arange(digits.shape[1])


def law(outcomes: list[Any]) -> dict[int, float]:
    """The law that draws one of these matrices (or columns) with equal probability."""
    codes, counts = np.unique(encode(np.asarray(outcomes)), return_counts=True)
    return dict(zip(codes.tolist(), (counts / counts.sum()).tolist(), strict=True))


def follows(outcomes: np.ndarray, law: dict[int, float]) -> bool:
    """Pearson's test on whole outcomes; a true law fails once in a million."""
    codes, counts = np.unique(encode(outcomes), return_counts=True)
    if not set(codes.tolist()) <= set(law):
        return False
    expected = len(outcomes) * np.array(list(law.values()))
    observed = np.zeros(len(law))
    observed[np.searchsorted(np.array(list(law)), codes)] = counts
    assert expected.min() >= 5
    distance = np.sum((observed - expected) ** 2 / expected)
    return bool(distance < stats.chi2.isf(1e-6, len(law) - 1))


def has_rate(hits: np.ndarray, rate: float) -> bool:
    """Within five standard errors of independent trials: a true rate fails once in a million."""
    return bool(abs(hits.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / hits.size))


def uniform(count: int, units: int = 1) -> dict[int, float]:
    columns = itertools.permutations(range(count))
    return law([np.stack(pick, 1) for pick in itertools.product(columns, repeat=units)])


def emissions(arrivals: int, list_size: int) -> list[list[int]]:
    """All equally likely outputs of one unit's list, by the definition."""
    size = min(list_size, arrivals)
    outputs = []
    for draws in itertools.product(range(size), repeat=arrivals - size):
        for order in itertools.permutations(range(size)):
            held, sent = list(range(size)), []
            for arrival, entry in enumerate(draws, start=size):
                sent.append(held[entry])
                held[entry] = arrival
            outputs.append(sent + [held[entry] for entry in order])
    return outputs


masks = hnp.arrays(bool, 7).filter(lambda mask: mask.sum() >= 2)


@pytest.mark.parametrize("name", MIXES)
@fixed
@hypothesis.given(seed=st.integers(0, 2**31 - 1), mask=masks)
def test_every_column_permutes_the_active_rows_and_fixes_the_others(
    name: str, seed: int, mask: np.ndarray
) -> None:
    origins = np.asarray(JITTED[name](jax.random.key(seed), jnp.asarray(mask), 3))
    rows = np.arange(7)
    for column in origins.T:
        assert sorted(column) == list(rows)
        assert list(column[~mask]) == list(rows[~mask])
        assert set(column[mask]) == set(rows[mask])


@pytest.mark.parametrize("name", MIXES)
def test_origins_are_the_same_eager_jitted_and_vmapped(name: str) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    mask = jnp.asarray(np.array([1, 1, 0, 1, 1, 1, 0], bool))
    eager = np.stack([MIXES[name](key, mask, 3) for key in keys])
    jitted = np.stack([JITTED[name](key, mask, 3) for key in keys])
    mapped = jax.vmap(lambda key, mask: MIXES[name](key, mask, 3), (0, None))(keys, mask)
    np.testing.assert_array_equal(eager, jitted)
    np.testing.assert_array_equal(eager, mapped)


@pytest.mark.parametrize(
    ("mix", "active"),
    [
        (mx.mixing.full_round(), ALL),
        (mx.mixing.full_round(), SOME),
        (mx.mixing.proxy(4), ALL),
        (mx.mixing.proxy(5), SOME),
        (mx.mixing.compose(mx.mixing.shuffle(), mx.mixing.full_round()), ALL),
    ],
)
def test_a_full_round_draws_independent_uniform_permutations(
    mix: mx.mixing.Mix, active: np.ndarray
) -> None:
    outcomes = draw(mix, active, 2, 10_000)
    assert follows(outcomes, uniform(4, 2))
    same = outcomes[:, 1, 0] == outcomes[:, 1, 1]
    assert [has_rate(same, 1 / count) for count in (3, 4, 5)] == [False, True, False]


@pytest.mark.parametrize("active", [ALL, SOME], ids=["all", "masked"])
def test_the_shuffle_is_uniform_and_shares_every_origin(active: np.ndarray) -> None:
    outcomes = draw(mx.mixing.shuffle(), active, 2, 10_000)
    assert follows(outcomes[..., 0], uniform(4))
    assert (outcomes[..., 0] == outcomes[..., 1]).all()
    assert not follows(outcomes, uniform(4, 2))


@pytest.mark.parametrize("active", [ALL, SOME], ids=["all", "masked"])
def test_proxy_slots_are_uniform_and_share_origins_as_its_lists_tell(active: np.ndarray) -> None:
    outcomes = draw(mx.mixing.proxy(2), active, 2, 10_000)
    assert all(follows(outcomes[..., unit], uniform(4)) for unit in (0, 1))
    assert not follows(outcomes, uniform(4, 2))
    sent = np.array(emissions(4, 2))
    for slot in range(4):
        share = np.sum(np.bincount(sent[:, slot], minlength=4) ** 2) / len(sent) ** 2
        same = outcomes[:, slot, 0] == outcomes[:, slot, 1]
        assert has_rate(same, share)
        assert not has_rate(same, 1 / 4)


def test_the_uniform_law_rejects_the_common_mistakes_of_a_swapping_loop() -> None:
    rng = np.random.default_rng(0)
    right = [(i, i + 1) for i in (3, 2, 1)]
    for swaps in (right, [(i, 4) for i in range(4)], [(i, i) for i in (3, 2, 1)]):
        rows = np.tile(np.arange(4), (10_000, 1))
        draws = np.arange(len(rows))
        for place, bound in swaps:
            other = rng.integers(bound, size=len(rows))
            taken = rows[draws, other]
            rows[draws, other] = rows[:, place]
            rows[:, place] = taken
        assert follows(rows, uniform(4)) == (swaps is right)


@pytest.mark.parametrize(("arrivals", "list_size"), [(4, 2), (4, 3), (3, 5)])
def test_the_stream_follows_the_law_that_a_loop_enumerates(arrivals: int, list_size: int) -> None:
    keys = jax.random.split(jax.random.key(2), 10_000)
    stream = jax.jit(
        jax.vmap(lambda key, count: mx.mixing.stream(key, count, 6, list_size, 2), (0, None))
    )
    outcomes = np.asarray(stream(keys, jnp.asarray(arrivals)))
    assert (outcomes[:, arrivals:] == 0).all()
    outcomes = outcomes[:, :arrivals]
    wrong = list_size + 1 if list_size < arrivals else 2
    for unit in (0, 1):
        assert follows(outcomes[..., unit], law(emissions(arrivals, list_size)))
        assert not follows(outcomes[..., unit], law(emissions(arrivals, wrong)))
    both = itertools.product(emissions(arrivals, list_size), repeat=2)
    assert follows(outcomes, law([np.stack(pair, 1) for pair in both]))


STEADY_K, STEADY_ARRIVALS = 4, 64


@pytest.fixture(scope="module")
def delays() -> np.ndarray:
    """`[draws, unit]`: arrivals from an entry's own to the one that sends it.

    Of each stream only its last emission before the flush, so that draws are independent. By
    then the chance that the first fill still shows is (3/4)^59 < 1e-7.
    """
    keys = jax.random.split(jax.random.key(3), 20_000)
    row = STEADY_ARRIVALS - STEADY_K - 1
    origins = jax.jit(
        jax.vmap(
            lambda key: mx.mixing.stream(key, STEADY_ARRIVALS, STEADY_ARRIVALS, STEADY_K, 2)[row]
        )
    )(keys)
    return STEADY_ARRIVALS - 1 - np.asarray(origins)


def test_a_proxy_delay_is_geometric_with_the_list_size_as_its_mean(delays: np.ndarray) -> None:
    edges = 20

    def fits(cells: np.ndarray) -> bool:
        observed = np.bincount(np.minimum(delays.ravel(), edges), minlength=edges + 1)[1:]
        expected = delays.size * np.append(cells[: edges - 1], 1 - cells[: edges - 1].sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.sum((observed - expected) ** 2 / expected)
        return bool(distance < stats.chi2.isf(1e-6, edges - 1))

    days = np.arange(1, edges)
    assert delays.min() == 1
    assert fits(stats.geom.pmf(days, 1 / STEADY_K))
    assert not fits(stats.geom.pmf(days, 1 / (STEADY_K + 1)))
    assert not fits(stats.geom.pmf(days, 1 / (STEADY_K - 1)))
    assert not fits(stats.geom.pmf(days, 1 / STEADY_K, loc=1))
    assert not fits(stats.poisson.pmf(days, STEADY_K))


def test_units_in_a_steady_proxy_share_an_origin_once_in_two_k_less_one(
    delays: np.ndarray,
) -> None:
    same = delays[:, 0] == delays[:, 1]
    assert has_rate(same, 1 / (2 * STEADY_K - 1))
    for wrong in (1 / STEADY_K, 1 / (2 * STEADY_K), 1 / (2 * STEADY_K - 2), 1 / STEADY_ARRIVALS):
        assert not has_rate(same, wrong)


def test_a_proxy_origin_has_the_entropy_of_the_formula(delays: np.ndarray) -> None:
    p = 1 / STEADY_K
    entropy = -((1 - p) * np.log(1 - p) + p * np.log(p)) / p
    counts = np.bincount(delays.ravel())
    found = stats.entropy(counts)
    # the plug-in estimate is low by about (cells - 1) / 2n; its error has the spread of -log P
    bias = (np.count_nonzero(counts) - 1) / (2 * delays.size)
    spread = -np.log(1 - p) * np.sqrt((1 - p) / p**2)
    bound = 5 * spread / np.sqrt(delays.size)
    assert abs(found + bias - entropy) < bound
    for wrong in (np.log(STEADY_K), np.log(np.e * STEADY_K), np.log(2 * STEADY_K - 1)):
        assert abs(found + bias - wrong) > bound


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
            jnp.asarray(rng.normal(size=(clients, 3, 2)), jnp.float32),
            jnp.asarray(rng.normal(size=(clients, 2)), jnp.bfloat16),
        ),
        "counts": (jnp.asarray(rng.integers(-9, 9, (clients, 4)), jnp.int32),),
        "flags": [
            jnp.asarray(rng.integers(0, 2, (clients, 3)), bool),
            jnp.asarray(rng.integers(0, 255, clients), jnp.uint8),
        ],
        "none": jnp.zeros((clients, 0, 2)),
    }


def parity(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Two units in turns along each leaf."""
    return np.arange(int(np.prod(shape))).reshape(shape) % 2


GRANULARITIES = [
    *("model", "layer", "leaf", "neurons", "coordinates"),
    *map(mx.units.chunks, (1, 4, 16)),
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
    outside = origins.at[0].set(-7).at[1].set(99)
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
    """The size of the program for a model of 3,000 parameters, inner programs included."""
    model = {"a": {"w": jnp.zeros((50, 50))}, "b": {"w": jnp.zeros((20, 25))}}
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


@pytest.mark.parametrize("granularity", [*GRANULARITIES, mx.units.chunks(12)])
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
        "a": {"b": normal(2), "w": normal(3, 2)},
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
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights, mixed)), jnp.zeros(()))

    def forward(updates: Any) -> Any:
        return apply_jit(origins, updates, units)

    inverse = jnp.argsort(origins, axis=0)
    equal(jax.jit(jax.grad(total))(updates), apply_jit(inverse, weights, units))
    equal(apply_jit(inverse, forward(updates), units), updates)
    combined = jax.tree.map(lambda a, b: 2 * a - b, updates, weights)
    parts = jax.tree.map(lambda a, b: 2 * a - b, forward(updates), forward(weights))
    equal(forward(combined), parts)


@pytest.mark.parametrize("granularity", ["layer", "neurons", mx.units.chunks(12)])
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


def test_mixing_refuses_integers_that_it_would_change(unchecked: None) -> None:
    updates = {"a": {"w": np.full((3, 2), 7)}, "b": {"w": np.full((3, 1), 2**31 + 1)}}
    with pytest.raises(mx.InputError, match=r"in updates; got 2147483649 at \('b', 'w'\) \(int64"):
        mx.mix(jax.random.key(0), updates)
    units = mx.units.partition(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), updates))
    with pytest.raises(mx.InputError, match="fit int32 in updates"):
        mx.mixing.apply(jnp.zeros((3, 2), jnp.int32), updates, units)
    updates["b"]["w"] = np.full((3, 1), 2**31 - 1)
    assert mx.mix(jax.random.key(0), updates)["b"]["w"].tolist() == [[2**31 - 1]] * 3
