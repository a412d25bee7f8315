"""What is refused on the host when a run begins, before anything is compiled."""

from typing import Any

import jax
import numpy as np

from mixjax import _axes, _memory, _validate, mixing
from mixjax import units as units_lib
from mixjax.data import ClientData
from mixjax.records import FederationState


def check(parts: Any, state: Any, data: ClientData, count: int) -> None:
    """Refuse, on the host, what a run of so many rounds can't serve."""
    _check_state(parts, state)
    _check_participants(data)
    units = units_lib.partition(state.params, parts.granularity)
    active = data.active & (data.counts > 0)
    clients, columns = active.shape[0], len(units.names)
    _memory.check_stack_memory(
        state.params,
        clients,
        parts.chunk_size,
        parts.mesh,
        stacks=parts.stacked * (1 + (count if parts.keep_updates else 1)),
        advice="aggregation.mean without keep_updates makes no stack of updates. Or run fewer "
        "rounds at once, or fewer clients.",
    )
    if _validate.concrete(active):
        if int(np.sum(np.asarray(active))) < parts.mix.least:
            _axes.check_mixable(active, clients)
        # a draw on the host, to be looked at
        with jax.ensure_compile_time_eval():
            _, origins = mixing.next_draw(
                parts.mix, jax.random.key(0), state.memories.mix, active, columns
            )
            _axes.check_permutations(origins, active, columns)


def _check_state(parts: Any, state: Any) -> None:
    if not isinstance(state, FederationState):
        raise _validate.InputError(
            f"expected a state of this federation; got {type(state).__name__}. Make one with "
            "federation.init(params)."
        )
    own = jax.eval_shape(parts.optimizer.init, state.params)
    came = _validate.form(state.opt_state)
    if came != _validate.form(own):
        raise _validate.InputError(
            f"expected a state of this federation, whose optimizer keeps {_validate.form(own)}; "
            f"got {came}. Make one with this federation's init(params)."
        )


def _check_participants(data: Any) -> None:
    _axes.check_cohort(data)
    if _validate.concrete(data.active) and _validate.concrete(data.counts):
        present = np.asarray(data.active) & (np.asarray(data.counts) > 0)
        if not np.any(present):
            raise _validate.InputError(
                "expected at least one active client with examples; got none."
            )
