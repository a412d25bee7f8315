"""The folder of a checkpointed run: its files, and which of them are good."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from mixjax import _identity, _validate
from mixjax._files import PARTIAL, replacing
from mixjax.types import PRNGKey

LOCK = ".lock"
MISREAD = re.compile(r"[*?\[\\\]]|:(/|$)")
# of the folder's own layout: a later one may have to read an earlier one's
VERSION = 2
NUMBER, SPAN = re.compile(r"\d{8,}"), re.compile(r"\d{8,}-\d{8,}")
# the files tell the key: a copy of the folder must not open them to others
PRIVATE = 0o600


class Store(NamedTuple):
    """The folder of one run.

    Attributes:
      folder: where it is.
      run: what must be the same when the run resumes; None to compare nothing.
      keep: how many states to keep.
    """

    folder: Path
    run: dict[str, Any] | None
    keep: int

    @classmethod
    def open(cls, folder: Path, run: dict[str, Any], keep: int) -> "Store":
        """Make the folder, or take up one that is a run's."""
        folder = folder.absolute()
        _check_run_folder(folder, ("records", "states", LOCK))
        for path in (folder, folder / "records", folder / "states"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        return cls(folder, run, keep)

    def save(
        self, start: int, stop: int, records: list[np.ndarray], state: list[np.ndarray]
    ) -> None:
        """Save the records of rounds start to stop - 1, and the state after them."""
        try:
            with replacing(self._records(start, stop), PRIVATE) as file:
                np.savez(file, *records)
            target = self._state(stop)
            # orbax refuses empty arrays; `load` has them from the form
            leaves = {str(index): leaf for index, leaf in enumerate(state) if leaf.size}
            with _quiet(), contextlib.closing(ocp.PyTreeCheckpointer()) as checkpointer:
                checkpointer.save(target, leaves, force=True)
            for path in (target, *target.rglob("*")):
                path.chmod(PRIVATE if path.is_file() else 0o700)
            content = {**(self.run or {}), "version": VERSION, "rounds": stop}
            content["records"] = self._record_digests(start) | {
                path.name: _digest_file(path) for path in (self._records(start, stop),)
            }
            content["digest"] = _digest_files(target, content)
            with replacing(target.with_suffix(".json"), PRIVATE) as file:
                file.write(json.dumps(content, indent=1).encode())
        # orbax reports a full disk as one of several exceptions
        except Exception as error:
            with contextlib.suppress(OSError):
                self._clean(start)
            kept = "nothing was saved before"
            if start:
                good = self.fault(start) is None
                kept = f"round {start} is kept" if good else "what was saved before is gone too"
            raise OSError(
                f"could not save round {stop} of the run in {self.folder} "
                f"({_reason(error)}); {kept}. Make room or mend the disk, and run the same again "
                "to resume."
            ) from error
        self._forget_old()

    def resume(self, rounds: int) -> int:
        """How many rounds are done; removes what a stopped run left half done.

        Raises:
          InputError: if the folder is another run's, or none of its checkpoints is good.
        """
        bad = []
        for step in reversed(self.steps()):
            fault = self.fault(step)
            if fault is None:
                _check_rounds_left(step, rounds, self.folder)
                for message in bad:
                    warnings.warn(f"{message}; going on from round {step}.", stacklevel=4)
                self._clean(step)
                # a run killed between its last save and this has one too many
                self._forget_old()
                return step
            bad.append(f"skipped the checkpoint of round {step} in {self.folder}: {fault}")
        # a run killed before its first checkpoint has one records file at most
        records = list(self._record_files())
        check_any_checkpoint(bad, len(records) > 1, self.folder)
        self._clean(0)
        return 0

    def _forget_old(self) -> None:
        for step in self.steps()[: -self.keep]:
            self._forget(step)

    def load(self, step: int, form: list[np.ndarray]) -> list[np.ndarray]:
        """The leaves saved after so many rounds, in the order of `form`."""
        with contextlib.closing(ocp.PyTreeCheckpointer()) as checkpointer:
            leaves = checkpointer.restore(self._state(step))
        found = [leaves.get(str(index), like) for index, like in enumerate(form)]
        _check_same_leaves(form, found, self.folder)
        return found

    def check_records(self, like: Any) -> None:
        """Refuse to add records shaped like `like` to others."""
        for _, path in self._chain(None)[:1]:
            _check_same_records(jax.tree.leaves(like), _read(path), path)

    def load_records(self, rounds: int, like: Any) -> Any:
        """The records of all rounds, shaped like a segment's."""
        leaves = [np.empty((rounds, *form.shape[1:]), form.dtype) for form in jax.tree.leaves(like)]
        for start, path in self._chain(rounds):
            for whole, part in zip(leaves, _read(path), strict=True):
                # NumPy's files don't know the dtypes that JAX adds, such as bfloat16
                whole[start : start + len(part)] = part.view(whole.dtype)
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def fault(self, step: int) -> str | None:
        """What makes a checkpoint useless; None if it is good."""
        description = self._state(step).with_suffix(".json")
        try:
            # a pipe would be waited for
            content = json.loads(description.read_bytes() if description.is_file() else b"")
            digest = content.pop("digest")
        except (OSError, ValueError, KeyError, AttributeError):
            return "its description can't be read"
        if content.get("version") != VERSION:
            return f"its format is of version {content.get('version', 1)}, not {VERSION}"
        if _digest_files(self._state(step), content) != digest:
            return "its files are not those that were written"
        if self.run is not None:
            _identity.check_same_run(content, self.run, self.folder)
        end = 0
        for start, path in self._chain(step):
            written = content["records"].get(path.name)
            if start != end or not _whole(path) or _digest_file(path) != written:
                return f"its records, {path.name}, are incomplete or damaged"
            end = _span(path)[1]
        return None if end == step else f"the records of rounds {end} to {step - 1} are missing"

    def steps(self) -> list[int]:
        """Of the descriptions there are; names of other files are none of ours."""
        found = (self.folder / "states").glob("*.json")
        return sorted(int(path.stem) for path in found if NUMBER.fullmatch(path.stem))

    def _record_digests(self, step: int) -> dict[str, str]:
        """Of the records' files that the checkpoint of so many rounds counts on."""
        if not step:
            return {}
        return json.loads(self._state(step).with_suffix(".json").read_bytes())["records"]

    def _record_files(self) -> Iterator[Path]:
        found = (self.folder / "records").glob("*.npz")
        return (path for path in found if SPAN.fullmatch(path.stem))

    def _state(self, step: int) -> Path:
        return self.folder / "states" / f"{step:08d}"

    def _records(self, start: int, stop: int) -> Path:
        return self.folder / "records" / f"{start:08d}-{stop:08d}.npz"

    def _chain(self, rounds: int | None) -> list[tuple[int, Path]]:
        """The records' files up to some round, or all, in order, with their first round."""
        files = sorted(self._record_files())
        return [
            (_span(path)[0], path) for path in files if rounds is None or _span(path)[1] <= rounds
        ]

    def _forget(self, step: int) -> None:
        _remove(self._state(step).with_suffix(".json"))
        _remove(self._state(step))

    def _clean(self, done: int) -> None:
        """Remove what is newer than the last good checkpoint, or was never finished."""
        for step in self.steps():
            if step > done:
                self._forget(step)
        for path in (self.folder / "states").iterdir():
            ours = NUMBER.match(path.name)
            if ours and path.is_dir() and not path.with_name(f"{path.name}.json").exists():
                _remove(path)
        for path in list(self._record_files()):
            if _span(path)[1] > done:
                _remove(path)
        for path in self.folder.glob(f"*/*{PARTIAL}"):
            _remove(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without orbax's log, which has a traceback for each thread that meets a full disk."""
    logger = logging.getLogger("absl")

    # a filter of this call's own: whatever other threads do, it goes when the call ends
    def nothing(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


def _reason(error: Exception) -> str:
    """The system's words for why writing failed, if it was the system."""
    text = f"{type(error).__name__}: {error}"
    known = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)
    said = [os.strerror(number) for number in known if os.strerror(number) in text]
    return said[0] if said else text.splitlines()[0][:200]


def _read(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[f"arr_{index}"] for index in range(len(file.files))]


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def untyped(tree: Any) -> Any:
    """The tree with typed keys as their data."""
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf), tree
    )


