"""What a run does when it is told to stop, and what it leaves behind in the process."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixjax as mx

KEY = jax.random.key(3)


def counting(signals: list[int], at: int) -> Callable[[Any, int], Any]:
    """Adds up; sends itself signals in some segment."""

    def advance(state: Any, rounds: int) -> Any:
        if state == at:
            for number in signals:
                os.kill(os.getpid(), number)
            time.sleep(0.2)
        return state + np.int32(rounds), state + np.arange(1, rounds + 1, dtype=np.int32)

    return advance


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGINT is heard here and in children, also where a shell's background job ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def go(signals: list[int]) -> Any:
        return mx.checkpoint.run_segments(
            tmp_path, KEY, eager(counting(signals, 4)), np.int32(0), 10, every=2, minutes=60
        )

    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as left:
        go([number])
    assert left.value.code == 128 + number
    said = capsys.readouterr().err
    assert f"{signal.Signals(number).name}: saving the run in" in said
    assert "stopped after round 6 of 10, which is saved in" in said
    assert "Run the same again to resume." in said
    assert signal.getsignal(number) is handler
    assert mx.checkpoint.latest(tmp_path) == 6
    state, records = go([])
    assert state == 10
    np.testing.assert_array_equal(records, np.arange(1, 11))


def eager(advance: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    """Traced for shapes, it has no side effects."""

    def either(state: Any, rounds: int) -> Any:
        if isinstance(state, jax.core.Tracer):
            return state, state + jnp.arange(rounds, dtype=jnp.int32)
        return advance(state, rounds)

    return either


@pytest.mark.usefixtures("heard")
def test_a_second_interrupt_leaves_at_once() -> None:
    program = """
import hashlib, sys
import mixjax
with mixjax.checkpoint.stop_on_signals("finishing"):
    print("ready", flush=True)
    # compiled code that runs for hours
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            assert child.stdout.readline() == "ready\n"
            child.send_signal(signal.SIGINT)
            assert child.stderr.readline() == "SIGINT: finishing; Ctrl-C leaves at once.\n"
            child.send_signal(signal.SIGINT)
            assert child.wait(timeout=60) == 130
        finally:
            child.kill()


def test_saving_leaves_no_threads_and_no_files_open(tmp_path: Path) -> None:
    def go(rounds: int) -> None:
        advance = eager(counting([], -1))
        mx.checkpoint.run_segments(tmp_path, KEY, advance, np.int32(0), rounds, every=1)

    go(2)
    threads, opened = threading.active_count(), len(os.listdir("/proc/self/fd"))
    go(20)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) <= opened
    assert len(list(tmp_path.glob("records/*"))) == 20
    assert len(list(tmp_path.glob("states/*.json"))) == 2


@pytest.mark.usefixtures("heard")
def test_a_signal_in_the_last_segment_saves_and_leaves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    advance = eager(counting([signal.SIGTERM], 8))
    with pytest.raises(SystemExit) as left:
        mx.checkpoint.run_segments(tmp_path, KEY, advance, np.int32(0), 10, every=2)
    assert left.value.code == 128 + signal.SIGTERM
    assert "stopped after round 10 of 10" in capsys.readouterr().err
    assert mx.checkpoint.latest(tmp_path) == 10


class Unread(io.StringIO):
    """What is left of a pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_where_nobody_reads_what_is_said(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C stops `run 2>&1 | tee log` and its tee alike."""
    monkeypatch.setattr(sys, "stderr", Unread())
    advance = eager(counting([number], 4))
    with pytest.raises(SystemExit) as left:
        mx.checkpoint.run_segments(tmp_path, KEY, advance, np.int32(0), 10, every=2)
    assert left.value.code == 128 + number
    assert mx.checkpoint.latest(tmp_path) == 6


@pytest.mark.usefixtures("heard")
def test_a_signal_that_nobody_asked_about_is_raised_again() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with mx.checkpoint.stop_on_signals("finishing"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        assert heard == [signal.SIGTERM]
        with mx.checkpoint.stop_on_signals("finishing") as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
            assert stopped() == signal.SIGTERM
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGUSR1, signal.SIGWINCH])
def test_other_signals_stay_the_callers(number: int, tmp_path: Path) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda number, _: heard.append(number))
    try:
        advance = eager(counting([number], 4))
        state, _ = mx.checkpoint.run_segments(tmp_path, KEY, advance, np.int32(0), 10, every=2)
    finally:
        signal.signal(number, before)
    assert state == 10
    assert heard == [number]


@pytest.mark.usefixtures("heard")
def test_a_forked_childs_signals_are_its_own() -> None:
    program = """
import os, signal, time
from mixjax import checkpoint
with checkpoint.stop_on_signals("finishing") as stopped:
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    time.sleep(0.3)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    time.sleep(0.2)
    print(os.WTERMSIG(status), stopped())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == f"{int(signal.SIGTERM)} 0\n", done.stderr
