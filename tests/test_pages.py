"""Published tables are those of the records beside them."""

import gzip
import json
from pathlib import Path

import pytest

from experiments import curves

DOCS = Path(__file__).parents[1] / "docs"
RECORDS = sorted((DOCS / "results" / "adversaries").glob("*.json.gz"))
DRAWN = ("watch_curves", "watch_participants")


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_the_page_of_adversaries_is_its_records(path: Path) -> None:
    content = json.loads(gzip.decompress(path.read_bytes()))
    assert not content["data"]["planted"]
    page = (DOCS / "adversaries.md").read_text()
    for study in content["studies"]:
        if path.name.removesuffix(".json.gz") in DRAWN:
            assert f"results/adversaries_{study}.png" in page
        else:
            assert curves.markdown(content, study) in page


def test_there_are_records() -> None:
    assert len(RECORDS) == 6
