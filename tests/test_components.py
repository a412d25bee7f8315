"""What remembers: attacks, mixes and aggregations from round to round; and contracts refused."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_equal, single

import mixjax as mx
from examples.follow_units import by_unit, follow_units

CLIENTS, ROUNDS = 6, 5
KEY = jax.random.key(3)
PARAMS = single(
    {"in": {"w": jnp.ones((3, 4)) / 3, "b": jnp.zeros(4)}, "out": {"w": jnp.ones(4) / 2}}
)


def loss_fn(params: Any, batch: Any, key: Any) -> jax.Array:
    del key
    hidden = jnp.tanh(batch["x"] @ params["in"]["w"] + params["in"]["b"][None])
    return jnp.square(hidden @ params["out"]["w"] - batch["y"])


LOCAL = mx.client.local_training(loss_fn, optax.sgd(0.1), batch_size=4)


@functools.cache
def cohort(clients: int = CLIENTS) -> mx.data.ClientData:
    """Everybody's targets follow another rule."""
    rng = np.random.default_rng(0)
    people = []
    for _ in range(clients):
        x = rng.normal(size=(8, 3)).astype(np.float32)
        people.append({"x": x, "y": (x @ rng.normal(size=3)).astype(np.float32)})
    return mx.data.stack(people)


def run(fed: Any, rounds: int = ROUNDS, state: Any = None, key: Any = KEY, **init: Any) -> Any:
    state = fed.init(PARAMS, CLIENTS, **init) if state is None else state
    return mx.federation.run(key, fed, state, cohort(), rounds)


def longest() -> mx.attacks.Attack:
    """Remembers the longest update that each slot carried."""

    def init(params: Any, units: mx.units.Units, clients: int) -> Any:
        return jnp.zeros((clients, len(units.names)), jnp.float32)

    def measure(probe: Any, units: Any, update: Any) -> Any:
        return {"squares": mx.units.squared_norms(units, update)}

    def observe(key: Any, memory: Any, probe: Any, observation: Any) -> Any:
        memory = jnp.maximum(memory, observation.measures["squares"])
        return memory, {"longest": memory, "luck": jax.random.uniform(key)}

    return mx.attacks.Attack(init, None, measure, observe)


def reads_updates(key: Any, memory: Any, probe: Any, observation: Any) -> Any:
    return memory, jax.tree.map(jnp.sum, observation.updates)


def lazy() -> mx.mixing.Mix:
    """Draws anew every second round."""

    def init(clients: int, units: int) -> Any:
        return jnp.int32(0), jnp.zeros((clients, units), jnp.int32)

    def draw(key: Any, memory: Any, active: Any, units: int) -> Any:
        number, before = memory
        fresh = mx.mixing.full_round()(key, active, units)
        origins = jnp.where(number % 2 == 0, fresh, before)
        return (number + 1, origins), origins

    return mx.mixing.Mix(draw, init=init)


def smoothed(additive: bool) -> mx.aggregation.Aggregation:
    def reduce(key: Any, before: Any, updates: Any, active: Any) -> Any:
        now = mx.aggregation.mean(updates, active)
        now = jax.tree.map(lambda old, new: 0.5 * (old + new), before, now)
        return now, now

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    return mx.aggregation.Aggregation(reduce, additive, init)


@functools.cache
def remembering() -> mx.federation.Federation:
    return mx.federation.fedavg(
        LOCAL,
        attack=longest(),
        defence=mx.defences.Defence(mx.defences.none().perturb, lazy()),
        aggregate=smoothed(additive=True),
        keep_probe=True,
    )


def test_an_attack_a_mix_and_an_aggregation_remember() -> None:
    state, records = run(remembering())
    squares = np.asarray(records.observation.measures["squares"])
    np.testing.assert_array_equal(
        records.findings["longest"], np.maximum.accumulate(squares, axis=0)
    )
    np.testing.assert_array_equal(state.memories.attack, squares.max(axis=0))
    origins = np.asarray(records.truth.origins)
    np.testing.assert_array_equal(origins[1::2], origins[:-1:2])
    assert np.any(origins[2] != origins[0])
    # the attack draws anew each round
    assert len(np.unique(records.findings["luck"])) == ROUNDS


