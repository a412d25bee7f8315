"""MotionSense in its true format: windows, splits, standardization, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import edit, with_line

import mixjax as mx
from experiments import planted
from mixjax.datasets import _windows
from mixjax.datasets.motionsense import read_people, read_recording

pytest.importorskip("pyarrow")

PEOPLE = 4
# the table of the project as it is, with CRLF
SUBJECTS = """\
code,weight,height,age,gender
1,102,188,46,1
2,72,180,28,1
3,48,161,28,0
4,90,176,31,1"""


def load(folder: Path, **options: Any) -> mx.data.Dataset:
    return mx.datasets.motionsense(data_dir=folder, people=PEOPLE, **options)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.motionsense(tmp_path_factory.mktemp("motionsense"), people=PEOPLE)


@pytest.fixture
def own_tree(tree: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return shutil.copytree(tree, tmp_path / "tree")


def recording(folder: Path, trial: str = "wlk_7", person: int = 2) -> Path:
    return folder / "A_DeviceMotion_data" / trial / f"sub_{person}.csv"


def number_samples(folder: Path) -> dict[str, tuple[float, float]]:
    """Give every sample of all files a number of its own; the range of each trial's numbers."""
    start, ranges = 0.0, {}
    for path in sorted(folder.glob("A_DeviceMotion_data/*/*.csv")):
        header, *rows = path.read_text().splitlines()
        numbers = start + np.arange(len(rows))
        columns = [range(len(rows)), *[numbers.tolist()] * 12]
        path.write_text(planted.table(header, columns))
        ranges[f"{path.parent.name}/{path.stem}"] = (start, start + len(rows) - 1)
        start += len(rows)
    return ranges


def test_participants_are_people_and_the_attribute_is_gender(tree: Path) -> None:
    data = load(tree)
    assert data.people.tolist() == [1, 2, 3, 4]
    assert data.attribute.name == "gender"
    assert data.attribute.values == ("female", "male")
    assert data.attribute.of_client.tolist() == [1, 0, 1, 0]
    assert data.classes[:3] == ("walking downstairs", "walking upstairs", "walking")


def test_windows_are_cut_with_the_stride_inside_each_file(tree: Path) -> None:
    data = load(tree)
    # 7 long trials of 400 samples, 4 short ones of 200
    assert data.train.counts.tolist() == [7 * 5] * PEOPLE
    assert data.test.counts.tolist() == [4 * 2] * PEOPLE
    assert data.train.examples.inputs.shape == (PEOPLE, 35, 128, 6)
    own = mx.data.unstack(data.train)[0]
    assert np.bincount(own.labels).tolist() == [10, 10, 10, 5]
    assert load(tree, stride=10).train.counts.tolist() == [7 * 28] * PEOPLE


