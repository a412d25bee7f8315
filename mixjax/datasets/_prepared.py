"""Sets that TensorFlow Datasets has prepared, and decoded copies of them."""

import contextlib
import hashlib
import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mixjax import _validate
from mixjax._files import replacing
from mixjax.datasets import _files, _pixels
from mixjax.datasets._images import Images

PathLike = str | os.PathLike[str]
BATCH = 500
# of both sets of images
CLASSES = 10
REMEDY = "Delete the set's folder and prepare it again."
# TensorFlow Datasets imports the module of any other name that features.json has
FEATURE = re.compile(r"tensorflow_datasets\.core\.features(\.\w+)+")


def root(data_dir: PathLike | None) -> Path:
    """The folder of TensorFlow Datasets."""
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(default if data_dir is None else data_dir).expanduser()


def builder(
    name: str, version: str, data_dir: PathLike | None, *, download: bool, otherwise: str = ""
) -> Any:
    """The builder of a prepared set; nothing is downloaded unless asked for.

    Args:
      name: the set's in TensorFlow Datasets.
      version: the one to read.
      data_dir: folder of TensorFlow Datasets; the usual one by default.
      download: fetch and prepare what is not there.
      otherwise: the last sentence of the error: where else the data may be.

    Raises:
      InputError: when the set is not there, or can't be read without TensorFlow.
    """
    tfds = _files.needed("tensorflow_datasets", "experiments")
    folder = root(data_dir) / name / version
    if download and not (folder / "dataset_info.json").is_file():
        _files.needed("tensorflow", "prepare")
        fresh = tfds.builder(
            f"{name}:{version}", data_dir=root(data_dir), file_format="array_record"
        )
        fresh.download_and_prepare()
    if not (folder / "dataset_info.json").is_file():
        raise _validate.InputError(
            f"expected {name} {version} of TensorFlow Datasets in {folder}: dataset_info.json, "
            f"features.json and {name}-*.array_record-* files; they are not there. Name the "
            "folder that has them with data_dir, or let download=True fetch and prepare them "
            f'(this needs pip install "mixjax[prepare]").{otherwise}'
        )
    _check_features(folder / "features.json")
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # whatever its parsers raise
        raise _validate.InputError(
            f"expected dataset_info.json and features.json of TensorFlow Datasets in {folder}; "
            f"got {type(error).__name__}: {error}. {REMEDY}"
        ) from error


def _check_features(path: Path) -> None:
    """Refuse features that are not TensorFlow Datasets' own: their modules would be run."""
    try:
        content = json.loads(_files.read_bytes(path, REMEDY))
        foreign = [name for name in _class_names(content) if not FEATURE.fullmatch(name)]
    except (ValueError, RecursionError) as error:
        raise _validate.InputError(f"expected JSON in {path}; got {error}. {REMEDY}") from None
    if foreign:
        raise _validate.InputError(
            f"expected only features of TensorFlow Datasets itself in {path}; got "
            f"{_files.shown(foreign[0])}, a module of which would be run. {REMEDY}"
        )


def _class_names(content: Any) -> Iterator[str]:
    """The names of classes in all notations, also in JSON that is a text inside of JSON."""
    if isinstance(content, str):
        with contextlib.suppress(ValueError):
            inner = json.loads(content)
            if not isinstance(inner, str):
                yield from _class_names(inner)
    elif isinstance(content, list):
        for inner in content:
            yield from _class_names(inner)
    elif isinstance(content, dict):
        for key, inner in content.items():
            if key in ("pythonClassName", "python_class_name", "type") and isinstance(inner, str):
                yield inner
            yield from _class_names(inner)


def source(builder: Any, split: str, most: int, label: str) -> Any:
    """Random access to a split's examples, at most so many, with images as they are encoded.

    `label` is the kind of feature that labels are.
    """
    folder = builder.data_dir
    if split not in builder.info.splits:
        raise _validate.InputError(
            f"expected the split {split!r} in {folder}; got {sorted(builder.info.splits)}. "
            "Delete this folder and prepare the set again."
        )
    missing = [path for path in builder.info.splits[split].filepaths if not Path(path).is_file()]
    if missing:
        raise _validate.InputError(
            f"expected the file {missing[0]}, named by {folder}/dataset_info.json; it is not "
            "there. Delete this folder and prepare the set again."
        )
    tfds = _files.needed("tensorflow_datasets", "experiments")
    has_image = "image" in _features(builder)
    decoders = {"image": tfds.decode.SkipDecoding()} if has_image else None
    try:
        examples = builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError:
        raise _validate.InputError(
            f"expected {folder} in the format array_record; got "
            f"{builder.info.file_format.value}, which can't be read without TensorFlow. Prepare "
            'the set with tfds.builder(..., file_format="array_record").'
        ) from None
    if len(examples) > most:
        raise _validate.InputError(
            f"expected at most {most:,} examples of {split!r} in {folder}; got "
            f"{len(examples):,}. {REMEDY}"
        )
    for name, kind in (("image", "Image"), ("label", label)):
        found = _features(builder).get(name)
        if not isinstance(found, getattr(tfds.features, kind)):
            raise _validate.InputError(
                f"expected the feature {name!r} of {folder} to be {kind}; got "
                f"{type(found).__name__}. {REMEDY}"
            )
    return examples