def test_a_smoothed_mean_is_the_slow_recurrence_with_and_without_a_stack() -> None:
    finals = []
    for additive in (True, False):
        fed = mx.federation.fedavg(LOCAL, aggregate=smoothed(additive), keep_updates=True)
        state, records = run(fed)
        model, before = PARAMS, jax.tree.map(jnp.zeros_like, PARAMS)
        for number in range(ROUNDS):
            rows = jax.tree.map(lambda leaf, n=number: leaf[n], records.observation.updates)
            before = jax.tree.map(lambda old, row: 0.5 * (old + row.mean(0)), before, rows)
            model = jax.tree.map(jnp.add, model, before)
        assert_close(state.params, model)
        assert_close(state.memories.aggregate, before)
        finals.append(state.params)
    assert_close(*finals)


def test_runs_are_loops_of_steps_and_vmapped_over_seeds() -> None:
    fed = remembering()
    state, records = run(fed)
    looped, rows = fed.init(PARAMS, CLIENTS), []
    for _ in range(ROUNDS):
        looped, row = fed.step(KEY, looped, cohort())
        rows.append(row)
    assert_close(looped, state)
    assert_close(jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows), records)
    keys = jnp.stack([jax.random.key(9), KEY])
    start = fed.init(PARAMS, CLIENTS)
    mapped = jax.vmap(lambda key: mx.federation.run(key, fed, start, cohort(), ROUNDS))(keys)
    assert_close(jax.tree.map(lambda leaf: leaf[1], mapped), (state, records))


def test_memories_survive_a_checkpoint(tmp_path: Path) -> None:
    fed = remembering()
    for rounds in (2, 4, ROUNDS):
        found = mx.checkpoint.run(
            tmp_path, KEY, fed, fed.init(PARAMS, CLIENTS), cohort(), rounds, every=1
        )
    assert_close(found, run(fed))
    assert_equal(found[1].truth.origins, run(fed)[1].truth.origins)


def test_devices_and_chunks_change_nothing_but_rounding() -> None:
    plain = run(remembering())
    attack, aggregate = longest(), smoothed(additive=True)
    defence = mx.defences.Defence(mx.defences.none().perturb, lazy())
    for options in ({"chunk_size": 4}, {"mesh": mx.sharding.clients_mesh(2)}):
        fed = mx.federation.fedavg(
            LOCAL, attack=attack, defence=defence, aggregate=aggregate, keep_probe=True, **options
        )
        other = run(fed)
        assert_equal(other[1].truth.origins, plain[1].truth.origins)
        assert_close(other, plain)


def test_recording_changes_no_bit_of_the_model() -> None:
    options = {"defence": mx.defences.mixnn(), "attack": longest()}
    states = [
        run(mx.federation.fedavg(LOCAL, **options, **kept))[0]
        for kept in ({}, {"keep_updates": True}, {"keep_probe": True})
    ]
    assert_equal(states[0], states[1])
    assert_equal(states[0], states[2])


def test_a_replay_of_the_recorded_mixing_is_the_record_bit_by_bit() -> None:
    fed = remembering()
    state, records = run(fed)
    keys = jax.vmap(lambda number: mx.rounds.round_keys(KEY, number).mix)(jnp.arange(ROUNDS))
    after, again = mx.records.replay(keys, longest(), fed.init(PARAMS, CLIENTS), records, lazy())
    assert_equal(again, records)
    assert_equal(after.memories._replace(aggregate=()), state.memories._replace(aggregate=()))


def test_a_replay_of_another_mixing_is_the_run_behind_it() -> None:
    attack = longest()
    plain = mx.federation.fedavg(LOCAL, attack=attack, keep_probe=True)
    mixed = mx.federation.fedavg(
        LOCAL, attack=attack, keep_probe=True, defence=mx.defences.mixnn(3)
    )
    _, records = run(plain)
    expected, really = run(mixed)
    keys = jax.vmap(lambda number: mx.rounds.round_keys(KEY, number).mix)(jnp.arange(ROUNDS))
    start = plain.init(PARAMS, CLIENTS)

    def replay(keys: Any) -> Any:
        return mx.records.replay(keys, attack, start, records, mx.mixing.proxy(3))

    state, replayed = jax.jit(replay)(keys)
    assert_equal(replayed.truth.origins, really.truth.origins)
    assert_close(replayed, really)
    assert_close(state.memories, expected.memories)
    many = jnp.stack([keys, jax.random.split(jax.random.key(8), ROUNDS)])
    mapped = jax.vmap(replay)(many)
    assert_close(jax.tree.map(lambda leaf: leaf[0], mapped), (state, replayed))
    assert np.any(mapped[1].truth.origins[1] != mapped[1].truth.origins[0])


