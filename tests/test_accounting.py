"""Privacy accounting: against integrals and enumerations of the laws, and against wrong laws."""

import itertools
import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import mixjax as mx

acc = mx.accounting
many = hypothesis.settings(derandomize=True, deadline=None, max_examples=200)
SETTINGS = [(1.0, 1, 0.0), (1.0, 1, 1.0), (0.5, 1, 6.0), (2.0, 20, 4.0), (30.0, 10, 0.05)]


def excess(mean: float, epsilon: float) -> float:
    """Hockey-stick divergence between N(mean, 1) and N(0, 1), integrated."""

    def density(x: float) -> float:
        return max(stats.norm.pdf(x, mean) - math.exp(epsilon) * stats.norm.pdf(x), 0.0)

    # the integrand is zero up to where the densities' ratio is e^epsilon
    start = epsilon / mean + mean / 2
    middle = max(start, mean) + 2
    parts = [integrate.quad(density, *ends, epsabs=0) for ends in ((start, middle), (middle, 60))]
    return sum(part[0] for part in parts)


@pytest.mark.parametrize(("multiplier", "rounds", "epsilon"), SETTINGS)
def test_the_gaussian_delta_is_the_integral_of_the_excess(
    multiplier: float, rounds: int, epsilon: float
) -> None:
    mean = math.sqrt(rounds) / multiplier
    delta = acc.gaussian_delta(multiplier, rounds, epsilon)
    np.testing.assert_allclose(delta, excess(mean, epsilon), rtol=1e-6)
    for wrong in (rounds / multiplier, 1 / multiplier, mean / 2, 2 * mean):
        if not math.isclose(wrong, mean):
            assert not math.isclose(delta, excess(wrong, epsilon), rel_tol=0.01)


def test_rounds_compose_like_a_gaussian_in_as_many_dimensions() -> None:
    # the privacy loss of three rounds, sampled, against the one-dimensional formula
    multiplier, rounds, epsilon, draws = 1.5, 3, 1.0, 200_000
    x = np.random.default_rng(0).normal(1, multiplier, (draws, rounds))
    loss = np.sum(stats.norm.logpdf(x, 1, multiplier) - stats.norm.logpdf(x, 0, multiplier), 1)
    samples = np.maximum(1 - np.exp(epsilon - loss), 0)
    error = samples.std() / math.sqrt(draws)
    assert abs(samples.mean() - acc.gaussian_delta(multiplier, rounds, epsilon)) < 5 * error
    for wrong in (2, 4):
        assert abs(samples.mean() - acc.gaussian_delta(multiplier, wrong, epsilon)) > 5 * error


@many
@hypothesis.given(
    multiplier=st.floats(-3, 6).map(lambda power: 10**power),
    rounds=st.integers(1, 10**6),
    delta=st.floats(-100, -0.01).map(lambda power: 10**power),
)
def test_epsilon_delta_and_noise_invert_each_other(
    multiplier: float, rounds: int, delta: float
) -> None:
    epsilon = acc.gaussian_epsilon(multiplier, rounds, delta)
    assert math.isfinite(epsilon)
    reached = acc.gaussian_delta(multiplier, rounds, epsilon)
    # an epsilon of 1e11 is rounded by 1e-5, which the exponential amplifies
    assert reached <= delta * (1 + 1e-7) * math.exp(1e-11 * epsilon)
    needed = acc.gaussian_noise_multiplier(epsilon, delta, rounds)
    if epsilon == 0:
        assert needed <= multiplier * (1 + 1e-9)
    else:
        assert needed == pytest.approx(multiplier, rel=1e-7)
        less = acc.gaussian_delta(multiplier, rounds, epsilon * (1 - 1e-6))
        assert less > delta


