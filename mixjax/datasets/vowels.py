"""Deterding's vowels: eleven English vowels of fifteen people, embedded in this package."""

import csv
import importlib.resources

import numpy as np

from mixjax import _validate
from mixjax.data import Attribute, Dataset, Examples, stack
from mixjax.datasets import _standardize

SPEAKERS = 15
REPETITIONS = 6
# by the second formant in men, 1.06 and 1.20 kHz, 4 is hard and 5 is hud; some copies swap them
WORDS = (
    "heed", "hid", "head", "had", "hard", "hud", "hod", "hoard", "hood", "who'd", "heard",
)  # fmt: skip
SEXES = ("female", "male")


def vowels(*, test_repetitions: int = 2) -> Dataset:
    """Eleven steady vowels of British English by eight men and seven women; the attribute is sex.

    A participant is a speaker. Inputs are the 10 log area ratios of a vowel, a description of
    the vocal tract by linear prediction; the task is the vowel, named by the word it was spoken
    in. Everybody spoke every vowel six times, so labels tell nothing of the attribute. The last
    repetitions of each vowel are held out. Each ratio is standardized by the mean and deviation
    of all training rows.

    >>> data = vowels()
    >>> data.train.examples.inputs.shape, data.test.examples.inputs.shape
    ((15, 44, 10), (15, 22, 10))
    >>> np.bincount(data.attribute.of_client).tolist()
    [7, 8]

    Args:
      test_repetitions: how many of the six repetitions of each vowel are held out, 0..5.

    Raises:
      InputError: for another number of repetitions.

    Source: D. H. Deterding 1989, "Speaker Normalisation for Automatic Speech Recognition", PhD
      thesis, University of Cambridge; distributed by the UCI Machine Learning Repository as
      "Connectionist Bench (Vowel Recognition - Deterding Data)". Its split is by speakers
      (0-7 for training), ours by repetitions, as people are dealt into participants and others.
    """
    whole = isinstance(test_repetitions, (int, np.integer)) and test_repetitions is not True
    if not whole or not 0 <= test_repetitions < REPETITIONS:
        raise _validate.InputError(
            f"expected test_repetitions to be a whole number in 0..{REPETITIONS - 1}, of the "
            f"{REPETITIONS} repetitions of each vowel; got {test_repetitions!r}."
        )
    ratios, labels, sexes = _read()
    kept = REPETITIONS - test_repetitions
    train, test = _standardize.standardize(
        *(
            [
                Examples(rows[part].reshape(-1, rows.shape[-1]), own[part].reshape(-1))
                for rows, own in zip(ratios, labels, strict=True)
            ]
            for part in (slice(None, kept), slice(kept, None))
        )
    )
    return Dataset(
        train=stack(train),
        test=stack(test),
        attribute=Attribute("sex", SEXES, sexes),
        people=np.arange(SPEAKERS),
        classes=WORDS,
    )


def _read() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratios `[speakers, repetitions, vowels, 10]`, labels without the last axis, sexes."""
    text = importlib.resources.files("mixjax.datasets").joinpath("vowels.csv").read_text("utf-8")
    rows = list(csv.reader(text.splitlines()))[1:]
    shape = (SPEAKERS, REPETITIONS, len(WORDS))
    ratios = np.array([row[2:-1] for row in rows], np.float32).reshape(*shape, -1)
    labels = np.array([row[-1] for row in rows], np.int32).reshape(shape)
    sexes = np.array([SEXES.index(row[1]) for row in rows]).reshape(shape)[:, 0, 0]
    return ratios, labels, sexes
