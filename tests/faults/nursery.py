"""Small runs in children that are killed: `python -m tests.faults.nursery CACHE`.

Reads lines `PROGRAM FOLDER SIGNAL CALL PART SECONDS`, forks a child for each and tells how it
ended, and what it was writing when the signal came. The child runs a federation with a checkpoint
each round (`run`), or the evaluation (`evaluate`). It sends itself the signal at its CALL-th write,
rename or removal of a file whose path has PART in it, or is sent it after SECONDS; 0 for never.

Forking a process that has imported JAX, but not started it, saves the seconds of the imports;
children recall from CACHE what the first has computed.
"""

import builtins
import contextlib
import io
import os
import pathlib
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mixjax as mx
from experiments import cli, figures, metrics, tasks, training
from experiments import evaluate as evaluate_lib
from tests.faults.remembered import remembered

ROUNDS = 8
OPTIONS = "--defences none shuffle --attacks passive --rounds 2 --seeds 2"
OPTIONS += " --checkpoint-every 1 --resume --out"

FIGURES = ("utility", "layers")


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


def evaluate(out: Path) -> None:
    """The evaluation as its command runs it, of a task that is trained in no time."""
    sys.argv = ["evaluate", *OPTIONS.split(), str(out)]
    sys.stdout = sys.stderr = io.StringIO()
    cli.command(evaluate_lib.main, evaluate_lib.Config, "experiments.evaluate", devices=False)


def load(folder: Path | None, *unused: Any) -> mx.data.Dataset:
    """Eight people, each with a value of an attribute that their examples show."""
    rng = np.random.default_rng(0)
    values = np.arange(8) % 2

    def examples(count: int) -> mx.data.ClientData:
        parts = []
        for value in values:
            inputs = rng.normal(value, 1, size=(count, 3)).astype(np.float32)
            parts.append(mx.data.Examples(inputs, (inputs[:, 0] > 0.5).astype(np.int32)))
        return mx.data.stack(parts)

    attribute = mx.data.Attribute("value", ("low", "high"), values)
    return mx.data.Dataset(examples(4), examples(2), attribute, np.arange(8), ("no", "yes"))


COMPUTED = {
    run: [(mx.federation, "run")],
    evaluate: [
        (tasks, "load"),
        (training, "split_people"),
        (training.Split, "padded"),
        (training, "initial"),
        (training, "_train"),
        (metrics, "behind_mix"),
        (metrics, "rows"),
    ],
}
"""Pure functions of each program, by module and name."""
TINY = tasks.Task(
    load=load,
    model=lambda classes: mx.models.MLP(classes=classes, hidden=(4,)),
    auxiliary=2,
    epochs=1,
    batch_size=4,
    learning_rate=0.1,
    noise=(0.1,),
    clip_norm=4.0,
)


def signal_at(call: int, part: str, number: int, tell: int) -> None:
    """Let the signal come before or amid the process's `call`-th write, rename or removal.

    Args:
      call: counted from 1.
      part: of a file's path, if only such files count.
      number: the signal's.
      tell: a file descriptor to write the path of the file at hand to.
    """
    left = call

    def path_of(file: Any) -> str:
        with contextlib.suppress(OSError):  # Linux only
            file = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else file
        return str(file)

    def is_due(file: Any) -> bool:
        nonlocal left
        left -= part in path_of(file)
        return left == 0

    def send(file: Any) -> None:
        nonlocal left
        left = -1
        os.write(tell, path_of(file).encode())
        os.kill(os.getpid(), number)

    def deadly(fn: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if left > 0 and is_due(args[0]):
                send(args[0])
            return fn(*args, **kwargs)

        return wrapped

    for module, names in (
        (os, "replace rename fsync truncate unlink rmdir mkdir"),
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
            self.writes += 1
            # an archive of records has forty: they would crowd out the file that matters most
            if left <= 0 or self.writes > 2 or not is_due(self.file.name):
                return self.file.write(content)
            half = self.file.write(content[: len(content) // 2])
            self.file.flush()
            send(self.file.name)
            return half + self.file.write(content[half:])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *details: Any) -> None:
            self.file.close()

    def tearing(opened: Callable[..., Any]) -> Callable[..., Any]:
        def torn(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = opened(path, mode, *args, **kwargs)
            return Torn(file) if {"w", "x", "a"} & set(mode) else file

        return torn

    for module in (builtins, pathlib.Path):
        module.open = tearing(module.open)


def main() -> None:
    # imported here, and JAX not started: every child has it ready
    mx.checkpoint.latest(".")
    tasks.TASKS["watch"] = TINY
    figures.FIGURES = {name: figures.FIGURES[name] for name in FIGURES}
    # a kill leaves nothing that passes for a checkpoint and is none
    warnings.filterwarnings("error", message="skipped the checkpoint")
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", sys.argv[1])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # also where a shell's background job ignores it; a child hears it once it can leave
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    for line in sys.stdin:
        program, folder, number, call, part, seconds = line.split(" ")
        heard, tell = os.pipe()
        child = os.fork()
        if child == 0:
            if int(call):
                signal_at(int(call), part, int(number), tell)
            live({"run": run, "evaluate": evaluate}[program], Path(folder))
        os.close(tell)
        if float(seconds):
            time.sleep(float(seconds))
            # until it is waited for, a child that has ended keeps its id
            os.kill(child, int(number))
        _, status = os.waitpid(child, 0)
        with open(heard) as told:
            print(os.waitstatus_to_exitcode(status), told.read(), flush=True)


def live(program: Callable[[Path], None], folder: Path) -> NoReturn:
    """A child's life."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        for module, name in COMPUTED[program]:
            setattr(module, name, remembered(getattr(module, name), Path(sys.argv[1])))
        program(folder)
        os._exit(0)
    except SystemExit as error:
        os._exit(int(error.code or 0))
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)


if __name__ == "__main__":
    main()
