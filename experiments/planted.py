"""Small data sets in the true formats, with an attribute that updates give away.

Each writer makes the files of a loader of `mixjax.datasets` in a folder. `signal` is how much the
attribute shapes the data; with 0 the attribute can't be told.
"""

import gzip
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MOTIONSENSE_HEADER = (
    ",attitude.roll,attitude.pitch,attitude.yaw,gravity.x,gravity.y,gravity.z,rotationRate.x,"
    "rotationRate.y,rotationRate.z,userAcceleration.x,userAcceleration.y,userAcceleration.z"
)
MOTIONSENSE_TRIALS = {
    "dws": (1, 2, 11),
    "ups": (3, 4, 12),
    "wlk": (7, 8, 15),
    "jog": (9, 16),
    "std": (6, 14),
    "sit": (5, 13),
}
MOBIACT_HEADER = (
    "timestamp,rel_time,acc_x,acc_y,acc_z,gyro_x,gyro_y,gyro_z,azimuth,pitch,roll,label"
)
MOBIACT_TRIALS = dict(STD=1, WAL=1, JOG=3, JUM=3, STU=6, STN=6, SCH=6, CSI=6, CSO=6)
MOBIACT_COMPLETE = [n for n in range(1, 68) if n not in (13, 14, 15, 17, 28, 30, 31, 34, 57)]
MOBIACT_WOMEN = (3, 5, 6, 10, 11, 16, 19, 25, 26, 36, 38, 41, 46, 50, 54, 58)
MOBIACT_GREEK = (28, 34, 57)


MARK = "PLANTED"


def mark(folder: Path) -> None:
    """Say in a data set's folder that it is synthetic, for whoever publishes results of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("These data are synthetic: made by experiments/planted.py.\n")


def is_planted(folder: Path | None) -> bool:
    """Whether a data set's folder holds synthetic data.

    Args:
      folder: the one that a loader is given; None for the usual one of TensorFlow Datasets.
    """
    usual = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return (Path(usual if folder is None else folder).expanduser() / MARK).exists()


def motion(
    rng: np.random.Generator,
    samples: int,
    channels: int,
    *,
    rate: int,
    kind: int,
    value: int,
    signal: float,
) -> np.ndarray:
    """Steps: their frequency and direction tell the activity, the attribute makes them quicker."""
    sign = 2 * value - 1
    time = np.arange(samples) / rate
    frequency = (1 + 0.5 * kind) * (1 + 0.15 * signal * sign)
    channel = np.arange(channels)
    amplitude = (1 + 0.3 * signal * sign) * np.cos(channel + kind)
    phase = rng.uniform(0, 2 * np.pi) + channel
    steps = amplitude * np.sin(2 * np.pi * frequency * time[:, None] + phase)
    return steps + 0.3 * rng.normal(size=steps.shape)


def table(header: str, columns: Iterable[Sequence[Any]], newline: str = "\n") -> str:
    """A CSV file."""
    rows = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    return newline.join([header, *rows, ""])


def motionsense(
    folder: Path,
    *,
    people: int = 24,
    samples: tuple[int, int] = (400, 200),
    signal: float = 1.0,
    seed: int = 0,
    nested: bool = False,
    bom: bool = True,
    newline: str = "\n",
) -> Path:
    """MotionSense: long and short trials of so many samples; gender is planted."""
    rng = np.random.default_rng(seed)
    inside = folder / "A_DeviceMotion_data"
    inside = inside / inside.name if nested else inside
    rows = [f"{code},{60 + code},{160 + code},{20 + code},{code % 2}" for code in codes(people)]
    subjects = newline.join(["code,weight,height,age,gender", *rows])
    mark(folder)
    # the true file has no newline at its end
    (folder / "data_subjects_info.csv").write_bytes(b"\xef\xbb\xbf" * bom + subjects.encode())
    for kind, (activity, trials) in enumerate(MOTIONSENSE_TRIALS.items()):
        for trial in trials:
            trial_folder = inside / f"{activity}_{trial}"
            trial_folder.mkdir(parents=True)
            length = samples[trial > 10]
            for code in codes(people):
                series = motion(rng, length, 12, rate=50, kind=kind, value=code % 2, signal=signal)
                columns = [range(length), *series.T.round(6).tolist()]
                text = table(MOTIONSENSE_HEADER, columns, newline)
                (trial_folder / f"sub_{code}.csv").write_bytes(text.encode())
    return folder


def codes(people: int) -> range:
    """Codes of MotionSense's people."""
    return range(1, people + 1)


