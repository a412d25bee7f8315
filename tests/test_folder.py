"""A run's folder that others move, replace, unlock, fill with other things or name strangely."""

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixjax as mx
from experiments import cli, evaluate, figures, results, resume

HERE = {"device": "a device"}


def run(folder: Path, rounds: int, meanwhile: Callable[[], Any] = int, key: int = 0) -> np.ndarray:
    """A run's records; `meanwhile` happens in its third round."""

    def advance(state: Any, count: int) -> tuple[Any, Any]:
        if not isinstance(state, jax.core.Tracer) and state == 2:
            meanwhile()
        return state + count, state + jnp.arange(count)

    start = jnp.int32(0)
    return mx.checkpoint.run_segments(folder, jax.random.key(key), advance, start, rounds, every=1)[
        1
    ]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_does_not_write_into_the_one_that_took_its_place(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "moved"

    def replace() -> None:
        folder.rename(elsewhere)
        run(folder, 2, key=1)
        theirs.update(content(folder))

    theirs: dict[str, bytes] = {}
    with pytest.raises(OSError, match=r"it was replaced, or \.lock removed.*another process may"):
        run(folder, 5, replace)
    assert content(folder) == theirs
    np.testing.assert_array_equal(run(elsewhere, 5), np.arange(5))


def test_two_processes_do_not_share_a_folder_that_was_unlocked(tmp_path: Path) -> None:
    def unlock() -> None:
        (tmp_path / ".lock").unlink()
        run(tmp_path, 4)

    with pytest.raises(OSError, match=r"\.lock removed, while in use"):
        run(tmp_path, 5, unlock)
    np.testing.assert_array_equal(run(tmp_path, 5), np.arange(5))


def test_a_folder_that_is_moved_keeps_what_was_saved(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "moved"
    with pytest.raises(OSError, match="moved or removed while in use, and what was saved before"):
        run(folder, 5, lambda: folder.rename(elsewhere))
    assert not folder.exists()
    assert mx.checkpoint.latest(elsewhere) == 2
    np.testing.assert_array_equal(run(elsewhere, 5), np.arange(5))


KINDS: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to a folder": lambda path: path.symlink_to(path.parents[2]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["states/00000003.json", "states/00000003", "records/00000002-00000003.npz"]
)
def test_what_is_no_file_costs_a_round_and_is_removed(name: str, kind: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    folder = tmp_path / "run"
    whole = run(folder, 4)
    shutil.rmtree(folder)
    run(folder, 3)
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    KINDS[kind](path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "skipped the checkpoint of round 3")
        np.testing.assert_array_equal(run(folder, 4), whole)
    assert path.is_file() or path.is_dir()
    assert not path.is_symlink()
    assert precious.read_text() == "years of work"


def test_a_kept_copy_by_hard_links_stays_as_it_is(tmp_path: Path) -> None:
    """As `cp -al` and backup programs make them."""
    folder, backup = tmp_path / "run", tmp_path / "backup"
    run(folder, 3)
    shutil.copytree(folder, backup, copy_function=os.link)
    before = content(backup)
    (folder / "states" / "00000003.json").unlink()
    run(folder, 5)
    assert content(backup) == before
    np.testing.assert_array_equal(run(backup, 5), np.arange(5))


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("elsewhere")])
def test_a_lock_that_is_no_file_is_told(make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path / ".lock")
    with pytest.raises(OSError, match=r"could not lock .* \(.+\)\. Name a folder that can be"):
        run(tmp_path, 3)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["rounds.jsonl", "config.json", "summary.json", "sessions.json"])
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_results_that_are_no_files_are_told(
    name: str, make: Callable[[Path], Any], tmp_path: Path
) -> None:
    make(tmp_path / name)
    for how in ({"resume": True}, {"overwrite": True}, {}):
        options = {"resume": False, "overwrite": False, "figures": ()} | how
        with pytest.raises(mx.InputError, match=r"expected a file.*got a folder, pipe or device"):
            resume.open_folder(tmp_path, {}, **options)


@pytest.mark.parametrize(
    "name", ["run[1]", "run*", "a?b", "back\\slash", "gs:", "gs:/bucket", os.fsdecode(b"\xff")]
)
def test_names_that_orbax_misreads_are_refused(name: str, tmp_path: Path) -> None:
    refused = pytest.raises(mx.InputError, match=r"path is Unicode.*Rename it, or name another")
    with refused:
        run(tmp_path / name, 3)
    assert not list(tmp_path.iterdir())
    with refused:
        mx.checkpoint.restore(tmp_path / name, jax.random.key(0), jnp.int32(0))


@pytest.mark.parametrize(
    "name", ["a b", "new\nline", "run #1", "50%20", "ümläut", "$HOME", "~", "-rf", "a:b", "{x}"]
)
def test_other_names_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    run(tmp_path / name, 3)
    np.testing.assert_array_equal(run(tmp_path / name, 5), np.arange(5))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_forked_child_leaves_by_its_own_code_and_unlocks_nothing(tmp_path: Path) -> None:
    program = """
import os, sys
import mixjax as mx
with mx.checkpoint.exclusive(sys.argv[1]), mx.checkpoint.stop_on_signals("finishing"):
    child = os.fork()
    if not child:
        sys.exit(3)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))
    with mx.checkpoint.exclusive(sys.argv[1]):
        pass
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "3\n"
    assert "expected a folder that no other process runs in" in done.stderr


def test_an_evaluation_does_not_write_into_what_took_its_folders_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def replace(*_: Any) -> results.Rows:
        out.rename(tmp_path / "moved")
        out.mkdir()
        return [{}]

    monkeypatch.setattr(evaluate, "run_job", replace)
    with pytest.raises(OSError, match=r"could not save to .*: it was replaced"):
        evaluate.main(evaluate.Config(defences=("none",), attacks=("passive",), out=out))
    assert not list(out.iterdir())


@pytest.mark.parametrize("name", ["out[seed=1]", "out[", "[/out]", os.fsdecode(b"out\xff")])
def test_a_folder_of_results_is_printed_as_it_is_named(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "train_all", lambda *_: [])
    monkeypatch.setattr(results, "summarize", lambda *_: dict(seconds=0.0, environment=HERE))
    monkeypatch.setattr(results, "warnings", lambda _: [])
    monkeypatch.setattr(evaluate, "table", lambda _: "the table")
    monkeypatch.setattr(figures, "draw_all", lambda *_: [])
    monkeypatch.setattr(sys, "argv", ["evaluate", "--out", name])
    cli.command(evaluate.main, evaluate.Config, "experiments.evaluate", devices=False)
    shown = name.encode(errors="backslashreplace").decode()
    assert f"in {shown}/ (0 s on {HERE['device']})" in capsys.readouterr().out.replace("\n", " ")
    assert (tmp_path / name / "summary.json").is_file()
