"""Being told of SIGTERM and SIGINT instead of dying of them."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

# what a forked child must undo; innermost last
TAKEN_OVER: list[Callable[[], None]] = []


def _in_child() -> None:
    for give_back in reversed(TAKEN_OVER):
        give_back()
    TAKEN_OVER.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def tell(text: str) -> None:
    """Say a line on the standard error, if anybody is left to read it.

    Ctrl-C stops `run 2>&1 | tee log` and its `tee` alike: that the line can't be said must not
    keep the run from saving.
    """
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def stop_on_signals(what: str) -> Iterator[Callable[[], int]]:
    """Note SIGTERM and SIGINT instead of dying of them; a second SIGINT still ends the process.

    A thread watches for them, since Python's own handlers wait for compiled code to return.
    Outside the main thread, where Python can't take signals over, nothing changes.

    Guarantees: no other signal has any effect here. A signal that the block was not told of is
    raised again when it ends. A forked child has the handlers from before, and its signals are
    its own.

    Args:
      what: what happens next, told on the standard error when the first signal comes.

    Yields:
      A function that tells the number of the first signal so far, or 0.
    """
    caught: list[int] = []
    told: list[int] = []
    handled = [
        number
        for number in (signal.SIGINT, signal.SIGTERM)
        # None: a handler that Python can't put back
        if signal.getsignal(number) not in (signal.SIG_IGN, None)
    ]
    if threading.current_thread() is not threading.main_thread() or not handled:
        yield lambda: 0
        return

    def watch() -> None:
        while number := int.from_bytes(os.read(reader, 1)):
            if wakeup >= 0:
                with contextlib.suppress(OSError):
                    os.write(wakeup, bytes([number]))
            if number not in handled:
                continue
            if number == signal.SIGINT and number in caught:
                os._exit(128 + number)
            caught.append(number)
            if len(caught) == 1:
                tell(f"{signal.Signals(number).name}: {what}; Ctrl-C leaves at once.")

    def stopped() -> int:
        told.extend(caught[:1])
        return caught[0] if caught else 0

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = -1
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    before: dict[int, Any] = {n: signal.signal(n, lambda *_: None) for n in handled}
    TAKEN_OVER.append(give_back)
    try:
        yield stopped
    except BaseException as error:
        told.append(0)  # the block is being left anyway
        raise error
    finally:
        # not in a forked child that leaves by here
        if give_back in TAKEN_OVER:
            TAKEN_OVER.remove(give_back)
            give_back()
        os.close(writer)
        watcher.join()
        os.close(reader)
        if caught and not told:
            signal.raise_signal(caught[0])
