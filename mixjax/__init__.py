"""Federated learning with mixing, simulated and attacked."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from mixjax import aggregation as aggregation
from mixjax import attacks as attacks
from mixjax import client as client
from mixjax import cohort as cohort
from mixjax import data as data
from mixjax import defences as defences
from mixjax import faults as faults
from mixjax import federation as federation
from mixjax import measures as measures
from mixjax import mixing as mixing
from mixjax import observation as observation
from mixjax import ops as ops
from mixjax import participation as participation
from mixjax import records as records
from mixjax import rescaling as rescaling
from mixjax import rounds as rounds
from mixjax import sharding as sharding
from mixjax import shares as shares
from mixjax import types as types
from mixjax import units as units
from mixjax._validate import InputError as InputError
from mixjax.faults import BrokenUpdateError as BrokenUpdateError
from mixjax.mixing import mix as mix

if TYPE_CHECKING:
    from mixjax import accounting as accounting
    from mixjax import checkpoint as checkpoint
    from mixjax import datasets as datasets
    from mixjax import evaluation as evaluation
    from mixjax import models as models

__version__ = "0.1.0"

__all__ = [
    "BrokenUpdateError",
    "InputError",
    "accounting",
    "aggregation",
    "attacks",
    "checkpoint",
    "client",
    "cohort",
    "data",
    "datasets",
    "defences",
    "evaluation",
    "faults",
    "federation",
    "measures",
    "mix",
    "mixing",
    "models",
    "observation",
    "ops",
    "participation",
    "records",
    "rescaling",
    "rounds",
    "sharding",
    "shares",
    "types",
    "units",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> ModuleType:
    # flax, orbax and scipy, which only these need, take longer to import than the rest of mixjax
    if name in ("accounting", "checkpoint", "datasets", "evaluation", "models"):
        return importlib.import_module(f"mixjax.{name}")
    raise AttributeError(f"module 'mixjax' has no attribute {name!r}")
