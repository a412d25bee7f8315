"""Children that are told to stop, or killed."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Live = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Starts a child on a folder; returns its exit code and the file at hand when a signal came."""
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

        def start(
            program: str,
            folder: Path,
            number: int = signal.SIGKILL,
            call: int = 0,
            part: str = "/",
            seconds: float = 0,
        ) -> tuple[int, str]:
            into.write(f"{program} {folder} {int(number)} {call} {part} {seconds}\n")
            into.flush()
            code, name = out.readline().rstrip("\n").split(" ", 1)
            return int(code), name

        yield start
        into.close()