def pack(tree: Any) -> list[np.ndarray]:
    """The leaves as arrays of the host; typed keys as their data."""
    return [np.asarray(leaf) for leaf in jax.device_get(jax.tree.leaves(untyped(tree)))]


def unpack(leaves: list[np.ndarray], like: Any) -> Any:
    """The tree that `pack` made leaves of, on the default device."""
    typed = [
        jax.random.wrap_key_data(jnp.asarray(leaf), impl=jax.random.key_impl(form))
        if _is_key(form)
        else jnp.asarray(leaf)
        for leaf, form in zip(leaves, jax.tree.leaves(like), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), typed)


def identity(key: PRNGKey, state: Any, config: dict[str, Any], data: Any, made: Any) -> Any:
    """What a run is compared by when it resumes."""
    return {
        "config": config,
        "key_kind": str(jax.random.key_impl(key)),
        "key": _identity.digest_arrays(pack(key)),
        "start": _identity.digest_arrays(pack(state)),
        "data": _identity.digest_arrays(pack(data)),
        "environment": _identity.environment(),
        "federation": {} if made is None else _identity.describe(made),
    }


def _digest_files(folder: Path, content: dict[str, Any]) -> str:
    """Of a folder's files and of what is said about them."""
    digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(_digest_file(path).encode())
    return digest.hexdigest()


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _span(path: Path) -> tuple[int, int]:
    start, stop = path.stem.split("-")
    return int(start), int(stop)


