"""CIFAR10 and Fashion-MNIST: partition, standardization, cache, and what is refused."""

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import flip_a_bit

import mixjax as mx
from experiments import planted
from mixjax.datasets import _files, _images, _prepared
from mixjax.datasets.cifar10 import GROUPS as CIFAR10_GROUPS
from mixjax.datasets.cifar10 import MOST, SHAPE
from mixjax.datasets.fashion_mnist import GROUPS as FASHION_GROUPS

tfds = pytest.importorskip("tensorflow_datasets")

SMALL: dict[str, Any] = dict(participants=6, per_client=50, test_per_client=20)
REAL = os.environ.get("MIXJAX_DATA_DIR")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.cifar10(tmp_path_factory.mktemp("tfds"), train=600, test=200)


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.fashion_mnist(tmp_path_factory.mktemp("idx"), train=600, test=200)


@pytest.fixture
def own_idx(tmp_path: Path) -> Path:
    """Files that a test may break."""
    return planted.fashion_mnist(tmp_path / "idx", train=600, test=200)


@pytest.fixture
def own_prepared(tmp_path: Path) -> Path:
    return planted.cifar10(tmp_path / "tfds", train=60, test=60)


def shares(part: mx.data.ClientData, groups: list[Any], of_client: np.ndarray) -> list[float]:
    return [
        float(np.isin(own.labels, groups[group]).mean())
        for own, group in zip(mx.data.unstack(part), of_client, strict=True)
    ]


