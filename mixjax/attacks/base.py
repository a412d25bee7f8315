"""The contract of an attack."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float

from mixjax.client import LocalTraining
from mixjax.observation import Observation
from mixjax.types import Directions, Params, PRNGKey


class Probe(NamedTuple):
    """What a server prepares before a round.

    Attributes:
      params: the model it sends to the clients.
      directions: the reference updates it will compare theirs with.
    """

    params: Params
    directions: Directions


@runtime_checkable
class Prepare(Protocol):
    """Makes the probe of a round from the server's model and the clients' own training."""

    def __call__(self, key: PRNGKey, params: Params, local: LocalTraining, /) -> Probe: ...


@runtime_checkable
class Score(Protocol):
    """Scores each slot for each attribute value, from what the server sees."""

    def __call__(self, observation: Observation, /) -> Float[Array, "clients attributes"]: ...


class Attack(NamedTuple):
    """A server that infers an attribute from updates.

    Attributes:
      prepare: `(key, params, local) -> Probe`, before the round.
      score: `observation -> scores[slots, attributes]`, after it. It never sees the truth.
    """

    prepare: Prepare
    score: Score
