"""Public functions with good arguments, and the hostile values that may come in their place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import single

import mixjax as mx

KEY = jax.random.key(0)
MODEL = single({"in": {"w": jnp.ones(2), "b": jnp.float32(0)}, "out": {"w": jnp.ones(2)}})
ROWS = jnp.arange(1.0, 5.0)
UPDATES = jax.tree.map(
    lambda leaf: jnp.broadcast_to(ROWS.reshape(4, *[1] * leaf.ndim), (4, *leaf.shape)), MODEL
)
DIRECTIONS = jax.tree.map(lambda leaf: leaf[:2], UPDATES)
UNITS = mx.units.partition(MODEL)
ORIGINS = jnp.tile(jnp.arange(4)[::-1, None], (1, 2))
ACTIVE = jnp.array([True, True, False, True])
STATISTICS = mx.attacks.sim.statistics(UPDATES, DIRECTIONS, UNITS)
EXAMPLES = [{"x": np.ones((count, 2), np.float32)} for count in (3, 2, 1, 2)]
DATA = mx.data.stack(EXAMPLES)
AUXILIARY = mx.data.stack(EXAMPLES[:2])
SCORES = np.array([[0.1, 0.3], [0.5, 0.2], [0.0, 0.0], [0.9, 0.1]])
TRUTH = np.array([0, 1, 1, 0])


def loss_fn(params: Any, batch: Any, key: Any) -> jax.Array:
    del key
    return batch["x"] @ params["in"]["w"] + batch["x"] @ params["out"]["w"] + params["in"]["b"]


LOCAL = mx.client.local_training(loss_fn, optax.sgd(0.1), batch_size=2)
FULL = mx.mixing.full_round()


def with_leaf(tree: Any, leaf: Any) -> Any:
    return tree | {"out": {"w": leaf}}


SCALARS: list[Any] = [
    0, -1, -0.5, float("nan"), float("inf"), 1e300, 10**30, 1.5, True, None, "1", [1], (), {},
    np.float64(-1), np.array([1.0, 2.0]), np.array([]), 1j,
]  # fmt: skip
KEYS: list[Any] = [
    0, 3.0, None, "key", jax.random.PRNGKey(0), jax.random.split(KEY), jnp.zeros(2), np.uint32(1),
]  # fmt: skip
ROWS_OF: list[Any] = [
    None, 0, "x", [], [0], [0, 1, 2], [0, 1, -1, 0], [0, 1, 9, 0], [0, 1, 2**40, 0], [True] * 4,
    [0.5, 1.0, 2.0, 3.0], [np.nan] * 4, [np.inf, 1, 1, 1], [[0, 1], [1, 0]], ["a", "b", "c", "d"],
    np.zeros(0), np.zeros((4, 2)), np.zeros(4, bool), [None] * 4, object(),
    jnp.zeros(3), jnp.zeros(4, jnp.int32), jnp.ones(4, bool), jnp.zeros(4, bool),
    jnp.arange(4) == 1,
    jnp.array([1.0, -1.0, 1.0, 1.0]), jnp.full(4, jnp.nan), jnp.zeros((4, 1)), jnp.zeros(()),
]  # fmt: skip
TREES: list[Any] = [
    None, {}, [], (), 0, "tree", jnp.ones(4), jnp.ones((0, 2)), {"a": jnp.ones((4, 2))},
    {"a": None}, {"a": 1.0, "b": 2.0}, {"a": "text", "b": jnp.ones(4)},
    with_leaf(UPDATES, jnp.ones((3, 2))), with_leaf(UPDATES, jnp.ones((4, 3))),
    with_leaf(UPDATES, jnp.float32(1)), with_leaf(UPDATES, jnp.ones((4, 2), jnp.int32)),
    with_leaf(UPDATES, jnp.ones((4, 2), jnp.bfloat16)), with_leaf(UPDATES, jnp.ones((4, 2), bool)),
    with_leaf(UPDATES, jnp.ones((4, 2), jnp.complex64)), with_leaf(UPDATES, jnp.ones((4, 0))),
    with_leaf(UPDATES, np.ones((4, 2))), with_leaf(UPDATES, np.array([["a", "b"]] * 4)),
    with_leaf(UPDATES, jax.random.split(KEY, 4)), with_leaf(UPDATES, [jnp.ones((4, 2))]),
    jax.tree.map(lambda leaf: leaf[:0], UPDATES), jax.tree.map(lambda leaf: leaf[:1], UPDATES),
    jax.tree.map(lambda leaf: leaf[:3], UPDATES),
    jax.tree.map(lambda leaf: leaf * jnp.nan, UPDATES),
    MODEL,
]  # fmt: skip
COHORTS: list[Any] = [
    None, {}, EXAMPLES, DATA.examples, 3,
    DATA._replace(active=jnp.zeros(4, bool)), DATA._replace(active=jnp.ones(3, bool)),
    DATA._replace(active=jnp.ones(4, jnp.int32)), DATA._replace(active=None),
    DATA._replace(active=True), DATA._replace(active=jnp.ones((4, 1), bool)),
    DATA._replace(counts=DATA.counts + 9), DATA._replace(counts=-DATA.counts),
    DATA._replace(counts=DATA.counts * 0), DATA._replace(counts=DATA.counts.astype(jnp.float32)),
    DATA._replace(counts=None), DATA._replace(counts=DATA.counts[:2]),
    DATA._replace(counts=[1] * 4),
    DATA._replace(counts=DATA.counts[:, None]),
    DATA._replace(ids=None), DATA._replace(ids=DATA.ids[:1]), DATA._replace(ids=DATA.ids * 0),
    DATA._replace(ids=DATA.ids.astype(jnp.float32)), DATA._replace(ids=DATA.ids[:, None]),
    DATA._replace(ids=list("abcd")),
    DATA._replace(examples={"x": jnp.ones(4)}), DATA._replace(examples={"x": jnp.ones((4, 0, 2))}),
    DATA._replace(examples={"x": jnp.ones((3, 3, 2))}), DATA._replace(examples={"x": "text"}),
    DATA._replace(examples={"x": jnp.ones((4, 3, 2)), "y": jnp.ones((4, 2))}),
    DATA._replace(examples={"x": jnp.full((4, 3, 2), jnp.nan)}),
    jax.tree.map(lambda leaf: leaf[:0], DATA), jax.tree.map(lambda leaf: leaf[:1], DATA),
]  # fmt: skip
MATRICES: list[Any] = [
    None, 0, [[0, 1]] * 4, ORIGINS[:3], ORIGINS[:, :1], ORIGINS.astype(jnp.float32), ORIGINS + 9,
    ORIGINS - 9, ORIGINS[..., None], ORIGINS.astype(bool), np.asarray(ORIGINS), jnp.zeros((0, 2)),
    ORIGINS * 0, "origins",
]  # fmt: skip
FUNCTIONS: list[Any] = [None, 0, "full_round", [], object()]
CHOICES: list[Any] = [None, 0, "", "layers", ("layer",), [], lambda path: 3, lambda path: "one"]
UNITS_OF: list[Any] = [
    None, 2, "layer", (), mx.units.Units((), ()), mx.units.partition(MODEL, "leaf"),
    mx.units.partition({"a": {"w": jnp.ones(9)}, "b": {"w": jnp.ones(9)}}),
]  # fmt: skip
STATISTICS_OF: list[Any] = [
    None, (), 0, STATISTICS._replace(dots=None), STATISTICS._replace(dots=STATISTICS.dots[:2]),
    STATISTICS._replace(squared_norms=jnp.ones((4, 3))),
    STATISTICS._replace(squared_norms=jnp.ones(4)),
    STATISTICS._replace(direction_squared_norms=jnp.ones((3, 3))),
    STATISTICS._replace(dots=STATISTICS.dots * jnp.nan),
    jax.tree.map(lambda leaf: leaf.astype(jnp.int32), STATISTICS),
]  # fmt: skip
SCORES_OF: list[Any] = [
    None, 0, "x", [], [[]], np.ones(4), np.ones((4, 0)), np.ones((4, 1)), np.ones((3, 2)),
    np.ones((2, 4, 2)), np.full((4, 2), np.nan), np.array([["a", "b"]] * 4), SCORES.astype(int),
    np.full((4, 2), np.inf), [[1, 2], [3]],
]  # fmt: skip
EXAMPLES_OF: list[Any] = [
    None, 0, [], {}, [None], [{}], [[]], [{"x": 1.0}], [{"x": np.float32(1)}], "ab",
    [EXAMPLES[0], {"y": np.ones((2, 2))}], [EXAMPLES[0], {"x": np.ones((2, 3), np.float32)}],
    [EXAMPLES[0], {"x": np.ones((2, 2), int)}], [EXAMPLES[0], {"x": "text"}],
    [{"x": np.array(["a"])}] * 4, [{"x": np.zeros((0, 2), np.float32)}] * 4,
    [{"x": np.full((2, 2), np.nan, np.float32)}] * 4, {0: EXAMPLES[0]},
]  # fmt: skip

# a model of another structure fails in the user's own loss function
MODELS: list[Any] = [None, {}, 0, "model", {"a": "text"}, {"a": 1.0}, {"a": np.array(["a"])}]

RECORDS_OF: list[Any] = [
    None, {}, 0, "records", {"x": "text"}, {"x": 1.0}, {"x": np.float32(1)},
    {"x": np.ones((0, 2), np.float32)}, {"x": np.array([["a", "b"]] * 3)},
    {"x": np.ones((3, 2), np.float32), "y": np.ones(2, np.float32)},
    {"x": np.full((3, 2), np.nan, np.float32)}, {"x": np.ones((1, 2), np.float32)},
]  # fmt: skip

KINDS: dict[str, list[Any]] = {
    "key": KEYS, "scalar": SCALARS, "rows": ROWS_OF, "tree": TREES, "cohort": COHORTS,
    "origins": MATRICES, "function": FUNCTIONS, "choice": CHOICES, "units": UNITS_OF,
    "statistics": STATISTICS_OF, "scores": SCORES_OF, "examples": EXAMPLES_OF, "model": MODELS,
    "records": RECORDS_OF,
}  # fmt: skip


class Call(NamedTuple):
    """A public function with arguments that it accepts, and the kind of each."""

    function: Callable[..., Any]
    arguments: dict[str, tuple[str, Any]]

    def __call__(self, **instead: Any) -> Any:
        values = {name: value for name, (_, value) in self.arguments.items()} | instead
        return self.function(*values.values())


def run(key: Any, data: Any, rounds: Any) -> Any:
    return mx.federation.run(key, FEDERATION, FEDERATION.init(MODEL), data, rounds)


def fedavg(**kinds: tuple[str, Any]) -> Call:
    def build(*values: Any) -> Any:
        options = dict(zip(kinds, values, strict=True))
        federation = mx.federation.fedavg(LOCAL, **options)
        federation.check(federation.init(MODEL), DATA, 1)

    return Call(build, kinds)


FEDERATION = mx.federation.fedavg(LOCAL, defence=mx.defences.mixnn())
key, tree, active = ("key", KEY), ("tree", UPDATES), ("rows", ACTIVE)
cohort, rows, units = ("cohort", DATA), ("rows", TRUTH), ("units", UNITS)
origins, statistics, scores = ("origins", ORIGINS), ("statistics", STATISTICS), ("scores", SCORES)
directions, model = ("tree", DIRECTIONS), ("tree", MODEL)
posterior = ("scores", np.full((4, 2), 0.5))
tracks = {"pseudonyms": origins, "owners": origins, "active": ("rows", ORIGINS == 0)}


def whole(value: Any) -> tuple[str, Any]:
    return "scalar", value


CALLS: dict[str, Call] = {
    "mix": Call(
        lambda key, updates, active, granularity, method: mx.mix(
            key, updates, active=active, granularity=granularity, method=method
        ),
        {"key": key, "updates": tree, "active": active, "granularity": ("choice", "layer"),
         "method": ("function", FULL)},
    ),
    "mixing.apply": Call(mx.mixing.apply, {"origins": origins, "updates": tree, "units": units}),
    **{
        f"mixing.{name}": Call(mix, {"key": key, "active": active, "units": whole(2)})
        for name, mix in {
            "keep": mx.mixing.keep(), "shuffle": mx.mixing.shuffle(), "full_round": FULL,
            "proxy": mx.mixing.proxy(2), "compose": mx.mixing.compose(FULL, mx.mixing.shuffle()),
        }.items()
    },
    "mixing.proxy of": Call(mx.mixing.proxy, {"list_size": whole(2)}),
    "mixing.compose of": Call(
        mx.mixing.compose, {"first": ("function", FULL), "second": ("function", FULL)}
    ),
    "mixing.stream": Call(
        mx.mixing.stream,
        {"key": key, "arrivals": whole(3), "capacity": whole(4), "list_size": whole(2),
         "units": whole(2)},
    ),
    "aggregation.relative_weights": Call(
        mx.aggregation.relative_weights, {"weights": ("rows", ROWS), "active": active}
    ),
    "aggregation.scale": Call(
        mx.aggregation.scale, {"updates": tree, "weights": ("rows", ROWS), "active": active}
    ),
    "aggregation.mean": Call(mx.aggregation.mean, {"updates": tree, "active": active}),
    "aggregation.coordinate_median": Call(
        mx.aggregation.coordinate_median, {"updates": tree, "active": active}
    ),
    "aggregation.trimmed_mean": Call(
        lambda updates, active, trim: mx.aggregation.trimmed_mean(updates, active, trim=trim),
        {"updates": tree, "active": active, "trim": whole(0.3)},
    ),
    "aggregation.krum": Call(
        lambda updates, active, byzantine, select: mx.aggregation.krum(
            updates, active, byzantine=byzantine, select=select
        ),
        {"updates": tree, "active": active, "byzantine": whole(0), "select": whole(1)},
    ),
    "data.stack": Call(
        lambda examples, ids, capacity: mx.data.stack(examples, ids, capacity=capacity),
        {"examples": ("examples", EXAMPLES), "ids": rows, "capacity": whole(5)},
    )._replace(
        arguments={"examples": ("examples", EXAMPLES), "ids": ("rows", [4, 7, 1, 2]),
                   "capacity": whole(5)}
    ),
    "data.take": Call(mx.data.take, {"data": cohort, "rows": rows}),
    "data.pad": Call(mx.data.pad, {"data": cohort, "multiple": whole(3)}),
    "data.unstack": Call(mx.data.unstack, {"data": cohort}),
    "data.pool": Call(
        lambda data, groups, count, capacity: mx.data.pool(data, groups, count, capacity=capacity),
        {"data": cohort, "groups": rows, "count": whole(2), "capacity": whole(9)},
    ),
    "data.iid": Call(
        mx.data.iid, {"seed": whole(3), "examples": whole(10), "clients": whole(3)}
    ),
    "data.dirichlet": Call(
        mx.data.dirichlet,
        {"seed": whole(3), "labels": rows, "clients": whole(2), "concentration": whole(0.5)},
    ),
    "data.preference_groups": Call(
        lambda seed, labels, clients, groups, per_client, preferred: mx.data.preference_groups(
            seed, labels, clients, groups, per_client=per_client, preferred=preferred
        ),
        {"seed": whole(3), "labels": rows, "clients": whole(2), "groups": ("rows", [[0], [1]]),
         "per_client": whole(2), "preferred": whole(0.5)},
    ),
    "units.partition": Call(
        mx.units.partition, {"params": model, "granularity": ("choice", "layer")}
    ),
    "units.describe": Call(
        mx.units.describe, {"params": model, "granularity": ("choice", "layer")}
    ),
    "units.chunks": Call(mx.units.chunks, {"count": whole(2)}),
    "units.parameter_counts": Call(mx.units.parameter_counts, {"units": units}),
    "units.dots": Call(
        mx.units.dots, {"units": units, "update": model, "directions": directions}
    ),
    "units.squared_norms": Call(mx.units.squared_norms, {"units": units, "update": model}),
    "sim.statistics": Call(
        mx.attacks.sim.statistics, {"updates": tree, "directions": directions, "units": units}
    ),
    "sim.direction_squared_norms": Call(
        mx.attacks.sim.direction_squared_norms, {"directions": directions, "units": units}
    ),
    "sim.mix_statistics": Call(
        mx.attacks.sim.mix_statistics, {"origins": origins, "statistics": statistics}
    ),
    "sim.scores": Call(mx.attacks.sim.scores, {"updates": tree, "directions": directions}),
    "sim.cosine": Call(mx.attacks.sim.cosine, {"statistics": statistics}),
    "sim.unit_cosine": Call(mx.attacks.sim.unit_cosine, {"statistics": statistics}),
    "sim.circumcenter": Call(mx.attacks.sim.circumcenter, {"points": directions}),
    "sim.directions": Call(
        mx.attacks.sim.directions,
        {"key": key, "params": ("model", MODEL), "auxiliary": ("cohort", AUXILIARY),
         "local": ("function", LOCAL)},
    ),
    "sim.passive": Call(mx.attacks.sim.passive, {"auxiliary": ("cohort", AUXILIARY)}),
    "sim.active": Call(mx.attacks.sim.active, {"auxiliary": ("cohort", AUXILIARY)}),
    "shadows.attack": Call(
        lambda data, then, width, last, components, ridge: mx.attacks.shadows.attack(
            data, then, width=width, last=last, components=components, ridge=ridge
        ),
        {"data": cohort, "then": ("function", mx.attacks.tracks.attack()), "width": whole(4),
         "last": whole(2), "components": whole(3), "ridge": whole(0.1)},
    ),
    "shadows.assemble": Call(
        lambda key, params, updates, shadows, active: mx.attacks.shadows.assemble(
            key, params, updates, shadows, active=active, width=4
        ),
        {"key": key, "params": ("model", MODEL), "updates": tree, "shadows": ("tree", UPDATES),
         "active": active},
    ),
    "shadows.halves": Call(
        mx.attacks.shadows.halves, {"seed": whole(3), "data": cohort, "copies": whole(2)}
    ),
    "source.record_losses": Call(
        lambda key, loss, params, updates, records, chunk_size: mx.attacks.source.record_losses(
            key, loss, params, updates, records, chunk_size=chunk_size
        ),
        {"key": key, "loss": ("function", loss_fn), "params": ("model", MODEL), "updates": tree,
         "records": ("records", {"x": np.ones((3, 2), np.float32)}), "chunk_size": whole(2)},
    ),
    "evaluation.guesses": Call(mx.evaluation.guesses, {"scores": scores}),
    "evaluation.attribution": Call(
        mx.evaluation.attribution, {"guesses": rows, "truth": rows, "active": active}
    ),
    "evaluation.balanced_accuracy": Call(
        mx.evaluation.balanced_accuracy,
        {"guesses": rows, "truth": rows, "values": whole(2), "active": active},
    ),
    "evaluation.histogram": Call(
        mx.evaluation.histogram, {"truth": rows, "values": whole(2), "active": active}
    ),
    "evaluation.histogram_of_units": Call(
        mx.evaluation.histogram_of_units,
        {"unit_scores": ("scores", np.ones((4, 2, 2))), "active": active},
    ),
    "evaluation.overlap": Call(
        mx.evaluation.overlap, {"estimate": ("rows", [0.5, 0.5]), "histogram": ("rows", [0.3, 0.7])}
    ),
    "evaluation.subcohorts": Call(
        mx.evaluation.subcohorts,
        {"seed": whole(3), "truth": rows, "values": whole(2), "size": whole(2),
         "draws": whole(3)},
    ),
    "evaluation.unit_level": Call(
        mx.evaluation.unit_level,
        {"unit_scores": ("scores", np.ones((4, 2, 2))), "origins": origins, "truth": rows,
         "active": active},
    ),
    "evaluation.auc": Call(
        mx.evaluation.auc, {"scores": scores, "truth": rows, "active": active}
    ),
    "evaluation.chance": Call(mx.evaluation.chance, {"truth": rows, "active": active}),
    "evaluation.permuted_attribution": Call(
        mx.evaluation.permuted_attribution,
        {"guesses": rows, "truth": rows, "values": whole(2), "active": active},
    ),
    "evaluation.unit_distances": Call(
        mx.evaluation.unit_distances, {"updates": tree, "others": tree, "units": units}
    ),
    "evaluation.neighbours": Call(
        mx.evaluation.neighbours, {"updates": tree, "units": units, "radii": rows}
    ),
    "evaluation.relink_rank": Call(
        mx.evaluation.relink_rank, {"previous": tree, "current": tree, "units": units}
    ),
    "evaluation.attribution_over_draws": Call(
        lambda key, statistics, truth, mix, active, draws: mx.evaluation.attribution_over_draws(
            key, statistics, truth, mix, active, draws=draws
        ),
        {"key": key, "statistics": statistics, "truth": rows, "mix": ("function", FULL),
         "active": active, "draws": whole(3)},
    ),
    "evaluation.chance_purity": Call(
        lambda pseudonyms, owners, active, seed, draws: mx.evaluation.chance_purity(
            pseudonyms, owners, active, seed=seed, draws=draws
        ),
        tracks | {"seed": whole(3), "draws": whole(2)},
    ),
    "evaluation.purity": Call(mx.evaluation.purity, tracks),
    "evaluation.adjusted_rand_index": Call(mx.evaluation.adjusted_rand_index, tracks),
    "evaluation.entropy": Call(mx.evaluation.entropy, {"posterior": posterior}),
    "evaluation.effective_set_size": Call(
        mx.evaluation.effective_set_size, {"posterior": posterior}
    ),
    "evaluation.guessing_entropy": Call(mx.evaluation.guessing_entropy, {"posterior": posterior}),
    "evaluation.fano_bound": Call(
        mx.evaluation.fano_bound, {"conditional_entropy": ("rows", [0.5, 1.0]), "owners": whole(2)}
    ),
    "evaluation.wilson": Call(
        mx.evaluation.wilson,
        {"successes": whole(3), "trials": whole(9), "confidence": whole(0.9)},
    ),
    "evaluation.student": Call(
        mx.evaluation.student, {"values": ("rows", [0.1, 0.5]), "confidence": whole(0.9)}
    ),
    "evaluation.superiority": Call(
        lambda differences, negligible, level: mx.evaluation.superiority(
            differences, negligible=negligible, level=level
        ),
        {"differences": ("rows", [0.1, 0.5]), "negligible": whole(0.1), "level": whole(0.1)},
    ),
    "evaluation.equivalence": Call(
        lambda differences, margin, level: mx.evaluation.equivalence(
            differences, margin, level=level
        ),
        {"differences": ("rows", [0.1, 0.5]), "margin": whole(0.1), "level": whole(0.1)},
    ),
    "cohort.run": Call(
        lambda key, params, data, local, chunk_size: mx.cohort.run(
            key, params, data, local, chunk_size=chunk_size
        ),
        {"key": key, "params": ("model", MODEL), "data": cohort, "local": ("function", LOCAL),
         "chunk_size": whole(2)},
    ),
    "cohort.fold": Call(
        lambda function, clients, chunk_size: mx.cohort.fold(
            function, (), clients, chunk_size=chunk_size
        ),
        {"function": ("function", lambda shared, client: (client, ())),
         "clients": ("scores", SCORES),
         "chunk_size": whole(2)},
    ),
    "defences.clipped": Call(mx.defences.clipped, {"norm": whole(1.0)}),
    "defences.noisy_gradient": Call(
        mx.defences.noisy_gradient, {"sigma": whole(1.0), "clip_norm": whole(1.0)}
    ),
    "defences.mixnn": Call(mx.defences.mixnn, {"list_size": whole(2)}),
    "defences.compose": Call(
        mx.defences.compose,
        {"first": ("function", mx.defences.mixnn()), "second": ("function", mx.defences.none())},
    ),
    "client.local_training": Call(
        lambda loss, optimizer, batch_size, epochs: mx.client.local_training(
            loss, optimizer, batch_size=batch_size, epochs=epochs
        ),
        {"loss": ("function", loss_fn), "optimizer": ("function", optax.sgd(0.1)),
         "batch_size": whole(2), "epochs": whole(1)},
    ),
    "client.streamed": Call(
        mx.client.streamed,
        {"local": ("function", LOCAL), "examples_fn": ("function", lambda client_id: EXAMPLES[0])},
    ),
    "federation.run": Call(run, {"key": key, "data": cohort, "rounds": whole(1)}),
    "federation.init": Call(FEDERATION.init, {"params": model}),
    "federation.fedavg": fedavg(
        server_optimizer=("function", optax.sgd(1.0)),
        defence=("function", mx.defences.mixnn()),
        attack=("function", mx.attacks.sim.passive(AUXILIARY)),
        aggregate=("function", mx.aggregation.mean),
        weighting=("choice", "examples"),
        participation=("function", mx.participation.everyone()),
        broken=("choice", "exclude"),
        max_norm=whole(1.0),
        granularity=("choice", "layer"),
        evaluate=("function", lambda params: 0),
        chunk_size=whole(1),
    ),
    "participation.uniform": Call(mx.participation.uniform, {"count": whole(2)}),
    "participation.fraction": Call(mx.participation.fraction, {"share": whole(0.5)}),
    "participation.poisson": Call(mx.participation.poisson, {"rate": whole(0.5)}),
    "participation.dropout": Call(mx.participation.dropout, {"rate": whole(0.5)}),
    "participation.schedule": Call(mx.participation.schedule, {"mask": active}),
    "participation.deadline": Call(
        mx.participation.deadline,
        {"limit": whole(0.5), "durations": ("rows", [1.0, 2.0, 3.0, 4.0])},
    ),
    "participation.log_normal": Call(
        mx.participation.log_normal, {"median": whole(0.5), "sigma": whole(0.5)}
    ),
    "participation.compose": Call(
        mx.participation.compose, {"part": ("function", mx.participation.everyone())}
    ),
    "sharding.clients_mesh": Call(mx.sharding.clients_mesh, {"devices": whole(1)}),
    "ops.max_pool": Call(
        lambda window: mx.ops.max_pool(jnp.ones((2, 4, 3)), window), {"window": ("rows", (2,))}
    ),
    "ops.avg_pool": Call(
        lambda window: mx.ops.avg_pool(jnp.ones((2, 4, 3)), window), {"window": ("rows", (2,))}
    ),
    "ops.group_norm": Call(
        lambda groups: mx.ops.group_norm(jnp.ones((2, 4, 6)), jnp.ones(6), jnp.ones(6), groups),
        {"groups": whole(2)},
    ),
}  # fmt: skip
