"""Windows of sensor recordings, participant by participant."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mixjax import _validate
from mixjax.data import Attribute, Dataset, Examples, stack
from mixjax.datasets._standardize import standardize


class Recording(NamedTuple):
    """A stretch of samples.

    Attributes:
      series: `[samples, channels]`.
      labels: `[samples]`, class indices; -1 where there is none.
    """

    series: np.ndarray
    labels: np.ndarray


def windows(recordings: Sequence[Recording], window: int, stride: int) -> Examples:
    """Windows inside one recording, with one label throughout."""
    inputs, labels = [], []
    for series, label in recordings:
        starts = np.arange(0, len(series) - window + 1, stride)
        run = np.cumsum(np.diff(label, prepend=label[:1]) != 0)
        keep = (label[starts] >= 0) & (run[starts] == run[starts + window - 1])
        starts = starts[keep]
        inputs.append(series[starts[:, None] + np.arange(window)])
        labels.append(label[starts])
    return Examples(
        np.concatenate(inputs).astype(np.float32), np.concatenate(labels).astype(np.int32)
    )


def downsample(recording: Recording, factor: int) -> Recording:
    """Means of `factor` samples; without a label where theirs differ."""
    length = len(recording.series) // factor * factor
    series = recording.series[:length].reshape(-1, factor, recording.series.shape[1]).mean(axis=1)
    labels = recording.labels[:length].reshape(-1, factor)
    same = (labels == labels[:, :1]).all(axis=1)
    return Recording(series, np.where(same, labels[:, 0], -1))


def dataset(
    train: Sequence[Sequence[Recording]],
    test: Sequence[Sequence[Recording]],
    *,
    window: int,
    stride: int,
    attribute: Attribute,
    people: Sequence[int],
    classes: tuple[str, ...],
) -> Dataset:
    """Cut windows from each participant's recordings and standardize them.

    Raises:
      InputError: when a participant has no window.
    """
    parts = []
    for recordings, what in ((train, "training"), (test, "held-out")):
        parts.append([windows(own, window, stride) for own in recordings])
        for person, own in zip(people, parts[-1], strict=True):
            if not len(own.labels):
                raise _validate.InputError(
                    f"expected {what} windows of person {person}; no recording has {window} "
                    "samples of one class in a row. Ask for shorter windows."
                )
    train_windows, test_windows = standardize(*parts)
    return Dataset(
        train=stack(train_windows),
        test=stack(test_windows),
        attribute=attribute,
        people=np.asarray(people),
        classes=classes,
    )
