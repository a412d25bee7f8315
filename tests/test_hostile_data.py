"""Data may come from anybody: nothing of it is run, and no more is decoded than a set holds."""

import gzip
import io
import json
import shutil
import struct
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mixjax as mx
from experiments import planted
from mixjax.datasets import _files, _pixels, _prepared
from mixjax.datasets.fashion_mnist import _read_idx
from mixjax.datasets.lfw import read_attributes

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("tensorflow_datasets")

SHAPE = (25, 20, 3)
DEAR = 20 * 2**20


def picture(form: str, size: tuple[int, int] = (20, 25), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 100, 0)).save(file, form, **options)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG whose header says so large an image, and that has next to no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        code = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + code

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


@pytest.fixture
def frugal() -> Any:
    """Fail a test that takes more memory than no set here needs."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < DEAR, f"{peak:,} bytes"


@pytest.mark.parametrize("form", _pixels.FORMATS)
def test_jpeg_and_png_are_images_also_in_memory(form: str, tmp_path: Path) -> None:
    content = picture(form)
    (tmp_path / "face").write_bytes(content)
    for source in (content, tmp_path / "face"):
        pixels = _pixels.decode(source, SHAPE, "a face", "Look.")
        assert pixels.shape == SHAPE
        np.testing.assert_allclose(pixels[0, 0], [200, 100, 0], atol=3)
        assert _pixels.decode(source, (25, 20, 1), "a face", "Look.").shape == (25, 20, 1)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 25\n%%EndComments\n(x) print\n%%EOF\n"
FOREIGN = {
    "EPS": EPS,
    **{form: picture(form) for form in ("GIF", "BMP", "TIFF", "PPM", "ICO", "PCX")},
    "PDF": picture("PDF"),
}


@pytest.mark.parametrize("form", FOREIGN)
def test_no_other_format_is_opened(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.check_call", lambda *args, **options: pytest.fail("was run"))
    with pytest.raises(mx.InputError, match=r"a JPEG or PNG image in a face; .*decoded.* Look\."):
        _pixels.decode(FOREIGN[form], SHAPE, "a face", "Look.")


@pytest.mark.parametrize("size", [(20, 26), (12_000, 12_000), (60_000, 60_000)])
def test_an_image_of_another_size_is_refused_before_it_is_decoded(
    size: tuple[int, int], frugal: None, recwarn: pytest.WarningsRecorder
) -> None:
    del recwarn  # Pillow warns of the second
    with pytest.raises(mx.InputError, match=r"pixels in a face; got|a face; it can't be decoded"):
        _pixels.decode(png(*size), SHAPE, "a face", "Look.")


def test_a_prepared_image_of_another_size_is_named(tmp_path: Path) -> None:
    folder = planted.cifar10(tmp_path / "set", train=4, test=4)
    builder = _prepared.builder("cifar10", "3.0.2", folder, download=False)
    with pytest.raises(mx.InputError, match=r"16 x 8 pixels in example 0 of cifar10 train; got 32"):
        _prepared.images(builder, tmp_path / "cache", (16, 8, 3), {"train": 4, "test": 4})
    with pytest.raises(mx.InputError, match=r"at most 3 examples of 'test' in .*; got 4"):
        _prepared.images(builder, tmp_path / "cache", (32, 32, 3), {"train": 4, "test": 3})
    assert not (tmp_path / "cache").exists()


def bomb(path: Path, header: bytes, megabytes: int = 200) -> None:
    """So many zeros behind the header, in a thousandth of their size."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    with path.open("wb") as file:
        file.write(packer.compress(header))
        for _ in range(megabytes):
            file.write(packer.compress(bytes(2**20)))
        file.write(packer.flush())


IDX = {
    "more than announced": (struct.pack(">IIII", 0x803, 9, 28, 28), r"7056 values .*; got more"),
    "too many images": (
        struct.pack(">IIII", 0x803, 10**9, 28, 28),
        r"at most 60000 images .*; its header says 1000000000",
    ),
    "images too large": (
        struct.pack(">IIII", 0x803, 1, 40_000, 50_000),
        r"28 x 28 pixels .*; got 40000 x 50000",
    ),
}


@pytest.mark.parametrize("name", IDX)
def test_no_more_is_decompressed_than_the_header_may_announce(
    name: str, tmp_path: Path, frugal: None
) -> None:
    header, message = IDX[name]
    bomb(tmp_path / "images.gz", header)
    with pytest.raises(mx.InputError, match=f"{message}.*Fetch the file again"):
        _read_idx(tmp_path / "images.gz", 3)