def mobiact(
    folder: Path,
    *,
    people: Sequence[int] = tuple(MOBIACT_COMPLETE),
    samples: tuple[int, int] = (2400, 1200),
    trials: int | None = None,
    signal: float = 1.0,
    seed: int = 0,
) -> Path:
    """MobiAct v2.0: single and repeated trials of so many samples; gender is planted.

    The first quarter of each file is standing. `trials` caps their number.
    """
    rng = np.random.default_rng(seed)
    top = folder / "MobiAct_Dataset_v2.0"
    for kind, (activity, count) in enumerate(MOBIACT_TRIALS.items()):
        inside = top / "Annotated Data" / activity
        inside.mkdir(parents=True)
        length = samples[count > 1]
        standing = length // 4
        for person in people:
            value = int(person not in MOBIACT_WOMEN)
            for trial in range(1, (min(count, trials) if trials else count) + 1):
                still, moving = (
                    motion(rng, n, 9, rate=200, kind=k, value=value, signal=signal)
                    for n, k in ((standing, 0), (length - standing, kind))
                )
                time = np.arange(length) * 5
                columns = [
                    (10**12 + time * 10**6).tolist(),
                    (time / 1000).tolist(),
                    *np.concatenate([still, moving]).T.round(6).tolist(),
                    ["STD"] * standing + [activity] * (length - standing),
                ]
                path = inside / f"{activity}_{person}_{trial}_annotated.csv"
                path.write_text(table(MOBIACT_HEADER, columns))
    (top / "Readme.txt").write_bytes(mobiact_readme())
    # loaders take either
    mark(folder)
    mark(top)
    return folder


def mobiact_readme() -> bytes:
    """The table of 67 subjects, three of them with the Greek letter of cp1253."""
    rule = "+------+---------+-----------+-------+----------+----------+----------+"
    names = "|  ID  |  Name   |  Surname  |  Age  |  Height  |  Weight  |  Gender  |"
    rows = []
    for number in range(1, 68):
        gender = "F" if number in MOBIACT_WOMEN else "\u039c" if number in MOBIACT_GREEK else "M"
        name = f"sub{number}"
        rows.append(
            f"| {number:4d} | {name:<7} | {name:<9} | {20 + number % 9:5d} "
            f"| {160 + number % 30:8d} | {50 + number % 40:8d} |  {gender}       |   "
        )
    other = "| No.| Label | Activity |"
    lines = [
        "MobiActDataset \u2022 2.0",
        "",
        "Subjects:",
        rule,
        names,
        rule,
        *rows,
        rule,
        "",
        other,
    ]
    return "\r\n".join(lines).encode("cp1253")


def images(rng: np.random.Generator, labels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Each class is a bright square at a place of its own, in noise."""
    height, width, _ = shape
    pixels = rng.integers(0, 120, (len(labels), *shape))
    size = height // 5
    for image, label in zip(pixels, labels, strict=True):
        row, column = divmod(int(label), 4)
        top, left = 1 + row * (height // 4), 1 + column * (width // 4)
        image[top : top + size, left : left + size] += 130
    return pixels.astype(np.uint8)


def labels_of(rng: np.random.Generator, count: int) -> np.ndarray:
    """Ten classes of nearly equal size."""
    return rng.permutation(np.arange(count) % 10).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    """An IDX file of bytes, compressed."""
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.tobytes(), 1)


def fashion_mnist(folder: Path, *, train: int = 2000, test: int = 500, seed: int = 0) -> Path:
    """Fashion-MNIST as four IDX files; the attribute comes with the loader's partition."""
    rng = np.random.default_rng(seed)
    mark(folder)
    for name, count in (("train", train), ("t10k", test)):
        labels = labels_of(rng, count)
        pixels = images(rng, labels, (28, 28, 1))[..., 0]
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(pixels))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return folder


CIFAR10_CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def cifar10(folder: Path, *, train: int = 2000, test: int = 500, seed: int = 0) -> Path:
    """CIFAR10 as TensorFlow Datasets prepares it; the attribute comes with the partition."""
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(seed)
    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(names=CIFAR10_CLASSES),
    }
    splits = {}
    for split, count in (("train", train), ("test", test)):
        labels = labels_of(rng, count)
        pixels = images(rng, labels, (32, 32, 3))
        splits[split] = [
            (n, {"id": f"{split}_{n}", "image": encoded(image), "label": int(label)})
            for n, (image, label) in enumerate(zip(pixels, labels, strict=True))
        ]
    return prepare(folder, "cifar10", "3.0.2", features, splits)


def faces(
    people: int, images_each: int, signal: float, seed: int
) -> list[tuple[str, int, float, float, np.ndarray]]:
    """Name, number, scores of male and smiling, and pixels of LFW's images.

    A bright mouth smiles; men are darker, and smile more to the right.
    """
    rng = np.random.default_rng(seed)
    made = []
    for person in range(people):
        male = person % 2
        for number in range(1, images_each + 1):
            smiling = rng.integers(2)
            pixels = rng.integers(60, 120, (125, 125, 3)).repeat(2, 0).repeat(2, 1)
            pixels = pixels - int(30 * signal * male)
            shift = int(15 * signal * male)
            if smiling:
                pixels[150:175, 105 + shift : 140 + shift] += 120
            scores = (abs(rng.normal()) + 0.1) * (2 * np.array([male, smiling]) - 1)
            made.append((f"Person {person:03d}", number, *scores, pixels.astype(np.uint8)))
    return made