def _remove(path: Path) -> None:
    """Remove what is there, whatever it is; a link, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _whole(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        return False


def _check_same_leaves(form: Sequence[Any], found: Sequence[Any], folder: Path) -> None:
    for index, (like, leaf) in enumerate(zip(form, found, strict=True)):
        if (like.shape, like.dtype) != (leaf.shape, leaf.dtype):
            raise _validate.InputError(
                f"expected a state like the one saved in {folder}; got {like.dtype}"
                f"{list(like.shape)} for leaf {index}, where {leaf.dtype}{list(leaf.shape)} was "
                "saved."
            )


def _check_same_records(forms: Sequence[Any], parts: Sequence[Any], path: Path) -> None:
    new = [(form.dtype.itemsize, form.shape[1:]) for form in forms]
    old = [(part.dtype.itemsize, part.shape[1:]) for part in parts]
    if new != old:
        shapes = [[list(shape) for _, shape in kind if len(shape)][:3] for kind in (old, new)]
        raise _validate.InputError(
            f"expected records shaped like those of earlier rounds in {path}, {len(old)} arrays "
            f"{shapes[0]}...; got {len(new)} arrays {shapes[1]}.... Resume with the same "
            "federation and as many clients, padding included."
        )


def check_name(folder: Path) -> None:
    """Refuse a path that orbax takes for another one, or for a pattern."""
    name = os.fsencode(folder).decode(errors="replace")
    if name != str(folder) or MISREAD.search(name):
        raise _validate.InputError(
            f"expected a folder for the run whose path is Unicode, without any of * ? [ ] \\ and "
            f"without a colon at a part's end; got {name!r}. Rename it, or name another."
        )


def _check_run_folder(folder: Path, parts: Sequence[str]) -> None:
    check_name(folder)
    if folder.exists() and not folder.is_dir():
        raise _validate.InputError(f"expected a folder for the run; {folder} is a file.")
    for part in ("records", "states"):
        if (folder / part).exists() and not (folder / part).is_dir():
            raise _validate.InputError(
                f"expected a run's folder, where {part!r} is a folder; it is a file in {folder}. "
                "Remove it, or name another folder."
            )
    others = [path.name for path in folder.iterdir()] if folder.exists() else []
    # what file managers leave behind
    others = [name for name in others if not name.startswith(".")]
    others = sorted(set(others) - set(parts))
    if others:
        raise _validate.InputError(
            f"expected a new or empty folder, or a run's; {folder} holds {others[0]!r}. Name a "
            "folder of the run's own: it is closed to other users."
        )


def _check_rounds_left(done: int, rounds: int, folder: Path) -> None:
    if done > rounds:
        raise _validate.InputError(
            f"expected at least the {done} rounds that the run in {folder} has done; got "
            f"{rounds}. Ask for as many or more, or start afresh in another folder."
        )


def check_any_checkpoint(faults: Sequence[str], lost: bool, folder: Path) -> None:
    """Refuse a folder where work was done of which no checkpoint is good."""
    if faults or lost:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise _validate.InputError(
            f"found no good checkpoint in {folder}.{listed}\n"
            "Restore the folder from a copy, or delete it to start afresh."
        )
