"""Fashion-MNIST pictures of clothes, dealt to participants who prefer some classes."""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from mixjax import _validate
from mixjax.data import Dataset
from mixjax.datasets import _files, _images, _prepared

VERSION = "3.0.1"
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SIZE = (28, 28)
MOST = {"train": 60_000, "test": 10_000}
GROUPS = {
    "tops": (0, 2, 4, 6),
    "trousers, dresses, bags": (1, 3, 8),
    "shoes": (5, 7, 9),
}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
REMEDY = (
    "Fetch the file again from github.com/zalandoresearch/fashion-mnist, or install Debian's "
    "package dataset-fashion-mnist."
)


def fashion_mnist(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    participants: int = 20,
    per_client: int = 500,
    test_per_client: int = 100,
    preferred: float = 0.8,
    seed: int = 0,
) -> Dataset:
    """Ten classes of clothes; the sensitive attribute is a preference for some of them.

    Participants are dealt in turn to three groups: "tops" (T-shirt/top, pullover, coat, shirt),
    "trousers, dresses, bags" and "shoes" (sandal, sneaker, ankle boot). For the rest see
    `cifar10`; inputs are `float32[28, 28, 1]`.

    The IDX files and TensorFlow Datasets hold the same images in another order, so one seed
    gives participants other images in each.

    Args:
      data_dir: folder with the four IDX files (`train-images-idx3-ubyte.gz`, ...), or folder of
        TensorFlow Datasets with `fashion_mnist/3.0.1`. By default the folder of Debian's package
        dataset-fashion-mnist if it is installed, else the usual folder of TensorFlow Datasets.
      download: fetch and prepare TensorFlow's set when no set is there; needs the extra `prepare`.
      cache_dir: where images decoded from TensorFlow's set are kept; by default the user's cache
        folder.
      participants: number of participants, each a person of its own.
      per_client: training images of each.
      test_per_client: held-out images of each.
      preferred: share of a participant's images from its group's classes.
      seed: of the draw.

    Raises:
      InputError: when the set is missing or broken, or has too few images.

    Source: Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747. The groups are our reading of MixNN
    (arXiv:2109.12550).
    """
    folder = DEBIAN if data_dir is None else Path(data_dir).expanduser()
    if any((folder / name).exists() for names in FILES.values() for name in names):
        train, test = (_read_split(folder, split) for split in FILES)
    else:
        builder = _prepared.builder(
            "fashion_mnist",
            VERSION,
            data_dir,
            download=download,
            otherwise=f" Or put the IDX files train-images-idx3-ubyte.gz, ... into {folder}.",
        )
        train, test = _prepared.images(builder, cache_dir, (*SIZE, 1), MOST)
    return _images.by_preference(
        train,
        test,
        GROUPS,
        CLASSES,
        participants=participants,
        per_client=per_client,
        test_per_client=test_per_client,
        preferred=preferred,
        seed=seed,
    )


def _read_split(folder: Path, split: str) -> _images.Images:
    images_name, labels_name = FILES[split]
    images = _read_idx(folder / images_name, 3)
    labels = _read_idx(folder / labels_name, 1)
    if len(images) != len(labels):
        raise _validate.InputError(
            f"expected a label for each of the {len(images)} images of {images_name} in {folder}; "
            f"got {len(labels)} in {labels_name}. {REMEDY}"
        )
    if labels.max(initial=0) >= len(CLASSES):
        raise _validate.InputError(
            f"expected labels in 0..9 in {folder / labels_name}; got {labels.max()}. {REMEDY}"
        )
    return _images.Images(images[..., None], labels)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of bytes: 0, 0, 8, the number of dimensions, their lengths, the values.

    No more is decompressed than the header announces, and a byte that tells whether there is more.
    """
    _files.check_file(path, REMEDY)
    try:
        with gzip.open(path) as file:
            shape = _read_shape(file, path, dimensions)
            expected = math.prod(shape)
            content = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _validate.InputError(
            f"expected gzip data in {path}; it is cut or corrupted ({error}). {REMEDY}"
        ) from None
    if len(content) != expected:
        came = f"{len(content)}: it is cut" if len(content) < expected else "more"
        raise _validate.InputError(
            f"expected {expected} values in {path}, as its header says; got {came}. {REMEDY}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_shape(file: gzip.GzipFile, path: Path, dimensions: int) -> tuple[int, ...]:
    """The lengths in an IDX file's header, of images or labels of this set."""
    magic = bytes((0, 0, 8, dimensions))
    header = file.read(4 + 4 * dimensions)
    if header[:4] != magic:
        raise _validate.InputError(
            f"expected an IDX file of magic number 0x{magic.hex()} in {path}; got "
            f"0x{header[:4].hex()}. {REMEDY}"
        )
    if len(header) < 4 + 4 * dimensions:
        raise _validate.InputError(
            f"expected a header of {4 + 4 * dimensions} bytes in {path}; got {len(header)}: it is "
            f"cut. {REMEDY}"
        )
    count, *size = np.frombuffer(header, ">u4", offset=4).tolist()
    if tuple(size) != SIZE[: dimensions - 1]:
        raise _validate.InputError(
            f"expected images of {SIZE[0]} x {SIZE[1]} pixels in {path}; got "
            f"{' x '.join(map(str, size))}. {REMEDY}"
        )
    if count > max(MOST.values()):
        raise _validate.InputError(
            f"expected at most {max(MOST.values())} images or labels in {path}; its header says "
            f"{count}. {REMEDY}"
        )
    return (count, *size)
