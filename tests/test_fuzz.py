"""Whatever comes in: a result that holds its guarantees, or an `InputError` that says why not.

`hostile.CALLS` lists public functions with good arguments and the kind of each. Here arguments
are replaced by hostile values, one at a time and in random company, and random trees are mixed.
MIXJAX_FUZZ=20 runs twenty times as many random examples.
"""

import os
from typing import Any

import hostile
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import mixjax as mx

pytestmark = pytest.mark.usefixtures("unchecked")
EFFORT = int(os.environ.get("MIXJAX_FUZZ", "1"))
# documented: NaN where nothing is active, or all have one attribute value
GIVES_NAN = {
    f"evaluation.{name}"
    for name in (
        "attribution", "balanced_accuracy", "unit_level", "auc", "permuted_attribution",
        "histogram", "histogram_of_units", "purity", "chance_purity", "adjusted_rand_index",
    )
}  # fmt: skip


def settings(examples: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=examples * EFFORT,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def has_nan(tree: Any) -> bool:
    return any(
        np.isnan(np.asarray(leaf, np.float64)).any()
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def numbers(value: Any) -> Any:
    """Lists as arrays, so that their NaN are found."""
    if not isinstance(value, list):
        return value
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return value


def refused_or_sound(name: str, instead: dict[str, Any]) -> bool:
    """Whether the call was refused; a result must be free of NaN that did not come in."""
    try:
        result = hostile.CALLS[name](**instead)
    except mx.InputError as error:
        if not str(error).startswith("expected"):
            raise AssertionError(f"a message of another form: {error}") from error
        return True
    came_in = any(has_nan(numbers(value)) for value in instead.values())
    assert came_in or name in GIVES_NAN or not has_nan(result)
    return False


@pytest.mark.parametrize("name", hostile.CALLS)
def test_good_arguments_are_accepted(name: str) -> None:
    result = hostile.CALLS[name]()
    assert not has_nan(result)


@pytest.mark.parametrize("name", hostile.CALLS)
def test_a_hostile_argument_is_refused_or_harmless(name: str) -> None:
    call, refused = hostile.CALLS[name], 0
    for argument, (kind, _) in call.arguments.items():
        for value in hostile.KINDS[kind]:
            try:
                refused += refused_or_sound(name, {argument: value})
            except Exception as error:
                raise AssertionError(f"{argument}={value!r}") from error
    assert refused


@settings(150)
@hypothesis.given(st.data())
def test_hostile_arguments_in_company(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(hostile.CALLS)))
    kinds = {argument: kind for argument, (kind, _) in hostile.CALLS[name].arguments.items()}
    chosen = data.draw(st.sets(st.sampled_from(sorted(kinds)), min_size=1, max_size=3))
    refused_or_sound(
        name,
        {
            argument: data.draw(st.sampled_from(hostile.KINDS[kinds[argument]]))
            for argument in sorted(chosen)
        },
    )


SHAPES = st.sampled_from([(4,), (4, 2), (4, 0), (3,), (1, 2), (0,), (), (4, 2, 1)])
VALUES = [0.0, 1.0, -1.0, np.nan, np.inf, 1e30]
LEAVES = st.builds(
    lambda shape, kind: np.full(shape, kind[1]).astype(kind[0]),
    SHAPES,
    st.tuples(st.sampled_from([jnp.float32, jnp.bfloat16, np.float64]), st.sampled_from(VALUES))
    | st.tuples(st.sampled_from([jnp.int32, jnp.bool_, np.int8]), st.integers(0, 100)),
)
TREES = st.recursive(
    LEAVES | st.none() | st.just("text"),
    lambda inner: (
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3) | st.lists(inner, max_size=3)
    ),
    max_leaves=4,
)
MASKS = st.none() | st.lists(st.booleans(), max_size=5).map(lambda mask: jnp.array(mask, bool))


@settings(60)
@hypothesis.given(TREES, MASKS, st.sampled_from(["layer", "leaf", "model", "layers"]))
def test_random_trees_are_permuted_or_refused(tree: Any, active: Any, granularity: str) -> None:
    try:
        mixed = mx.mix(hostile.KEY, tree, active=active, granularity=granularity)
    except mx.InputError:
        return
    assert jax.tree.structure(mixed) == jax.tree.structure(tree)
    for before, after in zip(jax.tree.leaves(tree), jax.tree.leaves(mixed), strict=True):
        assert before.shape == after.shape
        rows = [np.sort(np.asarray(jnp.asarray(leaf), np.float64), 0) for leaf in (before, after)]
        np.testing.assert_array_equal(*rows)