def test_no_window_crosses_files_and_short_trials_are_held_out(
    own_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = number_samples(own_tree)
    monkeypatch.setattr(_windows, "standardize", lambda train, test: (train, test))
    data = load(own_tree)
    for part, is_part in (
        (data.train, lambda trial: trial <= 9),
        (data.test, lambda trial: trial > 10),
    ):
        for person, own in zip(data.people, mx.data.unstack(part), strict=True):
            assert len(own.labels)
            for window, label in zip(own.inputs[..., 0], own.labels, strict=True):
                np.testing.assert_array_equal(np.diff(window), 1)
                (name,) = (
                    name
                    for name, (low, high) in ranges.items()
                    if low <= window[0] and window[-1] <= high
                )
                activity, trial = name.split("/")[0].split("_")
                assert name.endswith(f"sub_{person}")
                assert is_part(int(trial))
                assert ("dws", "ups", "wlk", "jog")[label] == activity


def test_training_windows_alone_set_the_constants(tree: Path) -> None:
    data = load(tree)
    train, test = (
        np.concatenate([own.inputs for own in mx.data.unstack(part)])
        for part in (data.train, data.test)
    )
    np.testing.assert_allclose(train.mean(axis=(0, 1), dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=(0, 1), dtype=np.float64), 1, atol=1e-4)
    assert np.abs(test.mean(axis=(0, 1), dtype=np.float64)).max() > 1e-4


def test_the_test_data_change_no_training_input(own_tree: Path) -> None:
    before = load(own_tree).train.examples.inputs
    path = recording(own_tree, "wlk_15")
    header, *rows = path.read_text().splitlines()
    columns = [range(len(rows)), *[[9.0] * len(rows)] * 12]
    path.write_text(planted.table(header, columns))
    np.testing.assert_array_equal(before, load(own_tree).train.examples.inputs)


def test_activities_and_sensors_can_be_chosen(tree: Path) -> None:
    data = load(tree, activities=("sit", "jog"), sensors=("gravity",))
    assert data.classes == ("sitting", "jogging")
    assert data.train.examples.inputs.shape[2:] == (128, 3)
    own = mx.data.unstack(data.train)[0]
    assert np.bincount(own.labels).tolist() == [5, 5]


def test_channels_are_read_by_their_names(tree: Path) -> None:
    samples = read_recording(recording(tree))
    rows = recording(tree).read_text().splitlines()
    assert samples.shape == (400, 12)
    np.testing.assert_array_equal(samples[3], [float(cell) for cell in rows[4].split(",")[1:]])


FORMS: dict[str, dict[str, Any]] = {
    "a folder in the folder": {"nested": True},
    "CRLF": {"newline": "\r\n"},
    "no byte order mark": {"bom": False},
}


@pytest.mark.parametrize("name", FORMS)
def test_other_forms_of_the_files_give_the_same_data(tree: Path, tmp_path: Path, name: str) -> None:
    other = planted.motionsense(tmp_path, people=PEOPLE, **FORMS[name])
    np.testing.assert_array_equal(
        load(tree).train.examples.inputs, load(other).train.examples.inputs
    )
    assert load(other).attribute.of_client.tolist() == [1, 0, 1, 0]


def test_the_clone_of_the_project_can_be_named(tree: Path, own_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "clone").mkdir()
    own_tree.rename(tmp_path / "clone" / "data")
    data = load(tmp_path / "clone")
    assert data.train.counts.tolist() == load(tree).train.counts.tolist()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_true_table_of_subjects_is_read(own_tree: Path, newline: str) -> None:
    text = SUBJECTS.replace("\n", newline)
    (own_tree / "data_subjects_info.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    people = read_people(own_tree, 4)
    assert people[2] == (3, 48, 161, 28, 0)
    assert [person.gender for person in people] == [1, 1, 0, 1]


def test_the_signal_is_planted_and_can_be_left_out(tree: Path, tmp_path: Path) -> None:
    def loudness(folder: Path) -> np.ndarray:
        data = load(folder)
        power = np.array([np.square(own.inputs).mean() for own in mx.data.unstack(data.train)])
        return power[[0, 2]].mean() / power[[1, 3]].mean()

    without = planted.motionsense(tmp_path, people=PEOPLE, signal=0.0)
    assert loudness(tree) > 1.5
    assert loudness(without) == pytest.approx(1, abs=0.1)


def row(cell: str) -> str:
    return ",".join(["3", *["0.5"] * 5, cell, *["0.5"] * 6])


RECORDINGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (
edit(lambda rows: [*rows[:9], "8,0.1,0.2,0.3"]),
        r"rows of 13 finite values in .*sub_2.csv; got 4 values in line 10, as where",
    ),
    "empty": (lambda path: path.write_text(""), r"data in .*sub_2.csv; the file is empty"),
    "without rows": (edit(lambda rows: rows[:1]), r"rows below the header of .*; there are none"),
    "of blank rows": (
        edit(lambda rows: [rows[0], "", "", ""]), r"rows below the header of .*; there are none"
    ),
    "with a NaN": (with_line(5, row("NaN")), r"got 'NaN' for 'gravity.z' in line 5"),
    "with a number too large": (with_line(5, row("1e39")), r"got '1e39' for 'gravity.z' in line 5"),
    "with an infinity": (with_line(5, row("inf")), r"got 'inf' for 'gravity.z' in line 5"),
    "with a gap": (with_line(5, row("")), r"got '' for 'gravity.z' in line 5"),
    "with a word": (with_line(5, row("high")), r"got 'high' for 'gravity.z' in line 5"),
    "with another header": (
        with_line(1, "index,roll,pitch"),
        r"header ',attitude.roll,.*' in line 1 of .*; got 'index,roll,pitch'",
    ),
    "missing": (lambda path: path.unlink(), r"each of 4 people in each trial; .*sub_2.csv is not"),
    "of a stranger": (
        lambda path: shutil.copy(path, path.with_name("sub_9.csv")),
        r"people listed in data_subjects_info.csv; .*sub_9.csv is of somebody else",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_bad_recording_is_named_with_a_remedy(own_tree: Path, name: str) -> None:
    harm, message = RECORDINGS[name]
    harm(recording(own_tree))
    with pytest.raises(mx.InputError, match=f"{message}.*Get data/A_DeviceMotion_data.zip"):
        load(own_tree)


TABLES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "with another header": (
        with_line(1, "code,weight"), r"'code,weight,height,age,gender' in line 1 .*'code,weight'"
    ),
    "with a word": (
        with_line(3, "2,heavy,161,28,0"), r"five whole numbers, .* in line 3 of .*'2,heavy,161"
    ),
    "cut": (with_line(5, "4,90"), r"five whole numbers, .* in line 5 of .*; got '4,90'"),
    "with another gender": (with_line(3, "2,72,161,28,7"), r"the last 0 or 1, in line 3"),
    "with a person twice": (with_line(3, "1,72,161,28,0"), r"line 3 has code 1 again"),
    "without a person": (
        edit(lambda rows: rows[:-1]), r"expected 4 people in .*; got 3\..*people=3"
    ),
    "empty": (lambda path: path.write_text(""), r"the file is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_bad_table_of_subjects_is_named_with_a_remedy(own_tree: Path, name: str) -> None:
    harm, message = TABLES[name]
    harm(own_tree / "data_subjects_info.csv")
    with pytest.raises(mx.InputError, match=message) as error:
        load(own_tree)
    assert "github.com/mmalekzadeh/motion-sense" in str(error.value)


def test_the_full_set_has_24_people(tree: Path) -> None:
    with pytest.raises(mx.InputError, match=r"expected 24 people in .*; got 4"):
        mx.datasets.motionsense(data_dir=tree)


def test_a_folder_without_the_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        mx.InputError, match=r"A_DeviceMotion_data and the file data_subjects_info.csv in .*Get da"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activities": ("dws", "fly")}, "each of activities to be one of 'dws', .*; got 'fly'"),
        ({"activities": ()}, r"sequence of different activities, of dws, ups, .*; got \(\)"),
        ({"activities": "wlk"}, r"sequence of different activities, .*; got 'wlk'"),
        ({"activities": ("wlk", "wlk")}, r"sequence of different activities"),
        ({"sensors": ("sonar",)}, "each of sensors to be one of 'attitude', .*; got 'sonar'"),
        ({"window": 0}, "window to be a whole number of at least 1; got 0"),
        ({"stride": 0}, "stride to be a whole number of at least 1; got 0"),
        ({"window": 300}, "held-out windows of person 1; no recording has 300 samples of one cl"),
        ({"window": 500}, "training windows of person 1; .*Ask for shorter windows"),
    ],
)
def test_bad_options_are_refused(tree: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(mx.InputError, match=message):
        load(tree, **options)
