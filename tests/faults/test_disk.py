"""A full disk loses nothing that was saved before, and is told in a sentence."""

import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixjax as mx
from experiments import results

KEY = jax.random.key(0)
START = jnp.asarray(np.random.default_rng(0).normal(size=30_000), jnp.float32)


def run(folder: Path, rounds: int) -> Any:
    def advance(state: Any, rounds: int) -> Any:
        return state + 1, jnp.tile(state[None], (rounds, 1))

    return mx.checkpoint.run_segments(folder, KEY, advance, START, rounds, every=1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB."""
    options = ["-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(tmp_path)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file may grow past 60 kB."""
    size = 60_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_keeps_the_rounds_before(
    small_disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = small_disk / "run"
    message = r"could not save round (\d+) .*No space left on device\); round \d+ is kept. Make"
    with pytest.raises(OSError, match=message):
        run(folder, 50)
    done = mx.checkpoint.latest(folder)
    assert done is not None
    assert 1 <= done < 50
    # what is kept can be read, and nothing else is left over
    state, records = run(folder, done)
    np.testing.assert_array_equal(records[-1] + 1, state)
    # with more room, it goes on
    state, records = run(shutil.copytree(folder, tmp_path_factory.mktemp("room") / "run"), done + 2)
    assert len(records) == done + 2
    np.testing.assert_allclose(state, np.asarray(START) + done + 2, rtol=1e-5, atol=1e-5)


def test_a_failed_first_save_says_that_nothing_is_kept(tmp_path: Path, small_files: int) -> None:
    assert START.nbytes > small_files
    with pytest.raises(OSError, match=r"File too large.*nothing was saved before"):
        run(tmp_path / "run", 2)
    assert not list((tmp_path / "run").glob("*/*"))


def test_rows_are_added_whole_or_not_at_all(tmp_path: Path, small_files: int) -> None:
    path = tmp_path / "rounds.jsonl"
    results.append(path, [{"round": 1}])
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"File too large.*13 bytes before are kept.*--resume"):
        results.append(path, [{"text": "x" * small_files}])
    assert path.read_bytes() == before
