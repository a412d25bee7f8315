"""Labeled Faces in the Wild, with participants made of people of equal gender."""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixjax import _validate
from mixjax.data import Attribute, Dataset, Examples, stack
from mixjax.datasets import _files, _pixels, _prepared
from mixjax.datasets._standardize import standardize

VERSION = "0.1.1"
SIZE = (250, 250)
IMAGES = 13_233
# an image takes 15 kB, and uncompressed 187 kB
MOST_BYTES = 2**20
ATTRIBUTES = "lfw_attributes.txt"
NAME = re.compile(r"[^./\\\0][^/\\\0]{0,99}")
IMAGES_REMEDY = "Unpack lfw.tgz or lfw-funneled.tgz of Labeled Faces in the Wild again."
ATTRIBUTES_REMEDY = (
    "Get lfw_attributes.txt of Columbia University's PubFig project and name it with `attributes`."
)


class Face(NamedTuple):
    """A row of `lfw_attributes.txt`.

    Attributes:
      person: as in names of folders, with underscores.
      number: of the person's image, from 1.
      male: score; positive means male.
      smiling: score; positive means smiling.
    """

    person: str
    number: int
    male: float
    smiling: float

    @property
    def file(self) -> str:
        """Where the image is, in the folder of images."""
        return f"{self.person}/{self.person}_{self.number:04d}.jpg"


def lfw(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    attributes: str | os.PathLike[str] | None = None,
    download: bool = False,
    participants: int = 20,
    per_client: int = 100,
    test_per_client: int = 30,
    per_person: int = 10,
    seed: int = 0,
) -> Dataset:
    """Smiling or not, on photographs of faces; the attribute is gender.

    Few people have many images, so participants are synthetic: each groups people of one
    gender, and nobody is in two. Participants are women and men in turn. A participant's
    held-out images show other people than its training images. What someone's gender is, the
    mean score of the images decides; scores are a classifier's, not what people say of
    themselves.

    Inputs are `float32[62, 47, 3]`: rows 70:195 and columns 78:172 of the image, halved by means
    of 2 x 2 pixels; each channel is standardized by the mean and deviation of all training
    images.

    Args:
      data_dir: folder with `lfw/Person_Name/Person_Name_0001.jpg`, ... (or `lfw_funneled`, or
        the people's folders themselves), or folder of TensorFlow Datasets with `lfw/0.1.1`; its
        usual folder by default.
      attributes: the file `lfw_attributes.txt`; by default in `data_dir`.
      download: fetch and prepare TensorFlow's set when no images are there; needs the extra
        `prepare`. The attributes are never downloaded.
      participants: how many to make.
      per_client: training images of each.
      test_per_client: held-out images of each.
      per_person: at most so many images of one person.
      seed: of the draw.

    Raises:
      InputError: when files are missing or broken, or there are not enough people.

    Source: Huang et al. 2007; attributes of Kumar et al. 2009, "Attribute and simile classifiers
    for face verification". The crop is scikit-learn's, the grouping our reading.
    """
    for value, name in (
        (participants, "participants"),
        (per_client, "per_client"),
        (test_per_client, "test_per_client"),
        (per_person, "per_person"),
    ):
        _validate.check_positive(value, name, integer=True)
    root = _prepared.root(data_dir)
    faces = read_attributes(root / ATTRIBUTES if attributes is None else Path(attributes))
    of_client = np.arange(participants) % 2
    dealt = _deal(faces, of_client, (per_client, test_per_client), per_person, seed)

    folder = _image_folder(root, faces)
    if folder is not None:
        load = _from_folder(folder)
    else:
        otherwise = f" Or put the images into {root / 'lfw'}/Person_Name/Person_Name_0001.jpg, ..."
        load = _from_prepared(
            _prepared.builder("lfw", VERSION, data_dir, download=download, otherwise=otherwise)
        )
    parts = [[_examples(own, load) for own in part] for part in zip(*dealt, strict=True)]
    train, test = standardize(*parts)
    return Dataset(
        train=stack(train),
        test=stack(test),
        attribute=Attribute("gender", ("female", "male"), of_client),
        people=np.arange(participants),
        classes=("not smiling", "smiling"),
    )


