"""MobiAct v2.0: daily activities of 58 people, from the phone in their pocket."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixjax import _validate
from mixjax.data import Attribute, Dataset
from mixjax.datasets import _files, _windows

RATE_HZ = 200
PEOPLE = 58
NINE = ("STD", "WAL", "JOG", "JUM", "STU", "STN", "SCH", "CSI", "CSO")
NAMES = {
    "STD": "standing",
    "WAL": "walking",
    "JOG": "jogging",
    "JUM": "jumping",
    "STU": "stairs up",
    "STN": "stairs down",
    "SCH": "sitting down",
    "SIT": "sitting",
    "CHU": "standing up",
    "CSI": "stepping into a car",
    "CSO": "stepping out of a car",
    "LYI": "lying",
    "FOL": "falling forward",
    "FKL": "falling on the knees",
    "BSC": "falling off a chair",
    "SDL": "falling sideways",
}
LABELS = tuple(NAMES)
SENSORS = {
    "acc": ("acc_x", "acc_y", "acc_z"),
    "gyro": ("gyro_x", "gyro_y", "gyro_z"),
    "orientation": ("azimuth", "pitch", "roll"),
}
CHANNELS = tuple(channel for channels in SENSORS.values() for channel in channels)
HEADER = ("timestamp", "rel_time", *CHANNELS, "label")
SUBJECT_COLUMNS = ["ID", "Name", "Surname", "Age", "Height", "Weight", "Gender"]
# people with recordings of all nine activities
COMPLETE = frozenset(
    {*range(1, 13), 16, *range(18, 28), 29, 32, 33, *range(35, 57), *range(58, 68)}
)
GENDERS = ("female", "male")
RECORDINGS = "Annotated Data"
REMEDY = (
    "Ask the Biomedical Informatics and eHealth Laboratory (bmi.hmu.gr) for MobiAct v2.0 and "
    "unpack it whole."
)


class Person(NamedTuple):
    """A row of the table in `Readme.txt`.

    Attributes:
      number: the one in file names.
      age: in years.
      height: in cm.
      weight: in kg.
      gender: index into `GENDERS`.
    """

    number: int
    age: int
    height: int
    weight: int
    gender: int


class Trial(NamedTuple):
    """One annotated file.

    Attributes:
      person: the number of who moved.
      activity: the file's activity; its samples may have other labels too.
      number: the trial's.
      path: the file.
    """

    person: int
    activity: str
    number: int
    path: Path


def mobiact(
    *,
    data_dir: str | os.PathLike[str],
    activities: Sequence[str] = NINE,
    sensors: Sequence[str] = ("acc", "gyro"),
    rate: int = 50,
    window: int = 64,
    stride: int = 32,
    test_fraction: float = 0.3,
    people: int | None = PEOPLE,
) -> Dataset:
    """Activities of 58 people with a phone in the trouser pocket; the attribute is gender.

    A participant is a person with recordings of all `activities`; others are left out. Samples
    at 200 Hz are averaged down to `rate`. Inputs are windows of `window` samples inside one
    file, three channels for each of `sensors`. The task is the label of the samples: labels
    change inside a file, and windows with more than one, or with one that is not asked for,
    are dropped.

    Of activities with several trials a person's last ones are held out, of those with a
    single long trial its end. Each channel is standardized by the mean and deviation of all
    training windows.

    The default classes are the nine daily activities that nearly everybody did; windows of
    1.28 s are our choice, short enough for the steps into and out of a car.

    Args:
      data_dir: the folder `MobiAct_Dataset_v2.0`, or the one it is in.
      activities: of `LABELS`; their order is the classes'.
      sensors: of "acc", "gyro", "orientation".
      rate: samples a second; must divide 200.
      window: samples in a window, at `rate`.
      stride: samples from one window's start to the next, at `rate`.
      test_fraction: the part of trials, or of a single trial, that is held out.
      people: how many people must have recordings of all activities; None takes all who have.

    Raises:
      InputError: naming the file and line that is missing, cut or broken.

    Source: Vavoulas et al. 2016, "The MobiAct dataset"; given out by its authors on request.
    """
    for value, name in ((window, "window"), (stride, "stride"), (rate, "rate")):
        _validate.check_positive(value, name, integer=True)
    _validate.check_positive(test_fraction, "test_fraction")
    _validate.check_fraction(test_fraction, "test_fraction", 1.0)
    if RATE_HZ % rate:
        raise _validate.InputError(
            f"expected a rate that divides {RATE_HZ}, such as 50 or 100; got {rate}."
        )
    _files.check_names(activities, LABELS, "activities")
    _files.check_names(sensors, SENSORS, "sensors")
    persons = read_people(data_dir)
    trials = find_trials(data_dir, activities)
    numbers = with_all(trials, activities, people)
    unlisted = [number for number in numbers if number not in persons]
    if unlisted:
        raise _validate.InputError(
            f"expected all people with recordings in the table of {_folder(data_dir)}/Readme.txt; "
            f"person {unlisted[0]} is not there. {REMEDY}"
        )

    chosen = [CHANNELS.index(name) for sensor in sensors for name in SENSORS[sensor]]
    index = {label: activities.index(label) if label in activities else -1 for label in LABELS}
    train: dict[int, list[_windows.Recording]] = {number: [] for number in numbers}
    test: dict[int, list[_windows.Recording]] = {number: [] for number in numbers}
    used = [trial for trial in trials if trial.person in train]
    siblings: dict[tuple[int, str], list[int]] = {}
    for trial in used:
        siblings.setdefault((trial.person, trial.activity), []).append(trial.number)
    tqdm = _files.needed("tqdm", "experiments").tqdm
    for trial in tqdm(used, desc="mobiact", unit=" files", disable=None, leave=False):
        series, labels = read_recording(trial.path)
        classes = np.array([index[label] for label in LABELS])[labels]
        recording = _windows.Recording(series[:, chosen], classes)
        recording = _windows.downsample(recording, RATE_HZ // rate)
        of_activity = siblings[trial.person, trial.activity]
        begin, end = _cut(recording, trial.number, of_activity, test_fraction)
        train[trial.person].append(begin)
        test[trial.person].append(end)
    return _windows.dataset(
        list(train.values()),
        list(test.values()),
        window=window,
        stride=stride,
        attribute=Attribute(
            "gender", GENDERS, np.array([persons[number].gender for number in numbers])
        ),
        people=numbers,
        classes=tuple(NAMES[activity] for activity in activities),
    )


def read_people(data_dir: str | os.PathLike[str]) -> dict[int, Person]:
    """The people in the table of `Readme.txt`, by number.

    Three genders are written with a Greek capital Mu (byte 0xCC of cp1253): they are male.

    Raises:
      InputError: for a missing, cut or broken table.
    """
    path = _folder(data_dir) / "Readme.txt"
    rows = _files.lines(path, ("utf-8-sig", "cp1253"), REMEDY)
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]
    if SUBJECT_COLUMNS not in cells:
        raise _validate.InputError(
            f"expected a table of subjects with the columns {', '.join(SUBJECT_COLUMNS)} in "
            f"{path}; there is none. {REMEDY}"
        )
    # below the names comes a rule, and another closes the table
    start = cells.index(SUBJECT_COLUMNS) + 2
    end = next((n for n in range(start, len(rows)) if rows[n].startswith("+")), None)
    if end is None or end == start:
        raise _validate.InputError(
            f"expected rows and a closing rule in the table of subjects of {path}; got neither or "
            f"only one by line {len(rows)}: the file is cut. {REMEDY}"
        )
    # the Greek Mu, and what it looks like in a file that was taken for Latin
    genders = {"F": 0, "M": 1, "\u039c": 1, "\u00cc": 1}
    persons = {}
    for number in range(start, end):
        row = cells[number]
        numeric = len(row) == 7 and all(_files.is_count(row[n]) for n in (0, 3, 4, 5))
        if not numeric or row[6] not in genders:
            raise _validate.InputError(
                f"expected numbers for ID, age, height and weight and the gender M or F in line "
                f"{number + 1} of {path}; got {_files.shown(rows[number])}. {REMEDY}"
            )
        person = Person(int(row[0]), int(row[3]), int(row[4]), int(row[5]), genders[row[6]])
        if person.number in persons:
            raise _validate.InputError(
                f"expected each person once in {path}; line {number + 1} has ID {person.number} "
                f"again. {REMEDY}"
            )
        persons[person.number] = person
    return persons


def find_trials(data_dir: str | os.PathLike[str], activities: Sequence[str]) -> list[Trial]:
    """The annotated files of the activities, by activity, person and trial.

    Raises:
      InputError: for a missing folder or a file whose name is not as expected.
    """
    trials = []
    for activity in activities:
        inside = _folder(data_dir) / RECORDINGS / activity
        if not inside.is_dir():
            raise _validate.InputError(
                f"expected the folder {inside} with {activity}_<subject>_<trial>_annotated.csv "
                f"files; it is not there. {REMEDY}"
            )
        own = []
        for path in inside.glob("*.csv"):
            match = re.fullmatch(rf"{activity}_(\d+)_(\d+)_annotated\.csv", path.name)
            if match is None:
                raise _validate.InputError(
                    f"expected names like {activity}_1_1_annotated.csv in {inside}; got "
                    f"{path.name}. {REMEDY}"
                )
            own.append(Trial(int(match[1]), activity, int(match[2]), path))
        trials += sorted(own)
    return trials


def with_all(trials: Sequence[Trial], activities: Sequence[str], people: int | None) -> list[int]:
    """The numbers of the people who have trials of all activities.

    Raises:
      InputError: when there are not `people` of them.
    """
    did: dict[int, set[str]] = {}
    for trial in trials:
        did.setdefault(trial.person, set()).add(trial.activity)
    numbers = sorted(number for number, own in did.items() if own >= set(activities))
    if not numbers or (people is not None and len(numbers) != people):
        lacking = [
            f"person {number} has no {', '.join(a for a in activities if a not in own)}"
            for number, own in sorted({**{n: set() for n in COMPLETE}, **did}.items())
            if number in COMPLETE and number not in numbers
        ]
        raise _validate.InputError(
            f"expected {people or 'some'} people with recordings of {', '.join(activities)}; got "
            f"{len(numbers)}{': ' if lacking else ''}{'; '.join(lacking[:3])}. {REMEDY} To work "
            f"with other people on purpose, say people={len(numbers)}."
        )
    return numbers


def read_recording(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The samples of one file.

    Returns:
      `float64[samples, 9]` in the order of `CHANNELS`, and each sample's index into `LABELS`.

    Raises:
      InputError: for a broken row, or a label that is not one of them.
    """
    numbers, words = _files.read_table(path, HEADER, text="label", remedy=REMEDY)
    names, of_sample = np.unique(words, return_inverse=True)
    unknown = [name for name in names if name not in LABELS]
    if unknown:
        first = int(np.flatnonzero(words == unknown[0])[0])
        raise _validate.InputError(
            f"expected labels of {', '.join(LABELS)} in {path}; got "
            f"{_files.shown(str(unknown[0]))} in line {first + 2}. {REMEDY}"
        )
    codes = np.array([LABELS.index(name) for name in names])
    return numbers[:, 2:], codes[of_sample]


def _cut(
    recording: _windows.Recording, number: int, numbers: list[int], test_fraction: float
) -> tuple[_windows.Recording, _windows.Recording]:
    """A trial's part for training, and the part held out."""
    cut = round(len(recording.labels) * (1 - test_fraction))
    if len(numbers) > 1:
        held_out = max(1, round(len(numbers) * test_fraction))
        cut = 0 if number in sorted(numbers)[-held_out:] else len(recording.labels)
    series, labels = recording
    return (
        _windows.Recording(series[:cut], labels[:cut]),
        _windows.Recording(series[cut:], labels[cut:]),
    )


def _folder(data_dir: str | os.PathLike[str]) -> Path:
    root = _files.folder(data_dir, REMEDY)
    for folder in (root, root / "MobiAct_Dataset_v2.0"):
        if (folder / RECORDINGS).is_dir():
            return folder
    raise _validate.InputError(
        f"expected the folder {RECORDINGS!r} in {root} or in its MobiAct_Dataset_v2.0; it is not "
        f"there. {REMEDY}"
    )
