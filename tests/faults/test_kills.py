"""Kills of a checkpointed run, at random moments and amid writes: nothing lost or doubled."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_equal

import mixjax as mx
from tests.faults.conftest import Live

KILLS = 10
"""For each of the two tests; with those of evaluations, sixty."""


@pytest.fixture(scope="module")
def clean(live: Live, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[np.ndarray], float]:
    """The result of a run that nobody killed, and the seconds that another takes."""
    folder = tmp_path_factory.mktemp("clean")
    assert live("run", folder / "run")[0] == 0
    started = time.perf_counter()
    assert live("run", folder / "again")[0] == 0
    seconds = time.perf_counter() - started
    assert_equal(result(folder / "run"), result(folder / "again"))
    return result(folder / "run"), seconds


def result(folder: Path) -> list[np.ndarray]:
    with np.load(folder.with_suffix(".npz")) as file:
        return [file[name] for name in file.files]


def survive(
    live: Live, clean: list[np.ndarray], folder: Path, draw: Callable[[], dict[str, float]]
) -> int:
    """Kill runs until enough died, let each finish, and compare; the number of kills."""
    kills = runs = 0
    while kills < KILLS:
        run = folder / f"run{runs}"
        runs += 1
        assert runs <= 4 * KILLS, "the runs end before they can be killed"
        done = 0
        for life in range(100):
            code, _ = live("run", run, **(draw() if life < 99 else {}))
            assert code in (0, -signal.SIGKILL)
            if code == 0:
                break
            kills += 1
            # no checkpoint is lost, once it is there
            assert (mx.checkpoint.latest(run) or 0) >= done
            done = mx.checkpoint.latest(run) or 0
        assert_equal(result(run), clean)
        spans = sorted(path.stem for path in (run / "records").iterdir())
        assert spans == [f"{number:08d}-{number + 1:08d}" for number in range(8)]
        assert len(list((run / "states").iterdir())) == 2 * 2
    return kills


def test_kills_amid_writes_renames_and_removals(
    live: Live, clean: tuple[list[np.ndarray], float], tmp_path: Path
) -> None:
    rng = random.Random(0)
    kills = survive(live, clean[0], tmp_path, lambda: {"call": rng.randint(1, 40)})
    assert kills >= KILLS


def test_kills_at_random_moments(
    live: Live, clean: tuple[list[np.ndarray], float], tmp_path: Path
) -> None:
    rng = random.Random(1)
    longest = clean[1]
    kills = survive(live, clean[0], tmp_path, lambda: {"seconds": rng.uniform(0.3, 0.8) * longest})
    assert kills >= KILLS
