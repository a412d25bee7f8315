"""What a round asks of an attack, and refuses if the answer is not what was asked for."""

from typing import Any

from jaxtyping import Array, PyTree

from mixjax import _validate
from mixjax import units as units_lib
from mixjax.attacks.base import Attack, Probe, Send
from mixjax.observation import Observation
from mixjax.types import Params

UNASKED = {
    "measures": "Give it a `measure`.",
    "updates": "Build it with `updates=True`, which stacks them.",
}


class Seen(Observation):
    """An observation that says so where an attack reads what it did not ask for."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if value is None and name in UNASKED:
            raise _validate.InputError(
                f"expected an attack that reads what it asks for; it reads observation.{name} and "
                f"did not ask for them. {UNASKED[name]}"
            )
        return value


def sent(send: Send, probe: Probe, client: Array) -> Params:
    """The client's own model."""
    model = send(probe, client)
    came, like = _validate.form(model), _validate.form(probe.params)
    if came != like:
        raise _validate.InputError(
            f"expected attack.send to send a model like the server's, {like}; got {came}."
        )
    return model


def measured(attack: Attack, probe: Probe, units: units_lib.Units, update: Params) -> PyTree[Any]:
    """The measure of one update, a row for each unit; None for an attack without."""
    measured = attack.measure(probe, units, update) if attack.measure is not None else None
    for name, leaf in _validate.named_leaves(measured):
        if getattr(leaf, "shape", ())[:1] != (len(units.names),):
            came = f"{name}: {list(leaf.shape)}" if hasattr(leaf, "shape") else repr(leaf)
            raise _validate.InputError(
                f"expected attack.measure to return arrays [{len(units.names)}, ...], a row for "
                f"each unit; got {came}."
            )
    return measured