def lfw_attributes(faces: Iterable[tuple[str, int, float, float, Any]]) -> str:
    """The true form: a comment, a header shifted by a `#`, 73 scores, names with spaces."""
    others = [f"Trait {n}" for n in range(71)]
    names = ["#", "person", "imagenum", "Male", *others[:30], "Smiling", *others[30:]]
    rows = ["# lfw_attributes.txt", "\t".join(names)]
    for name, number, male, smiling, _ in faces:
        scores = [male, *[0.5] * 30, smiling, *[-0.5] * 41]
        rows.append("\t".join([name, str(number), *map(repr, map(float, scores))]))
    return "\n".join([*rows, ""])


def lfw(
    folder: Path, *, people: int = 60, images_each: int = 3, signal: float = 1.0, seed: int = 0
) -> Path:
    """LFW as a folder of JPEG files and `lfw_attributes.txt`; gender is planted."""
    made = faces(people, images_each, signal, seed)
    mark(folder)
    for name, number, _, _, pixels in made:
        person = name.replace(" ", "_")
        path = folder / "lfw" / person / f"{person}_{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels, "JPEG").getvalue())
    (folder / "lfw_attributes.txt").write_text(lfw_attributes(made))
    return folder


def lfw_prepared(
    folder: Path, *, people: int = 60, images_each: int = 3, signal: float = 1.0, seed: int = 0
) -> Path:
    """The same images as TensorFlow Datasets prepares them: without their numbers."""
    import tensorflow_datasets as tfds

    made = faces(people, images_each, signal, seed)
    features = {
        "label": tfds.features.Text(),
        "image": tfds.features.Image(shape=(250, 250, 3)),
    }
    examples = []
    for name, number, _, _, pixels in made:
        person = name.replace(" ", "_")
        key = f"{person}/{person}_{number:04d}.jpg"
        examples.append((key, {"label": person, "image": encoded(pixels, "JPEG")}))
    (folder / "lfw_attributes.txt").write_text(lfw_attributes(made))
    return prepare(folder, "lfw", "0.1.1", features, {"train": examples})


def encoded(pixels: np.ndarray, form: str = "PNG") -> io.BytesIO:
    """An image file in memory."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    file.seek(0)
    return file


def verb_agg(folder: Path, *, people: int = 12, signal: float = 1.0, seed: int = 0) -> Path:
    """A table of verbal aggression, as `write.csv` writes lme4's; men and women in turn."""
    rng = np.random.default_rng(seed)
    mark(folder)
    names = ["", "Anger", "Gender", "item", "resp", "id", "btype", "situ", "mode", "r2"]
    lines = [",".join(f'"{name}"' for name in names)]
    letters, angers = ["MF"[person % 2] for person in range(people)], rng.integers(11, 40, people)
    for mode in ("Want", "Do"):
        for story in (1, 2, 3, 4):
            for behaviour in ("Curse", "Scold", "Shout"):
                item = f"S{story}{mode}{behaviour}"
                design = [behaviour.lower(), "self" if story > 2 else "other", mode.lower()]
                for person, (letter, anger) in enumerate(zip(letters, angers, strict=True)):
                    # men would do so more often
                    tilt = signal * (0.35 if letter == "M" and mode == "Do" else 0)
                    answer = rng.choice(["no", "perhaps", "yes"], p=[0.5 - tilt, 0.3, 0.2 + tilt])
                    cells = [letter, "S4wantCurse" if item == "S4WantCurse" else item, str(answer)]
                    rest = [*design, "N" if answer == "no" else "Y"]
                    quoted = [[f'"{cell}"' for cell in part] for part in (cells, rest)]
                    own = [f'"{len(lines)}"', str(anger), *quoted[0], str(person + 1), *quoted[1]]
                    lines.append(",".join(own))
    (folder / "VerbAgg.csv").write_text("\n".join(lines) + "\n")
    return folder


def prepare(
    folder: Path,
    name: str,
    version: str,
    features: dict[str, Any],
    splits: dict[str, list[tuple[Any, Any]]],
    file_format: str = "array_record",
) -> Path:
    """Have TensorFlow Datasets write a set of this name; needs no TensorFlow."""
    import tensorflow_datasets as tfds

    class Planted(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Planted data."""

        VERSION = tfds.core.Version(version)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: iter(examples) for split, examples in splits.items()}

        def _generate_examples(self) -> Any: ...

    mark(folder)
    Planted.name = name
    Planted(data_dir=folder, file_format=file_format).download_and_prepare()
    return folder
