"""MobiAct in its true format: labels that change, splits, genders, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import with_line

import mixjax as mx
from experiments import planted
from mixjax.datasets import _windows
from mixjax.datasets.mobiact import COMPLETE, NINE, read_people, read_recording

pytest.importorskip("pyarrow")

PEOPLE = (1, 2, 3)


def load(folder: Path, **options: Any) -> mx.data.Dataset:
    return mx.datasets.mobiact(data_dir=folder, **{"people": len(PEOPLE), **options})


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.mobiact(tmp_path_factory.mktemp("mobiact"), people=PEOPLE, trials=3)


@pytest.fixture
def own_tree(tree: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return shutil.copytree(tree, tmp_path / "tree")


def recording(folder: Path, activity: str = "JOG", person: int = 2, trial: int = 1) -> Path:
    inside = folder / "MobiAct_Dataset_v2.0" / "Annotated Data" / activity
    return inside / f"{activity}_{person}_{trial}_annotated.csv"


def readme(folder: Path) -> Path:
    return folder / "MobiAct_Dataset_v2.0" / "Readme.txt"


def number_samples(folder: Path) -> dict[Path, tuple[int, int]]:
    """Give every sample of all files a number of its own; the range of each file's numbers."""
    start, ranges = 0, {}
    for path in sorted(folder.rglob("*_annotated.csv")):
        header, *rows = path.read_text().splitlines()
        numbers = [str(start + n) for n in range(len(rows))]
        labels = [row.rpartition(",")[2] for row in rows]
        columns = [numbers, numbers, *[numbers] * 9, labels]
        path.write_text(planted.table(header, columns))
        ranges[path] = (start, start + len(rows) - 1)
        start += len(rows)
    return ranges


def test_participants_are_people_and_the_attribute_is_gender(tree: Path) -> None:
    data = load(tree)
    assert data.people.tolist() == [1, 2, 3]
    assert data.attribute.name == "gender"
    assert data.attribute.of_client.tolist() == [1, 1, 0]
    assert len(data.classes) == 9
    assert data.train.examples.inputs.shape[2:] == (64, 6)
    labels = np.concatenate([own.labels for own in mx.data.unstack(data.train)])
    assert set(labels.tolist()) == set(range(9))


def test_58_people_have_all_nine_activities() -> None:
    assert len(COMPLETE) == 58
    assert sorted(COMPLETE) == planted.MOBIACT_COMPLETE
    men = COMPLETE - set(planted.MOBIACT_WOMEN)
    assert len(men) == 42


def test_the_table_of_subjects_knows_the_greek_letter(tree: Path) -> None:
    assert readme(tree).read_bytes().count(b"\xcc") == 3
    people = read_people(tree)
    assert len(people) == 67
    assert [people[number].gender for number in planted.MOBIACT_GREEK] == [1, 1, 1]
    assert sum(person.gender == 0 for person in people.values()) == 16
    assert people[3] == (3, 23, 163, 53, 0)


@pytest.mark.parametrize("letter", ["\u039c", "\u00cc"])
def test_a_table_converted_to_utf8_is_read_too(own_tree: Path, letter: str) -> None:
    text = readme(own_tree).read_bytes().decode("cp1253").replace("\u039c", letter)
    readme(own_tree).write_text(text, encoding="utf-8")
    assert [read_people(own_tree)[number].gender for number in planted.MOBIACT_GREEK] == [1, 1, 1]


