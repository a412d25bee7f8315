"""Runs that survive: saved every few rounds, resumed to the same bits.

A run's folder holds

    records/00000000-00000005.npz   the records of rounds 0 to 4, written once
    states/00000005/                the state after 5 rounds, by orbax
    states/00000005.json            written last: what makes that state valid

Each appears by renaming, so a kill at any moment costs at most the rounds since the last save.

The state is saved with the run's key, from which every random number follows: the clients'
examples and noise, and the permutations of every mixing. Whoever reads the folder can undo the
mixing; it is made for its owner alone (mode 0700) and must not be shared.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import filelock
import jax
import numpy as np

from mixjax import _identity, _signals, _store, _validate
from mixjax import federation as federation_lib
from mixjax._files import replacing as replacing
from mixjax._signals import stop_on_signals as stop_on_signals
from mixjax.data import ClientData
from mixjax.federation import Federation, FederationState, Record
from mixjax.types import PRNGKey

State = TypeVar("State")


def run(
    folder: str | os.PathLike[str],
    key: PRNGKey,
    federation: Federation,
    state: FederationState,
    data: ClientData,
    rounds: int,
    *,
    every: int,
    minutes: float | None = None,
    keep: int = 2,
    config: dict[str, Any] | None = None,
) -> tuple[FederationState, Record]:
    """`federation.run` in segments, saved in `folder`; called again, it goes on from there.

    See `run_segments` for the arguments it shares with this.

    Args:
      folder: the run's own, new or empty at first.
      key: the run's key.
      federation: see `federation.fedavg`.
      state: where the run starts, also when it resumes.
      data: the cohort. It is not saved: a resumed run must be given the same, and a digest of it
        is compared, as are the federation, and JAX's version and flags.
      rounds: how many in all. May grow from call to call.
      every: rounds of a segment.
      minutes: see `run_segments`.
      keep: see `run_segments`.
      config: see `run_segments`.

    Returns:
      The last state, and the records of all rounds as NumPy arrays: those of
      `federation.run(key, federation, state, data, rounds)`.

    Guarantees: a run that was stopped, however often, ends with the same bits as one that was
    not. With another chunk size or mesh after a stop the clients' randomness and the origins
    stay the same, and the rest equal up to the order of summation.
    """

    def advance(state: Any, count: int) -> tuple[Any, Any]:
        return federation_lib.run(key, federation, state, data, count)

    options = {"every": every, "minutes": minutes, "keep": keep, "config": config, "data": data}
    return run_segments(folder, key, advance, state, rounds, made_by=federation.step, **options)


def run_segments(
    folder: str | os.PathLike[str],
    key: PRNGKey,
    advance: Callable[[State, int], tuple[State, Any]],
    state: State,
    rounds: int,
    *,
    every: int,
    minutes: float | None = None,
    keep: int = 2,
    config: dict[str, Any] | None = None,
    data: Any = None,
    made_by: Any = None,
) -> tuple[State, Any]:
    """Run rounds by calling `advance` once for each segment, and save what it returns.

    SIGTERM and the first SIGINT end the run after the segment at hand, be it the last: it is
    saved, a line on the standard error says so, and the process exits with 128 plus the signal's
    number (SystemExit). A second SIGINT leaves at once.

    Args:
      folder: the run's own, new or empty at first.
      key: saved, and compared on resuming.
      advance: `(state, rounds) -> (state, records)`, the records with a leading rounds axis; of
        one compiled program for all segments. It gets the state on the default device.
      state: a pytree of arrays where the run starts, also when it resumes.
      rounds: how many in all.
      every: rounds of a segment. Resume with the same number to get the same bits: compilers
        may order the sums of another program differently.
      minutes: save after the first segment that ends so long after the last save; after each
        segment by default.
      keep: how many states to keep, the last ones.
      config: what the run depends on, as JSON values; saved, and compared on resuming.
      data: a pytree of arrays that the run depends on too; compared on resuming by a digest.
      made_by: the function or component that plays the rounds; compared on resuming by what it
        and its closures hold, arrays by digests. `run` gives the federation's.

    Returns:
      The last state, and the records of all rounds as NumPy arrays.

    Raises:
      InputError: for another key, starting state, config, data, federation, version or flag of
        JAX than the folder's, a folder without a usable checkpoint, one that another process
        runs in, or a name that orbax misreads (with a backslash or any of `*?[]`).
      OSError: when saving fails, such as on a full disk; what was saved before is kept. Or when
        the folder was moved, removed or replaced meanwhile: nothing is written to another's.
    """
    _validate.check_key(key)
    for value, name in ((rounds, "rounds"), (every, "every"), (keep, "keep")):
        _validate.check_positive(value, name, integer=True)
    if minutes is not None:
        _validate.check_non_negative(minutes, "minutes")
    settings = _check_json({} if config is None else config, "config")
    now = _store.unpack(_store.pack(state), state)
    # tracing it once refuses bad input before anything is written, and tells the records' shapes
    like = jax.eval_shape(lambda state: _store.untyped(advance(state, every)[1]), now)

    identity = _store.identity(key, state, settings, data, made_by)
    store = _store.Store.open(Path(folder), identity, keep)
    with exclusive(store.folder) as check_held:
        done = store.resume(rounds)
        if done:
            store.check_records(like)
            now = _store.unpack(store.load(done, _store.pack((key, state))), (key, state))[1]
        leaving = f"saving the run in {store.folder} after this segment"
        with stop_on_signals(leaving) as stopped:
            unsaved: list[list[np.ndarray]] = []
            saved, saved_at = done, time.monotonic()
            while done < rounds:
                count = min(every, rounds - done)
                now, records = advance(now, count)
                now = _store.unpack(_store.pack(now), state)
                unsaved.append(_store.pack(records))
                done += count
                due = time.monotonic() - saved_at >= 60 * (minutes or 0)
                # asked once: a signal that comes after this must not leave what is unsaved
                number = stopped()
                if due or done == rounds or number:
                    check_held()
                    columns = [np.concatenate(parts) for parts in zip(*unsaved, strict=True)]
                    store.save(saved, done, columns, _store.pack((key, now)))
                    unsaved, saved, saved_at = [], done, time.monotonic()
                if number:
                    _signals.tell(
                        f"stopped after round {done} of {rounds}, which is saved in "
                        f"{store.folder}. Run the same again to resume."
                    )
                    raise SystemExit(128 + number)
        check_held()
        return now, store.load_records(rounds, like)


def latest(folder: str | os.PathLike[str]) -> int | None:
    """The number of rounds that the last checkpoint of a run's folder has; None without one."""
    return max(_store.Store(Path(folder), None, 0).steps(), default=None)