def test_a_label_too_many_is_a_label_too_many(tmp_path: Path) -> None:
    labels = struct.pack(">II", 0x801, 3) + b"\1\2\3"
    (tmp_path / "right.gz").write_bytes(gzip.compress(labels))
    (tmp_path / "wrong.gz").write_bytes(gzip.compress(labels + b"\4"))
    np.testing.assert_array_equal(_read_idx(tmp_path / "right.gz", 1), [1, 2, 3])
    with pytest.raises(mx.InputError, match=r"3 values in .*wrong.gz, as its header says; got mo"):
        _read_idx(tmp_path / "wrong.gz", 1)


def compressed(path: Path) -> None:
    np.savez_compressed(path, a=np.zeros(300 * 2**20, np.uint8))


def announced(path: Path) -> None:
    """A member whose header says more than the file has."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (300 * 2**20,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header.getvalue() + b"\0" * 64)


def pickled(path: Path) -> None:
    np.savez(path, a=np.array([{"any": "thing"}], object))


@pytest.mark.parametrize("harm", [compressed, announced, pickled])
def test_a_cache_holds_no_more_than_its_file(harm: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    harm(path)
    tracemalloc.start()
    with pytest.warns(UserWarning, match=r"set.npz is broken \(.*\) and is made again"):
        arrays = _prepared.cached(path, lambda: {"a": np.arange(3)})
    assert tracemalloc.get_traced_memory()[1] < DEAR
    tracemalloc.stop()
    np.testing.assert_array_equal(arrays["a"], [0, 1, 2])
    again = _prepared.cached(path, lambda: pytest.fail("made again"))
    np.testing.assert_array_equal(again["a"], [0, 1, 2])


def grow(path: Path) -> None:
    """Holes of a terabyte: they take no room on the disk."""
    with path.open("ab") as file:
        file.truncate(2**40)


def test_a_file_larger_than_the_set_is_not_read(tmp_path: Path) -> None:
    table = planted.motionsense(tmp_path / "sense", people=1) / "data_subjects_info.csv"
    faces = tmp_path / "lfw_attributes.txt"
    faces.write_text(planted.lfw_attributes(planted.faces(1, 1, 1.0, 0)))
    for path in (table, faces):
        grow(path)
    with pytest.raises(mx.InputError, match=r"at most 67,108,864 bytes in .*info.csv; got 1,099,5"):
        mx.datasets.motionsense(data_dir=table.parent, people=1)
    with pytest.raises(mx.InputError, match=r"at most .* bytes in .*lfw_attributes.txt; got"):
        read_attributes(faces)
    grow(tmp_path / "recording.csv")
    with pytest.raises(mx.InputError, match=r"at most .* bytes in .*recording.csv; got"):
        _files.read_table(tmp_path / "recording.csv", ["a"], remedy="Look.")


def test_a_message_shows_a_line_of_a_huge_one(tmp_path: Path) -> None:
    path = tmp_path / "recording.csv"
    for text in ("a" * 5_000_000, "a,b\n1," + "9" * 5_000_000 + "x\n"):
        path.write_text(text)
        with pytest.raises(mx.InputError, match=r"recording.csv") as error:
            _files.read_table(path, ["a", "b"], remedy="Look.")
        assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("9" * 5000 + ",60,161,28,0", "five whole numbers"),
        ("9223372036854775808,60,161,28,0", "five whole numbers"),
        ("1,60,161,28,01", "the last 0 or 1"),
    ],
)
def test_numbers_of_people_fit_32_bits(tmp_path: Path, line: str, message: str) -> None:
    folder = planted.motionsense(tmp_path, people=1)
    (folder / "data_subjects_info.csv").write_text(f"code,weight,height,age,gender\n{line}\n")
    with pytest.raises(mx.InputError, match=f"{message}.*in line 2 of"):
        mx.datasets.motionsense(data_dir=folder, people=1)


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("../../secret", "1", "a person's name in line 3 of .*got '../../secret'"),
        ("/etc/secret", "1", "a person's name in line 3"),
        ("..", "1", "a person's name in line 3"),
        ("A" * 300, "1", "a person's name in line 3"),
        ("Ann Lee", "-1", "a whole number .* in line 3"),
        ("Ann Lee", "9" * 5000, "a whole number .* in line 3"),
    ],
)
def test_a_name_leads_into_no_other_folder(
    tmp_path: Path, name: str, number: str, message: str
) -> None:
    text = planted.lfw_attributes([("Person 000", 1, 0.5, 0.5, None)])
    (tmp_path / "list.txt").write_text(text.replace("Person 000\t1", f"{name}\t{number}"))
    with pytest.raises(mx.InputError, match=message):
        read_attributes(tmp_path / "list.txt")


CODE = "from pathlib import Path\nPath('owned').touch()\nclass X: pass\n"
JSON = {"json": "{}"}
NAMES: dict[str, Any] = {
    "as it is": {"pythonClassName": "evil_features.X", "jsonFeature": JSON},
    "in another notation": {"python_class_name": "evil_features.X", "json_feature": JSON},
    "in the old notation": {"type": "evil_features.X", "content": {}},
    "inside": {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": {"a": {"pythonClassName": "evil_features.X"}}},
    },
    "inside a text": {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "jsonFeature": {"json": json.dumps({"a": {"type": "evil_features.X", "content": {}}})},
    },
    "of a like name": {"pythonClassName": "tensorflow_datasets.core.features_evil.X"},
}


@pytest.mark.parametrize("name", NAMES)
def test_features_of_others_are_refused_before_they_are_imported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    (tmp_path / "evil_features.py").write_text(CODE)
    folder = planted.cifar10(tmp_path, train=1, test=1) / "cifar10" / "3.0.2"
    (folder / "features.json").write_text(json.dumps(NAMES[name]))
    with pytest.raises(mx.InputError, match=r"TensorFlow Datasets itself in .*features.json; got "):
        mx.datasets.cifar10(data_dir=tmp_path)
    assert not (tmp_path / "owned").exists()
    assert "evil_features" not in sys.modules


def test_a_module_of_the_builder_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    (tmp_path / "evil_features.py").write_text(CODE)
    info = planted.cifar10(tmp_path, train=1, test=1) / "cifar10" / "3.0.2" / "dataset_info.json"
    content = json.loads(info.read_text())
    info.write_text(json.dumps({**content, "moduleName": "evil_features"}))
    _prepared.builder("cifar10", "3.0.2", tmp_path, download=False)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"pythonClassName": 3}'])
def test_broken_descriptions_are_named(tmp_path: Path, name: str, text: str) -> None:
    folder = planted.cifar10(tmp_path, train=1, test=1) / "cifar10" / "3.0.2"
    (folder / name).write_text(text)
    with pytest.raises(mx.InputError, match=r"(?s)features.json.*Delete the set's folder"):
        mx.datasets.cifar10(data_dir=tmp_path)


@pytest.mark.parametrize("kind", ["Text", "a set of one feature"])
def test_no_text_is_taken_for_an_image(kind: str, tmp_path: Path) -> None:
    """A path among the examples would be opened."""
    folder = planted.cifar10(tmp_path, train=1, test=1) / "cifar10" / "3.0.2"
    content = json.loads((folder / "features.json").read_text())
    features = content["featuresDict"]["features"]
    features["image"] = features["id"]
    chosen = content if kind == "Text" else features["id"]
    (folder / "features.json").write_text(json.dumps(chosen))
    with pytest.raises(mx.InputError, match=r"'image' of .* to be Image; got (Text|NoneType)\."):
        mx.datasets.cifar10(data_dir=tmp_path, cache_dir=tmp_path / "cache")


def test_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.Scalar(np.int64),
    }
    pixels = np.zeros((32, 32, 3), np.uint8)
    one = [(0, {"image": planted.encoded(pixels), "label": 2**32 + 1})]
    planted.prepare(tmp_path, "cifar10", "3.0.2", features, {"train": one, "test": one})
    with pytest.raises(mx.InputError, match=r"'label' of .* to be ClassLabel; got Scalar"):
        mx.datasets.cifar10(data_dir=tmp_path, cache_dir=tmp_path / "cache")
    right = planted.cifar10(tmp_path / "right", train=1, test=1) / "cifar10" / "3.0.2"
    for name in ("features.json", "label.labels.txt"):
        shutil.copy(right / name, tmp_path / "cifar10" / "3.0.2" / name)
    with pytest.raises(mx.InputError, match=r"labels in 0..9 of cifar10 train; got 4294967297"):
        mx.datasets.cifar10(data_dir=tmp_path, cache_dir=tmp_path / "cache")
