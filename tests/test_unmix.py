"""The law that ties layers together, the graph it needs, and joining what was mixed."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mixjax as mx
from mixjax.attacks import _descent, channels, couplings, unmix

CLIENTS = 9


class Residual(nn.Module):
    """Convolutions with a branch around the second, leaky ReLUs, mean-pooling, flattened."""

    @nn.compact
    def __call__(self, inputs: Any) -> Any:
        hidden = nn.leaky_relu(nn.Conv(6, (3, 3), name="stem")(inputs))
        inner = nn.leaky_relu(nn.Conv(5, (3, 3), name="inner")(hidden))
        hidden = nn.leaky_relu(hidden + nn.Conv(6, (3, 3), name="outer")(inner))
        hidden = mx.ops.avg_pool(hidden, (2, 2))
        return nn.Dense(3, name="head")(hidden.reshape(len(hidden), -1))


class Normed(nn.Module):
    """GroupNorm of flax, after a convolution."""

    @nn.compact
    def __call__(self, inputs: Any) -> Any:
        hidden = nn.GroupNorm(2, name="norm")(nn.Conv(8, (3,), name="conv")(inputs))
        return nn.Dense(3, name="head")(nn.relu(hidden).mean(axis=1))


class Mixing(nn.Module):
    """Channels that are mixed between layers, and some that reach the output."""

    @nn.compact
    def __call__(self, inputs: Any) -> Any:
        first = nn.relu(nn.Dense(6, name="first")(inputs))
        second = nn.relu(nn.Dense(5, name="second")(jnp.cumsum(first, axis=-1)))
        return nn.Dense(4, name="third")(second) + second[..., :4]


MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "mlp": (mx.models.MLP(classes=3, hidden=(16, 12)), (7,)),
    "sensors": (mx.models.SensorCNN(classes=3, features=(6, 8), hidden=(10,)), (40, 3)),
    "images": (
        mx.models.ImageCNN(classes=3, features=(8, 8), hidden=(12, 9), groups=4),
        (12, 12, 3),
    ),
    "residual": (Residual(), (8, 8, 2)),
    "normed": (Normed(), (20, 3)),
}
FOUND = {
    "mlp": {"Dense_0": 16, "Dense_1": 12},
    "sensors": {"Conv_0": 6, "Conv_1": 8, "dense/Dense_0": 10},
    "images": {"GroupNorm_0": 8, "GroupNorm_1": 8, "dense/Dense_0": 12, "dense/Dense_1": 9},
    "residual": {"inner": 5},
    "normed": {"norm": 8},
}


@functools.cache
def setting(name: str, dtype: Any = np.float32) -> tuple[nn.Module, Any, channels.Graph, Any]:
    model, shape = MODELS[name]
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(CLIENTS, 24, *shape)), dtype)
    params = mx.models.initial(model, jax.random.key(2), inputs[0, :1].astype(np.float32))
    # biases and scales of a model that has learned something
    keys = iter(jax.random.split(jax.random.key(3), 99))
    params = jax.tree.map(
        lambda leaf: leaf.astype(dtype) + 0.1 * jax.random.normal(next(keys), leaf.shape, dtype),
        params,
    )
    return model, params, channels.trace(model, params, inputs[0]), inputs


def labels_of(inputs: Any) -> Any:
    return np.random.default_rng(1).integers(0, 3, inputs.shape[:2]).astype(np.int32)


def trained(model: nn.Module, params: Any, inputs: Any, rate: float, steps: int = 1) -> Any:
    """Everybody's update after some full-batch steps."""

    def loss(params: Any, own: Any) -> Any:
        logits: Any = model.apply({"params": params}, own[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, own[1]).mean()

    def one(own: Any) -> Any:
        def step(moved: Any, _: Any) -> Any:
            gradient = jax.grad(loss)(moved, own)
            return jax.tree.map(lambda leaf, g: leaf - rate * g, moved, gradient), None

        moved, _ = jax.lax.scan(step, params, None, steps)
        return jax.tree.map(jnp.subtract, moved, params)

    return jax.jit(lambda: jax.lax.map(one, (inputs, labels_of(inputs))))()


@functools.cache
def updates_of(name: str, rate: float, steps: int = 1) -> Any:
    model, params, _, inputs = setting(name)
    return trained(model, params, inputs, rate, steps)


def laws(graph: Any, params: Any, updates: Any, granularity: Any = "layer") -> np.ndarray:
    units = mx.units.partition(params, granularity)
    one = jax.vmap(lambda update: couplings.laws(graph, params, units, update))
    return np.asarray(one(updates))


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_is_found_and_is_a_symmetry(name: str) -> None:
    model, params, graph, inputs = setting(name)
    assert {hidden.name: hidden.size for hidden in graph.hidden} == FOUND[name] | (
        {"outer, stem": 6} if name == "residual" else {}
    )
    found = channels.asymmetry(
        graph, jax.jit(lambda p: model.apply({"params": p}, inputs[0])), params
    )
    if name == "residual":
        # the branch adds before the activation, but the stem is read inside it too
        assert found.pop("outer, stem") < 1e-4
    assert max(found.values()) < 1e-4


def test_channels_that_are_mixed_or_reach_the_output_are_left_out() -> None:
    inputs = jnp.zeros((1, 3), jnp.float32)
    params = mx.models.initial(Mixing(), jax.random.key(0), inputs)
    graph = channels.trace(Mixing(), params, inputs)
    assert [(hidden.name, hidden.size) for hidden in graph.hidden] == [("second", 1)]
    assert graph.hidden[0].feeds[0].channels == (-1, -1, -1, -1, 0)


# flax's own GroupNorm doesn't run in float64 under strict types
@pytest.mark.parametrize("name", sorted({*MODELS} - {"normed"}))
def test_the_law_holds_exactly_for_one_step(name: str) -> None:
    with jax.enable_x64(True):
        model, params, graph, inputs = setting(name, np.float64)
        loose = sum(hidden.size for hidden in graph.hidden)
        rows = laws(graph, params, trained(model, params, inputs, 0.1))[:, :, :loose]
        assert np.abs(rows).max() > 1e-4
        # sums of some thousand products: rounding of 1e-16 each, but for float32 tiles
        assert np.abs(rows.sum(axis=1)).max() < 1e-12 * np.abs(rows).max()


def test_its_error_falls_with_the_square_of_the_learning_rate() -> None:
    with jax.enable_x64(True):
        model, params, graph, inputs = setting("sensors", np.float64)
        errors = []
        for rate in (1e-2, 1e-3, 1e-4):
            rows = laws(graph, params, trained(model, params, inputs, rate, steps=5))
            errors.append(np.sqrt(np.mean(rows.sum(axis=1) ** 2)))
    slopes = np.diff(np.log10(errors)) / -1
    np.testing.assert_allclose(slopes, 2, atol=0.1)


def test_an_activation_that_is_not_homogeneous_shows() -> None:
    class Smooth(nn.Module):
        @nn.compact
        def __call__(self, inputs: Any) -> Any:
            return nn.Dense(3)(nn.sigmoid(nn.Dense(8)(inputs)))

    inputs = jax.random.normal(jax.random.key(1), (20, 4), jnp.float32)
    params = mx.models.initial(Smooth(), jax.random.key(0), inputs)
    graph = channels.trace(Smooth(), params, inputs)
    error = channels.asymmetry(
        graph, jax.jit(lambda p: Smooth().apply({"params": p}, inputs)), params
    )
    assert next(iter(error.values())) > 0.1


def test_a_graph_that_is_wrong_is_no_symmetry() -> None:
    model, params, graph, inputs = setting("mlp")
    (hidden, *_) = graph.hidden
    reads = hidden.reads[0]._replace(channels=hidden.reads[0].channels[::-1])
    # every other channel is rescaled: reversed, the others
    wrong = channels.Graph((hidden._replace(reads=(reads,)),))
    error = channels.asymmetry(
        wrong, jax.jit(lambda p: model.apply({"params": p}, inputs[0])), params
    )
    assert error["Dense_0"] > 0.5


@pytest.mark.parametrize("name", ["mlp", "sensors"])
def test_pairs_of_layers_are_the_same_graph(name: str) -> None:
    _model, params, graph, _inputs = setting(name)
    names = [hidden.name for hidden in graph.hidden]
    last = "dense/Dense_1" if name != "mlp" else "Dense_2"
    pairs = list(zip(names, [*names[1:], last], strict=True))
    updates = updates_of(name, 0.02, 3)
    own = laws(channels.of_pairs(params, pairs), params, updates)
    np.testing.assert_array_equal(own, laws(graph, params, updates))


def test_outputs_first_is_the_same_law() -> None:
    _model, params, graph, _inputs = setting("mlp")
    updates = updates_of("mlp", 0.02, 3)
    first = [{"w": layer["kernel"].T, "b": layer["bias"]} for layer in params.values()]
    moved = [
        {"w": layer["kernel"].swapaxes(1, 2), "b": layer["bias"]} for layer in updates.values()
    ]
    pairs = channels.of_pairs(first, [("0", "1"), ("1", "2")], outputs_first=True)
    np.testing.assert_allclose(
        laws(pairs, first, moved), laws(graph, params, updates), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("granularity", ["leaf", "neurons", mx.units.chunks(40), "coordinates"])
def test_finer_units_contribute_parts_of_the_same_laws(granularity: Any) -> None:
    _, params, graph, _ = setting("normed")
    updates = updates_of("normed", 0.02, 3)
    fine, coarse = (laws(graph, params, updates, kind) for kind in (granularity, "model"))
    np.testing.assert_allclose(fine.sum(1), coarse[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_whole_updates_are_joined(name: str) -> None:
    _, params, graph, _ = setting(name)
    updates = updates_of(name, 0.02, 3)
    units = mx.units.partition(params)
    active = np.arange(CLIENTS) != 4
    mix = mx.mixing.proxy(3) if name == "mlp" else mx.mixing.full_round()
    origins = mix(jax.random.key(5), jnp.asarray(active), len(units.names))
    mixed = mx.mixing.apply(origins, updates, units)
    assembly = unmix.assemble(jax.random.key(6), params, mixed, graph, active=jnp.asarray(active))
    assert mx.evaluation.exact_assemblies(assembly.slots, origins, active) == 1
    sizes = mx.units.parameter_counts(units)
    assert mx.evaluation.joined_share(assembly.slots, origins, sizes, active) == 1
    assert (assembly.slots[4] == 4).all()
    assert (assembly.confidence[active] > 0.8).all()
    # and they are the updates themselves
    whole = mx.mixing.apply(jnp.asarray(assembly.slots), mixed, units)
    owner = np.asarray(mx.evaluation.owners(assembly.slots, origins))[:, 0]
    jax.tree.map(
        lambda own, joined: np.testing.assert_array_equal(np.asarray(own)[owner], joined),
        updates,
        whole,
    )


def test_what_is_joined_does_not_depend_on_the_slots() -> None:
    _model, params, graph, _inputs = setting("sensors")
    units = mx.units.partition(params)
    # too much training for the law: some are joined wrongly, and always the same
    updates = updates_of("sensors", 0.5, 12)
    found = []
    for seed in range(3):
        key = jax.random.key(seed)
        origins = mx.mixing.full_round()(key, jnp.ones(CLIENTS, bool), 4)
        assembly = unmix.assemble(key, params, mx.mixing.apply(origins, updates, units), graph)
        own = mx.evaluation.owners(assembly.slots, origins)
        found.append(sorted(map(tuple, own.tolist())))
    assert found[0] == found[1] == found[2]


def test_who_knows_nothing_is_right_by_chance() -> None:
    _, params, graph, _ = setting("mlp")
    units = mx.units.partition(params)
    hits = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        origins = np.stack([rng.permutation(CLIENTS) for _ in units.names], axis=1)
        known = couplings.equations(graph)
        laws, shared = np.zeros((CLIENTS, 3, known)), np.zeros((CLIENTS, 3, 8))
        if seed % 2:
            laws, shared = rng.normal(size=laws.shape), rng.normal(size=shared.shape)
        slots, confidence = _descent.solve(laws, shared, np.ones(CLIENTS, bool), seed, known)
        own = mx.evaluation.owners(slots, origins)
        hits.append((own[:, 0] == own[:, 1]).mean())
        assert seed % 2 or (confidence == 0).all()
    # of 1,800 pairs one in nine is right: standard error half a point
    assert abs(np.mean(hits) - 1 / CLIENTS) < 4 * np.sqrt(8 / 81 / 1800)


def run(attack: Any, defence: Any, name: str = "sensors") -> Any:
    model, params, _, inputs = setting(name)
    people = [
        mx.data.Examples(own, labels) for own, labels in zip(inputs, labels_of(inputs), strict=True)
    ]
    local = mx.client.local_training(
        mx.models.cross_entropy(model), optax.sgd(0.02, momentum=0.9), batch_size=8
    )
    fed = mx.federation.fedavg(local, defence=defence, attack=attack, keep_probe=True)
    start = fed.init(params, clients=CLIENTS)
    return start, mx.federation.run(jax.random.key(1), fed, start, mx.data.stack(people), 3)[1]


def test_units_joined_to_each_other_and_wrongly_to_the_rest_move_as_one() -> None:
    rng = np.random.default_rng(0)
    ends, middle = rng.normal(size=(2, CLIENTS, 40)), rng.normal(size=(CLIENTS, 4))
    laws = np.zeros((CLIENTS, 4, 84))
    laws[:, 0, :40], laws[:, 1, :40] = ends[0], -ends[0]
    laws[:, 1, 40:44], laws[:, 2, 40:44] = middle, -middle
    laws[:, 2, 44:], laws[:, 3, 44:] = ends[1], -ends[1]
    system = _descent._system(laws.transpose(1, 0, 2).copy(), 84, 84)
    own = np.arange(CLIENTS)
    wrong = np.stack([own, own, np.roll(own, 1), np.roll(own, 1)])
    found = _descent._descend(system, wrong)
    np.testing.assert_array_equal(found, np.broadcast_to(found[0], found.shape))


def test_a_federation_is_unmixed_round_by_round_and_replayed() -> None:
    graph = setting("sensors")[2]
    attack = unmix.attack(graph)
    start, records = run(attack, mx.defences.mixnn())
    exact = mx.evaluation.exact_assemblies(records.findings.slots, records.truth.origins)
    np.testing.assert_array_equal(exact, 1)
    keys = jax.random.split(jax.random.key(9), (2, 3))
    _, again = jax.jit(
        jax.vmap(lambda key: mx.records.replay(key, attack, start, records, mx.mixing.proxy(4)))
    )(keys)
    exact = mx.evaluation.exact_assemblies(again.findings.slots, again.truth.origins)
    np.testing.assert_array_equal(exact, np.ones((2, 3)))
    assert not np.array_equal(again.truth.origins[0], again.truth.origins[1])


def test_the_attribute_attack_on_assemblies_is_that_of_plain_learning() -> None:
    _model, params, graph, _inputs = setting("sensors")
    updates = updates_of("sensors", 0.02, 3)
    directions = jax.tree.map(lambda leaf: leaf[:2], updates)
    units = mx.units.partition(params)
    origins = mx.mixing.full_round()(jax.random.key(0), jnp.ones(CLIENTS, bool), 4)
    mixed = mx.mixing.apply(origins, updates, units)
    assembly = unmix.assemble(jax.random.key(1), params, mixed, graph)
    seen = mx.attacks.sim.statistics(mixed, directions, units)
    joined = mx.attacks.sim.mix_statistics(jnp.asarray(assembly.slots), seen)
    plain = mx.attacks.sim.statistics(updates, directions, units)
    owner = mx.evaluation.owners(assembly.slots, origins)[:, 0]
    np.testing.assert_array_equal(
        mx.attacks.sim.cosine(joined), np.asarray(mx.attacks.sim.cosine(plain))[owner]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unmix.attack(channels.Graph(())), "graph of at least one hidden layer"),
        (lambda: channels.of_pairs({"a": {"w": jnp.ones((2, 3))}}, [("a", "b")]), "got 'b'"),
        (
            lambda: channels.of_pairs(
                {"a": {"w": jnp.ones((2, 3))}, "b": {"w": jnp.ones((4, 2))}}, [("a", "b")]
            ),
            "multiple of the 3 channels of a; got 4",
        ),
        (lambda: channels.trace(lambda x: x, {}, jnp.ones((1, 2))), "flax.linen module to trace"),
        (lambda: mx.evaluation.owners(np.zeros((2, 3), int), np.zeros((2, 2), int)), "same rounds"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_fits_not_is_refused(call: Any, message: str) -> None:
    with pytest.raises(mx.InputError, match=message):
        call()


def test_updates_that_are_not_finite_are_refused_by_client() -> None:
    _model, params, graph, _inputs = setting("mlp")
    updates = updates_of("mlp", 0.02, 3)
    broken = jax.tree.map(lambda leaf: leaf.at[4].set(jnp.nan), updates)
    with pytest.raises(mx.InputError, match=r"finite updates of active clients; got .* client 4"):
        unmix.assemble(jax.random.key(0), params, broken, graph)
    assembly = unmix.assemble(
        jax.random.key(0), params, broken, graph, active=jnp.arange(CLIENTS) != 4
    )
    assert (assembly.slots[4] == 4).all()
