"""Where results come from: data, versions, machines and hours.

What decides results stands in `config.json` and may not change while a folder is continued. What
doesn't (the Python, the number of cores, the hours) may, and is kept for each session.
"""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax

import mixjax as mx
from experiments import planted, results

SESSIONS = "sessions.json"


def environment() -> dict[str, Any]:
    """Where numbers are made."""
    return {
        "mixjax": mx.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpus": os.cpu_count(),
    }


def of_data(dataset: mx.data.Dataset, folder: Path | None) -> dict[str, Any]:
    """What data it is: digests of what was loaded, and whether it is synthetic.

    Args:
      dataset: as loaded; where every seed deals its own, that of the first.
      folder: where from; None for the set's usual place.
    """
    attribute = dataset.attribute

    def digest(tree: Any) -> str:
        return mx.checkpoint.conditions(tree)["data"]

    return {
        "planted": planted.is_planted(folder),
        "participants": len(dataset.people),
        "pool": len(np.unique(dataset.people)),
        "examples": digest((dataset.train, dataset.test)),
        "people": digest(np.asarray(dataset.people)),
        "attribute": attribute.name,
        "values": list(attribute.values),
        "of_participants": digest(np.asarray(attribute.of_client)),
        "classes": list(dataset.classes),
    }


def identity(options: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """All that decides results, for `config.json`.

    Args:
      options: see `results.config_dict`.
      data: see `of_data`.
    """
    here = environment()
    jax_itself = mx.checkpoint.conditions(())["environment"]
    packages = ("mixjax", "flax", "numpy")
    return {
        **options,
        "data": data,
        "environment": {
            "versions": {**jax_itself["versions"], **{name: here[name] for name in packages}},
            "flags": {
                **jax_itself["flags"],
                "default_prng_impl": str(jax.random.key_impl(jax.random.key(0))),
                "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
            },
            "device": here["device"],
            "devices": here["devices"],
        },
    }


class Sessions:
    """The processes that worked on a folder: where, and for how many seconds.

    Kept in `sessions.json`, which is written again after each trajectory: a kill loses the
    seconds of the one at hand.
    """

    def __init__(self, out: Path, started: float) -> None:
        """Begin one.

        Args:
          out: the folder.
          started: by `time.perf_counter`.

        Raises:
          InputError: if those before can't be read.
        """
        self._path = out / SESSIONS
        self._started = started
        try:
            text = self._path.read_text() if self._path.exists() else "[]"
            self._before = [dict(session) for session in json.loads(text)]
            sum(session["seconds"] for session in self._before)
        except (ValueError, TypeError, KeyError):
            raise mx.InputError(
                f"expected a list of sessions with their seconds in {self._path}; it is damaged. "
                "Put the file right from a copy, or use --overwrite to start afresh."
            ) from None

    def listed(self) -> list[dict[str, Any]]:
        """All of them; the last is this one so far."""
        seconds = round(time.perf_counter() - self._started, 1)
        return [*self._before, {"environment": environment(), "seconds": seconds}]

    def save(self) -> None:
        """Write them down."""
        results.write_json(self._path, self.listed())
