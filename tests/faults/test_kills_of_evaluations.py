"""Signals to evaluations, most of them amid writing: nothing lost, doubled or left over."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

import mixjax as mx
from experiments import results, resume
from tests.faults import nursery
from tests.faults.conftest import Live

CALLS = {
    "/checkpoints/": 60,
    "/rounds.jsonl": 4,
    "/sessions.json": 5,
    ".png": 8,
    "/summary.json": 3,
    "/config.json": 3,
}
"""Parts of files' names, and about how many calls concern them in a life."""
CODES = {
    signal.SIGKILL: {-signal.SIGKILL},
    # told while it trains it saves and leaves; while it draws it dies of it
    signal.SIGTERM: {128 + signal.SIGTERM, -signal.SIGTERM},
    signal.SIGINT: {128 + signal.SIGINT},
}
AMID_WRITING = [
    (number, part)
    for number in (*[signal.SIGKILL] * 3, signal.SIGTERM, signal.SIGINT)
    for part in CALLS
]
RANDOM = [*CODES] * 3 + [signal.SIGKILL]


def kept(out: Path) -> dict[str, Any]:
    """What is in the folder, but for when and in which sessions it was made."""
    names = {path.name for path in out.iterdir()} - {".lock"}
    summary = results.read_summary(out / resume.SUMMARY)
    for name in ("seconds", "sessions"):
        del summary[name]
    for name in names:
        if name.endswith(".png"):
            with PIL.Image.open(out / name) as image:
                image.load()
    rows = (out / resume.ROUNDS).read_text().splitlines()
    keys = [tuple(map(str, map(json.loads(row).get, ("seed", "defence", "round")))) for row in rows]
    assert len(set(keys)) == len(keys) == 8
    return {"names": names, "summary": summary, "rows": rows, "config": read(out / resume.CONFIG)}


def read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def done(out: Path) -> tuple[int, int]:
    """How many whole rows are saved, and how many rounds of the next trajectory."""
    saved = read(out / resume.ROUNDS).count(b"\n")
    following = out / resume.CHECKPOINTS / f"{saved // 4:05d}"
    return saved, mx.checkpoint.latest(following) or 0


@pytest.fixture(scope="module")
def clean(live: Live, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """What an evaluation leaves that nobody stopped, and the seconds that another takes."""
    folder = tmp_path_factory.mktemp("clean")
    assert live("evaluate", folder / "out") == (0, "")
    content = kept(folder / "out")
    drawn = {name for name in content["names"] if name.endswith(".png")}
    assert drawn == {f"{name}.png" for name in nursery.FIGURES}
    started = time.perf_counter()
    assert live("evaluate", folder / "again") == (0, "")
    seconds = time.perf_counter() - started
    assert kept(folder / "again") == content
    return content, seconds


def test_stopped_evaluations_end_like_one_that_nobody_stopped(
    live: Live, clean: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    rng = random.Random(0)
    content, longest = clean
    moments = [*AMID_WRITING, *((number, None) for number in RANDOM)]
    hit: list[str] = []
    runs = 0
    while len(hit) < len(moments):
        assert runs < 2 * len(moments), "the evaluations end before they can be killed"
        out = tmp_path / str(runs)
        number, part = moments[len(hit)]
        if part is None:
            moment = {"seconds": rng.uniform(0.2, 0.7) * longest}
        else:
            moment = {"part": part, "call": rng.randint(1, CALLS[part])}
        before = done(out)
        code, file = live("evaluate", out, number, **moment)
        # no row and no checkpoint is lost, once it is there
        assert done(out) >= before
        if code:
            assert code in CODES[number], (number, file)
            hit.append(file)
        else:
            assert kept(out) == content
            runs += 1
    assert live("evaluate", out) == (0, "")
    assert kept(out) == content
    missed = [part for part in CALLS if not any(part in file for file in hit)]
    assert not missed, hit
