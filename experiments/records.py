"""What published tables come from: `summary.json` and `rounds.jsonl.gz`, a folder for each run.

They lie beside the page, in `results/records/NAME`. The page is made from them alone, and they are
enough to tell that a configuration need not be run again.
"""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import mixjax as mx
from experiments import members, results, resume

ROWS = f"{resume.ROUNDS}.gz"


def beside(page: Path) -> Path:
    """The folder of all records of a page."""
    return page.parent / "results" / "records"


def publish(run: Path, folder: Path) -> None:
    """Copy a finished run's summary and, compressed, its rows: the same bytes of the same run."""
    content = (run / resume.ROUNDS).read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    # a time in the file would make each copy another
    with mx.checkpoint.replacing(folder / ROWS) as file:
        file.write(gzip.compress(content, 9, mtime=0))
    with mx.checkpoint.replacing(folder / resume.SUMMARY) as file:
        file.write((run / resume.SUMMARY).read_bytes())


def copy_figures(run: Path, stem: Path) -> None:
    """Copy the pictures that a run drew, as `stem_FIGURE.png` and `.svg`."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        for path in run.glob(f"*.{kind}"):
            shutil.copyfile(path, stem.parent / f"{stem.name}_{path.name}")


def summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or of its records; None without one."""
    path = folder / resume.SUMMARY
    return results.read_summary(path) if path.is_file() else None


def rows(folder: Path) -> results.Rows:
    """The rows that were published."""
    lines = gzip.decompress((folder / ROWS).read_bytes()).splitlines()
    return [results.with_nan(json.loads(line)) for line in lines]


def recomputed(folder: Path) -> dict[str, Any]:
    """The summary anew, from the rows: what `summary.json` must hold."""
    written = results.read_summary(folder / resume.SUMMARY)
    if written.get("kind") == members.KIND:
        told = (written[name] for name in ("config", "data", "sessions"))
        return members.summarize(rows(folder), *told)
    told = (written[name] for name in ("config", "data", "parameters", "sessions"))
    return results.summarize(rows(folder), *told)


def complete(summary: dict[str, Any]) -> bool:
    """Whether a summary says all that a page does; those of earlier programs don't."""
    return "pool" in summary.get("data", {})
