"""Smartwatch recordings of shoulder exercises, as shipped inside the seglearn package."""

import hashlib
import importlib.metadata
import io
from pathlib import Path
from typing import Any

import numpy as np

from mixjax import _validate
from mixjax.data import Attribute, Dataset, Examples, stack
from mixjax.datasets import _windows

SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
WINDOW = 100
STRIDE = 50
RATE_HZ = 50


def watch(*, test_fraction: float = 0.3) -> Dataset:
    """Seven shoulder exercises of ten people on each arm, from a smartwatch.

    A participant is a person's arm: 20 of them. Inputs are windows of 100 samples (2 s at
    50 Hz) with stride 50 of 6 channels (3 accelerometer, 3 gyroscope), the task is the exercise,
    the sensitive attribute the arm. Of each recording the last part is held out; windows that
    would reach into it are dropped, so no sample is in both.

    Each channel is standardized by the mean and deviation of all training windows: a constant
    of the task, which a deployment would ship with the model.

    Args:
      test_fraction: the part of each recording held out.

    Raises:
      InputError: when seglearn is not installed, or its file is not the known one.

    Source: Burns et al. 2018, arXiv:1802.01489; data in seglearn 1.2.5 (BSD).
    """
    _validate.check_fraction(test_fraction, "test_fraction", 1.0)
    recordings = _read()
    arms = recordings["side"].astype(int)
    people = recordings["subject"].astype(int)
    participants = sorted(set(zip(people.tolist(), arms.tolist(), strict=True)))
    train, test = [], []
    for participant in participants:
        own = [
            (series.astype(np.float32), label)
            for series, label, person, arm in zip(
                recordings["X"], recordings["y"], people, arms, strict=True
            )
            if (person, arm) == participant
        ]
        train.append(_cut_windows([(s[: _cut(s, test_fraction)], label) for s, label in own]))
        test.append(_cut_windows([(s[_cut(s, test_fraction) :], label) for s, label in own]))

    samples = np.concatenate([examples.inputs for examples in train]).reshape(-1, 6)
    mean, deviation = samples.mean(axis=0), samples.std(axis=0)
    train, test = (
        [Examples((part.inputs - mean) / deviation, part.labels) for part in parts]
        for parts in (train, test)
    )
    return Dataset(
        train=stack(train),
        test=stack(test),
        attribute=Attribute("arm", ("left", "right"), np.array([arm for _, arm in participants])),
        people=np.array([person for person, _ in participants]),
        classes=tuple(recordings["y_labels"]),
    )


def _cut(series: np.ndarray, test_fraction: float) -> int:
    return round(len(series) * (1 - test_fraction))


def _cut_windows(recordings: list[tuple[np.ndarray, Any]]) -> Examples:
    whole = [_windows.Recording(one, np.full(len(one), label)) for one, label in recordings]
    return _windows.windows(whole, WINDOW, STRIDE)


def _read() -> dict:
    try:
        distribution = importlib.metadata.distribution("seglearn")
    except importlib.metadata.PackageNotFoundError:
        raise _validate.InputError(
            "expected the package seglearn, which carries the watch recordings; it is not "
            'installed. Run: pip install "mixjax[experiments]"'
        ) from None
    path = Path(str(distribution.locate_file("seglearn/data/watch_dataset.npy")))
    if not path.is_file():
        raise _validate.InputError(
            f"expected watch_dataset.npy in {path.parent}; it is not there. "
            "Reinstall seglearn==1.2.5."
        )
    content = path.read_bytes()
    # the file is a pickle: reading another one could run whatever is in it
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise _validate.InputError(
            f"expected {path} to have SHA-256 {SHA256}; got {digest}. Reinstall seglearn==1.2.5."
        )
    return np.load(io.BytesIO(content), allow_pickle=True).item()
