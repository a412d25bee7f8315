"""What adversaries of mixing gain, by formula, against the library's own parts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import LINE, line_loss
from scipy import integrate, stats

import mixjax as mx
from mixjax import evaluation

sim = mx.attacks.sim


def has_rate(successes: int, trials: int, rate: float) -> bool:
    return bool(stats.binomtest(int(successes), trials, rate).pvalue > 1e-5)


def relinked(strength: float, clients: int) -> float:
    """P(N(strength, 1) is the largest among clients - 1 of N(0, 1))."""

    def density(z: float) -> float:
        return stats.norm.pdf(z - strength) * stats.norm.cdf(z) ** (clients - 1)

    return integrate.quad(density, -10, 10 + strength, epsabs=1e-12)[0]


CLIENTS = 24
TAGGED = {1.0: 0.205, 2.0: 0.528, 3.0: 0.830, 4.0: 0.966}


@pytest.mark.parametrize("strength", TAGGED)
def test_a_tagging_server_names_units_as_often_as_the_integral_says(strength: float) -> None:
    """Client i is sent the model and a tag of its own; weights come back, mixed, with noise."""
    assert relinked(strength, CLIENTS) == pytest.approx(TAGGED[strength], abs=5e-4)
    rng, rounds = np.random.default_rng(0), 60
    tags = {
        name: jnp.asarray(np.linalg.qr(rng.normal(size=(40, CLIENTS)))[0].T, jnp.float32)
        for name in ("in", "out")
    }
    units = mx.units.partition(jax.tree.map(lambda leaf: leaf[0], tags))

    def play(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        noise_key, mix_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (2, CLIENTS, 40), jnp.float32)
        weights = {name: noise[row] + strength * tags[name] for row, name in enumerate(tags)}
        origins = mx.mixing.full_round()(mix_key, jnp.ones(CLIENTS, bool), len(tags))
        mixed = mx.mixing.apply(origins, weights, units)
        return sim.statistics(mixed, tags, units).dots, origins

    scores, origins = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(1), rounds))
    right = evaluation.unit_level(scores, origins, np.arange(CLIENTS))
    named, trials = round(CLIENTS * float(right.sum())), 2 * CLIENTS * rounds
    assert has_rate(named, trials, relinked(strength, CLIENTS))
    for wrong in (relinked(strength - 0.5, CLIENTS), relinked(strength + 0.5, CLIENTS)):
        assert not has_rate(named, trials, wrong)

    # with equal priors and this noise, the posterior over owners is known
    logits = strength * np.asarray(scores, np.float64)
    posterior = np.exp(logits - logits.max(axis=-1, keepdims=True))
    posterior /= posterior.sum(axis=-1, keepdims=True)
    assert has_rate(named, trials, float(posterior.max(axis=-1).mean()))
    own = np.take_along_axis(posterior, np.asarray(origins)[..., None], axis=-1)
    tries = 1 + (posterior > own).sum(axis=-1)
    expected = evaluation.guessing_entropy(posterior)
    error = (tries - expected).std() / np.sqrt(trials)
    assert abs((tries - expected).mean()) < 4.5 * error
    bound = evaluation.fano_bound(evaluation.entropy(posterior).mean(), CLIENTS)
    assert 0 < bound < 1 - named / trials


@pytest.mark.parametrize("units", [1, 3, 8])
def test_one_in_five_poisoners_touches_all_but_few_mixed_updates(units: int) -> None:
    clients, poisoners, draws = 20, 4, 4000
    everybody = jnp.ones(clients, bool)

    def touched(mix: mx.mixing.Mix) -> int:
        keys = jax.random.split(jax.random.key(units), draws)
        origins = jax.jit(jax.vmap(lambda key: mix(key, everybody, units)))(keys)
        # one slot a draw: slots of one round are not independent
        return int((origins[:, 0] < poisoners).any(axis=-1).sum())

    share = poisoners / clients
    full = touched(mx.mixing.full_round())
    assert has_rate(full, draws, 1 - (1 - share) ** units)
    assert not has_rate(full, draws, 1 - (1 - share) ** (units + 1))
    # whole updates: as many as there are poisoners
    assert has_rate(touched(mx.mixing.shuffle()), draws, share)
    assert units == 1 or not has_rate(full, draws, share)


@pytest.mark.parametrize(("list_size", "units"), [(10, 4), (10, 16), (25, 4)])
def test_flooding_a_proxy_takes_list_size_times_the_harmonic_number(
    list_size: int, units: int
) -> None:
    """Dummies after the victim, until all its units are out; with `stream`, as `proxy` draws."""
    victim, draws = list_size, 2000
    arrivals = victim + 1 + 25 * list_size

    def dummies(key: jax.Array) -> jax.Array:
        emitted = mx.mixing.stream(key, arrivals, arrivals, list_size, units)
        # slot s is emitted by arrival s + list_size
        return jnp.argmax(emitted == victim, axis=0).max() + list_size - victim

    keys = jax.random.split(jax.random.key(units), draws)
    found = np.asarray(jax.jit(jax.vmap(dummies))(keys))
    harmonic = float(np.sum(1 / np.arange(1, units + 1)))
    expected = harmonic / -np.log1p(-1 / list_size) + 0.5
    stays = 1 - 1 / list_size
    exact = np.sum(1 - (1 - stays ** np.arange(2000)) ** units)
    error = found.std() / np.sqrt(draws)
    assert expected == pytest.approx(exact, rel=1e-3)
    assert expected == pytest.approx(list_size * harmonic, rel=0.06)
    assert abs(found.mean() - expected) < 4.5 * error
    for wrong in (list_size, list_size * units, 0.9 * expected, 1.1 * expected):
        assert abs(found.mean() - wrong) > 4.5 * error


COHORT = [0, 1, 1, 0, 1, 1, 1]


def people(seed: int, values: list[int]) -> mx.data.ClientData:
    """A line each, whose slope tells the attribute."""
    rng = np.random.default_rng(seed)
    examples = []
    for value in values:
        x = rng.normal(size=(12, 2)).astype(np.float32)
        noise = rng.normal(size=12).astype(np.float32)
        examples.append({"x": x, "y": x @ np.float32([1, 2 * value - 1]) + noise})
    return mx.data.stack(examples)


def unit_scores(defence: mx.defences.Defence) -> tuple[np.ndarray, np.ndarray]:
    """Each slot's scores in each unit of each round, and the origins; of the same people."""
    local = mx.client.local_training(line_loss, optax.sgd(0.1), batch_size=4)
    attack = sim.passive(people(1, [0, 1]))
    federation = mx.federation.fedavg(local, defence=defence, attack=attack, keep_probe=True)
    start, data = federation.init(LINE), people(0, COHORT)
    _, records = mx.federation.run(jax.random.key(3), federation, start, data, 4)
    units = mx.units.partition(LINE)

    def of_round(probe: mx.attacks.Probe, terms: Any) -> jax.Array:
        lengths = sim.direction_squared_norms(probe.references, units)
        return sim.unit_cosine(sim.Statistics(*terms, lengths))

    scores = jax.jit(jax.vmap(of_round))(records.probe, records.observation.measures)
    return np.asarray(scores), np.asarray(records.truth.origins)


def test_what_is_inferred_of_the_cohort_is_the_same_behind_any_mixing_to_the_last_bit() -> None:
    plain, _ = unit_scores(mx.defences.none())

    def multiset(scores: np.ndarray) -> np.ndarray:
        order = np.lexsort((scores[..., 1], scores[..., 0]), axis=1)
        return np.take_along_axis(scores, order[..., None], axis=1)

    def histogram(scores: np.ndarray) -> np.ndarray:
        """How many are guessed to have value 1, from each unit of each round."""
        return evaluation.guesses(scores).sum(axis=1)

    for defence in (mx.defences.mixnn(), mx.defences.mixnn(list_size=3)):
        mixed, origins = unit_scores(defence)
        assert (origins != np.arange(len(COHORT))[:, None]).any(axis=(1, 2)).all()
        assert not np.array_equal(mixed, plain)
        np.testing.assert_array_equal(multiset(mixed), multiset(plain))
        np.testing.assert_array_equal(histogram(mixed), histogram(plain))
    # the slope tells the attribute of everybody, so mixing hides nothing of the cohort
    assert (histogram(plain)[:, 0] == sum(COHORT)).all()