def restore(
    folder: str | os.PathLike[str], key: PRNGKey, state: State
) -> tuple[PRNGKey, State, int]:
    """The last good checkpoint of a run, to look at or to use elsewhere.

    Args:
      folder: a run's.
      key: any of the run key's kind.
      state: any with the structure, shapes and dtypes of the run's, such as its start.

    Returns:
      The run's key, its state, and the number of rounds done.

    Raises:
      InputError: if the folder has no good checkpoint, or a name that orbax misreads.
    """
    store = _store.Store(Path(folder).absolute(), None, 0)
    _store.check_name(store.folder)
    good = [step for step in store.steps() if store.fault(step) is None]
    _store.check_any_checkpoint([], not good, store.folder)
    form = (key, state)
    return *_store.unpack(store.load(good[-1], _store.pack(form)), form), good[-1]


def check_config(saved: dict[str, Any], config: dict[str, Any], where: str) -> None:
    """Refuse to resume under another config, and say what differs, key by key.

    Args:
      saved: the config that results were made under.
      config: the present one.
      where: the file or folder of the saved one, for the message.

    Raises:
      InputError: if they differ as JSON.
    """
    _identity.check_same_config(saved, _check_json(config, "config"), where)


def _check_json(value: Any, what: str) -> Any:
    """The value as JSON gives it back: tuples as lists, keys as strings."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise _validate.InputError(
            f"expected JSON values in {what}; {error}. Put numbers, texts, lists and dicts there."
        ) from None


def conditions(data: Any) -> dict[str, Any]:
    """What results depend on besides their config, for a program that keeps a folder of its own.

    Args:
      data: a pytree of arrays.

    Returns:
      JSON values, to be compared by `check_config`: under `data` a digest of the arrays' bits,
      shapes and dtypes, under `environment` JAX's versions and those of its flags that change
      bits.
    """
    digest = _identity.digest_arrays(_store.pack(data))
    return {"data": digest, "environment": _identity.environment()}


@contextlib.contextmanager
def exclusive(folder: str | os.PathLike[str]) -> Iterator[Callable[[], None]]:
    """Keep other processes out of a run's folder, by a lock that ends with the process.

    Args:
      folder: an existing one.

    Yields:
      A function to call before anything is written: it raises OSError once the folder of that
      name is no longer the locked one, since it was moved, removed or replaced, or its lock was.

    Raises:
      InputError: if the folder is taken.
      OSError: if it can't be locked, such as on a read-only file system.
    """
    path, process = Path(folder).absolute() / _store.LOCK, os.getpid()
    lock = filelock.FileLock(path, timeout=0, mode=_store.PRIVATE)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise _validate.InputError(
            f"expected a folder that no other process runs in; {folder} is in use. Wait for it, "
            "or name another folder."
        ) from None
    except OSError as error:
        raise OSError(
            f"could not lock {folder} ({error.strerror}). Name a folder that can be written to, "
            f"and where {_store.LOCK} is a file or not there yet."
        ) from error
    locked = path.stat()

    def check() -> None:
        if not path.parent.exists():
            raise OSError(
                f"could not save to {folder}: it was moved or removed while in use, and what was "
                "saved before with it. Put it back, and run the same again to resume."
            )
        if not (path.exists() and os.path.samestat(path.stat(), locked)):
            raise OSError(
                f"could not save to {folder}: it was replaced, or {_store.LOCK} removed, while in "
                "use, and another process may be at work there. Look where the folder is that "
                "was saved to, and run the same again with it to resume."
            )

    try:
        yield check
    finally:
        # a forked child that leaves by here would open the folder to others
        if os.getpid() == process:
            lock.release()
