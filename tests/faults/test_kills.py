"""At least 50 kills, at random moments and amid writes and renames: nothing lost or doubled."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_equal

import mixjax as mx

KILLS = 26
"""For each of the two tests."""

Live = Callable[..., int]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Starts a child on a folder and returns its exit code."""
    cache = tmp_path_factory.mktemp("cache")
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.nursery", str(cache)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        into, out = nursery.stdin, nursery.stdout

        def start(folder: Path, call: int = 0, seconds: float = 0) -> int:
            into.write(f"{folder} {call} {seconds}\n")
            into.flush()
            return int(out.readline())

        yield start
        into.close()


@pytest.fixture(scope="module")
def clean(live: Live, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[np.ndarray], float]:
    """The result of a run that nobody killed, and the seconds that another takes."""
    folder = tmp_path_factory.mktemp("clean")
    assert live(folder / "run") == 0
    started = time.perf_counter()
    assert live(folder / "again") == 0
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
        assert runs <= KILLS, "the runs end before they can be killed"
        done = 0
        for life in range(100):
            code = live(run, **(draw() if life < 99 else {}))
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
    kills = survive(live, clean[0], tmp_path, lambda: {"seconds": rng.uniform(0.3, 1.0) * longest})
    assert kills >= KILLS
