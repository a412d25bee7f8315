"""What is run on each dataset: who takes part, which model, and how it is trained.

A new dataset is a row of `TASKS` and its loader in `mixjax.datasets`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn

import mixjax as mx
from experiments.options import Options

Load = Callable[[Path | None, int, int, int, float], mx.data.Dataset]
BRIGHTER = 0.5
"""By so much, in standard deviations of a channel, for half of the participants."""


class Task(NamedTuple):
    """A dataset's part of the evaluation, and all that decides how a trajectory is trained.

    Attributes:
      load: `(data_dir, people, per_client, seed, preferred) -> Dataset`. Where participants are
        dealt from a pool, `people` is their number with those the server knows, `per_client` their
        examples, `seed` of the draw and `preferred` the share of preferred classes; elsewhere all
        are the dataset's own.
      model: `classes -> network`.
      auxiliary: people the server has auxiliary data of.
      epochs: local epochs a round.
      batch_size: examples a local step.
      learning_rate: of local SGD.
      noise: standard deviations of the noisy gradient.
      clip_norm: bound on updates before noise; few are longer in the first rounds.
      momentum: of local SGD.
      kept: shares of an update that top-k compression keeps.
      list_size: entries in each list of the proxy.
      rounds: of federated learning.
      dealt: whether participants are dealt from a pool: every seed then deals anew.
    """

    load: Load
    model: Callable[[int], nn.Module]
    auxiliary: int
    epochs: int
    batch_size: int
    learning_rate: float
    noise: tuple[float, ...]
    clip_norm: float
    momentum: float = 0.9
    kept: tuple[float, ...] = (0.1, 0.01)
    list_size: int = 5
    rounds: int = 20
    dealt: bool = False


def resolve(options: Any) -> Task:
    """The task of `options.dataset`, with the options that are given in place of its own.

    Args:
      options: of a command; an option of a field's name that is not None counts as given.
    """
    given = {name: getattr(options, name, None) for name in Task._fields}
    task = TASKS[options.dataset]
    return task._replace(**{name: value for name, value in given.items() if value is not None})


def _packaged(name: str, loader: Callable[[], mx.data.Dataset]) -> Load:
    """The data comes with a package."""

    def load(folder: Path | None, *unused: Any) -> mx.data.Dataset:
        if folder is not None:
            raise mx.InputError(f"expected no --data-dir for {name}, which comes with a package.")
        return loader()

    return load


def _of_people(name: str, loader: Callable[..., mx.data.Dataset]) -> Load:
    """Participants are the people whose files the folder has."""

    def load(folder: Path | None, *unused: Any) -> mx.data.Dataset:
        if folder is None:
            raise mx.InputError(f"expected --data-dir, the folder with the files of {name}.")
        return loader(data_dir=folder)

    return load


def _dealt(loader: Callable[..., mx.data.Dataset], *, preferring: bool = True) -> Load:
    """Participants are dealt from a pool of images, most so that they prefer some classes."""

    def load(
        folder: Path | None, people: int, per_client: int, seed: int, preferred: float
    ) -> mx.data.Dataset:
        given = {"preferred": preferred} if preferring else {}
        return loader(
            data_dir=folder, participants=people, per_client=per_client, seed=seed, **given
        )

    return load


def _sensors(classes: int) -> nn.Module:
    return mx.models.SensorCNN(classes=classes)


def _images(classes: int) -> nn.Module:
    return mx.models.ImageCNN(classes=classes)


def _features(classes: int) -> nn.Module:
    return mx.models.MLP(classes=classes)


def _answers(classes: int) -> nn.Module:
    return mx.models.MLP(classes=classes, hidden=(32, 16))


TASKS = {
    "watch": Task(
        load=_packaged("watch", mx.datasets.watch),
        model=_sensors,
        auxiliary=3,
        epochs=1,
        batch_size=16,
        learning_rate=0.05,
        noise=(0.02, 0.1, 0.3),
        clip_norm=4.0,
    ),
    "vowels": Task(
        load=_packaged("vowels", mx.datasets.vowels),
        model=_features,
        auxiliary=4,
        epochs=2,
        batch_size=11,
        learning_rate=0.05,
        noise=(0.02, 0.1, 0.3),
        clip_norm=2.0,
    ),
    "cifar10": Task(
        load=_dealt(mx.datasets.cifar10),
        dealt=True,
        model=_images,
        auxiliary=4,
        epochs=2,
        batch_size=16,
        learning_rate=0.02,
        noise=(0.005, 0.02, 0.05),
        clip_norm=4.0,
    ),
    "fashion_mnist": Task(
        load=_dealt(mx.datasets.fashion_mnist),
        dealt=True,
        model=_images,
        auxiliary=4,
        epochs=1,
        batch_size=16,
        learning_rate=0.02,
        noise=(0.005, 0.02, 0.05),
        clip_norm=4.0,
    ),
    "motionsense": Task(
        load=_of_people("motionsense", mx.datasets.motionsense),
        model=_sensors,
        auxiliary=4,
        epochs=1,
        batch_size=16,
        learning_rate=0.05,
        noise=(0.02, 0.1, 0.3),
        clip_norm=4.0,
    ),
    "mobiact": Task(
        load=_of_people("mobiact", mx.datasets.mobiact),
        model=_sensors,
        auxiliary=6,
        epochs=1,
        batch_size=16,
        learning_rate=0.05,
        noise=(0.02, 0.1, 0.3),
        clip_norm=4.0,
    ),
    "verb_agg": Task(
        load=_of_people("verb_agg", mx.datasets.verb_agg),
        model=_answers,
        auxiliary=16,
        epochs=2,
        batch_size=6,
        learning_rate=0.05,
        noise=(0.02, 0.1, 0.3),
        clip_norm=2.0,
    ),
    "lfw": Task(
        load=_dealt(mx.datasets.lfw, preferring=False),
        dealt=True,
        model=_images,
        auxiliary=4,
        epochs=2,
        batch_size=32,
        learning_rate=0.02,
        noise=(0.005, 0.02, 0.05),
        clip_norm=4.0,
    ),
}


def load(
    options: Options, task: Task, folder: Path | None = None, *, seed: int = 0
) -> mx.data.Dataset:
    """The participants and those the server knows, as a seed deals them.

    Args:
      options: of the command.
      task: see `resolve`.
      folder: in place of the options'.
      seed: of the draw, where participants are dealt from a pool.
    """
    people, preferred = options.participants + task.auxiliary, options.preferred
    if not task.dealt and (preferred != Options.preferred or options.attribute == "brightness"):
        raise mx.InputError(
            f"expected no --preferred and no --attribute brightness for {options.dataset}, whose "
            "participants are people and not dealt from a pool of images."
        )
    dataset = task.load(folder or options.data_dir, people, options.per_client, seed, preferred)
    if options.attribute == "own":
        return dataset
    return (tossed if options.attribute == "random" else brightened)(dataset, seed)


def tossed(dataset: mx.data.Dataset, seed: int) -> mx.data.Dataset:
    """With an attribute that means nothing: half of the people, drawn at random."""
    names, of_client = np.unique(dataset.people, return_inverse=True)
    value = np.random.default_rng(seed).permutation(len(names)) % 2
    return dataset._replace(
        attribute=mx.data.Attribute("coin", ("heads", "tails"), value[of_client])
    )


def brightened(dataset: mx.data.Dataset, seed: int) -> mx.data.Dataset:
    """With an attribute that shifts inputs, and says nothing of labels."""
    value = np.random.default_rng(seed).permutation(len(dataset.people)) % 2

    def shifted(data: mx.data.ClientData) -> mx.data.ClientData:
        inputs = np.asarray(data.examples.inputs)
        by = (BRIGHTER * value).astype(inputs.dtype).reshape(-1, *[1] * (inputs.ndim - 1))
        return data._replace(examples=data.examples._replace(inputs=inputs + by))

    attribute = mx.data.Attribute("brightness", ("darker", "brighter"), value)
    return dataset._replace(
        train=shifted(dataset.train), test=shifted(dataset.test), attribute=attribute
    )
