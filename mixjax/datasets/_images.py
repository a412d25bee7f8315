"""Participants with preferred classes, dealt from a pool of images."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mixjax import _validate
from mixjax.data import Attribute, Dataset, Examples, preference_groups, stack
from mixjax.datasets._standardize import standardize


class Images(NamedTuple):
    """Labelled images.

    Attributes:
      images: `uint8[examples, height, width, channels]`.
      labels: `[examples]`, class indices.
    """

    images: np.ndarray
    labels: np.ndarray


def by_preference(
    train: Images,
    test: Images,
    groups: Mapping[str, Sequence[int]],
    classes: tuple[str, ...],
    *,
    participants: int,
    per_client: int,
    test_per_client: int,
    preferred: float,
    seed: int,
) -> Dataset:
    """Deal images to participants; the group of classes one prefers is its attribute.

    Held-out images come from the test split with the same share of preferred classes.

    Raises:
      InputError: when there are not enough images of the classes asked for.
    """
    _validate.check_positive(participants, "participants", integer=True)
    _validate.check_positive(test_per_client, "test_per_client", integer=True)
    parts, of_client = [], np.zeros(0, int)
    for images, count in ((train, per_client), (test, test_per_client)):
        indices, of_client = preference_groups(
            seed,
            images.labels,
            participants,
            list(groups.values()),
            per_client=count,
            preferred=preferred,
        )
        parts.append(
            [
                Examples(images.images[own].astype(np.float32), images.labels[own].astype(np.int32))
                for own in indices
            ]
        )
    train_parts, test_parts = standardize(*parts)
    return Dataset(
        train=stack(train_parts),
        test=stack(test_parts),
        attribute=Attribute("preference", tuple(groups), of_client),
        people=np.arange(participants),
        classes=classes,
    )
