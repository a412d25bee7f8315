"""A folder of results that a stopped evaluation goes on from.

`config.json` is there before the first row. A trajectory's rows reach `rounds.jsonl` in one write,
so a kill leaves whole trajectories and at most the beginning of one, which is cut off and redone.
"""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mixjax as mx
from experiments import provenance, results
from experiments.conditions import Case

ROUNDS, CONFIG, SUMMARY, CHECKPOINTS = "rounds.jsonl", "config.json", "summary.json", "checkpoints"


def open_folder(
    out: Path, config: dict[str, Any], *, resume: bool, overwrite: bool, figures: Iterable[str]
) -> None:
    """Make the folder ready: new, continued or emptied.

    Args:
      out: the folder.
      config: what decides the results: the present options, data and versions.
      resume: go on from what is there.
      overwrite: remove results that are there, and `figures` by name.
      figures: names of the figures that a run draws. What a kill left of one is removed.

    Raises:
      InputError: if there are results and neither is asked for, or they are of another config.
    """
    if resume and overwrite:
        raise mx.InputError("expected one of --resume and --overwrite; got both.")
    for name in (ROUNDS, CONFIG, SUMMARY, provenance.SESSIONS):
        if (out / name).exists() and not (out / name).is_file():
            raise mx.InputError(
                f"expected a file, or nothing yet, at {out / name}; got a folder, pipe or device. "
                "Remove it, or use --out to write elsewhere."
            )
    found = [
        name
        for name in (ROUNDS, SUMMARY, CHECKPOINTS)
        if (out / name).is_dir() or ((out / name).exists() and (out / name).stat().st_size)
    ]
    if found and not (resume or overwrite):
        raise mx.InputError(
            f"{out} holds results already ({', '.join(found)}). Add --resume to continue them, "
            "--overwrite to remove them and start afresh, or --out to write elsewhere."
        )
    pictures = [f"{figure}.{kind}" for figure in figures for kind in ("png", "svg")]
    if overwrite or not found:
        (out / provenance.SESSIONS).unlink(missing_ok=True)
    if overwrite:
        for name in (ROUNDS, CONFIG, SUMMARY, *pictures):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    elif found:
        mx.checkpoint.check_config(_saved_config(out / CONFIG), config, str(out))
    out.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, SUMMARY, provenance.SESSIONS, *pictures):
        for left in out.glob(f"{name}.*.partial"):
            left.unlink()
    results.write_json(out / CONFIG, config)


def _saved_config(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise mx.InputError(
            f"can't resume: {path}, the options of the results beside it, is missing or damaged. "
            "Use --overwrite to start afresh, or --out to write elsewhere."
        ) from None


def row_keys(seed: int, cases: Sequence[Case], rounds: int) -> list[dict[str, Any]]:
    """What tells the rows of one trajectory apart, in the order they are written."""
    return [
        {"seed": seed, **case.keys(), "round": number + 1}
        for case in cases
        for number in range(rounds)
    ]


def finished(path: Path, trajectories: Iterable[list[dict[str, Any]]]) -> tuple[results.Rows, int]:
    """The rows of finished trajectories; cuts off what a kill left of the next.

    Args:
      path: the rows' file; it need not exist.
      trajectories: the `row_keys` of all, in order.

    Returns:
      The rows, and the number of finished trajectories.

    Raises:
      InputError: if a line before the last is torn, or a row is not the one expected there.
    """
    lines = _lines(path)
    rows: results.Rows = []
    count = 0
    for expected in trajectories:
        part = [row for row, _ in lines[len(rows) : len(rows) + len(expected)]]
        for offset, (row, key) in enumerate(zip(part, expected, strict=False)):
            came = {name: row.get(name) for name in key}
            if came != key:
                raise mx.InputError(
                    f"expected {key} in line {len(rows) + offset + 1} of {path}; got {came}. Put "
                    "the file right from a copy, or use --overwrite to start afresh."
                )
        if len(part) < len(expected):
            break
        rows += part
        count += 1
    if path.exists():
        os.truncate(path, lines[len(rows) - 1][1] if rows else 0)
    return rows, count


def _lines(path: Path) -> list[tuple[results.Row, int]]:
    """Each row and where its line ends, without a torn last one."""
    texts = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    found = []
    end = 0
    for number, text in enumerate(texts, start=1):
        end += len(text)
        try:
            if not text.endswith(b"\n"):
                raise ValueError("the line does not end")
            found.append((results.with_nan(dict(json.loads(text))), end))
        except (ValueError, TypeError):
            if number == len(texts):
                break
            raise mx.InputError(
                f"line {number} of {path} is damaged, and it is not the last, which a kill may "
                "tear. Put the file right from a copy, or use --overwrite to start afresh."
            ) from None
    return found