@pytest.mark.parametrize("preferred", [0.8, 0.6])
def test_participants_prefer_the_classes_of_their_group(
    prepared: Path, tmp_path: Path, preferred: float
) -> None:
    data = mx.datasets.cifar10(data_dir=prepared, cache_dir=tmp_path, preferred=preferred, **SMALL)
    assert data.attribute.values == tuple(CIFAR10_GROUPS)
    np.testing.assert_array_equal(data.attribute.of_client, [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(data.people, range(6))
    groups = list(CIFAR10_GROUPS.values())
    for part, count in ((data.train, 50), (data.test, 20)):
        assert part.examples.inputs.shape == (6, count, 32, 32, 3)
        assert part.examples.inputs.dtype == np.float32
        assert shares(part, groups, data.attribute.of_client) == pytest.approx([preferred] * 6)


@pytest.mark.parametrize("groups", [CIFAR10_GROUPS, FASHION_GROUPS])
def test_each_class_is_in_one_group(groups: dict[str, tuple[int, ...]]) -> None:
    assert sorted(label for labels in groups.values() for label in labels) == list(range(10))


def test_no_image_is_dealt_twice_and_images_keep_their_labels() -> None:
    labels = np.arange(600) % 10
    numbered = np.arange(600)[:, None, None, None] * np.ones((1, 1, 1, 1))
    data = _images.by_preference(
        _images.Images(numbered, labels),
        _images.Images(numbered, labels),
        CIFAR10_GROUPS,
        tuple("0123456789"),
        preferred=0.8,
        seed=0,
        **SMALL,
    )
    values = np.concatenate([own.inputs.ravel() for own in mx.data.unstack(data.train)])
    assert np.unique(values).size == 300
    own = np.concatenate([own.labels for own in mx.data.unstack(data.train)])
    # standardized numbers keep their order among the dealt ones
    spread = np.round((values - values.min()) / np.diff(np.unique(values)).min()).astype(int)
    np.testing.assert_array_equal((spread - spread[0]) % 10, (own - own[0]) % 10)


def test_training_images_alone_set_the_constants(idx: Path) -> None:
    data = mx.datasets.fashion_mnist(data_dir=idx, **SMALL)
    train, test = (
        np.concatenate([own.inputs for own in mx.data.unstack(part)])
        for part in (data.train, data.test)
    )
    np.testing.assert_allclose(train.mean(dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(dtype=np.float64), 1, atol=1e-4)
    assert abs(test.mean(dtype=np.float64)) > 1e-4


def test_constants_are_of_each_channel() -> None:
    rng = np.random.default_rng(0)
    pixels = (rng.integers(0, 50, (100, 4, 4, 3)) + np.array([0, 50, 150])).astype(np.uint8)
    images = _images.Images(pixels, np.arange(100) % 10)
    options = dict(participants=2, per_client=20, test_per_client=20, preferred=0.5, seed=0)
    data = _images.by_preference(images, images, CIFAR10_GROUPS, tuple("0123456789"), **options)
    train = np.concatenate([own.inputs for own in mx.data.unstack(data.train)])
    np.testing.assert_allclose(train.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=(0, 1, 2)), 1, atol=1e-4)


def test_another_seed_deals_other_images_and_the_same_the_same(idx: Path) -> None:
    first, again, other = (
        np.asarray(mx.datasets.fashion_mnist(data_dir=idx, seed=seed, **SMALL).train.examples[0])
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_fashion_mnist_reads_what_the_files_hold(idx: Path) -> None:
    data = mx.datasets.fashion_mnist(data_dir=idx, **SMALL)
    assert data.train.examples.inputs.shape == (6, 50, 28, 28, 1)
    assert len(data.classes) == 10
    # the planted square of class c is bright
    own = mx.data.unstack(data.train)[0]
    for image, label in zip(own.inputs, own.labels, strict=True):
        row, column = divmod(int(label), 4)
        square = image[1 + 7 * row : 6 + 7 * row, 1 + 7 * column : 6 + 7 * column]
        assert square.mean() > image.mean() + 1


def test_decoded_images_are_kept_and_taken_from_the_cache(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = mx.datasets.cifar10(data_dir=prepared, cache_dir=tmp_path / "cache", **SMALL)
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.suffix == ".npz"
    # others of the machine may read it, if the umask lets them
    (tmp_path / "plain").touch()
    assert kept.stat().st_mode == (tmp_path / "plain").stat().st_mode
    monkeypatch.setattr(_prepared, "read", lambda *args: pytest.fail("decoded again"))
    again = mx.datasets.cifar10(data_dir=prepared, cache_dir=tmp_path / "cache", **SMALL)
    np.testing.assert_array_equal(first.train.examples.inputs, again.train.examples.inputs)


BREAKS: dict[str, Callable[[Path], Any]] = {
    "one bit": flip_a_bit,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "text": lambda path: path.write_text("not an archive"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_cache_is_noticed_and_made_again(
    prepared: Path, tmp_path: Path, name: str
) -> None:
    first = mx.datasets.cifar10(data_dir=prepared, cache_dir=tmp_path, **SMALL)
    (path,) = tmp_path.iterdir()
    BREAKS[name](path)
    with pytest.warns(UserWarning, match=r"\.npz is broken .* made again"):
        again = mx.datasets.cifar10(data_dir=prepared, cache_dir=tmp_path, **SMALL)
    np.testing.assert_array_equal(first.train.examples.inputs, again.train.examples.inputs)
    mx.datasets.cifar10(data_dir=prepared, cache_dir=tmp_path, **SMALL)


def test_other_files_have_another_cache(prepared: Path, tmp_path: Path) -> None:
    other = planted.cifar10(tmp_path / "tfds", train=600, test=200, seed=1)
    for folder in (prepared, other):
        mx.datasets.cifar10(data_dir=folder, cache_dir=tmp_path / "cache", **SMALL)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cache_that_can_not_be_written_is_done_without(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"could not be kept in .*Name another .* cache_dir"):
        data = mx.datasets.cifar10(data_dir=prepared, cache_dir=tmp_path / "file", **SMALL)
    assert data.train.counts.tolist() == [50] * 6


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _prepared.cached(tmp_path / "a.npz", lambda: {"a": np.ones(3)})
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_in_the_users_folder_by_default() -> None:
    assert _prepared.cache_folder(None).name == "mixjax"


def test_a_missing_set_names_folder_files_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        mx.InputError,
        match=rf"cifar10 3.0.2 .* in {tmp_path}/cifar10/3.0.2: .*array_record-\* files; .*"
        r"download=True .*mixjax\[prepare\]",
    ):
        mx.datasets.cifar10(data_dir=tmp_path)
    with pytest.raises(mx.InputError, match=r"Or put the IDX files train-images-idx3-ubyte.gz"):
        mx.datasets.fashion_mnist(data_dir=tmp_path)


def test_the_usual_folder_is_that_of_tensorflow_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(mx.InputError, match=rf"in {tmp_path}/cifar10"):
        mx.datasets.cifar10()


def test_nothing_is_fetched_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Builder:
        def download_and_prepare(self) -> None:
            asked.append("prepared")

    def builder(name: str, **options: Any) -> Builder:
        asked.append((name, options["data_dir"], options["file_format"]))
        return Builder()

    monkeypatch.setattr(tfds, "builder", builder)
    monkeypatch.setitem(sys.modules, "tensorflow", tfds)
    with pytest.raises(mx.InputError):
        mx.datasets.cifar10(data_dir=tmp_path)
    assert asked == []
    with pytest.raises(mx.InputError):
        mx.datasets.cifar10(data_dir=tmp_path, download=True)
    assert asked == [("cifar10:3.0.2", tmp_path, "array_record"), "prepared"]


def test_preparing_without_tensorflow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(mx.InputError, match=r"package tensorflow .* \"mixjax\[prepare\]\""):
        mx.datasets.cifar10(data_dir=tmp_path, download=True)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(mx.InputError, match=r"tensorflow-datasets .*mixjax\[experiments\]"):
        mx.datasets.cifar10(data_dir=tmp_path)


def test_a_format_without_random_access_is_refused(tmp_path: Path) -> None:
    features = {"label": tfds.features.Scalar(np.int64)}
    planted.prepare(tmp_path, "cifar10", "3.0.2", features, {"train": [(0, {"label": 1})]})
    info = tmp_path / "cifar10" / "3.0.2" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for path in info.parent.glob("*.array_record*"):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    with pytest.raises(mx.InputError, match=r"format array_record; got tfrecord"):
        mx.datasets.cifar10(data_dir=tmp_path)


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    kinds = tfds.features
    features = {"image": kinds.Image(), "label": kinds.ClassLabel(num_classes=10)}
    example = {"image": planted.encoded(np.zeros((32, 32, 3), np.uint8)), "label": 1}
    planted.prepare(tmp_path, "cifar10", "3.0.2", features, {"train": [(0, example)]})
    with pytest.raises(mx.InputError, match=r"split 'test' in .*; got \['train'\]"):
        mx.datasets.cifar10(data_dir=tmp_path)


def record(folder: Path, split: str) -> Path:
    (path,) = (folder / "cifar10" / "3.0.2").glob(f"*{split}*")
    return path


def test_a_missing_shard_is_named(own_prepared: Path) -> None:
    record(own_prepared, "test").unlink()
    with pytest.raises(mx.InputError, match=r"file .*cifar10-test.array_record-00000-of-00001, "):
        mx.datasets.cifar10(data_dir=own_prepared)


def test_fewer_examples_than_announced_are_refused(own_prepared: Path, tmp_path: Path) -> None:
    info = own_prepared / "cifar10" / "3.0.2" / "dataset_info.json"
    info.write_text(info.read_text().replace('"60"', '"61"'))
    with pytest.raises(mx.InputError, match=r"examples 0 to 60 of cifar10 train to be readable"):
        mx.datasets.cifar10(data_dir=own_prepared, cache_dir=tmp_path / "cache")


def test_a_corrupted_shard_is_refused(own_prepared: Path, tmp_path: Path) -> None:
    flip_a_bit(record(own_prepared, "train"))
    with pytest.raises(mx.InputError, match=r"examples 0 to 59 of cifar10 train .*prepare it aga"):
        mx.datasets.cifar10(data_dir=own_prepared, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("option", ["participants", "test_per_client"])
def test_counts_below_one_are_refused(idx: Path, option: str) -> None:
    with pytest.raises(mx.InputError, match=f"expected {option} to be a whole number"):
        mx.datasets.fashion_mnist(data_dir=idx, **{**SMALL, option: 0})


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def header(magic: int, *lengths: int) -> bytes:
    return np.array([magic, *lengths], ">u4").tobytes()


REFUSED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "missing": (LABELS, lambda path: path.unlink(), "file .*labels.*; it is not there"),
    "empty": (IMAGES, lambda path: os.truncate(path, 0), "the file is empty"),
    "cut": (IMAGES, lambda path: os.truncate(path, 9000), "cut or corrupted"),
    "corrupted": (IMAGES, flip_a_bit, "cut or corrupted"),
    "not compressed": (
        LABELS,
        lambda path: path.write_bytes(gzip.decompress(path.read_bytes())),
        "cut or corrupted",
    ),
    "of another kind": (
        IMAGES,
        lambda path: path.write_bytes(path.with_name(LABELS).read_bytes()),
        "magic number 0x00000803 in .*images.*; got 0x00000801",
    ),
    "cut before it was compressed": (
        IMAGES,
        lambda path: path.write_bytes(gzip.compress(header(0x803, 600, 28, 28) + b"1" * 100)),
        "470400 values in .*; got 100: it is cut",
    ),
    "cut in its header": (
        IMAGES,
        lambda path: path.write_bytes(gzip.compress(header(0x803, 600))),
        "header of 16 bytes in .*; got 8: it is cut",
    ),
    "of another size": (
        IMAGES,
        lambda path: path.write_bytes(gzip.compress(header(0x803, 1, 2, 3) + b"123456")),
        "28 x 28 pixels in .*; got 2 x 3",
    ),
    "of fewer labels": (
        LABELS,
        lambda path: path.write_bytes(gzip.compress(header(0x801, 2) + b"\0\0")),
        "label for each of the 600 images .*; got 2 in",
    ),
    "of a class too many": (
        LABELS,
        lambda path: path.write_bytes(gzip.compress(header(0x801, 600) + b"\x0a" * 600)),
        "labels in 0..9 in .*; got 10",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_idx_file_is_named_with_a_remedy(own_idx: Path, name: str) -> None:
    file, harm, message = REFUSED[name]
    harm(own_idx / file)
    with pytest.raises(mx.InputError, match=f"{message}.*Fetch the file again") as error:
        mx.datasets.fashion_mnist(data_dir=own_idx, **SMALL)
    assert str(own_idx) in str(error.value)


def test_importing_the_loaders_is_light() -> None:
    program = """
import sys
import mixjax.datasets
heavy = {"tensorflow", "tensorflow_datasets", "PIL", "pyarrow", "platformdirs", "tqdm"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(mx.InputError, match=r"a folder at .*/nowhere; there is none. Look"):
        _files.folder(tmp_path / "nowhere", "Look elsewhere.")


@pytest.mark.skipif(REAL is None, reason="MIXJAX_DATA_DIR names no folder of TensorFlow Datasets")
def test_the_real_cifar10_is_read_whole(tmp_path: Path) -> None:
    builder = _prepared.builder("cifar10", "3.0.2", REAL, download=False)
    train, test = _prepared.images(builder, tmp_path, SHAPE, MOST)
    for images, each in ((train, 5000), (test, 1000)):
        np.testing.assert_array_equal(np.bincount(images.labels), [each] * 10)
    assert train.images.shape == (50_000, 32, 32, 3)
    data = mx.datasets.cifar10(data_dir=REAL, cache_dir=tmp_path)
    assert data.classes[:2] == ("airplane", "automobile")
    assert data.train.counts.tolist() == [500] * 20
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size > 60_000 * 32 * 32 * 3
