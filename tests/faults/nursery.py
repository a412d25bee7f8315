"""A small run in children that are killed: `python -m tests.faults.nursery CACHE`.

Reads lines `FOLDER CALL SECONDS`, forks a child for each and tells how it ended. The child runs a
federation with a checkpoint each round. It kills itself at its CALL-th write, rename or removal
of a file, or is killed after SECONDS; 0 for never.

Forking a process that has imported JAX, but not started it, saves the seconds of the imports.
"""

import builtins
import os
import pathlib
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mixjax as mx

ROUNDS = 8


def loss_fn(params: Any, batch: Any, key: Any) -> jax.Array:
    del key
    return jnp.square(batch @ params["in"]["w"] + params["out"]["w"])


def run(folder: Path) -> None:
    """The whole run, or what is left of it; its result is `result.npz` beside the folder."""
    rng = np.random.default_rng(0)
    data = mx.data.stack([rng.normal(size=(2, 3)).astype(np.float32) for _ in range(3)])
    local = mx.client.local_training(loss_fn, optax.sgd(0.1), batch_size=2)
    federation = mx.federation.fedavg(local, defence=mx.defences.mixnn())
    state = federation.init({"in": {"w": jnp.ones(3)}, "out": {"w": jnp.float32(1)}})
    last, records = mx.checkpoint.run(
        folder, jax.random.key(1), federation, state, data, ROUNDS, every=1, config={"a": 1}
    )
    np.savez(folder.with_suffix(".npz"), *jax.tree.leaves((last, records)))


def kill_at(call: int) -> None:
    """Let the process die before or amid its `call`-th write, rename or removal."""
    left = call

    def deadly(fn: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return fn(*args, **kwargs)

        return wrapped

    for module, names in (
        (os, "replace rename fsync unlink rmdir mkdir"),
        (shutil, "rmtree"),
        (np, "savez"),
    ):
        for name in names.split():
            setattr(module, name, deadly(getattr(module, name)))

    class Torn:
        """Half of the fatal write, a file's first or second, reaches the file."""

        def __init__(self, file: Any) -> None:
            self.file, self.writes = file, 0

        def write(self, content: Any) -> int:
            nonlocal left
            self.writes += 1
            # an archive of records has forty: they would crowd out the file that matters most
            left -= self.writes <= 2
            if left == 0 and self.writes <= 2:
                self.file.write(content[: len(content) // 2])
                self.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return self.file.write(content)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *details: Any) -> None:
            self.file.close()

    def tearing(opened: Callable[..., Any]) -> Callable[..., Any]:
        def torn(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = opened(path, mode, *args, **kwargs)
            return Torn(file) if {"w", "x"} & set(mode) else file

        return torn

    for module in (builtins, pathlib.Path):
        module.open = tearing(module.open)


def main() -> None:
    # imported here, and JAX not started: every child has it ready
    mx.checkpoint.latest(".")
    # a kill leaves nothing that passes for a checkpoint and is none
    warnings.filterwarnings("error", message="skipped the checkpoint")
    jax.config.update("jax_compilation_cache_dir", sys.argv[1])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    for line in sys.stdin:
        folder, call, seconds = line.rsplit(" ", 2)
        child = os.fork()
        if child == 0:
            if int(call):
                kill_at(int(call))
            run(Path(folder))
            os._exit(0)
        if float(seconds):
            time.sleep(float(seconds))
            # until it is waited for, a child that has ended keeps its id
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
