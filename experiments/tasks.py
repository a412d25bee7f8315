"""What is run on each dataset: who takes part, which model, and how it is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from flax import linen as nn

import mixjax as mx

DatasetName = Literal["watch", "cifar10", "fashion_mnist", "motionsense", "mobiact", "lfw"]


class Task(NamedTuple):
    """A dataset's part of the evaluation.

    Attributes:
      load: `(data_dir, people, per_client) -> Dataset`. Where participants are dealt from a pool,
        `people` is their number with those the server knows, and `per_client` their examples;
        elsewhere both are the dataset's own.
      model: `classes -> network`.
      dealt: whether participants are dealt from a pool.
      auxiliary: people the server has auxiliary data of.
      epochs: local epochs a round.
      batch_size: examples a local step.
      learning_rate: of local SGD.
      noise: standard deviations of the noisy gradient.
      clip_norm: bound on updates before noise; few are longer in the first rounds.
    """

    load: Callable[[Path | None, int, int], mx.data.Dataset]
    model: Callable[[int], nn.Module]
    dealt: bool
    auxiliary: int
    epochs: int
    batch_size: int
    learning_rate: float
    noise: tuple[float, ...]
    clip_norm: float


def _watch(folder: Path | None, people: int, per_client: int) -> mx.data.Dataset:
    if folder is not None:
        raise mx.InputError("expected no --data-dir for watch, which comes with a package.")
    return mx.datasets.watch()


def _cifar10(folder: Path | None, people: int, per_client: int) -> mx.data.Dataset:
    return mx.datasets.cifar10(data_dir=folder, participants=people, per_client=per_client)


def _fashion_mnist(folder: Path | None, people: int, per_client: int) -> mx.data.Dataset:
    return mx.datasets.fashion_mnist(data_dir=folder, participants=people, per_client=per_client)


def _lfw(folder: Path | None, people: int, per_client: int) -> mx.data.Dataset:
    return mx.datasets.lfw(data_dir=folder, participants=people, per_client=per_client)


def _motionsense(folder: Path | None, people: int, per_client: int) -> mx.data.Dataset:
    return mx.datasets.motionsense(data_dir=_needed(folder, "motionsense"))


def _mobiact(folder: Path | None, people: int, per_client: int) -> mx.data.Dataset:
    return mx.datasets.mobiact(data_dir=_needed(folder, "mobiact"))


def _needed(folder: Path | None, dataset: str) -> Path:
    if folder is None:
        raise mx.InputError(f"expected --data-dir, the folder with the files of {dataset}.")
    return folder


def _sensors(classes: int) -> nn.Module:
    return mx.models.SensorCNN(classes=classes)


def _images(classes: int) -> nn.Module:
    return mx.models.ImageCNN(classes=classes)


TASKS: dict[str, Task] = {
    "watch": Task(_watch, _sensors, False, 3, 1, 16, 0.05, (0.02, 0.1, 0.3), 4.0),
    "cifar10": Task(_cifar10, _images, True, 4, 2, 16, 0.02, (0.005, 0.02, 0.05), 4.0),
    "fashion_mnist": Task(_fashion_mnist, _images, True, 4, 1, 16, 0.02, (0.005, 0.02, 0.05), 4.0),
    "motionsense": Task(_motionsense, _sensors, False, 4, 1, 16, 0.05, (0.02, 0.1, 0.3), 4.0),
    "mobiact": Task(_mobiact, _sensors, False, 6, 1, 16, 0.05, (0.02, 0.1, 0.3), 4.0),
    "lfw": Task(_lfw, _images, True, 4, 2, 32, 0.02, (0.005, 0.02, 0.05), 4.0),
}
