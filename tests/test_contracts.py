"""A part that breaks its contract is refused in a sentence when the run begins."""

import dataclasses
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_components import (
    CLIENTS,
    KEY,
    LOCAL,
    PARAMS,
    cohort,
    lazy,
    longest,
    reads_updates,
    smoothed,
)

import mixjax as mx


def everyone_gets_client_0(key: Any, active: Any, units: int) -> Any:
    return jnp.zeros((active.shape[0], units), jnp.int32)


def a_vector(key: Any, active: Any, units: int) -> Any:
    return jnp.arange(active.shape[0])


def moves_the_absent(key: Any, active: Any, units: int) -> Any:
    return jnp.tile(jnp.arange(active.shape[0])[::-1, None], (1, units))


def mixed_by(draw: Any) -> Any:
    return {"defence": mx.defences.Defence(mx.defences.none().perturb, draw)}


def attacked_by(**functions: Any) -> Any:
    return {"attack": longest()._replace(**functions)}


REFUSALS: dict[str, tuple[Any, str]] = {
    "a mix that forwards one to all": (
        mixed_by(everyone_gets_client_0),
        r"permutes the active clients in each column.*unit 0 got \[0, 0, 0, 0, 0, 0\]",
    ),
    "a vector for a matrix": (mixed_by(a_vector), r"origins of shape \[6, 2\].*got int\d+\[6\]"),
    "a mix that moves the absent": (
        mixed_by(moves_the_absent), "leaves the others in their slots",
    ),
    "a mix of another signature": (
        mixed_by(lambda key, active: active), r"function of \(key, active, units\); got .*\(key, ",
    ),
    "a mix with memory of another signature": (
        mixed_by(dataclasses.replace(lazy(), draw=mx.mixing.full_round().draw)),
        r"a function of \(key, memory, active, units\)",
    ),
    "a mix that forgets its memory": (
        mixed_by(dataclasses.replace(lazy(), draw=lambda key, memory, active, units: active)),
        r"mix.draw to return \(memory, origins\)",
    ),
    "a mix that needs nobody": (
        mixed_by(dataclasses.replace(lazy(), least=0)), "least of a mix to be .* at least 1; got 0",
    ),
    "an attack that reads updates unasked": (
        attacked_by(observe=reads_updates),
        r"reads observation.updates and did not ask for them. Build it with `updates=True`",
    ),
    "an attack that reads measures unasked": (
        attacked_by(measure=None), r"reads observation.measures and .* Give it a `measure`",
    ),
    "an observe of another signature": (
        attacked_by(observe=lambda observation: observation),
        r"attack.observe, a function of \(key, memory, probe, observation\); got one of \(observ",
    ),
    "no observe": (attacked_by(observe=None), "expected attack.observe; got None"),
    "an observe that forgets its memory": (
        attacked_by(observe=lambda key, memory, probe, observation: memory),
        r"attack.observe to return \(memory, findings\); got",
    ),
    "a memory that grows": (
        attacked_by(
            observe=lambda key, memory, probe, observation: (jnp.append(memory, 0.0), memory)
        ),
        r"a memory like the one it got, float32\[6, 2\]; got float32\[13\]",
    ),
    "a measure of whole updates": (
        attacked_by(measure=lambda probe, units, update: jnp.ones(())),
        r"attack.measure to return arrays \[2, ...\], a row for each unit; got",
    ),
    "a probe that is none": (
        attacked_by(prepare=lambda key, memory, params, local: params),
        "attack.prepare to return an attacks.Probe; got dict",
    ),
    "a probe of another model": (
        attacked_by(
            prepare=lambda key, memory, params, local: mx.attacks.Probe(params["in"])
        ),
        "attack.prepare to send a model like the server's",
    ),
    "an attack that is none": ({"attack": "passive"}, "an attack such as .*; got 'passive'"),
    "local training of another signature": (
        {"local": lambda params, data: params}, r"a function of \(key, params, data\); got one of",
    ),
    "a participation of another signature": (
        {"participation": lambda data: data.active}, r"a function of \(key, number, data\)",
    ),
    "an aggregation of another signature": (
        {"aggregate": lambda updates: updates}, r"a function of \(updates, active\); got one of",
    ),
    "an aggregation that forgets its memory": (
        {"aggregate": dataclasses.replace(
            smoothed(additive=True), reduce=lambda key, memory, updates, active: active
        )},
        r"aggregate to return \(memory, an aggregate\)",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", REFUSALS)
def test_a_part_that_breaks_its_contract_is_refused(name: str) -> None:
    options, message = REFUSALS[name]
    data = cohort()._replace(active=jnp.arange(CLIENTS) != 5) if "absent" in name else cohort()

    def begin() -> None:
        fed = mx.federation.fedavg(**{"local": LOCAL} | options)
        mx.federation.run(KEY, fed, fed.init(PARAMS, CLIENTS), data, 1)

    with pytest.raises(mx.InputError, match=message):
        begin()


def begin(state: Any = None, **options: Any) -> Any:
    fed = mx.federation.fedavg(**{"local": LOCAL} | options)
    state = fed.init(PARAMS) if state is None else state
    return mx.federation.run(KEY, fed, state, cohort(), 1)


def with_leaf(leaf: Any) -> Any:
    return {**PARAMS, "extra": {"leaf": leaf}}


def start(**options: Any) -> Any:
    return mx.federation.fedavg(LOCAL, **options).init(PARAMS)


def train(optimizer: Any) -> Any:
    return mx.client.local_training(lambda p, b, k: b["y"], optimizer, batch_size=2)


def optimizer(update: Any, init: Any = lambda params: jnp.int32(0)) -> Any:
    return optax.GradientTransformation(init, update)


def perturbed_by(perturb: Any) -> Any:
    return mx.defences.Defence(perturb, mx.mixing.full_round())


def local_loss(loss: Any) -> Any:
    return lambda key, params, data: mx.client.LocalResult(params, loss)


def seeded(seed: Any) -> Any:
    return mx.federation.fedavg(LOCAL).init(PARAMS, attack_seed=seed)


def totals(update: Any) -> Any:
    return jax.tree.map(jnp.sum, update)


def explicit_mesh() -> jax.sharding.Mesh:
    kinds = (jax.sharding.AxisType.Explicit,)
    return jax.make_mesh((2,), ("clients",), axis_types=kinds)


SLIPS: dict[str, tuple[Any, str]] = {
    "an optimizer that was not called": (
        lambda: train(optax.sgd), "an optax optimizer such as .*; got the function sgd: call it",
    ),
    "no optimizer": (lambda: train(None), "an optax optimizer such as .*; got None"),
    "a server optimizer that was not called": (
        lambda: begin(server_optimizer=optax.adam), "got the function adam: call it",
    ),
    "local training that returns a tuple": (
        lambda: begin(local=lambda k, p, d: (p, jnp.float32(0))),
        "return a client.LocalResult.*; got tuple",
    ),
    "local training that returns the update alone": (
        lambda: begin(local=lambda k, p, d: p), "return a client.LocalResult.*; got dict",
    ),
    "an update of another structure": (
        lambda: begin(local=lambda k, p, d: mx.client.LocalResult(p["in"], jnp.float32(0))),
        "an update with the structure of the model",
    ),
    "an update of another shape": (
        lambda: begin(
            local=lambda k, p, d: mx.client.LocalResult(
                jax.tree.map(lambda leaf: leaf[..., :1], p), jnp.float32(0)
            )
        ),
        r"an update shaped like the model; got \('in', 'b'\): \(1,\) against \(4,\)",
    ),
    "an update of another shape from a cohort": (
        lambda: mx.cohort.run(
            KEY, PARAMS, cohort(), lambda k, p, d: mx.client.LocalResult(p["in"], 0.0)
        ),
        "an update with the structure of the model",
    ),
    "the model in place of the state": (
        lambda: begin(state=PARAMS), r"a state of this federation; got dict.*federation.init",
    ),
    "the state of another optimizer": (
        lambda: begin(state=start(), server_optimizer=optax.adam(0.1)),
        "a state of this federation, whose optimizer keeps",
    ),
    "the state in place of the model": (
        lambda: mx.federation.fedavg(LOCAL).init(start()), "got a FederationState. Pass state.par",
    ),
    "an aggregate of another structure": (
        lambda: begin(aggregate=lambda updates, active: updates["in"]),
        "an aggregate shaped like one update",
    ),
    "an aggregate that is still a stack": (
        lambda: begin(aggregate=lambda updates, active: updates), "shaped like one update",
    ),
    "a counter among the parameters": (
        lambda: mx.federation.fedavg(LOCAL).init(with_leaf(jnp.int32(3))),
        r"that have a gradient; got int32 at \('extra', 'leaf'\)",
    ),
    "a mask among the parameters": (
        lambda: mx.cohort.run(KEY, with_leaf(jnp.ones(2, bool)), cohort(), LOCAL),
        r"that have a gradient; got bool at \('extra', 'leaf'\)",
    ),
    "a key among the parameters": (
        lambda: mx.federation.fedavg(LOCAL).init(with_leaf(KEY)), r"\('extra', 'leaf'\)",
    ),
    "an optimizer whose update forgets its state": (
        lambda: begin(server_optimizer=optimizer(lambda g, s, p: g)),
        r"an optimizer's update to return \(updates, state\); got dict",
    ),
    "an optimizer whose steps would be broadcast": (
        lambda: begin(server_optimizer=optimizer(lambda g, s, p: (totals(g), s))),
        r"shaped like the model; got \('in', 'b'\): \(\) against \(4,\)",
    ),
    "a client's optimizer whose state changes its dtype": (
        lambda: begin(local=train(optimizer(lambda g, s, p: (g, s.astype(jnp.float32))))),
        r"a state like the one it got, int32\[\]; got float32\[\]",
    ),
    "an optimizer that gets no parameters": (
        lambda: train(optimizer(lambda g, s: (g, s))),
        r"a function of \(updates, state, params\); got one of \(g, s\)",
    ),
    "an optimizer that starts from nothing": (
        lambda: train(optimizer(lambda g, s, p: (g, s), lambda: 0)),
        r"of \(params\); got one of \(\)",
    ),
    "a perturbation that would be broadcast": (
        lambda: begin(defence=perturbed_by(lambda key, update: totals(update))),
        r"defence.perturb to return an update shaped like .*\('in', 'b'\): \(\) against \(4,\)",
    ),
    "a perturbation that drops a layer": (
        lambda: begin(defence=perturbed_by(lambda key, update: {"in": update["in"]})),
        "defence.perturb to return an update with the structure of the model",
    ),
    "a perturbation that turns updates complex": (
        lambda: begin(defence=perturbed_by(lambda k, u: jax.tree.map(jax.lax.complex, u, u))),
        r"real numbers in updates; got complex64 at \('in', 'b'\)",
    ),
    "a complex aggregate": (
        lambda: begin(
            aggregate=lambda u, a: jax.tree.map(lambda leaf: leaf[0].astype(jnp.complex64), u)
        ),
        "real numbers in the aggregate; got complex64",
    ),
    "a loss for each example": (
        lambda: begin(local=local_loss(jnp.ones(3))), r"loss as one real number; got float\d+\[3\]",
    ),
    "no loss": (lambda: begin(local=local_loss(None)), "loss as one real number; got None"),
    "a composed participation of floats": (
        lambda: begin(
            participation=mx.participation.compose(lambda k, n, d: d.active.astype(jnp.float32))
        ),
        r"`active` to be bool\[6\].*got float32\[6\]",
    ) ,
    "complex durations": (
        lambda: begin(
            participation=mx.participation.deadline(1.0, lambda k, n, d: jnp.ones(6, jnp.complex64))
        ),
        "real numbers in durations; got complex64",
    ),
    "durations of another signature": (
        lambda: mx.participation.deadline(1.0, lambda key: key),
        r"durations, a function of \(key, number, data\); got one of \(key\)",
    ),
    "findings that are text": (
        lambda: begin(attack=mx.attacks.Attack(None, None, None, lambda k, p, o: {"who": "me"})),
        r"attack.observe to return arrays and numbers; got str at \('who',\)",
    ),
    "metrics that are text": (
        lambda: begin(evaluate=lambda params: {"is": "good"}),
        r"evaluate to .* got str at \('is',\)",
    ),
    "metrics of two models": (
        lambda: begin(evaluate=lambda old, new: 0.0), r"evaluate, a function of \(params\)",
    ),
    "a memory that is text": (
        lambda: mx.federation.fedavg(
            LOCAL, attack=longest()._replace(init=lambda params, units, clients: "nothing")
        ).init(PARAMS, CLIENTS),
        "the attack's init to return arrays and numbers; got str",
    ),
    "an aggregation that starts from nothing": (
        lambda: begin(aggregate=dataclasses.replace(smoothed(additive=True), init=lambda: 0)),
        r"a function of \(params\); got one of \(\)",
    ),
    "an attack's seed with a fraction": (lambda: seeded(1.5), r"attack_seed .* got 1\.5"),
    "an attack's seed of 33 bits": (lambda: seeded(2**32), r"0 to 2\*\*32 - 1; got 4294967296"),
    "an attack's seed below zero": (lambda: seeded(np.int64(-1)), r"attack_seed .*\(-1\)"),
    "two seeds of an attack": (lambda: seeded(jnp.arange(2)), r"attack_seed .*\[0, 1\]"),
    "a key as an attack's seed": (lambda: seeded(KEY), "attack_seed .*key<fry>"),
    "raw words for a round's key": (
        lambda: mx.rounds.round_keys(jax.random.PRNGKey(0), 0), r"a typed key; got .* uint32\[2\]",
    ),
    "keys of one for a round's key": (
        lambda: mx.rounds.round_keys(KEY[None], 0),
        r"one key; got an array of keys of shape \(1,\)",
    ),
    "raw words for a client's noise": (
        lambda: mx.defences.noisy_gradient(1.0).perturb(jax.random.PRNGKey(0), PARAMS),
        r"a typed key; got .* uint32\[2\]",
    ),
    "raw words for a participation": (
        lambda: mx.participation.uniform(2)(jax.random.PRNGKey(0), jnp.int32(0), cohort()),
        r"a typed key; got .* uint32\[2\]",
    ),
    "devices in place of a mesh": (
        lambda: begin(mesh=2), r"a mesh such as sharding.clients_mesh\(\); got int",
    ),
    "a mesh of explicit axes": (
        lambda: mx.cohort.run(KEY, PARAMS, cohort(), LOCAL, mesh=explicit_mesh()),
        r"axes are of type Auto; got .*sharding.clients_mesh\(\)",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_of_a_first_script_is_refused(name: str) -> None:
    slip, message = SLIPS[name]
    with pytest.raises(mx.InputError, match=message):
        slip()


def test_an_error_about_a_client_crosses_a_process_border() -> None:
    state = mx.federation.FederationState({"a": jnp.ones(2)}, (), jnp.int32(4))
    error = mx.BrokenUpdateError(41, 4, state, None)
    back = pickle.loads(pickle.dumps(error))
    assert (back.client, back.round, str(back)) == (41, 4, str(error))
    assert int(back.state.round) == 4