def test_what_cannot_be_replayed_is_refused() -> None:
    start = remembering().init(PARAMS, CLIENTS)
    _, records = run(remembering())
    keys = jax.random.split(KEY, ROUNDS)
    mix = mx.mixing.shuffle()
    with pytest.raises(mx.InputError, match="expected records of a federation with keep_probe"):
        mx.records.replay(keys, longest(), start, records._replace(probe=None), mix)
    with pytest.raises(mx.InputError, match="that reads no whole updates"):
        mx.records.replay(keys, longest()._replace(updates=True), start, records, mix)
    with pytest.raises(mx.InputError, match=r"one key for each of 5 rounds; got .*\(4,\)"):
        mx.records.replay(keys[:4], longest(), start, records, mix)


GRANULARITIES = ["layer", "leaf", "model", mx.units.chunks(5), "neurons"]


def in_character(key: Any, params: Any, data: Any) -> Any:
    """Everybody moves in a direction of their own, and all together with the model."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), data.ids), len(leaves))
    own = [
        jax.random.normal(one, leaf.shape, leaf.dtype)
        for one, leaf in zip(keys, leaves, strict=True)
    ]
    update = jax.tree.map(lambda a, b: a + 5 * jnp.cos(b), structure.unflatten(own), params)
    return mx.client.LocalResult(update, jnp.float32(0))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_an_outsiders_attack_follows_units_under_any_granularity(granularity: Any) -> None:
    options = {"defence": mx.defences.mixnn(), "granularity": granularity}
    fed = mx.federation.fedavg(in_character, attack=follow_units(), **options)
    _, records = run(fed)
    origins, found = np.asarray(records.truth.origins), np.asarray(records.findings)
    assert found.shape == origins.shape
    # of a single number the cosine is only its sign
    sizes = mx.units.parameter_counts(mx.units.partition(PARAMS, granularity)).values()
    pure = mx.evaluation.purity(*by_unit(found, origins))
    np.testing.assert_array_equal(pure[np.array(list(sizes)) > 1], 1.0)
    dealt = np.random.default_rng(0).permuted(found, axis=1)
    blind = mx.evaluation.purity(*by_unit(dealt, origins))
    assert blind.max() < 0.8


def test_an_outsiders_attack_is_resumed_vmapped_and_copes_with_absent_clients(
    tmp_path: Path,
) -> None:
    fed = mx.federation.fedavg(
        LOCAL,
        defence=mx.defences.mixnn(),
        attack=follow_units(8),
        participation=mx.participation.uniform(4),
    )
    state, records = run(fed)
    start = fed.init(PARAMS, CLIENTS)
    for rounds in (3, ROUNDS):
        found = mx.checkpoint.run(tmp_path, KEY, fed, start, cohort(), rounds, every=1)
    assert_equal(found[1].findings, records.findings)
    mapped = jax.vmap(lambda key: mx.federation.run(key, fed, start, cohort(), ROUNDS))(KEY[None])
    assert_equal(mapped[1].findings[0], records.findings)
    pseudonyms, active = np.asarray(records.findings), np.asarray(records.observation.active)
    np.testing.assert_array_equal(pseudonyms >= 0, np.broadcast_to(active[..., None], (5, 6, 2)))
    np.testing.assert_array_equal(state.memories.attack.known.sum(axis=0) >= 4, True)


def test_the_attacks_draws_follow_from_no_key_of_the_run_nor_it_from_them() -> None:
    # two runs of other keys: the same draws of the attack; another seed: others
    fed = remembering()
    luck = run(fed)[1].findings["luck"]
    assert_equal(run(fed, key=jax.random.key(77))[1].findings["luck"], luck)
    _, records = run(fed, attack_seed=5)
    assert np.all(np.asarray(records.findings["luck"]) != np.asarray(luck))
    assert_equal(records.truth, run(fed)[1].truth)


def test_another_model_is_another_attack_seed() -> None:
    seed = remembering().init(PARAMS, CLIENTS).attack_seed
    for change in (lambda leaf: leaf.at[..., 0].add(1e-6), lambda leaf: leaf[..., ::-1] * 2):
        model = {**PARAMS, "in": {**PARAMS["in"], "w": change(PARAMS["in"]["w"])}}
        assert remembering().init(model, CLIENTS).attack_seed != seed
    assert remembering().init(PARAMS, CLIENTS).attack_seed == seed
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    assert mx.rounds.seed_of_model({"a": half, "b": jnp.ones(3, bool), "key": KEY}) > 0


def test_an_attack_that_asks_for_updates_reads_the_forwarded_ones() -> None:
    attack = longest()._replace(observe=reads_updates, updates=True)
    fed = mx.federation.fedavg(LOCAL, attack=attack, defence=mx.defences.mixnn())
    state, records = run(fed)
    kept = mx.federation.fedavg(LOCAL, defence=mx.defences.mixnn(), keep_updates=True)
    other, expected = run(kept)
    assert_equal(state.params, other.params)
    sums = jax.tree.map(
        lambda leaf: leaf.sum(axis=tuple(range(1, leaf.ndim))), expected.observation.updates
    )
    assert_close(records.findings, sums)
    assert records.observation.updates is None


def test_what_remembers_needs_the_number_of_clients() -> None:
    with pytest.raises(mx.InputError, match="number of clients, of which the attack remembers"):
        remembering().init(PARAMS)
    fed = mx.federation.fedavg(LOCAL, aggregate=smoothed(additive=True))
    with pytest.raises(mx.InputError, match="of which the aggregate remembers"):
        fed.init(PARAMS)
    forgetful = mx.federation.fedavg(LOCAL, defence=mx.defences.mixnn())
    assert forgetful.init(PARAMS).memories == ((), (), ())


def test_a_composed_mix_keeps_every_parts_memory() -> None:
    both = mx.mixing.compose(lazy(), mx.mixing.shuffle(), lazy())
    fed = mx.federation.fedavg(LOCAL, defence=mx.defences.Defence(mx.defences.none().perturb, both))
    state, records = run(fed)
    first, nothing, third = state.memories.mix
    assert (int(first[0]), nothing, int(third[0])) == (ROUNDS, (), ROUNDS)
    for column in np.asarray(records.truth.origins).transpose(0, 2, 1).reshape(-1, CLIENTS):
        np.testing.assert_array_equal(np.sort(column), np.arange(CLIENTS))


def test_a_step_that_makes_the_model_infinite_is_not_taken() -> None:
    fed = mx.federation.fedavg(
        LOCAL, server_optimizer=optax.chain(optax.scale(1e30), optax.scale(1e30))
    )
    state, records = run(fed)
    assert not records.stepped.any()
    assert not records.excluded.any()
    assert_equal(state.params, PARAMS)


def test_a_dropped_federation_goes_with_its_programs() -> None:
    import gc
    import weakref

    class Held:
        """Stands for a data set."""

    def one() -> Any:
        held = Held()

        def local(key: Any, params: Any, data: Any, own: Any = held) -> Any:
            return mx.client.LocalResult(params, jnp.float32(0))

        fed = mx.federation.fedavg(local)
        run(fed, 1)
        return weakref.ref(held)

    alive = [one() for _ in range(3)]
    gc.collect()
    assert sum(ref() is not None for ref in alive) <= 1


def test_an_attack_cannot_train_on_streamed_participants() -> None:
    host = cohort()
    streamed = mx.client.streamed(
        LOCAL, lambda client: jax.tree.map(lambda leaf: leaf[client], host.examples)
    )
    data = host._replace(examples=())

    def prepare(key: Any, params: Any, local: Any) -> mx.attacks.Probe:
        victim = jax.tree.map(lambda leaf: leaf[2:3], data)
        return mx.attacks.Probe(params, mx.cohort.run(key, params, victim, local))

    spy = mx.attacks.Attack(None, prepare, None, lambda key, probe, observation: probe.references)
    fed = mx.federation.fedavg(streamed, attack=spy)
    with pytest.raises(mx.InputError, match="examples of its own; got data without any"):
        mx.federation.run(KEY, fed, fed.init(PARAMS), data, 1)
    # people it knows are trained on as clients are
    known = mx.attacks.sim.passive(mx.data.take(host, [0, 1]))
    fed = mx.federation.fedavg(streamed, attack=known)
    plain = mx.federation.fedavg(LOCAL, attack=known)
    found = mx.federation.run(KEY, fed, fed.init(PARAMS), data, 2)[1].findings
    assert_close(found, mx.federation.run(KEY, plain, plain.init(PARAMS), host, 2)[1].findings)