def test_more_noise_fewer_rounds_and_a_larger_delta_cost_less() -> None:
    noise = [acc.gaussian_epsilon(z, 10, 1e-5) for z in (0.1, 0.5, 1.0, 5.0, 50.0)]
    rounds = [acc.gaussian_epsilon(2.0, t, 1e-5) for t in (100, 20, 5, 1)]
    deltas = [acc.gaussian_epsilon(2.0, 5, d) for d in (1e-12, 1e-8, 1e-4, 1e-1)]
    for epsilons in (noise, rounds, deltas):
        assert (np.diff(epsilons) < 0).all()
    assert acc.gaussian_epsilon(0.0, 1, 1e-5) == math.inf
    assert acc.gaussian_delta(0.0, 1, 5.0) == 1


def test_small_deltas_keep_their_digits() -> None:
    # log Phi(-x) = -x^2/2 - log(x sqrt(2 pi)) - 1/x^2 + ... and the second term is its twin
    multiplier, epsilon = 1.0, 36.0
    near, far = epsilon - 0.5, epsilon + 0.5
    expected = (
        sum(sign * (1 - x**-2 + 3 * x**-4 - 15 * x**-6) / x for sign, x in ((1, near), (-1, far)))
        * math.exp(-(near**2) / 2)
        / math.sqrt(2 * math.pi)
    )
    assert 0 < expected < 1e-270
    assert acc.gaussian_delta(multiplier, 1, epsilon) == pytest.approx(expected, rel=1e-6, abs=0)


@pytest.mark.parametrize("relation", acc.RELATIONS)
def test_the_noise_multiplier_is_the_deviation_over_the_distance_of_clipped_updates(
    relation: str,
) -> None:
    sigma, norm = 0.7, 0.4
    clip = mx.defences.clipped(norm).perturb
    update = {"w": jnp.array([3.0, -4.0])}
    own = clip(jax.random.key(0), update)["w"]
    opposite = clip(jax.random.key(0), jax.tree.map(lambda leaf: -leaf, update))["w"]
    other = opposite if relation == "replace" else jnp.zeros(2)
    multiplier = acc.noise_multiplier(sigma, norm, relation=relation)
    assert multiplier == pytest.approx(sigma / float(jnp.linalg.norm(own - other)), rel=1e-6)
    # what a server can really tell the two apart by: the excess along their difference
    delta = acc.gaussian_delta(multiplier, 1, 0.5)
    mean = float(jnp.linalg.norm(own - other)) / sigma
    assert delta == pytest.approx(excess(mean, 0.5), rel=1e-5)


def counts_law(epsilon0: float, clients: int, p: float) -> dict[tuple[int, int], float]:
    law: dict[tuple[int, int], float] = {}
    for total in range(clients):
        weight = stats.binom.pmf(total, clients - 1, math.exp(-epsilon0))
        for a in range(total + 1):
            mass = weight * stats.binom.pmf(a, total, 0.5)
            for place, share in (((a + 1, total - a), p), ((a, total - a + 1), 1 - p)):
                law[place] = law.get(place, 0) + mass * share
    return law


def divergence(law: dict[Any, float], other: dict[Any, float], epsilon: float) -> float:
    return sum(max(mass - math.exp(epsilon) * other.get(x, 0), 0) for x, mass in law.items())


