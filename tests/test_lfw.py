"""LFW in its true format: crops, attributes, synthetic participants, and what is refused."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import edit

import mixjax as mx
from experiments import planted
from mixjax.datasets.lfw import Face, _crop, _deal, read_attributes

Image = pytest.importorskip("PIL.Image")

SMALL: dict[str, Any] = dict(participants=4, per_client=12, test_per_client=6)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.lfw(tmp_path_factory.mktemp("lfw"), people=30)


@pytest.fixture
def own_tree(tree: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return shutil.copytree(tree, tmp_path / "tree")


def first_used(folder: Path, **options: Any) -> Path:
    """The first image that a loader reads."""
    used: list[Path] = []
    opened = Image.open

    def spy(path: Path, **options: Any) -> Any:
        used.append(path)
        return opened(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "open", spy)
        mx.datasets.lfw(data_dir=folder, **SMALL)
    return used[0]


def test_participants_are_women_and_men_in_turn(tree: Path) -> None:
    data = mx.datasets.lfw(data_dir=tree, **SMALL)
    assert data.attribute.name == "gender"
    assert data.attribute.values == ("female", "male")
    assert data.attribute.of_client.tolist() == [0, 1, 0, 1]
    assert data.people.tolist() == [0, 1, 2, 3]
    assert data.classes == ("not smiling", "smiling")
    assert data.train.examples.inputs.shape == (4, 12, 62, 47, 3)
    assert data.test.examples.inputs.shape == (4, 6, 62, 47, 3)


def test_inputs_are_the_faces_with_their_labels(tree: Path) -> None:
    data = mx.datasets.lfw(data_dir=tree, **SMALL)
    for own, male in zip(mx.data.unstack(data.train), data.attribute.of_client, strict=True):
        shift = 7 * male
        mouth = own.inputs[:, 41:51, 15 + shift : 29 + shift].mean(axis=(1, 2, 3))
        assert set(own.labels.tolist()) == {0, 1}
        assert mouth[own.labels == 1].min() > mouth[own.labels == 0].max()


def test_training_images_alone_set_the_constants(tree: Path) -> None:
    train, test = (
        np.concatenate([own.inputs for own in mx.data.unstack(part)])
        for part in mx.datasets.lfw(data_dir=tree, **SMALL)[:2]
    )
    np.testing.assert_allclose(train.mean(axis=(0, 1, 2), dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=(0, 1, 2), dtype=np.float64), 1, atol=1e-4)
    assert np.abs(test.mean(axis=(0, 1, 2))).max() > 1e-4


def test_a_crop_is_rows_70_to_195_and_columns_78_to_172_halved() -> None:
    image = np.arange(250)[:, None, None] * 1000.0 + np.arange(250)[:, None] + np.zeros(3)
    crop = _crop(image)
    assert crop.shape == (62, 47, 3)
    assert crop[0, 0, 0] == 70_500 + 78.5
    assert crop[-1, -1, 0] == 192_500 + 170.5


def test_nobody_is_in_two_lists_and_few_images_are_of_one_person() -> None:
    rng = np.random.default_rng(0)
    faces = [
        Face(f"P{person}", number, float(2 * (person % 2) - 1), 0.5)
        for person in range(80)
        for number in range(1, rng.integers(2, 40))
    ]
    of_client = np.arange(6) % 2
    dealt = _deal(faces, of_client, (30, 10), 5, 0)
    people = []
    for value, own in zip(of_client, dealt, strict=True):
        assert [len(part) for part in own] == [30, 10]
        for part in own:
            assert len(set(part)) == len(part)
            names = [face.person for face in part]
            assert max(names.count(name) for name in names) <= 5
            assert {face.male > 0 for face in part} == {bool(value)}
            people += sorted(set(names))
    assert len(set(people)) == len(people)
    assert _deal(faces, of_client, (30, 10), 5, 1) != dealt
    assert _deal(faces, of_client, (30, 10), 5, 0) == dealt


def test_the_mean_score_decides_on_gender() -> None:
    faces = [Face("A", 1, 0.5, 0.0), Face("A", 2, -2.0, 0.0), Face("B", 1, 1.0, 0.0)]
    ((women, _), (men, _)) = _deal(faces + faces, np.arange(2), (1, 0), 10, 0)
    assert women[0].person == "A"
    assert men[0].person == "B"


def test_names_and_scores_are_read_past_the_shifted_header(tree: Path) -> None:
    faces = read_attributes(tree / "lfw_attributes.txt")
    truth = planted.faces(30, 3, 1.0, 0)
    assert len(faces) == 90
    for face, (name, number, male, smiling, _) in zip(faces, truth, strict=True):
        assert face == (name.replace(" ", "_"), number, male, smiling)
    assert faces[1].file == "Person_000/Person_000_0002.jpg"


@pytest.mark.parametrize("folder", ["lfw_funneled", "."])
def test_other_places_of_the_images_give_the_same_data(
    tree: Path, own_tree: Path, folder: str
) -> None:
    for person in (own_tree / "lfw").iterdir():
        (own_tree / folder).mkdir(exist_ok=True)
        person.rename(own_tree / folder / person.name)
    (own_tree / "lfw").rmdir()
    first, other = (mx.datasets.lfw(data_dir=path, **SMALL) for path in (tree, own_tree))
    np.testing.assert_array_equal(first.train.examples.inputs, other.train.examples.inputs)


def test_the_set_of_tensorflow_datasets_gives_the_same_data(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow_datasets")
    planted.lfw_prepared(tmp_path, people=30)
    first, other = (mx.datasets.lfw(data_dir=path, **SMALL) for path in (tree, tmp_path))
    np.testing.assert_array_equal(first.train.examples.inputs, other.train.examples.inputs)
    np.testing.assert_array_equal(first.test.examples.labels, other.test.examples.labels)


def test_a_prepared_set_in_another_order_is_refused(tmp_path: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    made = planted.faces(30, 3, 1.0, 0)
    features = {"label": tfds.features.Text(), "image": tfds.features.Image(shape=(250, 250, 3))}
    examples = [
        (n, {"label": name.replace(" ", "_"), "image": planted.encoded(pixels, "JPEG")})
        for n, (name, *_, pixels) in enumerate(made)
    ]
    planted.prepare(tmp_path, "lfw", "0.1.1", features, {"train": examples})
    (tmp_path / "lfw_attributes.txt").write_text(planted.lfw_attributes(made))
    with pytest.raises(mx.InputError, match=r"in TensorFlow Datasets' order, .* it is another"):
        mx.datasets.lfw(data_dir=tmp_path, **SMALL)


def test_an_image_that_a_prepared_set_lacks_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow_datasets")
    planted.lfw_prepared(tmp_path, people=30, images_each=1)
    attributes = planted.lfw_attributes(planted.faces(30, 3, 1.0, 0))
    (tmp_path / "lfw_attributes.txt").write_text(attributes)
    with pytest.raises(mx.InputError, match=r"Person_\d+_000[23].jpg, named by lfw_attributes"):
        mx.datasets.lfw(data_dir=tmp_path, **SMALL)


def test_missing_images_name_both_places(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(
        mx.InputError, match=r"lfw 0.1.1 of .*Or put the images into .*/lfw/Person_Name/Person_Name"
    ):
        mx.datasets.lfw(data_dir=tmp_path, attributes=tree / "lfw_attributes.txt", **SMALL)


IMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), "the file .*jpg; it is not there"),
    "empty": (lambda path: path.write_bytes(b""), "data in .*jpg; the file is empty"),
    "cut": (
        lambda path: os.truncate(path, 2000),
        "JPEG or PNG image in .*jpg; it can't be decoded",
    ),
    "no image": (
        lambda path: path.write_text("text"),
        "JPEG or PNG image in .*jpg; it can't be decoded",
    ),
    "of another size": (
        lambda path: Image.new("RGB", (60, 40)).save(path),
        "250 x 250 pixels in .*jpg; got 40 x 60",
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_bad_image_is_named_with_a_remedy(own_tree: Path, name: str) -> None:
    harm, message = IMAGES[name]
    harm(first_used(own_tree))
    with pytest.raises(mx.InputError, match=f"{message}.*Unpack lfw.tgz"):
        mx.datasets.lfw(data_dir=own_tree, **SMALL)


def test_grey_images_are_read(own_tree: Path) -> None:
    path = first_used(own_tree)
    Image.open(path).convert("L").save(path)
    assert mx.datasets.lfw(data_dir=own_tree, **SMALL).train.examples.inputs.shape[-1] == 3


def with_cell(line: int, cell: int, text: str) -> Callable[[Path], Any]:
    def change(rows: list[str]) -> list[str]:
        cells = rows[line - 1].split("\t")
        cells[cell] = text
        return [*rows[: line - 1], "\t".join(cells), *rows[line:]]

    return edit(change)


TABLES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), "the file .*lfw_attributes.txt; it is not there"),
    "empty": (lambda path: path.write_text(""), "the file is empty"),
    "without its first line": (edit(lambda rows: rows[1:]), r"line 2 of .* to start with '#', 'p"),
    "of other attributes": (with_cell(2, 3, "Tall"), "and to name Male and Smiling"),
    "without rows": (edit(lambda rows: rows[:2]), "rows below the header of .*; there are none"),
    "cut": (
        lambda path: path.write_text(path.read_text()[:4000].rpartition("\t")[0]),
        r"75 values in line \d+ of .*; got \d+, as where a file was cut",
    ),
    "with a NaN": (with_cell(4, 9, "nan"), "73 finite scores in line 4 of .*; got 'Person 000"),
    "with a word": (with_cell(4, 9, "high"), "73 finite scores in line 4 of"),
    "with a number that is none": (with_cell(4, 1, "two"), "a whole number .* in line 4 of"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_bad_table_of_attributes_is_named_with_a_remedy(own_tree: Path, name: str) -> None:
    harm, message = TABLES[name]
    harm(own_tree / "lfw_attributes.txt")
    with pytest.raises(mx.InputError, match=f"{message}.*Get lfw_attributes.txt of Columbia"):
        mx.datasets.lfw(data_dir=own_tree, **SMALL)


def test_too_few_people_are_refused(tree: Path) -> None:
    with pytest.raises(
        mx.InputError, match=r"enough women for 4 participants of 118 images, at most 10 .*Ask for"
    ):
        mx.datasets.lfw(data_dir=tree, **{**SMALL, "per_client": 112})


@pytest.mark.parametrize("option", ["participants", "per_client", "test_per_client", "per_person"])
def test_counts_below_one_are_refused(tree: Path, option: str) -> None:
    with pytest.raises(mx.InputError, match=f"expected {option} to be a whole number"):
        mx.datasets.lfw(data_dir=tree, **{**SMALL, option: 0})
