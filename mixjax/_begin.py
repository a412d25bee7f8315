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
        updates=_update_bytes(parts, state.params, clients, count),
        beside=_memory.tree_bytes((state, data)) + 4 * count * clients * columns,
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


def _update_bytes(parts: Any, params: Any, clients: int, count: int) -> int:
    """The stacks of updates at a run's peak, as compiled programs plan them; at most that much.

    A leaf's memory is free once it is mixed, unless whole updates are needed at once.
    """
    if not parts.stacked:
        return 0
    stack = clients * _memory.tree_bytes(params)
    leaf = clients * max(_memory.tree_bytes(leaf) for leaf in jax.tree.leaves(params))
    additive, whole = parts.aggregate.additive, parts.aggregate.whole
    if not parts.keep_updates:
        return stack + (stack if whole else leaf)
    if count == 1:
        return stack + (leaf if additive else stack)
    # the records of all rounds besides
    return (count + 1) * stack + (0 if additive else stack if whole else leaf)


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
