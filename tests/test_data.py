"""Stacked client data and partitioners: nothing is lost, doubled or read past its end."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

import mixjax as mx

COUNTS = st.lists(st.integers(1, 6), min_size=1, max_size=5)
FEW = hypothesis.settings(max_examples=12, deadline=None)


def people(counts: list[int]) -> list[dict[str, np.ndarray]]:
    starts = np.cumsum([0, *counts])
    return [
        {
            "x": np.arange(start, start + count, dtype=np.float32)[:, None] + 1,
            "y": np.full(count, row, np.int32),
        }
        for row, (start, count) in enumerate(zip(starts[:-1], counts, strict=True))
    ]


@FEW
@hypothesis.given(COUNTS)
def test_unstack_undoes_stack(counts: list[int]) -> None:
    data = mx.data.stack(people(counts))
    assert data.counts.tolist() == counts
    assert data.ids.tolist() == list(range(len(counts)))
    assert data.active.all()
    for one, other in zip(people(counts), mx.data.unstack(data), strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])
        np.testing.assert_array_equal(one["y"], other["y"])


@FEW
@hypothesis.given(COUNTS, st.integers(1, 4))
def test_pad_adds_inactive_clients_and_changes_no_other(counts: list[int], multiple: int) -> None:
    data = mx.data.stack(people(counts), range(len(counts), 0, -1))
    padded = mx.data.pad(data, multiple)
    clients = len(counts)
    length = padded.counts.shape[0]
    assert length % multiple == 0
    assert length - clients < multiple
    for leaf, own in zip(jax.tree.leaves(padded), jax.tree.leaves(data), strict=True):
        np.testing.assert_array_equal(leaf[:clients], own)
    assert not padded.active[clients:].any()
    assert not padded.counts[clients:].any()
    assert np.unique(padded.ids).size == length


@FEW
@hypothesis.given(st.lists(st.integers(1, 6), min_size=3, max_size=5), st.data())
def test_pool_concatenates_each_group_once(counts: list[int], draw: st.DataObject) -> None:
    groups = [0, 1, *draw.draw(st.lists(st.integers(0, 1), min_size=len(counts) - 2,
                                        max_size=len(counts) - 2))]  # fmt: skip
    rows = mx.data.unstack(mx.data.pool(mx.data.stack(people(counts)), groups, 2))
    for group, row in enumerate(rows):
        members = [
            person["x"] for person, g in zip(people(counts), groups, strict=True) if g == group
        ]
        np.testing.assert_array_equal(row["x"], np.concatenate(members))


def test_capacity_pads_further_with_zeros() -> None:
    data = mx.data.stack(people([2, 3]), capacity=7)
    assert data.examples["x"].shape == (2, 7, 1)
    np.testing.assert_array_equal(data.examples["x"][0, 2:], 0)
    assert mx.data.pool(data, [0, 1], 2, capacity=9).examples["x"].shape == (2, 9, 1)


def test_take_carries_ids_along_in_the_order_asked_for() -> None:
    data = mx.data.stack(people([2, 3, 1]), [7, 8, 9])
    taken = mx.data.take(data, [2, 0])
    assert taken.ids.tolist() == [9, 7]
    np.testing.assert_array_equal(taken.examples["x"][1, :2], people([2, 3, 1])[0]["x"])


def test_a_client_may_have_no_examples() -> None:
    empty = {"x": np.zeros((0, 1), np.float32), "y": np.zeros(0, np.int32)}
    data = mx.data.stack([people([2])[0], empty])
    assert data.counts.tolist() == [2, 0]


def assert_partition(parts: list[np.ndarray], examples: int) -> None:
    joined = np.concatenate(parts)
    np.testing.assert_array_equal(np.sort(joined), np.arange(examples))


@FEW
@hypothesis.given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 8))
def test_iid_is_an_even_partition(seed: int, examples: int, clients: int) -> None:
    hypothesis.assume(examples >= clients)
    parts = mx.data.iid(seed, examples, clients)
    assert len(parts) == clients
    assert_partition(parts, examples)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for part, again in zip(parts, mx.data.iid(seed, examples, clients), strict=True):
        np.testing.assert_array_equal(part, again)


@FEW
@hypothesis.given(st.integers(0, 99), st.integers(1, 6), st.sampled_from([0.05, 1.0, 100.0]))
def test_dirichlet_is_a_partition(seed: int, clients: int, concentration: float) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, 50)
    parts = mx.data.dirichlet(seed, labels, clients, concentration)
    assert len(parts) == clients
    assert_partition(parts, 50)


def test_dirichlet_clients_may_be_stacked_though_some_have_nothing() -> None:
    labels = np.zeros(20, np.int32)
    parts = mx.data.dirichlet(0, labels, 12, 0.05)
    assert min(map(len, parts)) == 0
    data = mx.data.stack([{"y": labels[part]} for part in parts])
    assert data.counts.tolist() == [len(part) for part in parts]


@FEW
@hypothesis.given(
    st.integers(0, 99), st.integers(1, 6), st.integers(1, 10), st.sampled_from([0.0, 0.5, 0.8, 1.0])
)
def test_preference_groups_give_the_preferred_share_and_no_example_twice(
    seed: int, clients: int, per_client: int, preferred: float
) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 60))
    groups = ((0, 1), (2,), (3,))
    parts, of_client = mx.data.preference_groups(
        seed, labels, clients, groups, per_client=per_client, preferred=preferred
    )
    joined = np.concatenate(parts)
    assert np.unique(joined).size == joined.size == clients * per_client
    np.testing.assert_array_equal(of_client, np.arange(clients) % 3)
    for part, group in zip(parts, of_client, strict=True):
        own = np.isin(labels[part], groups[group]).sum()
        assert own == round(per_client * preferred)


def first_client_counts(partition: str, draws: int) -> np.ndarray:
    """How often each of ten examples goes to the first of two clients."""
    counts = np.zeros(10)
    for seed in range(draws):
        part = mx.data.iid(seed, 10, 2)[0] if partition == "iid" else np.arange(5) + seed % 3
        counts[part] += 1
    return counts


def test_iid_is_uniform_and_contiguous_runs_are_not() -> None:
    draws = 2000
    limit = scipy.stats.norm.ppf(1 - 1e-6) * np.sqrt(draws / 4)
    assert np.abs(first_client_counts("iid", draws) - draws / 2).max() < limit
    assert np.abs(first_client_counts("runs", draws) - draws / 2).max() > limit


def share_variance(concentration: float, draws: int) -> float:
    labels = np.zeros(400, int)
    shares = [
        len(part) / 400
        for seed in range(draws)
        for part in mx.data.dirichlet(seed, labels, 4, concentration)
    ]
    return float(np.var(shares))


@pytest.mark.parametrize("concentration", [0.5, 2.0])
def test_dirichlet_shares_have_the_variance_of_their_concentration(concentration: float) -> None:
    def expected(value: float) -> float:
        return 0.25 * 0.75 / (4 * value + 1)

    # the kurtosis of a share is below 4: five standard errors of its variance
    draws = 2000
    limit = 5 * np.sqrt(3 / draws)
    variance = share_variance(concentration, draws)
    assert abs(variance / expected(concentration) - 1) < limit / 2
    for wrong in (concentration / 2, concentration * 2):
        assert abs(variance / expected(wrong) - 1) > limit


def test_examples_of_a_dirichlet_part_are_in_random_order() -> None:
    labels = np.repeat(np.arange(2), 50)
    parts = mx.data.dirichlet(0, labels, 2, 100.0)
    assert any((np.diff(labels[part]) < 0).any() for part in parts)


def test_integer_and_float_leaves_keep_their_dtypes() -> None:
    data = mx.data.stack(people([1, 2]))
    assert data.examples["x"].dtype == jnp.float32
    assert data.examples["y"].dtype == jnp.int32


BIG = {"int64": 1_700_000_000_000, "uint64": 2**32}


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("dtype", BIG)
def test_integers_that_32_bits_do_not_hold_are_refused(dtype: str, unchecked: None) -> None:
    fits = np.array([np.iinfo(np.uint32 if dtype == "uint64" else np.int32).max, 5], dtype)
    stacked = mx.data.stack([{"t": fits}, {"t": fits}]).examples["t"]
    np.testing.assert_array_equal(stacked, [fits, fits])
    wide = np.array([5, BIG[dtype]], dtype)
    message = rf"fit u?int32 in .*; got {BIG[dtype]} at \('t',\) \({dtype}\).*jax_enable_x64"
    with pytest.raises(mx.InputError, match=message):
        mx.data.stack([{"t": fits}, {"t": wide}])
    made_by_hand = mx.data.stack(people([2, 2]))._replace(examples={"t": np.stack([fits, wide])})
    for use in (lambda data: mx.data.pad(data, 4), mx.data.unstack):
        with pytest.raises(mx.InputError, match=r"fit u?int32 in the cohort; .*'examples', 't'"):
            use(made_by_hand)
    examples = mx.data.prefetched(lambda client: {"t": wide if client else fits}, [0, 1])
    np.testing.assert_array_equal(examples(jnp.int32(0))["t"], fits)
    with pytest.raises(Exception, match=r"fit u?int32 in the examples of client 1"):
        jax.block_until_ready(examples(jnp.int32(1)))


def test_integers_of_64_bits_pass_where_jax_has_them() -> None:
    for dtype, value in BIG.items():
        wide = np.array([5, value], dtype)
        with jax.enable_x64(True):
            stacked = mx.data.stack([{"t": wide}]).examples["t"]
        assert stacked.dtype == dtype
        np.testing.assert_array_equal(stacked[0], wide)


@pytest.mark.usefixtures("narrow")
def test_the_least_integer_is_looked_at_too() -> None:
    for value, low in ((-(2**31), True), (-(2**31) - 1, False)):
        examples = [{"t": np.array([value, 0])}]
        if low:
            assert mx.data.stack(examples).examples["t"].tolist() == [[value, 0]]
        else:
            with pytest.raises(mx.InputError, match=f"got {value} at"):
                mx.data.stack(examples)
