"""Files of datasets: what is missing, cut, broken or too large is named, with what to do about it.

A file may come from anybody. None is read that is larger than the set's own could be.
"""

import importlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from mixjax import _validate

# of text and of one recording; the largest of the sets here has some 20 MB
MOST_BYTES = 2**26


def needed(module: str, extra: str) -> ModuleType:
    """Import what only some datasets need."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0].replace("_", "-")
        raise _validate.InputError(
            f"expected the package {package} for this dataset; it can't be imported. "
            f'Run: pip install "mixjax[{extra}]"'
        ) from None


def folder(data_dir: str | os.PathLike[str], remedy: str) -> Path:
    path = Path(data_dir).expanduser()
    if not path.is_dir():
        raise _validate.InputError(f"expected a folder at {path}; there is none. {remedy}")
    return path


def lines(path: Path, encodings: Sequence[str], remedy: str) -> list[str]:
    """A text file's lines in the first encoding that fits; the last always does."""
    content = read_bytes(path, remedy)
    for encoding in encodings[:-1]:
        try:
            return content.decode(encoding).splitlines()
        except UnicodeDecodeError:
            continue
    return content.decode(encodings[-1], errors="replace").splitlines()


def read_bytes(path: Path, remedy: str) -> bytes:
    check_file(path, remedy)
    return path.read_bytes()


def check_file(path: Path, remedy: str, most: int = MOST_BYTES) -> None:
    """Refuse a file that is not there, empty, or larger than `most` bytes."""
    if not path.is_file():
        raise _validate.InputError(f"expected the file {path}; it is not there. {remedy}")
    size = path.stat().st_size
    if not size:
        raise _validate.InputError(f"expected data in {path}; the file is empty. {remedy}")
    if size > most:
        raise _validate.InputError(
            f"expected at most {most:,} bytes in {path}; got {size:,}. {remedy}"
        )


def is_count(text: str) -> bool:
    """Whether a text is a whole number from 0 that 32 bits hold."""
    return text.isdecimal() and len(text) <= 9


def shown(text: str) -> str:
    """What a message shows of a text: no more than a line of it."""
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


def read_table(
    path: Path, header: Sequence[str], *, text: str | None = None, remedy: str
) -> tuple[np.ndarray, np.ndarray]:
    """A CSV file with a known header and a number that float32 holds in each cell.

    A byte order mark, CRLF and a missing final newline are accepted.

    Args:
      path: the file.
      header: the names of its columns.
      text: the one column of words.
      remedy: the last sentence of an error.

    Returns:
      The numbers `float64[rows, columns]` without the column of words, and that column, of
      length 0 without one.

    Raises:
      InputError: naming file and line.
    """
    pyarrow = needed("pyarrow", "experiments")
    csv = needed("pyarrow.csv", "experiments")
    check_file(path, remedy)
    check_header(path, header, remedy)
    word = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    types = {name: word if name == text else pyarrow.float64() for name in header}
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(skip_rows=1, column_names=list(header)),
            convert_options=csv.ConvertOptions(column_types=types),
        )
    except pyarrow.ArrowInvalid as error:
        raise _bad_row(path, header, text, remedy, str(error)) from None
    numbers = np.empty((table.num_rows, len(header) - (text is not None)))
    for column, name in enumerate(name for name in header if name != text):
        numbers[:, column] = table[name].to_numpy()
    if table.num_rows == 0 or not np.abs(numbers).max() <= _validate.FLOAT_MAX:
        raise _bad_row(path, header, text, remedy, "others")
    if text is None:
        return numbers, np.empty(0, str)
    words = table[text].combine_chunks()
    return numbers, np.asarray(words.dictionary.to_pylist())[words.indices.to_numpy()]


def check_header(path: Path, header: Sequence[str], remedy: str) -> None:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline().rstrip("\r\n")
    if first.split(",") != list(header):
        raise _validate.InputError(
            f"expected the header {','.join(header)!r} in line 1 of {path}; got "
            f"{shown(first)}. {remedy}"
        )


def _rows(path: Path) -> bool:
    with path.open("rb") as file:
        file.readline()
        return any(line.strip() for line in file)


def _bad_row(
    path: Path, header: Sequence[str], text: str | None, remedy: str, otherwise: str
) -> _validate.InputError:
    """Read slowly what could not be read fast, for the number of the line."""
    if not _rows(path):
        return _validate.InputError(
            f"expected rows below the header of {path}; there are none. {remedy}"
        )
    return _validate.InputError(
        f"expected rows of {len(header)} finite values in {path}; got "
        f"{_fault(path, header, text) or otherwise}. {remedy}"
    )


def _fault(path: Path, header: Sequence[str], text: str | None) -> str | None:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        file.readline()
        for number, line in enumerate(file, 2):
            cells = line.rstrip("\r\n").split(",")
            if cells == [""]:
                continue
            if len(cells) != len(header):
                return f"{len(cells)} values in line {number}, as where a file was cut"
            for name, cell in zip(header, cells, strict=True):
                if name == text:
                    continue
                try:
                    finite = abs(float(cell)) <= _validate.FLOAT_MAX
                except ValueError:
                    finite = False
                if not finite:
                    return f"{shown(cell)} for {name!r} in line {number}"
    return None


def check_names(names: Sequence[str], known: Collection[str], what: str) -> None:
    if isinstance(names, str) or not names or len(set(names)) != len(names):
        raise _validate.InputError(
            f"expected a sequence of different {what}, of {', '.join(known)}; got {names!r}."
        )
    for name in names:
        _validate.check_choice(name, list(known), f"each of {what}")
