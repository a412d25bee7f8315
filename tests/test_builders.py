"""TensorFlow Datasets' builders: full counts, the same samples as the loaders, no half sets."""

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mixjax as mx
from experiments import planted
from mixjax.datasets.mobiact import read_recording as read_mobiact
from mixjax.datasets.motionsense import read_recording as read_motionsense

tfds = pytest.importorskip("tensorflow_datasets")
builders = pytest.importorskip("mixjax.datasets.builders")


@pytest.fixture(scope="module")
def motionsense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.motionsense(tmp_path_factory.mktemp("motionsense"), samples=(9, 5))


@pytest.fixture(scope="module")
def mobiact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mobiact")
    return planted.mobiact(folder, samples=(12, 8), trials=1)


def prepare(name: str, raw: Path, folder: Path) -> Any:
    builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=raw))
    return builder


def test_motionsense_is_prepared_and_loaded_by_name(motionsense: Path, tmp_path: Path) -> None:
    prepare("motionsense", motionsense, tmp_path)
    sources = tfds.data_source("motionsense", data_dir=tmp_path)
    assert {split: len(source) for split, source in sources.items()} == {"train": 216, "test": 144}
    info = tfds.builder("motionsense", data_dir=tmp_path).info
    people: Counter[int] = Counter()
    for split, source in sources.items():
        for example in source:
            people[example["person"]] += 1
            activity = info.features["activity"].int2str(example["activity"])
            assert (example["trial"] > 10) == (split == "test")
            assert example["trial"] in planted.MOTIONSENSE_TRIALS[activity]
            assert example["gender"] == example["person"] % 2
            assert example["series"].shape == ((5 if split == "test" else 9), 12)
            assert example["series"].dtype == np.float32
    assert people == dict.fromkeys(range(1, 25), 15)
    example = next(e for e in sources["train"] if (e["person"], e["trial"]) == (7, 3))
    path = motionsense / "A_DeviceMotion_data" / "ups_3" / "sub_7.csv"
    np.testing.assert_allclose(example["series"], read_motionsense(path), rtol=1e-6)
    assert (example["weight"], example["height"], example["age"]) == (67, 167, 27)


def test_mobiact_is_prepared_and_loaded_by_name(mobiact: Path, tmp_path: Path) -> None:
    prepare("mobiact", mobiact, tmp_path)
    (source,) = tfds.data_source("mobiact", data_dir=tmp_path).values()
    assert len(source) == 58 * 9
    info = tfds.builder("mobiact", data_dir=tmp_path).info
    genders = {int(example["person"]): int(example["gender"]) for example in source}
    assert sum(genders.values()) == 42
    code = info.features["activity"].str2int("SCH")
    example = next(e for e in source if (e["person"], e["activity"]) == (5, code))
    path = mobiact / "MobiAct_Dataset_v2.0" / "Annotated Data" / "SCH" / "SCH_5_1_annotated.csv"
    series, labels = read_mobiact(path)
    np.testing.assert_allclose(example["series"], series, rtol=1e-6)
    np.testing.assert_array_equal(example["labels"], labels)
    assert [info.features["activity"].int2str(label) for label in labels[[0, -1]]] == ["STD", "SCH"]


def test_an_interrupted_preparation_leaves_nothing_half_prepared(
    motionsense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_motionsense
    done = []

    def interrupted(path: Path) -> np.ndarray:
        done.append(path)
        if len(done) == 100:
            raise KeyboardInterrupt
        return read(path)

    module = sys.modules["mixjax.datasets.builders.motionsense"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_recording", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare("motionsense", motionsense, tmp_path)
    assert len(done) == 100
    assert not list(tmp_path.rglob("dataset_info.json"))
    assert not (tmp_path / "motionsense" / "1.0.0").exists()
    prepare("motionsense", motionsense, tmp_path)
    assert len(tfds.data_source("motionsense", data_dir=tmp_path, split="train")) == 216


def test_a_broken_recording_leaves_nothing_half_prepared(motionsense: Path, tmp_path: Path) -> None:
    raw = shutil.copytree(motionsense, tmp_path / "raw")
    (raw / "A_DeviceMotion_data" / "wlk_7" / "sub_3.csv").write_text("")
    with pytest.raises(mx.InputError, match=r"wlk_7/sub_3.csv; the file is empty"):
        prepare("motionsense", raw, tmp_path / "tfds")
    assert not (tmp_path / "tfds" / "motionsense" / "1.0.0").exists()


def test_an_incomplete_motionsense_is_refused(motionsense: Path, tmp_path: Path) -> None:
    raw = shutil.copytree(motionsense, tmp_path / "raw")
    (raw / "A_DeviceMotion_data" / "sit_5" / "sub_3.csv").unlink()
    with pytest.raises(mx.InputError, match=r"each of 24 people in each trial; .*sit_5/sub_3.csv"):
        prepare("motionsense", raw, tmp_path / "tfds")


def test_another_number_of_trials_is_refused(
    motionsense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["mixjax.datasets.builders.motionsense"]
    find = module.find_trials
    monkeypatch.setattr(module, "find_trials", lambda *args: find(*args)[1:])
    with pytest.raises(mx.InputError, match=r"expected 360 recordings in .*; got 359"):
        prepare("motionsense", motionsense, tmp_path)


def test_an_incomplete_mobiact_is_refused(mobiact: Path, tmp_path: Path) -> None:
    raw = shutil.copytree(mobiact, tmp_path / "raw")
    inside = raw / "MobiAct_Dataset_v2.0"
    (inside / "Annotated Data" / "CSO" / "CSO_9_1_annotated.csv").unlink()
    with pytest.raises(mx.InputError, match=r"58 people .*; got 57: person 9 has no CSO"):
        prepare("mobiact", raw, tmp_path / "tfds")
    rows = (inside / "Readme.txt").read_bytes().split(b"\r\n")
    kept = [row for row in rows if b"sub67" not in row]
    (inside / "Readme.txt").write_bytes(b"\r\n".join(kept))
    with pytest.raises(mx.InputError, match=r"67 people in the Readme.txt of .*; got 66"):
        prepare("mobiact", raw, tmp_path / "tfds")


def test_recordings_of_a_stranger_are_refused(mobiact: Path, tmp_path: Path) -> None:
    raw = shutil.copytree(mobiact, tmp_path / "raw")
    inside = raw / "MobiAct_Dataset_v2.0" / "Annotated Data" / "JOG"
    shutil.copy(inside / "JOG_1_1_annotated.csv", inside / "JOG_70_1_annotated.csv")
    with pytest.raises(mx.InputError, match=r"got some of person 70"):
        prepare("mobiact", raw, tmp_path / "tfds")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("motionsense", "github.com/mmalekzadeh/motion-sense"), ("mobiact", "Ask the Biomedical")],
)
def test_without_the_raw_files_the_instructions_are_shown(
    tmp_path: Path, name: str, remedy: str
) -> None:
    with pytest.raises(AssertionError, match=remedy):
        prepare(name, tmp_path / "raw", tmp_path / "tfds")
