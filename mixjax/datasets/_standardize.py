"""Standardization by the training data of the participants."""

import numpy as np

from mixjax.data import Examples


def standardize(
    train: list[Examples], test: list[Examples]
) -> tuple[list[Examples], list[Examples]]:
    """Subtract each channel's mean and divide by its deviation, both of training data only.

    Channels are the last axis; a constant one is only centred.
    """
    axes = tuple(range(train[0].inputs.ndim - 1))
    count = sum(part.inputs[..., 0].size for part in train)
    # part by part: a copy of all data in float64 would need three times their memory
    mean = np.sum([part.inputs.sum(axis=axes, dtype=np.float64) for part in train], 0) / count
    shift = mean.astype(np.float32)
    squares = [np.square(part.inputs - shift).sum(axis=axes, dtype=np.float64) for part in train]
    deviation = np.sqrt(np.sum(squares, 0) / count).astype(np.float32)
    deviation[deviation == 0] = 1

    def apply(part: Examples) -> Examples:
        return Examples((part.inputs.astype(np.float32) - shift) / deviation, part.labels)

    return [apply(part) for part in train], [apply(part) for part in test]
