"""Files that appear complete, or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], mode: int = 0o666) -> Iterator[BinaryIO]:
    """A new binary file that takes the place of `path` when the block ends without an exception.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with replacing(f"{folder.name}/summary.json") as file:
    ...     _ = file.write(b"{}")
    >>> os.listdir(folder.name)
    ['summary.json']
    >>> folder.cleanup()

    Guarantees: whoever opens `path`, even after a kill or a power cut, finds what was there
    before or all that was written. An exception leaves no file behind; a kill may leave one named
    `NAME.*.partial`. A link of the name `path` is replaced, not followed, and nobody can foretell
    the name of the partial file to put a link there.

    Args:
      path: in an existing folder.
      mode: the file's permissions, less the process's umask.

    Yields:
      A file open for writing.

    Raises:
      OSError: if it can't be written; `path` is as it was.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    # "x" fails rather than open what is there already
    with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
