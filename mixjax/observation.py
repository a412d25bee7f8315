"""What the server sees of a round."""

from typing import Any, NamedTuple

from jaxtyping import PyTree

from mixjax.types import Active, Updates


class Observation(NamedTuple):
    """The server's whole view of a round: all that an attack may use.

    Attributes:
      active: which slots were forwarded.
      measures: the attack's measure of each forwarded update, slot by slot: arrays
        `[clients, units, ...]`; None for an attack without a measure.
      updates: the forwarded updates, where an attack or the user asked for them; else None.
    """

    active: Active
    measures: PyTree[Any]
    updates: Updates | None
