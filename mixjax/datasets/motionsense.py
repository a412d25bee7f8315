"""MotionSense: daily activities of 24 people, from the phone in their pocket."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixjax import _validate
from mixjax.data import Attribute, Dataset
from mixjax.datasets import _files, _windows

RATE_HZ = 50
PEOPLE = 24
# training trials, then the short one that is held out
TRIALS = {
    "dws": ((1, 2), 11),
    "ups": ((3, 4), 12),
    "wlk": ((7, 8), 15),
    "jog": ((9,), 16),
    "std": ((6,), 14),
    "sit": ((5,), 13),
}
NAMES = {
    "dws": "walking downstairs",
    "ups": "walking upstairs",
    "wlk": "walking",
    "jog": "jogging",
    "std": "standing",
    "sit": "sitting",
}
SENSORS = {
    "attitude": ("attitude.roll", "attitude.pitch", "attitude.yaw"),
    "gravity": ("gravity.x", "gravity.y", "gravity.z"),
    "rotationRate": ("rotationRate.x", "rotationRate.y", "rotationRate.z"),
    "userAcceleration": ("userAcceleration.x", "userAcceleration.y", "userAcceleration.z"),
}
CHANNELS = tuple(channel for channels in SENSORS.values() for channel in channels)
HEADER = ("", *CHANNELS)
GENDERS = ("female", "male")
RECORDINGS = "A_DeviceMotion_data"
SUBJECTS = "data_subjects_info.csv"
REMEDY = (
    "Get data/A_DeviceMotion_data.zip and data/data_subjects_info.csv of "
    "github.com/mmalekzadeh/motion-sense and unpack them into one folder."
)


class Person(NamedTuple):
    """A row of `data_subjects_info.csv`.

    Attributes:
      code: the number in file names.
      weight: in kg.
      height: in cm.
      age: in years.
      gender: index into `GENDERS`.
    """

    code: int
    weight: int
    height: int
    age: int
    gender: int


class Trial(NamedTuple):
    """One file of samples.

    Attributes:
      person: who moved.
      activity: three letters, such as "wlk".
      number: the trial's, 1..16; from 11 on they are short.
      path: the file.
    """

    person: Person
    activity: str
    number: int
    path: Path


def motionsense(
    *,
    data_dir: str | os.PathLike[str],
    activities: Sequence[str] = ("dws", "ups", "wlk", "jog"),
    sensors: Sequence[str] = ("rotationRate", "userAcceleration"),
    window: int = 128,
    stride: int = 64,
    people: int = PEOPLE,
) -> Dataset:
    """Activities of 24 people with a phone in the front pocket; the attribute is gender.

    A participant is a person. Inputs are windows of `window` samples at 50 Hz inside one file,
    three channels for each of `sensors`; the task is the activity. Training windows come from
    the long trials 1-9, held-out ones from the short trials 11-16. Each channel is standardized
    by the mean and deviation of all training windows.

    By default the four activities with movement are told apart, as is usual in work on
    attribute inference from these data; "std" and "sit" can be added. The default channels
    leave out attitude and gravity, which tell how the phone lay in the pocket. The literature
    often takes stride 10: six times as many, nearly equal windows.

    Args:
      data_dir: folder with `A_DeviceMotion_data` (nested once or twice) and
        `data_subjects_info.csv`; also the clone that has them in `data`.
      activities: of "dws", "ups", "wlk", "jog", "std", "sit"; their order is the classes'.
      sensors: of "attitude", "gravity", "rotationRate", "userAcceleration".
      window: samples in a window; 128 are 2.56 s.
      stride: samples from one window's start to the next.
      people: how many people the folder must have.

    Raises:
      InputError: naming the file and line that is missing, cut or broken.

    Source: Malekzadeh et al. 2019, "Mobile sensor data anonymization" (MIT licence).
    """
    _validate.check_positive(window, "window", integer=True)
    _validate.check_positive(stride, "stride", integer=True)
    _files.check_names(activities, TRIALS, "activities")
    _files.check_names(sensors, SENSORS, "sensors")
    persons = read_people(data_dir, people)
    chosen = [CHANNELS.index(name) for sensor in sensors for name in SENSORS[sensor]]
    train: dict[int, list[_windows.Recording]] = {person.code: [] for person in persons}
    test: dict[int, list[_windows.Recording]] = {person.code: [] for person in persons}
    for trial in find_trials(data_dir, persons, activities):
        series = read_recording(trial.path)[:, chosen]
        label = np.full(len(series), activities.index(trial.activity))
        part = test if trial.number == TRIALS[trial.activity][1] else train
        part[trial.person.code].append(_windows.Recording(series, label))
    return _windows.dataset(
        list(train.values()),
        list(test.values()),
        window=window,
        stride=stride,
        attribute=Attribute("gender", GENDERS, np.array([person.gender for person in persons])),
        people=[person.code for person in persons],
        classes=tuple(NAMES[activity] for activity in activities),
    )


def read_people(data_dir: str | os.PathLike[str], people: int = PEOPLE) -> list[Person]:
    """The people of `data_subjects_info.csv`, by code.

    Raises:
      InputError: for a missing or broken file, or another number of people.
    """
    folder = _folder(data_dir)
    path = folder / SUBJECTS
    header, *rows = _files.lines(path, ("utf-8-sig",), REMEDY)
    expected = "code,weight,height,age,gender"
    if header.strip() != expected:
        raise _validate.InputError(
            f"expected the header {expected!r} in line 1 of {path}; got {_files.shown(header)}. "
            f"{REMEDY}"
        )
    persons: dict[int, Person] = {}
    for number, row in enumerate(rows, 2):
        if not row.strip():
            continue
        cells = [cell.strip() for cell in row.split(",")]
        numbers = len(cells) == 5 and all(map(_files.is_count, cells))
        if not numbers or cells[4] not in ("0", "1"):
            raise _validate.InputError(
                f"expected five whole numbers, the last 0 or 1, in line {number} of {path}; got "
                f"{_files.shown(row)}. {REMEDY}"
            )
        person = Person(*map(int, cells))
        if person.code in persons:
            raise _validate.InputError(
                f"expected each person once in {path}; line {number} has code {person.code} again. "
                f"{REMEDY}"
            )
        persons[person.code] = person
    if len(persons) != people:
        raise _validate.InputError(
            f"expected {people} people in {path}; got {len(persons)}. {REMEDY} To work with other "
            f"people on purpose, say people={len(persons)}."
        )
    return [persons[code] for code in sorted(persons)]


def find_trials(
    data_dir: str | os.PathLike[str], persons: Sequence[Person], activities: Sequence[str]
) -> list[Trial]:
    """One file for each person and trial of the activities.

    Raises:
      InputError: for a file that is missing, or of somebody not listed.
    """
    base = _folder(data_dir) / RECORDINGS
    nested = base / RECORDINGS
    base = nested if nested.is_dir() else base
    codes = {person.code for person in persons}
    trials = []
    for activity in activities:
        long, short = TRIALS[activity]
        for number in (*long, short):
            inside = base / f"{activity}_{number}"
            for path in inside.glob("sub_*.csv"):
                match = re.fullmatch(r"sub_(\d+)", path.stem)
                if match is None or int(match[1]) not in codes:
                    raise _validate.InputError(
                        f"expected recordings of people listed in {SUBJECTS}; {path} is of "
                        f"somebody else. {REMEDY}"
                    )
            for person in persons:
                path = inside / f"sub_{person.code}.csv"
                if not path.is_file():
                    raise _validate.InputError(
                        f"expected a recording of each of {len(persons)} people in each trial; "
                        f"{path} is not there. {REMEDY}"
                    )
                trials.append(Trial(person, activity, number, path))
    return trials


def read_recording(path: Path) -> np.ndarray:
    """The samples of one file, `float64[samples, 12]` in the order of `CHANNELS`."""
    return _files.read_table(path, HEADER, remedy=REMEDY)[0][:, 1:]


def _folder(data_dir: str | os.PathLike[str]) -> Path:
    root = _files.folder(data_dir, REMEDY)
    for folder in (root, root / "data"):
        if (folder / RECORDINGS).is_dir() and (folder / SUBJECTS).is_file():
            return folder
    raise _validate.InputError(
        f"expected the folder {RECORDINGS} and the file {SUBJECTS} in {root}; at least one is not "
        f"there. {REMEDY}"
    )
