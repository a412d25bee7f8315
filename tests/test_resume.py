"""What a stopped evaluation leaves is continued, never removed unasked."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import mixjax as mx
from experiments import evaluate, results, resume
from experiments.conditions import Case

CASES = [Case("none", "passive"), Case("noisy", "passive", (("sigma", 0.1),))]
ROUNDS = 2
KEYS = [resume.row_keys(seed, CASES, ROUNDS) for seed in range(3)]
CONFIG = {"rounds": ROUNDS, "noise": [0.1]}


def rows(seed: int) -> list[dict[str, Any]]:
    return [{**key, "loss": 0.1 * seed} for key in KEYS[seed]]


def lines(count: int = 3) -> bytes:
    found = [json.dumps(row) + "\n" for seed in range(count) for row in rows(seed)]
    return "".join(found).encode()


def open_folder(out: Path, config: dict[str, Any] = CONFIG, **options: bool) -> None:
    options = {"resume": False, "overwrite": False} | options
    resume.open_folder(out, config, figures=["utility"], **options)


def test_a_kill_after_any_byte_costs_the_trajectory_at_hand(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    whole = lines()
    ends = [len(lines(count)) for count in range(4)]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        found, count = resume.finished(path, KEYS)
        assert count == sum(end <= size for end in ends[1:])
        assert found == [row for seed in range(count) for row in rows(seed)]
        for seed in range(count, 3):
            results.append(path, rows(seed))
        assert path.read_bytes() == whole


def test_no_rows_are_a_fresh_start(tmp_path: Path) -> None:
    assert resume.finished(tmp_path / "rounds.jsonl", KEYS) == ([], 0)


def test_a_torn_line_before_the_last_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    texts = lines().splitlines(keepends=True)
    path.write_bytes(b"".join([*texts[:2], texts[2][5:], *texts[3:]]))
    with pytest.raises(mx.InputError, match=r"line 3 of .*rounds.jsonl is damaged"):
        resume.finished(path, KEYS)


def test_rows_out_of_order_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    texts = lines().splitlines(keepends=True)
    path.write_bytes(b"".join([*texts[:4], *texts[5:]]))
    with pytest.raises(
        mx.InputError, match=r"expected \{'seed': 1, .*, 'round': 1\} in line 5 of .*; got"
    ):
        resume.finished(path, KEYS)


def test_results_are_not_removed_unasked(tmp_path: Path) -> None:
    open_folder(tmp_path)
    results.append(tmp_path / "rounds.jsonl", rows(0))
    (tmp_path / "utility.png").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "utility.png.5a.partial").touch()
    message = r"holds results already \(rounds.jsonl\). Add --resume .* --overwrite .* --out"
    with pytest.raises(mx.InputError, match=message):
        open_folder(tmp_path)
    open_folder(tmp_path, resume=True)
    assert (tmp_path / "rounds.jsonl").read_bytes() == lines(1)
    open_folder(tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "notes.txt"}


def test_another_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    open_folder(tmp_path)
    results.append(tmp_path / "rounds.jsonl", rows(0))
    with pytest.raises(mx.InputError, match=r"differs in\n  noise: \[0.1\] there, \[0.2\] now\n"):
        open_folder(tmp_path, {**CONFIG, "noise": [0.2]}, resume=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(mx.InputError, match=r"config.json, the options .*, is missing or damaged"):
        open_folder(tmp_path, resume=True)


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(mx.InputError, match="one of --resume and --overwrite"):
        open_folder(tmp_path, resume=True, overwrite=True)


def test_resuming_nothing_starts_afresh(tmp_path: Path) -> None:
    open_folder(tmp_path / "new", resume=True)
    assert json.loads((tmp_path / "new/config.json").read_bytes()) == {
        "rounds": ROUNDS,
        "noise": [0.1],
    }


def test_two_evaluations_do_not_share_a_folder(tmp_path: Path) -> None:
    refused = pytest.raises(mx.InputError, match="is in use")
    with mx.checkpoint.exclusive(tmp_path), refused:
        evaluate.main(evaluate.Config(out=tmp_path))


def test_a_stopped_evaluation_ends_like_one_that_was_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.evaluate", "--defences", "none"]
    command += ["--attacks", "passive", "--rounds", "2", "--seeds", "1", "--auxiliary", "1"]
    command += ["--checkpoint-every", "1", "--out"]
    root = Path(__file__).parents[1]
    # three runs of one program: the first compiles it
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    env = os.environ | cache

    def evaluate(name: str, *options: str) -> str:
        done = subprocess.run(
            [*command, str(tmp_path / name), *options],
            cwd=root,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return (tmp_path / name / "rounds.jsonl").read_text()

    with subprocess.Popen(
        [*command, str(tmp_path / "stopped")],
        cwd=root,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        # the folder of its checkpoints is made after the program is traced
        checkpoints = tmp_path / "stopped" / "checkpoints" / "00000" / "states"
        while child.poll() is None and not checkpoints.exists():
            time.sleep(0.05)
        child.terminate()
        said = child.communicate()[1]
    assert child.returncode == 143
    assert "SIGTERM" in said
    assert "Run the same with --resume to continue." in said
    whole = evaluate("whole")
    resumed = evaluate("stopped", "--resume")
    assert resumed == whole
    assert len(resumed.splitlines()) == 2
    assert not (tmp_path / "stopped" / "checkpoints").exists()
    summary = json.loads((tmp_path / "stopped" / "summary.json").read_bytes())
    assert len(summary["sessions"]) == 2
    seconds = [session["seconds"] for session in summary["sessions"]]
    assert min(seconds) > 0
    assert summary["seconds"] == pytest.approx(sum(seconds))