def test_windows_have_one_label_and_stay_inside_a_file_and_a_part(
    own_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = number_samples(own_tree)
    monkeypatch.setattr(_windows, "standardize", lambda train, test: (train, test))
    data = load(own_tree, window=64, stride=32)
    seen = {}
    for name, part in (("train", data.train), ("test", data.test)):
        for person, own in zip(data.people, mx.data.unstack(part), strict=True):
            assert len(own.labels)
            for window, label in zip(own.inputs[..., 0], own.labels, strict=True):
                # means of four samples
                np.testing.assert_array_equal(np.diff(window), 4)
                first, last = window[0] - 1.5, window[-1] + 1.5
                ((path, (low, high)),) = (
                    item for item in ranges.items() if item[1][0] <= first and last <= item[1][1]
                )
                activity, of, trial, _ = path.stem.split("_")
                assert int(of) == person
                standing = last - low < (high - low + 1) // 4
                moving = first - low >= (high - low + 1) // 4
                assert standing or moving or activity == "STD"
                assert NINE[label] == ("STD" if standing else activity)
                seen.setdefault((activity, int(trial)), set()).add((name, first, last))
    for (activity, trial), windows in seen.items():
        parts = {name for name, _, _ in windows}
        if activity in ("STD", "WAL"):
            ends = [last for name, _, last in windows if name == "train"]
            starts = [first for name, first, _ in windows if name == "test"]
            assert parts == {"train", "test"}
            assert ends
            assert starts
        else:
            # of three trials the last is held out
            assert parts == ({"test"} if trial == 3 else {"train"})


def test_the_end_of_a_single_trial_is_held_out(
    own_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number_samples(own_tree)
    monkeypatch.setattr(_windows, "standardize", lambda train, test: (train, test))
    data = load(own_tree, activities=("STD", "WAL"), stride=4)
    for train, test in zip(*map(mx.data.unstack, (data.train, data.test)), strict=True):
        assert np.intersect1d(train.inputs, test.inputs).size == 0
        # WAL comes last: the last sample of the file is among the held-out ones
        assert test.inputs.max() > train.inputs.max()


def test_samples_without_a_class_are_dropped(tree: Path) -> None:
    everything = load(tree, activities=("STD", "JOG"))
    jogging = load(tree, activities=("JOG",))
    own, alone = (mx.data.unstack(data.train)[0] for data in (everything, jogging))
    assert (own.labels == 0).any()
    assert len(alone.labels) == (own.labels == 1).sum()


@pytest.mark.parametrize(("rate", "factor"), [(200, 1), (100, 2), (40, 5)])
def test_samples_are_averaged_down(tree: Path, rate: int, factor: int) -> None:
    series, labels = read_recording(recording(tree))
    recording_ = _windows.downsample(_windows.Recording(series, labels), factor)
    assert len(recording_.series) == 1200 // factor
    np.testing.assert_allclose(recording_.series[3], series[3 * factor : 4 * factor].mean(axis=0))
    data = load(tree, rate=rate, window=32, stride=32, sensors=("acc", "gyro", "orientation"))
    assert data.train.examples.inputs.shape[2:] == (32, 9)


def test_a_mean_over_a_change_of_label_has_none() -> None:
    recording_ = _windows.Recording(np.zeros((12, 1)), np.array([0] * 6 + [1] * 6))
    assert _windows.downsample(recording_, 4).labels.tolist() == [0, -1, 1]


def test_training_windows_alone_set_the_constants(tree: Path) -> None:
    train = np.concatenate([own.inputs for own in mx.data.unstack(load(tree).train)])
    np.testing.assert_allclose(train.mean(axis=(0, 1), dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=(0, 1), dtype=np.float64), 1, atol=1e-4)


def test_people_without_all_activities_are_left_out(own_tree: Path) -> None:
    for trial in (1, 2, 3):
        recording(own_tree, "CSI", 2, trial).unlink()
    with pytest.raises(mx.InputError, match=r"expected 3 people .*; got 2: .*person 2 has no CSI"):
        load(own_tree)
    assert load(own_tree, people=2).people.tolist() == [1, 3]
    assert load(own_tree, people=None).people.tolist() == [1, 3]


def test_the_full_set_has_58_people(tree: Path) -> None:
    with pytest.raises(mx.InputError, match=r"expected 58 people .*; got 3: person 4 has no STD"):
        load(tree, people=58)


def test_the_folder_itself_can_be_named(tree: Path) -> None:
    assert load(tree / "MobiAct_Dataset_v2.0").people.tolist() == [1, 2, 3]


RECORDINGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (
        lambda path: path.write_text(path.read_text()[:5000].rpartition(",")[0]),
        r"rows of 12 finite values in .*JOG_2_1_annotated.csv; got \d+ values in line \d+, as whe",
    ),
    "empty": (lambda path: path.write_text(""), r"data in .*JOG_2_1_.*; the file is empty"),
    "with a NaN": (
        with_line(7, "1,2,3,nan,5,6,7,8,9,10,11,JOG"), r"got 'nan' for 'acc_y' in line 7"
    ),
    "with another header": (with_line(1, "a,b"), r"header 'timestamp,.*' in line 1 .*; got 'a,b'"),
    "with another label": (
        with_line(7, "1,2,3,4,5,6,7,8,9,10,11,HOP"),
        r"labels of STD, WAL, .* in .*JOG_2_1.*; got 'HOP' in line 7",
    ),
    "cut in its last label": (
        lambda path: path.write_text(path.read_text()[:-3]), r"got 'J' in line 1201"
    ),
    "of another name": (
        lambda path: path.rename(path.with_name("JOG.csv")),
        r"names like JOG_1_1_annotated.csv in .*; got JOG.csv",
    ),
    "without their folder": (
        lambda path: shutil.rmtree(path.parent),
        r"folder .*/JOG with JOG_<subject>_<trial>_annotated.csv files; it is not there",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_bad_recording_is_named_with_a_remedy(own_tree: Path, name: str) -> None:
    harm, message = RECORDINGS[name]
    harm(recording(own_tree))
    with pytest.raises(mx.InputError, match=f"{message}.*Ask the Biomedical Informatics"):
        load(own_tree)


def edit_readme(old: bytes, new: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new))


TABLES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), r"file .*Readme.txt; it is not there"),
    "empty": (lambda path: path.write_bytes(b""), r"Readme.txt; the file is empty"),
    "of another form": (
        edit_readme(b"Surname", b"Family name"),
        r"columns ID, Name, Surname, .*; there is none",
    ),
    "cut": (
        lambda path: path.write_bytes(path.read_bytes().split(b"|   40")[0]),
        r"closing rule in the table .* by line \d+: the file is cut",
    ),
    "cut in a row": (
        edit_readme(b"sub3    | sub3      |    23", b"sub3"),
        r"gender M or F in line 9 of .*sub3",
    ),
    "with another gender": (edit_readme(b"\xcc", b"?"), r"gender M or F in line 34 of .*sub28"),
    "with a person twice": (edit_readme(b"|    2 |", b"|    1 |"), r"line 8 has ID 1 again"),
    "without a person": (edit_readme(b"|    2 |", b"|   99 |"), r"person 2 is not there"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_bad_table_of_subjects_is_named_with_a_remedy(own_tree: Path, name: str) -> None:
    harm, message = TABLES[name]
    harm(readme(own_tree))
    with pytest.raises(mx.InputError, match=f"{message}.*Ask the Biomedical Informatics"):
        load(own_tree)


def test_a_folder_without_the_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(mx.InputError, match=r"folder 'Annotated Data' in .*MobiAct_Dataset_v2.0"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 60}, "a rate that divides 200, such as 50 or 100; got 60"),
        ({"rate": 0}, "rate to be a whole number"),
        ({"test_fraction": 1.0}, r"test_fraction in \[0, 1.0\); got 1.0"),
        ({"test_fraction": 0.0}, "test_fraction to be greater than 0; got 0.0"),
        ({"activities": ("FLY",)}, "each of activities to be one of 'STD', .*; got 'FLY'"),
        ({"sensors": ()}, r"different sensors, of acc, gyro, orientation; got \(\)"),
        ({"window": 5000}, "training windows of person 1; no recording has 5000"),
    ],
)
def test_bad_options_are_refused(tree: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(mx.InputError, match=message):
        load(tree, **options)