def _features(builder: Any) -> dict[str, Any]:
    """By name; a set may also have a single one without."""
    features = builder.info.features
    return dict(features.items()) if hasattr(features, "items") else {}


def read(examples: Any, indices: Sequence[int], what: str) -> Iterator[Any]:
    """Decode examples, with a progress bar on a terminal."""
    from tqdm import tqdm

    with tqdm(total=len(indices), desc=what, unit=" images", disable=None, leave=False) as bar:
        # one by one takes half as long again
        for start in range(0, len(indices), BATCH):
            batch = indices[start : start + BATCH]
            try:
                decoded = examples.__getitems__(batch)
            except Exception as error:  # whatever array_record, protobuf or the decoder raise
                raise _validate.InputError(
                    f"expected examples {batch[0]} to {batch[-1]} of {what} to be readable; got "
                    f"{type(error).__name__}: {error}. {REMEDY}"
                ) from error
            yield from decoded
            bar.update(len(batch))


def images(
    builder: Any,
    cache_dir: PathLike | None,
    shape: tuple[int, int, int],
    most: Mapping[str, int],
) -> tuple[Images, Images]:
    """All images of the splits train and test, decoded once and then taken from the cache.

    Args:
      builder: see `builder`.
      cache_dir: see `cache_folder`.
      shape: an image's height, width and channels.
      most: how many images each split may have.
    """
    splits = ("train", "test")
    sources = {split: source(builder, split, most[split], "ClassLabel") for split in splits}

    def decode() -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for split, examples in sources.items():
            what = f"{builder.name} {split}"
            pixels = np.empty((len(examples), *shape), np.uint8)
            labels = np.empty(len(examples), np.int64)
            for index, example in enumerate(read(examples, range(len(examples)), what)):
                where = f"example {index} of {what}"
                pixels[index] = _pixels.decode(example["image"], shape, where, REMEDY)
                labels[index] = example["label"]
            if len(labels) and not 0 <= labels.min() <= labels.max() < CLASSES:
                raise _validate.InputError(
                    f"expected labels in 0..{CLASSES - 1} of {what}; got {labels.min()} to "
                    f"{labels.max()}. {REMEDY}"
                )
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = pixels, labels
        return arrays

    paths = [Path(path) for split in splits for path in builder.info.splits[split].filepaths]
    counts = {split: len(examples) for split, examples in sources.items()}
    name = f"{builder.name}-{builder.version}-{fingerprint(paths, counts)}.npz"
    arrays = cached(cache_folder(cache_dir) / name, decode)
    train, test = (Images(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in splits)
    return train, test


def fingerprint(paths: list[Path], counts: dict[str, int]) -> str:
    """A digest of the files' names and bytes, and of the numbers of examples."""
    digest = hashlib.sha256(repr(sorted(counts.items())).encode())
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def cache_folder(cache_dir: PathLike | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(_files.needed("platformdirs", "experiments").user_cache_dir("mixjax"))


def _check_stored(file: IO[bytes]) -> None:
    """Refuse arrays that are larger than the file: none of ours is compressed."""
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                read_header = headers.get(np.lib.format.read_magic(member))
                if read_header is None:
                    raise ValueError(f"{info.filename} is of another version")
                shape, _, dtype = read_header(member)
                needed = math.prod(shape) * dtype.itemsize
                if needed != info.compress_size - member.tell():
                    raise ValueError(f"{info.filename} says it has {needed} bytes")
    file.seek(0)


def cached(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays from an npz file, whose checksums are verified; made and written when not there.

    A broken file is made again, and a folder that can't be written to is done without: both
    with a warning.
    """
    try:
        with path.open("rb") as file:
            _check_stored(file)
            with np.load(file) as arrays:
                return dict(arrays)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        warnings.warn(f"{path} is broken ({error}) and is made again.", stacklevel=2)
    arrays = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, **arrays)  # pyrefly: ignore
    except OSError as error:
        warnings.warn(
            f"decoded images could not be kept in {path.parent} ({error}); the next load will "
            "decode them again. Name another folder with cache_dir.",
            stacklevel=2,
        )
    return arrays
