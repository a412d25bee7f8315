"""Bad input is refused with what came, what was expected and where; never from inside JAX."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import single

import mixjax as mx

pytestmark = pytest.mark.usefixtures("unchecked")

KEY = jax.random.key(0)
FLAT = single({"w": jnp.ones(2), "b": jnp.float32(0)})
MODEL = {"in": FLAT, "out": single({"w": jnp.ones(2)})}
UPDATES = jax.tree.map(lambda leaf: jnp.ones((4, *leaf.shape), leaf.dtype), MODEL)
UNITS = mx.units.partition(MODEL)
ORIGINS = jnp.tile(jnp.arange(4)[:, None], (1, 2))
ONE_ACTIVE = jnp.arange(4) == 1
NOBODY = jnp.zeros(4, bool)
HALF = jnp.arange(4) < 2


def loss_fn(params: Any, batch: Any, key: Any) -> jax.Array:
    del key
    return batch["x"] @ params["in"]["w"] + batch["x"] @ params["out"]["w"] + params["in"]["b"]


def people(*counts: int) -> mx.data.ClientData:
    return mx.data.stack([{"x": np.ones((count, 2), np.float32)} for count in counts])


COHORT = people(3, 2, 1, 2)
AUXILIARY = people(2, 3)
LOCAL = mx.client.local_training(loss_fn, optax.sgd(0.1), batch_size=2)
training = functools.partial(mx.client.local_training, loss_fn, optax.sgd(0.1))


def run(data: Any = COHORT, key: Any = KEY, rounds: Any = 1, **options: Any) -> Any:
    options = {"defence": mx.defences.mixnn()} | options
    federation = mx.federation.fedavg(LOCAL, **options)
    return mx.federation.run(key, federation, federation.init(MODEL), data, rounds)


def rows(count: int) -> mx.data.ClientData:
    return jax.tree.map(lambda leaf: leaf[:count], COHORT)


def examples(**leaves: Any) -> list[dict[str, np.ndarray]]:
    return [{name: np.ones(shape)} for name, shape in leaves.items()]


def partial_nan(data: mx.data.ClientData) -> mx.data.ClientData:
    return data._replace(
        examples=jax.tree.map(lambda leaf: leaf.at[1, 0].set(jnp.nan), data.examples)
    )


def spread(data: Any, mesh: Any) -> Any:
    return mx.cohort.run(KEY, MODEL, data, LOCAL, mesh=mesh)


def krum(**options: Any) -> Any:
    return mx.aggregation.krum(UPDATES, **options)


def membership(
    key: Any = KEY, loss: Any = loss_fn, updates: Any = UPDATES, examples: Any = COHORT.examples
) -> Any:
    return mx.attacks.membership.scores(key, loss, MODEL, updates, examples)


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "leading axes differ": (
        lambda: mx.mix(KEY, {"k": {"w": jnp.ones((20, 3))}, "z": {"b": jnp.ones((19,))}}),
        r"shared leading `clients` axis.*'k', 'w'\): \(20, 3\).*'z', 'b'\): \(19,\)",
    ),
    "a leaf without an axis": (
        lambda: mx.mix(KEY, {"a": jnp.float32(1), "b": jnp.ones(3)}),
        r"shared leading `clients` axis.*'a',\): \(\)",
    ),
    "an empty cohort": (
        lambda: mx.mix(KEY, {"a": jnp.ones((0, 2)), "b": jnp.ones(0)}),
        r"at least one entry on the `clients` axis.*empty cohort.*'a',\): \(0, 2\)",
    ),
    "an empty tree": (lambda: mx.mix(KEY, {}), "updates with at least one array.*empty pytree"),
    "a leaf that is no array": (
        lambda: mx.mix(KEY, {"a": "text", "b": jnp.ones(3)}),
        r"arrays in updates; got str at \('a',\)",
    ),
    "one client": (
        lambda: mx.mix(KEY, jax.tree.map(lambda leaf: leaf[:1], UPDATES)),
        "at least two active clients to mix; got 1 of 1",
    ),
    "one active client": (lambda: mx.mix(KEY, UPDATES, active=ONE_ACTIVE), "got 1 of 4"),
    "nobody active": (lambda: mx.mix(KEY, UPDATES, active=NOBODY), "all 4 are inactive"),
    "an integer mask": (
        lambda: mx.mix(KEY, UPDATES, active=jnp.ones(4, jnp.int32)),
        r"`active` to be bool\[4\].*got int32\[4\]",
    ),
    "a short mask": (
        lambda: mx.aggregation.mean(UPDATES, jnp.ones(3, bool)), r"bool\[4\].*got bool\[3\]",
    ),
    "one active client in a run": (
        lambda: run(COHORT._replace(active=ONE_ACTIVE)), "got 1 of 4",
    ),
    "one client with examples in a run": (
        lambda: run(COHORT._replace(counts=jnp.array([2, 0, 0, 0], jnp.int32))), "got 1 of 4",
    ),
    "one active client behind the control": (
        lambda: run(COHORT._replace(active=ONE_ACTIVE), defence=mx.defences.shuffle()), "1 of 4",
    ),
    "one active client behind the proxy": (
        lambda: run(COHORT._replace(active=ONE_ACTIVE), defence=mx.defences.mixnn(2)), "1 of 4",
    ),
    "nobody active in a run": (lambda: run(COHORT._replace(active=NOBODY)), "all 4 are inactive"),
    "nobody with examples": (
        lambda: run(COHORT._replace(counts=jnp.zeros(4, jnp.int32))),
        "at least one active client with examples",
    ),
    "counts past the padding": (
        lambda: run(COHORT._replace(counts=jnp.array([3, 2, 9, 2], jnp.int32))),
        r"counts in 0\.\.3.*got 9 for client 2",
    ),
    "negative counts": (
        lambda: run(COHORT._replace(counts=jnp.array([3, -2, 1, 2], jnp.int32))),
        r"counts in 0\.\.3.*got -2 for client 1",
    ),
    "counts of fewer clients": (
        lambda: run(COHORT._replace(counts=COHORT.counts[:3])),
        r"shared leading `clients` axis in the cohort.*\(3,\)",
    ),
    "no rounds": (lambda: run(rounds=0), "rounds to be a whole number of at least 1; got 0"),
    "half a round": (lambda: run(rounds=0.5), "rounds to be a whole number.*got 0.5"),
    "an unknown granularity": (
        lambda: mx.mix(KEY, UPDATES, granularity="layers"),
        "granularity to be one of 'model', 'layer', 'leaf', .*; got 'layers'",
    ),
    "an unknown granularity of a federation": (
        lambda: run(granularity="layers"), "granularity to be one of .*got 'layers'",
    ),
    "a granularity function that returns no name": (
        lambda: mx.units.partition(MODEL, lambda path: 3),
        r"layer name, .*; got 3 for leaf \('in', 'b'\)",
    ),
    "too many chunks": (
        lambda: mx.units.partition(MODEL, mx.units.chunks(99)), "at most 5 chunks.*got 99",
    ),
    "no chunks": (lambda: mx.units.chunks(0), r"chunks\(count\).*at least 1; got 0"),
    "a model of one layer": (
        lambda: mx.federation.fedavg(LOCAL).init({"only": FLAT}),
        "at least two units under granularity 'layer'.*'only'",
    ),
    "an empty model": (
        lambda: mx.federation.fedavg(LOCAL).init({}), "model with parameters; got an empty pytree",
    ),
    "a negative weight": (
        lambda: mx.aggregation.scale(UPDATES, jnp.array([1.0, -2.0, 1.0, 1.0])),
        "weights >= 0; got -2.0 for client 1",
    ),
    "a NaN weight": (
        lambda: mx.aggregation.scale(UPDATES, jnp.array([1.0, 1.0, jnp.nan, 1.0])),
        "got nan for client 2",
    ),
    "an infinite weight": (
        lambda: mx.aggregation.scale(UPDATES, jnp.array([1.0, 1.0, jnp.inf, 1.0])),
        "finite weights.*got inf for client 2",
    ),
    "weights of zero": (
        lambda: mx.aggregation.scale(UPDATES, jnp.zeros(4)), "positive sum; all 4 are zero",
    ),
    "weights of zero on all active clients": (
        lambda: mx.aggregation.scale(UPDATES, jnp.array([0.0, 0.0, 1.0, 1.0]), HALF),
        "positive sum",
    ),
    "too few weights": (
        lambda: mx.aggregation.scale(UPDATES, jnp.ones(3)), r"shape \[4\].*got \[3\]",
    ),
    "an unknown weighting": (
        lambda: run(weighting="counts"),
        "weighting to be one of 'examples', 'uniform'; got 'counts'",
    ),
    "an integer key": (lambda: mx.mix(3, UPDATES), r"typed key; got 3\. .*jax\.random\.key"),
    "a legacy key": (
        lambda: mx.mix(jax.random.PRNGKey(0), UPDATES), r"typed key; got an array uint32\[2\]",
    ),
    "an array of keys": (
        lambda: mx.mix(jax.random.split(KEY), UPDATES),
        r"one key; got an array of keys of shape \(2,\)",
    ),
    "an integer key in a run": (lambda: run(key=3), "typed key; got 3"),
    "a legacy key in a run": (lambda: run(key=jax.random.PRNGKey(0)), r"got an array uint32\[2\]"),
    "an integer key in a cohort": (
        lambda: mx.cohort.run(3, MODEL, COHORT, LOCAL), "typed key; got 3",
    ),
    "attribute values out of range": (
        lambda: mx.data.pool(COHORT, [0, 1, 2, 0], 2), r"groups in 0\.\.1; got 2 at index \(2,\)",
    ),
    "negative attribute values": (
        lambda: mx.data.pool(COHORT, [0, 1, -1, 0], 2), r"groups in 0\.\.1; got -1 at index \(2,\)",
    ),
    "attribute values that are no integers": (
        lambda: mx.data.pool(COHORT, [0.0, 1.0, 0.0, 1.0], 2), "integer groups.*got dtype float64",
    ),
    "a missing attribute value": (
        lambda: mx.data.pool(COHORT, [0, 2, 0, 2], 3), r"each of 3 groups; groups \[1\] have none",
    ),
    "groups of fewer clients": (
        lambda: mx.data.pool(COHORT, [0, 1], 2),
        r"one group for each of 4 clients; got shape \(2,\)",
    ),
    "NaN in auxiliary data": (
        lambda: mx.attacks.sim.passive(partial_nan(AUXILIARY)),
        r"finite numbers in auxiliary data; got 2 NaN or infinite values at \('x',\)",
    ),
    "NaN in an active attack's data": (
        lambda: mx.attacks.sim.active(partial_nan(AUXILIARY)), "finite numbers in auxiliary data",
    ),
    "no auxiliary examples of a value": (
        lambda: mx.attacks.sim.passive(AUXILIARY._replace(counts=jnp.array([2, 0], jnp.int32))),
        "examples of every attribute value; value 1 has none",
    ),
    "no batch": (lambda: training(batch_size=0), "batch_size to be a whole .* 1; got 0"),
    "half a batch": (lambda: training(batch_size=1.5), "batch_size to be a whole number.*got 1.5"),
    "no epochs": (lambda: training(batch_size=1, epochs=0), "epochs to be a whole .* 1; got 0"),
    "no chunk": (
        lambda: mx.cohort.run(KEY, MODEL, COHORT, LOCAL, chunk_size=0), "chunk_size .* got 0",
    ),
    "a mesh that does not divide the cohort": (
        lambda: spread(rows(3), mx.sharding.clients_mesh(2)),
        r"mesh's 2 devices divide; got 3\. .*data\.pad\(data, 2\)",
    ),
    "a mesh of another axis": (
        lambda: spread(COHORT, jax.sharding.Mesh(np.array(jax.devices()), ("x",))),
        r"axis named 'clients'; got axes \('x',\)",
    ),
    "origins of another shape": (
        lambda: mx.mixing.apply(ORIGINS[:3], UPDATES, UNITS),
        r"origins of shape \[4, 2\].*got int\d+\[3, 2\]",
    ),
    "origins that are no integers": (
        lambda: mx.mixing.apply(ORIGINS.astype(jnp.float32), UPDATES, UNITS),
        r"got float32\[4, 2\]",
    ),
    "origins of another partition": (
        lambda: mx.mixing.apply(ORIGINS, UPDATES, mx.units.partition(MODEL, "leaf")), r"\[4, 3\]",
    ),
    "statistics of another shape": (
        lambda: mx.attacks.sim.mix_statistics(
            ORIGINS[:2],
            mx.attacks.sim.Statistics(jnp.ones((4, 2, 2)), jnp.ones((4, 2)), jnp.ones((2, 2))),
        ),
        r"origins of shape \[4, 2\]",
    ),
    "no list": (
        lambda: mx.defences.mixnn(0),
        "list_size to be a whole number of at least 1; got 0",
    ),
    "too many Byzantine clients": (
        lambda: krum(byzantine=2), "byzantine=2 with 4 active clients",
    ),
    "too few active clients for Krum": (
        lambda: krum(byzantine=1, active=jnp.arange(4) < 3), "byzantine=1 with 3 active",
    ),
    "negative Byzantine clients": (lambda: krum(byzantine=-1), "byzantine=-1"),
    "too many to select": (lambda: krum(byzantine=1, select=5), r"select in 1\.\.4 .*got 5"),
    "none to select": (lambda: krum(byzantine=1, select=0), r"select in 1\.\.4 .*got 0"),
    "too much to trim": (
        lambda: mx.aggregation.trimmed_mean(UPDATES, trim=0.5), r"trim in \[0, 0\.5\); got 0\.5",
    ),
    "a clip norm of zero": (lambda: mx.defences.clipped(0.0), "clip norm .* than 0; got 0.0"),
    "a negative sigma": (lambda: mx.defences.noisy_gradient(-1.0), "sigma .* least 0; got -1.0"),
    "nothing to keep": (
        lambda: mx.defences.top_k(0.0), r"fraction in \(0, 1\]; got 0.0",
    ),
    "more than all to keep": (lambda: mx.defences.top_k(1.5), "fraction .* got 1.5"),
    "directions of another model": (
        lambda: mx.attacks.sim.scores(UPDATES, {"a": jnp.ones((2, 2))}),
        "directions with the structure of updates",
    ),
    "directions of other shapes": (
        lambda: mx.attacks.sim.scores(UPDATES, jax.tree.map(lambda _: jnp.ones((2, 7)), UPDATES)),
        r"'in', 'b'\): \(2, 7\) against \(4,\)",
    ),
    "nobody to stack": (lambda: mx.data.stack([]), "at least one client to stack"),
    "clients of different shapes": (
        lambda: mx.data.stack([*examples(x=(2, 3)), {"x": np.ones((2, 4))}]),
        r"client 1 shaped like client 0.*'x',\): \(2, 4\) against \(2, 3\)",
    ),
    "clients of different trees": (
        lambda: mx.data.stack(examples(x=(2, 3), y=(2, 3))),
        "client 1 with the structure of client 0",
    ),
    "examples of different lengths": (
        lambda: mx.data.stack([{"x": np.ones((2, 3)), "y": np.ones(1)}]),
        r"leading `examples` axis in the examples of client 0.*\(2, 3\).*\(1,\)",
    ),
    "equal ids": (lambda: mx.data.stack(examples(x=(1,)) * 2, [4, 4]), r"2 distinct .* \[4, 4\]"),
    "a small capacity": (lambda: mx.data.stack(examples(x=(3,)), capacity=2), "least 3.*got 2"),
    "a multiple of zero": (lambda: mx.data.pad(COHORT, 0), "multiple to be a whole .* got 0"),
    "more clients than examples": (lambda: mx.data.iid(0, 2, 3), "got 2 for 3"),
    "no concentration": (
        lambda: mx.data.dirichlet(0, np.zeros(9), 3, 0.0), "concentration .* than 0; got 0.0",
    ),
    "too few examples of a class": (
        lambda: mx.data.preference_groups(0, np.arange(9) % 3, 3, [[0], [1]], per_client=9),
        r"7 unused examples of classes \[0\] and 2 of others; 3 and 6",
    ),
    "guesses of another cohort": (
        lambda: mx.evaluation.attribution([0, 1], [0, 1, 2]), r"got \(2,\), \(3,\)",
    ),
    "an unknown policy for broken updates": (
        lambda: run(broken="ignore"), "broken to be one of 'exclude', 'raise'; got 'ignore'",
    ),
    "a bound of zero on norms": (lambda: run(max_norm=0), "max_norm to be greater than 0; got 0"),
    "a participation that is none": (
        lambda: run(participation=0.5), r"a participation such as participation\.uniform.*got 0\.5",
    ),
    "a composition of no participation": (
        lambda: mx.participation.compose(), "at least one participation such as .*; got none",
    ),
    "a composition of no defence": (
        lambda: mx.defences.compose(), "at least one defence such as .*; got none",
    ),
    "a defence that is none": (lambda: run(defence="mixnn"), "a defence such as .* got 'mixnn'"),
    "a sample of nobody": (lambda: mx.participation.uniform(0), "count to be a whole .* got 0"),
    "a share above one": (lambda: mx.participation.fraction(1.5), r"share in \(0, 1\]; got 1\.5"),
    "a rate that is NaN": (lambda: mx.participation.poisson(np.nan), r"rate in \(0, 1\]; got nan"),
    "a certain dropout": (lambda: mx.participation.dropout(1.0), r"rate in \[0, 1\.0\); got 1\.0"),
    "a deadline of zero": (
        lambda: mx.participation.deadline(0, [1.0]), "limit to be greater than 0; got 0",
    ),
    "negative durations": (
        lambda: mx.participation.deadline(1, [1.0, -1.0]), "durations >= 0 of shape",
    ),
    "durations of other clients": (
        lambda: run(participation=mx.participation.deadline(1, [1.0, 1.0])),
        r"durations for each of 4 clients; got \[2\]",
    ),
    "a schedule of numbers": (
        lambda: mx.participation.schedule([0.5, 1.0]), r"bool\[clients\] or .* got float64\[2\]",
    ),
    "a schedule of other clients": (
        lambda: run(participation=mx.participation.schedule([True, True])),
        r"the schedule for each of 4 clients; got \[2\]",
    ),
    "origins of clients that are not there": (
        lambda: mx.mixing.apply(ORIGINS + 1, UPDATES, UNITS),
        r"origins in 0\.\.3, the clients; got 4 at \(3, 0\)",
    ),
    "ids beyond 32 bits": (
        lambda: mx.data.stack(examples(x=(1,)), [2**31]), r"ids that are whole .* 32 bits; got \[2",
    ),
    "a padded cohort beyond memory": (
        lambda: mx.data.stack(examples(x=(1, 10**6)), capacity=10**9),
        "the padded cohort needs at least 8,000,000,000,000,000. Pass a smaller capacity",
    ),
    "scores that are NaN": (
        lambda: mx.evaluation.guesses([[np.nan, 1.0]]), r"none of them NaN; got shape \(1, 2\)",
    ),
    "nobody active in draws": (
        lambda: mx.evaluation.attribution_over_draws(
            KEY,
            mx.attacks.sim.statistics(UPDATES, UPDATES, UNITS),
            [0] * 4,
            mx.mixing.keep(),
            [False] * 4,
            draws=2,
        ),
        "all 4 are inactive",
    ),
    "no runs": (lambda: mx.evaluation.student([]), r"each run; got an array of shape \(0,\)"),
    "scores of other records than members": (
        lambda: mx.evaluation.membership_auc([0.1, 0.2], [True, False, True]),
        r"scores, members and active .*got \(2,\), \(3,\)",
    ),
    "no false positives": (
        lambda: mx.evaluation.true_positive_rate([0, 1], [False, True], false_positive_rate=0),
        r"false_positive_rate in \(0, 1\]; got 0",
    ),
    "candidates for other slots": (
        lambda: membership(examples={"x": jnp.ones((3, 2, 2))}),
        "candidate records for each of 4 updates; got them for 3",
    ),
    "candidates without a records axis": (
        lambda: membership(examples={"x": jnp.ones((4, 2, 2)), "n": jnp.ones(4)}),
        r"`records` axis in each slot's candidates; got \('n',\): \(\)",
    ),
    "no candidates": (
        lambda: membership(examples={"x": jnp.ones((4, 0, 2))}),
        "at least one entry on the `records` axis of each slot's candidates",
    ),
    "updates of another model than the sent one": (
        lambda: membership(updates=jax.tree.map(lambda _: jnp.ones((4, 7)), UPDATES)),
        r"updates shaped like params .*'in', 'b'\): \(4, 7\) against \(1,\)",
    ),
    "a legacy key of a membership attack": (
        lambda: membership(key=jax.random.PRNGKey(0)), r"typed key; got an array uint32\[2\]",
    ),
    "a loss of another shape": (
        lambda: membership(loss=lambda params, batch, key: jnp.ones(3)),
        r"loss of a batch of 1 .*shape \[1\] or a scalar; got .*3",
    ),
    "a negative noise multiplier": (
        lambda: mx.accounting.gaussian_delta(-1.0, 1, 1.0),
        "noise_multiplier to be a finite number of at least 0; got -1.0",
    ),
    "an infinite epsilon": (
        lambda: mx.accounting.gaussian_delta(1.0, 1, float("inf")), "epsilon .* finite.* got inf",
    ),
    "a NaN epsilon0": (
        lambda: mx.accounting.shuffled_delta(float("nan"), 3, 1.0, messages=1),
        "epsilon0 .* finite.* got nan",
    ),
    "a sigma that is no number": (
        lambda: mx.accounting.noise_multiplier("a lot", 1.0), "sigma .* finite.* got 'a lot'",
    ),
    "no clip norm": (
        lambda: mx.accounting.noise_multiplier(1.0, 0.0), "clip norm .* than 0; got 0.0",
    ),
    "an unknown relation": (
        lambda: mx.accounting.noise_multiplier(1.0, 1.0, relation="add"),
        "relation to be one of 'replace', 'zero_out'; got 'add'",
    ),
    "a delta of zero": (
        lambda: mx.accounting.gaussian_epsilon(1.0, 1, 0.0),
        "delta to be greater than 0 and less than 1; got 0.0",
    ),
    "a delta of one": (
        lambda: mx.accounting.gaussian_noise_multiplier(1.0, 1.0, 1), "delta .* got 1.0",
    ),
    "a NaN delta": (
        lambda: mx.accounting.shuffled_epsilon(1.0, 3, float("nan"), messages=1),
        "delta .* got nan",
    ),
    "no rounds to account for": (
        lambda: mx.accounting.gaussian_epsilon(1.0, 0, 1e-5), "rounds to be a whole .* got 0",
    ),
    "no clients to shuffle": (
        lambda: mx.accounting.shuffled_delta(1.0, 0, 0.5, messages=1),
        "clients to be a whole .* got 0",
    ),
    "no messages to shuffle": (
        lambda: mx.accounting.shuffled_delta(1.0, 9, 0.5, messages=0),
        "messages to be a whole .* got 0",
    ),
    "layers as messages": (
        lambda: mx.accounting.shuffled_epsilon(1.0, 9, 0.5, messages=4),
        "one message a client; got 4 messages, .* epsilon0, 4 times that of one",
    ),
    "no units to join": (
        lambda: mx.accounting.joint_noise_multiplier([]),
        "at least one noise multiplier of a unit; got none",
    ),
    "a unit with less than no noise": (
        lambda: mx.accounting.joint_noise_multiplier([1.0, -1.0]),
        "noise_multiplier to be a finite .* got -1.0",
    ),
}  # fmt: skip

SLIPS: dict[str, Callable[[], Any]] = {
    "an integer key in local training": lambda: LOCAL(3, MODEL, mx.data.take(COHORT, 0)),
    "a legacy key in local training": lambda: LOCAL(
        jax.random.PRNGKey(0), MODEL, mx.data.take(COHORT, 0)
    ),
    "an integer key of a mix": lambda: mx.mixing.full_round()(3, jnp.ones(4, bool), 2),
    "a model of Python floats": lambda: mx.units.partition({"a": 1.0, "b": 2.0}),
    "data that are no ClientData, in a run": lambda: run(COHORT.examples),
    "data that are no ClientData, in a cohort": lambda: mx.cohort.run(
        KEY, MODEL, COHORT.examples, LOCAL
    ),
    "auxiliary data that are no ClientData": lambda: mx.attacks.sim.passive(AUXILIARY.examples),
    "auxiliary counts past the padding": lambda: mx.attacks.sim.passive(
        AUXILIARY._replace(counts=AUXILIARY.counts + 9)
    ),
    "counts past the padding in a cohort": lambda: mx.cohort.run(
        KEY, MODEL, COHORT._replace(counts=COHORT.counts + 9), LOCAL
    ),
    "directions without attributes": lambda: mx.attacks.sim.scores(UPDATES, MODEL),
    "updates of another model": lambda: mx.mixing.apply(ORIGINS, {"a": jnp.ones((4, 2))}, UNITS),
    "clients of different dtypes": lambda: mx.data.stack(
        [{"x": np.ones(2, np.int32)}, {"x": np.full(2, 0.5, np.float32)}]
    ),
    "rows that are not there": lambda: mx.data.take(COHORT, [9]),
    "no preference groups": lambda: mx.data.preference_groups(
        0, np.arange(9) % 3, 3, [], per_client=1
    ),
    "no devices": lambda: mx.sharding.clients_mesh(0),
    "more devices than there are": lambda: mx.sharding.clients_mesh(99),
    "a pooling window of another rank": lambda: mx.ops.max_pool(jnp.ones((2, 4, 4, 3)), (2,)),
    "a pooling window of zero": lambda: mx.ops.max_pool(jnp.ones((2, 4, 3)), (0,)),
    "groups that don't divide the channels": lambda: mx.ops.group_norm(
        jnp.ones((2, 4, 6)), jnp.ones(6), jnp.ones(6), 4
    ),
    "origins of another cohort": lambda: mx.evaluation.unit_level(
        np.ones((3, 2, 2)), np.zeros((4, 2), int), [0] * 4
    ),
    "scores without attributes": lambda: mx.evaluation.auc(np.ones(3), [0, 1, 1]),
    "ranks between different cohorts": lambda: mx.evaluation.relink_rank(
        UPDATES, jax.tree.map(lambda leaf: leaf[:3], UPDATES), UNITS
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_named(name: str) -> None:
    call, message = REFUSALS[name]
    with pytest.raises(mx.InputError, match=message):
        call()


@pytest.mark.parametrize("name", SLIPS)
def test_bad_input_gets_no_further(name: str) -> None:
    with pytest.raises(mx.InputError, match="expected"):
        SLIPS[name]()


def test_static_facts_are_checked_while_tracing() -> None:
    with pytest.raises(mx.InputError, match="got 1 of 1"):
        jax.jit(mx.mix)(KEY, jax.tree.map(lambda leaf: leaf[:1], UPDATES))
    with pytest.raises(mx.InputError, match="shared leading `clients` axis"):
        jax.eval_shape(mx.mix, KEY, {"a": jnp.ones((3, 2)), "b": jnp.ones(4)})


def test_under_jit_weights_of_zero_give_nan() -> None:
    weights = jax.jit(mx.aggregation.relative_weights)(jnp.zeros(3))
    assert np.isnan(weights).all()


def test_what_is_refused_is_a_value_error() -> None:
    assert issubclass(mx.InputError, ValueError)
