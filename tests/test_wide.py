"""Numbers of 64 bits keep what they hold, and never meet others without being named.

The laws themselves run in this mode by `make x64`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_equal

import mixjax as mx

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _wide() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def stack(seed: int = 0, clients: int = 7) -> dict[str, Any]:
    """A layer of each width of floats."""
    rng = np.random.default_rng(seed)
    return {
        name: {"w": jnp.asarray(rng.normal(size=(clients, 5)), dtype)}
        for name, dtype in (("a", jnp.float64), ("b", jnp.float32), ("c", jnp.bfloat16))
    }


def one() -> dict[str, Any]:
    return jax.tree.map(lambda leaf: leaf[0], stack())


def dtypes(tree: Any) -> list[str]:
    return [str(leaf.dtype) for leaf in jax.tree.leaves(tree)]


def test_models_that_differ_in_the_upper_half_of_a_number_have_seeds_of_their_own() -> None:
    seeds = [mx.rounds.seed_of_model({"w": jnp.array([value])}) for value in (1.0, 2.0, -1.0)]
    assert len({int(seed) for seed in seeds}) == 3
    assert int(seeds[0]) != int(mx.rounds.seed_of_model({"w": jnp.array([1.0 + 1e-15])}))


@pytest.mark.parametrize("granularity", ["layer", "leaf", "coordinates", "model"])
def test_units_of_several_widths_are_summed_in_the_widest(granularity: Any) -> None:
    update, directions = one(), stack(1, 3)
    units = mx.units.partition(update, granularity)
    squares, dots = mx.units.squared_norms(units, update), mx.units.dots(units, update, directions)
    assert squares.dtype == dots.dtype == jnp.float64
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (update, directions))
    np.testing.assert_allclose(squares, mx.units.squared_norms(units, wide[0]), rtol=1e-14)
    np.testing.assert_allclose(dots, mx.units.dots(units, *wide), rtol=1e-13)
    # the update alone is narrow
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), update)
    assert mx.units.dots(units, halves, directions).dtype == jnp.float64
    assert mx.units.squared_norms(units, halves).dtype == jnp.float32
    assert mx.attacks.sim.scores(stack(), directions).shape == (7, 3)
    assert dtypes(mx.attacks.sim.circumcenter(directions)) == dtypes(update)


def test_clipping_measures_in_the_widest_and_keeps_every_dtype() -> None:
    update = one()
    for norm in (0.5, jnp.float32(0.5), jnp.float64(0.5)):
        clipped = jax.jit(lambda norm: mx.defences.clipped(norm).perturb(KEY, one()))(norm)
        assert dtypes(clipped) == dtypes(update)
        length = np.sqrt(sum(np.sum(np.square(leaf, dtype=float)) for leaf in leaves(clipped)))
        np.testing.assert_allclose(length, 0.5, rtol=3e-3)
    exact = mx.defences.clipped(1.0).perturb(KEY, {"w": jnp.array([3e30, 4e30])})["w"]
    np.testing.assert_allclose(exact, [0.6, 0.8], rtol=1e-14)


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def test_krum_tells_updates_apart_that_32_bits_do_not() -> None:
    places = 1e3 + 1e-9 * np.array([0.0, 9, 1, 2, 30])
    updates = {"w": jnp.asarray(places)[:, None] * jnp.ones((1, 4))}
    chosen = mx.aggregation.krum(updates, byzantine=1)["w"]
    np.testing.assert_array_equal(chosen, updates["w"][2])
    assert dtypes(mx.aggregation.krum(stack(), byzantine=2)) == dtypes(one())


def test_weights_of_64_bits_weigh_to_64_bits() -> None:
    weights = np.random.default_rng(1).uniform(1, 2, 7)
    updates = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)))}
    mean = mx.aggregation.mean(mx.aggregation.scale(updates, jnp.asarray(weights)))["w"]
    expected = weights @ np.asarray(updates["w"]) / weights.sum()
    np.testing.assert_allclose(mean, expected, rtol=1e-13)
    narrow = mx.aggregation.scale(stack(), jnp.asarray(weights))
    assert dtypes(narrow) == dtypes(one())


def test_traced_rates_and_durations_of_64_bits_choose_as_numbers_do() -> None:
    data = mx.data.stack([np.ones((1, 2), np.float32)] * 40)
    number, half = jnp.int32(0), jnp.float64(0.5)
    made = {
        "poisson": mx.participation.poisson,
        "fraction": mx.participation.fraction,
        "deadline": lambda limit: mx.participation.deadline(limit, np.linspace(0, 1, 40)),
        "log": lambda limit: mx.participation.deadline(
            limit, mx.participation.log_normal(limit, limit)
        ),
    }
    for name, part in made.items():
        traced = jax.jit(lambda rate, part=part: part(rate)(KEY, number, data))(half)
        np.testing.assert_array_equal(traced, part(0.5)(KEY, number, data), name)
    days = np.arange(40) // 2
    late = mx.participation.deadline(jnp.float64(1.5), days)(KEY, number, data)
    np.testing.assert_array_equal(late, days <= 1.5)


def federation() -> tuple[Any, Any, Any]:
    """A model of several widths, ids of 64 bits, mixing and an attack."""

    def local(key: Any, params: Any, data: Any) -> Any:
        update = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape, leaf.dtype), params)
        return mx.client.LocalResult(update, jnp.float32(0))

    data = mx.data.stack([np.ones((n, 2), np.float32) for n in (1, 2, 3, 1)])
    data = data._replace(ids=data.ids.astype(jnp.int64), counts=data.counts.astype(jnp.int64))
    attack = mx.attacks.sim.passive(mx.data.take(data, [0, 1]))
    fed = mx.federation.fedavg(
        local,
        defence=mx.defences.compose(mx.defences.clipped(2.0), mx.defences.mixnn(2)),
        attack=attack,
        server_optimizer=optax.sgd(0.5, momentum=0.9),
        max_norm=3.0,
    )
    return fed, fed.init(one()), data


def test_a_run_keeps_every_dtype_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    fed, start, data = federation()
    state, records = mx.federation.run(KEY, fed, start, data, 4)
    assert dtypes(state.params) == dtypes(one())
    assert records.stepped.all()
    mx.checkpoint.run(tmp_path, KEY, fed, start, data, rounds=2, every=1)
    again, _ = mx.checkpoint.run(tmp_path, KEY, fed, start, data, rounds=4, every=1)
    assert_equal(again, state)


def test_ids_that_share_their_lower_half_are_refused() -> None:
    fed, start, data = federation()
    data = data._replace(ids=jnp.array([1, 2**32 + 1, 2, 3]))
    with pytest.raises(mx.InputError, match=r"ids that fit 32 bits.*got 4294967297\. Number"):
        mx.federation.run(KEY, fed, start, data, 1)


def test_the_evaluation_takes_terms_of_64_bits() -> None:
    units = mx.units.partition(one())
    terms = mx.attacks.sim.statistics(stack(), stack(1, 2), units)
    truth = np.arange(7) % 2
    rates = mx.evaluation.attribution_over_draws(KEY, terms, truth, mx.mixing.keep(), draws=3)
    guesses = mx.evaluation.guesses(mx.attacks.sim.cosine(terms))
    np.testing.assert_allclose(rates, mx.evaluation.attribution(guesses, truth))