def read_attributes(path: Path) -> list[Face]:
    """The rows of `lfw_attributes.txt`.

    Its second line names the columns after a `#`, which shifts them by one against the rows.

    Raises:
      InputError: naming the line that is cut or broken.
    """
    rows = [row.rstrip() for row in _files.lines(path.expanduser(), ("utf-8",), ATTRIBUTES_REMEDY)]
    header = rows[1].split("\t") if len(rows) > 1 else []
    if header[:3] != ["#", "person", "imagenum"] or not {"Male", "Smiling"} <= set(header):
        raise _validate.InputError(
            f"expected line 2 of {path} to start with '#', 'person', 'imagenum' and to name Male "
            f"and Smiling, separated by tabs; got "
            f"{_files.shown(str(header[:4]))}. {ATTRIBUTES_REMEDY}"
        )
    columns = header[1:]
    male, smiling = columns.index("Male"), columns.index("Smiling")
    faces = []
    for number, row in enumerate(rows[2:], 3):
        if not row:
            continue
        cells = row.split("\t")
        if len(cells) != len(columns):
            raise _validate.InputError(
                f"expected {len(columns)} values in line {number} of {path}; got {len(cells)}, as "
                f"where a file was cut. {ATTRIBUTES_REMEDY}"
            )
        try:
            scores = [float(cell) for cell in cells[2:]]
        except ValueError:
            scores = [math.nan]
        if not all(map(math.isfinite, scores)) or not _files.is_count(cells[1]):
            raise _validate.InputError(
                f"expected a whole number and {len(columns) - 2} finite scores in line {number} of "
                f"{path}; got {row[:80]!r}. {ATTRIBUTES_REMEDY}"
            )
        person = cells[0].replace(" ", "_")
        # names become paths
        if not NAME.fullmatch(person):
            raise _validate.InputError(
                f"expected a person's name in line {number} of {path}; got "
                f"{_files.shown(cells[0])}. {ATTRIBUTES_REMEDY}"
            )
        faces.append(Face(person, int(cells[1]), scores[male - 2], scores[smiling - 2]))
    if not faces:
        raise _validate.InputError(
            f"expected rows below the header of {path}; there are none. {ATTRIBUTES_REMEDY}"
        )
    return faces


def _deal(
    faces: Sequence[Face],
    of_client: np.ndarray,
    counts: tuple[int, ...],
    per_person: int,
    seed: int,
) -> list[list[list[Face]]]:
    """For each participant, faces for training and for testing: each person is in one list."""
    rng = np.random.default_rng(seed)
    of_person: dict[str, list[Face]] = {}
    for face in faces:
        of_person.setdefault(face.person, []).append(face)
    queues: list[list[str]] = [[], []]
    for person in rng.permutation(sorted(of_person)).tolist():
        scores = [face.male for face in of_person[person]]
        queues[int(sum(scores) > 0)].append(person)
    dealt = []
    for value in of_client.tolist():
        own = []
        for count in counts:
            part: list[Face] = []
            while len(part) < count:
                if not queues[value]:
                    raise _validate.InputError(
                        f"expected enough {('women', 'men')[value]} for {len(of_client)} "
                        f"participants of {sum(counts)} images, at most {per_person} of each "
                        "person; there are too few. Ask for fewer participants or images, or "
                        "more images of a person."
                    )
                images = of_person[queues[value].pop()]
                most = min(per_person, count - len(part))
                part += [images[n] for n in rng.permutation(len(images))[:most]]
            own.append(part)
        dealt.append(own)
    return dealt


def _examples(faces: Sequence[Face], load: Callable[[Face], np.ndarray]) -> Examples:
    images = np.stack([_crop(load(face)) for face in faces])
    return Examples(images, np.array([face.smiling > 0 for face in faces], np.int32))


def _crop(image: np.ndarray) -> np.ndarray:
    face = image[70:194, 78:172].astype(np.float32)
    return face.reshape(62, 2, 47, 2, 3).mean(axis=(1, 3))


def _image_folder(root: Path, faces: Sequence[Face]) -> Path | None:
    for folder in (root / "lfw", root / "lfw_funneled", root):
        if any((folder / person).is_dir() for person in {face.person for face in faces}):
            return folder
    return None


def _from_folder(folder: Path) -> Callable[[Face], np.ndarray]:
    def load(face: Face) -> np.ndarray:
        path = folder / face.file
        _files.check_file(path, IMAGES_REMEDY, MOST_BYTES)
        return _pixels.decode(path, (*SIZE, 3), path, IMAGES_REMEDY)

    return load


def _from_prepared(builder: Any) -> Callable[[Face], np.ndarray]:
    """Images of TensorFlow's set, which has their people but not their numbers.

    Examples lie in the order of their keys' hashes, and the keys are the images' files. So the
    files of all people, in that order, name the examples; people tell whether it is true.
    """
    hasher = _files.needed("tensorflow_datasets.core.hashing", "experiments").Hasher("train")
    examples = _prepared.source(builder, "train", IMAGES, "Text")
    indices = range(len(examples))
    people = [
        example["label"].decode() for example in _prepared.read(examples, indices, "lfw train")
    ]
    images = [
        Face(person, number, 0, 0)
        for person, count in Counter(people).items()
        for number in range(1, count + 1)
    ]
    images.sort(key=lambda face: hasher.hash_key(face.file))
    if [face.person for face in images] != people:
        raise _validate.InputError(
            f"expected the examples in {builder.data_dir} in TensorFlow Datasets' order, which "
            "tells the numbers of the images; it is another. Prepare the set again, or put the "
            "images themselves into data_dir/lfw."
        )
    index_of = {face.file: index for index, face in enumerate(images)}

    def load(face: Face) -> np.ndarray:
        if face.file not in index_of:
            raise _validate.InputError(
                f"expected {face.file}, named by {ATTRIBUTES}, in {builder.data_dir}; it is not "
                "there. Prepare the set again."
            )
        content = examples[index_of[face.file]]["image"]
        what = f"{face.file} of {builder.data_dir}"
        return _pixels.decode(content, (*SIZE, 3), what, _prepared.REMEDY)

    return load