@pytest.mark.parametrize("clients", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("epsilon0", [0.3, 1.0, 3.0])
def test_the_shuffled_delta_is_that_of_the_enumerated_laws(clients: int, epsilon0: float) -> None:
    p = math.exp(epsilon0) / (1 + math.exp(epsilon0))
    laws = [counts_law(epsilon0, clients, share) for share in (p, 1 - p)]
    for epsilon in (0.0, 0.1 * epsilon0, 0.5 * epsilon0, 0.9 * epsilon0):
        expected = divergence(*laws, epsilon)
        assert expected == pytest.approx(divergence(*laws[::-1], epsilon), abs=1e-14)
        delta = acc.shuffled_delta(epsilon0, clients, epsilon, messages=1)
        assert delta == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert acc.shuffled_delta(epsilon0, clients, epsilon0, messages=1) == 0


@pytest.mark.parametrize("values", [2, 3])
@pytest.mark.parametrize("epsilon0", [0.5, 1.5])
def test_the_shuffled_delta_bounds_randomised_response(values: int, epsilon0: float) -> None:
    """Histograms of few shuffled reports, enumerated for all neighbouring data sets."""
    clients = 4
    keep = math.exp(epsilon0)
    channel = (np.ones((values, values)) + (keep - 1) * np.eye(values)) / (keep + values - 1)

    def law(data: tuple[int, ...]) -> dict[Any, float]:
        result: dict[Any, float] = {}
        for reports in itertools.product(range(values), repeat=clients):
            histogram = tuple(np.bincount(reports, minlength=values).tolist())
            chance = math.prod(channel[own, said] for own, said in zip(data, reports, strict=True))
            result[histogram] = result.get(histogram, 0) + chance
        return result

    rest = itertools.combinations_with_replacement(range(values), clients - 1)
    pairs = [(law((0, *others)), law((1, *others))) for others in rest]
    for epsilon in (0.0, 0.2 * epsilon0, 0.6 * epsilon0):
        worst = max(
            max(divergence(*pair, epsilon), divergence(*pair[::-1], epsilon)) for pair in pairs
        )
        bound = acc.shuffled_delta(epsilon0, clients, epsilon, messages=1)
        assert worst <= bound + 1e-14
        # the bound is no proof of itself: one client less among the others would not do
        assert bound < acc.shuffled_delta(epsilon0, 1, epsilon, messages=1)


@pytest.mark.parametrize("units", [2, 3])
def test_units_mixed_apart_leave_the_bound_of_one_unit_and_keep_that_of_the_whole(
    units: int,
) -> None:
    """Randomised response in each unit, of one bit a client; counts of ones, enumerated."""
    unit_epsilon, clients = 0.5, 5
    ones = 1 / (1 + math.exp(unit_epsilon))

    def law(bits: tuple[int, ...]) -> dict[Any, float]:
        count = np.ones(1)
        for bit in bits:
            share = 1 - ones if bit else ones
            count = np.convolve(count, [1 - share, share])
        # a full round permutes each unit apart: what is left of each is how many ones there are
        places = itertools.product(range(clients + 1), repeat=units)
        return {place: math.prod(count[number] for number in place) for place in places}

    for rest in itertools.combinations_with_replacement((0, 1), clients - 1):
        pair = law((0, *rest)), law((1, *rest))
        for epsilon in (0.0, 0.2, 0.4):
            real = max(divergence(*pair, epsilon), divergence(*pair[::-1], epsilon))
            whole = acc.shuffled_delta(units * unit_epsilon, clients, epsilon, messages=1)
            assert real <= whole + 1e-14
            # what a caller would get who takes each unit for a report of its own
            for reports in (clients, clients * units):
                wrong = acc.shuffled_delta(unit_epsilon, reports, epsilon, messages=1)
                assert real > wrong
    with pytest.raises(mx.InputError, match=rf"one message a client; got {units} messages"):
        acc.shuffled_delta(unit_epsilon, clients, 0.1, messages=units)
    with pytest.raises(mx.InputError, match=rf"epsilon0, {units} times .*; for Gaussian noise use"):
        acc.shuffled_epsilon(unit_epsilon, clients, 1e-6, messages=units)


def test_the_number_of_messages_has_to_be_said() -> None:
    bounds: list[Any] = [acc.shuffled_delta, acc.shuffled_epsilon]
    for bound in bounds:
        with pytest.raises(TypeError, match="messages"):
            bound(1.0, 100, 0.5)


def test_units_noised_apart_are_as_private_as_the_gaussian_in_as_many_dimensions() -> None:
    # the privacy loss of three units with sigmas and clip norms of their own, sampled
    sigmas, norms = np.array([1.0, 2.0, 0.5]), np.array([0.5, 1.5, 0.1])
    epsilon, draws = 1.0, 200_000
    z = [acc.noise_multiplier(*pair) for pair in zip(sigmas, norms, strict=True)]
    together = acc.joint_noise_multiplier(z)
    x = np.random.default_rng(0).normal(norms, sigmas, (draws, 3))
    loss = np.sum(stats.norm.logpdf(x, norms, sigmas) - stats.norm.logpdf(x, -norms, sigmas), 1)
    samples = np.maximum(1 - np.exp(epsilon - loss), 0)
    error = samples.std() / math.sqrt(draws)
    assert abs(samples.mean() - acc.gaussian_delta(together, 1, epsilon)) < 5 * error
    for wrong in (min(z), sum(z) / 3, 1 / sum(1 / one for one in z), min(z) / math.sqrt(3)):
        assert abs(samples.mean() - acc.gaussian_delta(wrong, 1, epsilon)) > 5 * error


def test_units_with_one_sigma_are_a_whole_update_clipped_to_their_joint_norm() -> None:
    norms = [0.3, 0.4, 1.2]
    z = [acc.noise_multiplier(0.7, norm) for norm in norms]
    assert acc.joint_noise_multiplier(z) == pytest.approx(acc.noise_multiplier(0.7, 1.3))
    assert acc.joint_noise_multiplier([2.5]) == 2.5
    # rounds are units of time
    assert acc.joint_noise_multiplier([2.0] * 9) == pytest.approx(2 / 3)
    assert acc.gaussian_epsilon(2.0, 9, 1e-5) == pytest.approx(
        acc.gaussian_epsilon(acc.joint_noise_multiplier([2.0] * 9), 1, 1e-5)
    )
    assert acc.joint_noise_multiplier([1.0, 0.0]) == 0
    assert acc.gaussian_epsilon(acc.joint_noise_multiplier([1.0, 0.0]), 1, 1e-5) == math.inf


def test_the_shuffled_epsilon_is_below_the_closed_form_and_inverts_delta() -> None:
    for epsilon0, clients, delta in ((0.5, 10**4, 1e-6), (2.0, 10**5, 1e-8), (4.0, 10**6, 1e-6)):
        assert epsilon0 <= math.log(clients / (16 * math.log(4 / delta)))
        epsilon = acc.shuffled_epsilon(epsilon0, clients, delta, messages=1)
        strength = math.exp(epsilon0) / clients
        closed = math.log1p(
            math.tanh(epsilon0 / 2) * (8 * math.sqrt(strength * math.log(4 / delta)) + 8 * strength)
        )
        assert 0 < epsilon < closed < epsilon0
        assert acc.shuffled_delta(epsilon0, clients, epsilon, messages=1) <= delta
        assert acc.shuffled_delta(epsilon0, clients, 0.999 * epsilon, messages=1) > delta


def test_one_client_gains_nothing_and_more_gain_more() -> None:
    epsilon0, epsilon = 2.0, 0.7
    alone = (math.exp(epsilon0) - math.exp(epsilon)) / (1 + math.exp(epsilon0))
    assert acc.shuffled_delta(epsilon0, 1, epsilon, messages=1) == pytest.approx(alone)
    deltas = [
        acc.shuffled_delta(epsilon0, clients, epsilon, messages=1) for clients in (1, 10, 100, 1000)
    ]
    assert (np.diff(deltas) < 0).all()
    assert acc.shuffled_epsilon(epsilon0, 3, 1e-6, messages=1) == pytest.approx(epsilon0, rel=1e-4)
    assert acc.shuffled_epsilon(0.0, 3, 1e-6, messages=1) == 0
    assert acc.shuffled_delta(1000.0, 100, 1.0, messages=1) == pytest.approx(1)
    assert acc.shuffled_delta(1000.0, 100, 800.0, messages=1) == pytest.approx(1)
