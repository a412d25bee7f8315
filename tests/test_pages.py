"""Published tables are those of the records beside them."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

from experiments import curves, records, report, reproduce

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "results.md"
ADVERSARIES = sorted((DOCS / "results" / "adversaries").glob("*.json.gz"))
DRAWN = ("watch_curves", "watch_participants", "watch_settings", "vowels_curves")
SETS = sorted(path.parent for path in records.beside(PAGE).glob("*/summary.json"))
# of all that is published, compressed: a clone carries it
MOST_BYTES = 10_000_000


@pytest.mark.parametrize("path", ADVERSARIES, ids=lambda path: path.name)
def test_the_page_of_adversaries_is_its_records(path: Path) -> None:
    content = json.loads(gzip.decompress(path.read_bytes()))
    assert not content["data"]["planted"]
    page = (DOCS / "adversaries.md").read_text()
    for study in content["studies"]:
        if path.name.removesuffix(".json.gz") in DRAWN:
            assert f"results/adversaries_{study}.png" in page
        else:
            assert curves.markdown(content, study) in page


def test_there_are_records_of_adversaries() -> None:
    assert len(ADVERSARIES) >= 8


@pytest.mark.parametrize("folder", SETS, ids=lambda folder: folder.name)
def test_every_summary_is_its_rows(folder: Path) -> None:
    assert close(records.recomputed(folder), records.summary(folder))


def close(one: Any, other: Any) -> bool:
    """Whether two summaries are equal, up to the rounding of other machines."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        both_nan = math.isnan(one) and math.isnan(other)
        return both_nan or math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other)


def test_both_pages_are_made_from_the_records() -> None:
    entries = reproduce.entries(reproduce.configurations())
    assert PAGE.read_text() == report.text(PAGE, entries)
    assert PAGE.with_name(report.PLANTED).read_text() == report.planted_text(PAGE, entries)


def test_records_and_pictures_are_of_sets_that_are_shown() -> None:
    names = {folder.name for folder in SETS}
    assert names <= set(reproduce.configurations())
    assert sum(path.stat().st_size for path in records.beside(PAGE).rglob("*")) < MOST_BYTES
