"""The embedded vowels: the numbers, who spoke them, and no row in both train and test."""

import functools
import hashlib
import importlib
from typing import Any

import numpy as np
import pytest

import mixjax as mx

LOADER = importlib.import_module("mixjax.datasets.vowels")
# of thousandths as little-endian 16-bit numbers, `[rows, ratios]`, then labels and sexes as bytes
SHA256 = "e1b77597ba37af706f02d607c53fa0bb33f99bb01cd02d8b24f840ffd241c5a0"


@functools.cache
def load(test_repetitions: int = 2) -> mx.data.Dataset:
    return mx.datasets.vowels(test_repetitions=test_repetitions)


def parts(data: mx.data.Dataset) -> list[Any]:
    return [mx.data.unstack(part) for part in (data.train, data.test)]


def test_the_embedded_numbers_are_the_known_ones() -> None:
    ratios, labels, sexes = LOADER._read()
    assert ratios.shape == (15, 6, 11, 10)
    thousandths = np.rint(1000 * ratios.astype(np.float64)).astype("<i2")
    content = thousandths.tobytes() + labels.astype("u1").tobytes() + sexes.astype("u1").tobytes()
    assert hashlib.sha256(content).hexdigest() == SHA256
    # the first row of the source's own file
    first = [-3.639, 0.418, -0.670, 1.779, -0.168, 1.627, -0.388, 0.529, -0.874, -0.814]
    np.testing.assert_array_equal(ratios[0, 0, 0], np.float32(first))


def test_participants_are_eight_men_and_seven_women() -> None:
    data = load()
    assert data.attribute.name == "sex"
    assert data.attribute.values == ("female", "male")
    assert data.people.tolist() == list(range(15))
    men = np.flatnonzero(data.attribute.of_client == 1)
    assert men.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert data.train.ids.tolist() == data.test.ids.tolist()


def formants(ratios: np.ndarray) -> np.ndarray:
    """The first two resonances, Hz, of the all-pole filter that log area ratios stand for."""
    polynomial = np.ones(1)
    for reflection in np.tanh(ratios / 2):
        shorter = np.append(polynomial, 0)
        polynomial = shorter + reflection * shorter[::-1]
    angles = np.angle(np.roots(polynomial))
    # recorded at 10 kHz
    return np.sort(angles[angles > 1e-3])[:2] * 5000 / np.pi


def test_the_words_are_those_whose_vowels_sound_so() -> None:
    ratios, _, sexes = LOADER._read()
    men = ratios[sexes == 1].astype(np.float64)
    heard = [[formants(one) for one in men[:, :, vowel].reshape(-1, 10)] for vowel in range(11)]
    first, second = np.median(heard, axis=1).T
    of = {word: index for index, word in enumerate(load().classes)}

    def falls(values: np.ndarray, *words: str) -> bool:
        return bool((np.diff([values[of[word]] for word in words]) < 0).all())

    # from front to back, and from open to closed
    assert falls(second, "heed", "hid", "head", "had", "heard", "hud", "hard", "hod", "hoard")
    assert falls(first, "had", "hard", "hod", "hoard", "who'd")
    assert falls(first, "had", "head", "hid", "heed")


@pytest.mark.parametrize("held_out", range(6))
def test_everybody_speaks_each_vowel_six_times(held_out: int) -> None:
    data = load(held_out)
    assert len(data.classes) == len(set(data.classes)) == 11
    for part, times in zip(parts(data), (6 - held_out, held_out), strict=True):
        assert len(part) == 15
        for own in part:
            assert np.bincount(own.labels, minlength=11).tolist() == [times] * 11
            assert own.inputs.shape == (11 * times, 10)


def test_no_row_is_in_both_a_training_and_a_test_part() -> None:
    seen, held_out = (np.concatenate([own.inputs for own in part]) for part in parts(load()))
    rows = np.concatenate([seen, held_out])
    assert len(rows) == len(np.unique(rows, axis=0)) == 990


@pytest.mark.parametrize("held_out", [1, 2])
def test_the_last_repetitions_are_held_out(held_out: int) -> None:
    ratios, labels, _ = LOADER._read()
    data = load(held_out)
    raw = np.float64(ratios[:, : 6 - held_out]).reshape(-1, 10)
    mean, deviation = raw.mean(axis=0), raw.std(axis=0)
    for own, rows, names in zip(parts(data)[1], ratios, labels, strict=True):
        last = (rows[-held_out:].reshape(-1, 10) - mean) / deviation
        np.testing.assert_allclose(own.inputs, last, atol=1e-5)
        np.testing.assert_array_equal(own.labels, names[-held_out:].reshape(-1))


def test_training_data_are_standardized_and_test_data_use_their_constants() -> None:
    seen, held_out = (np.concatenate([own.inputs for own in part]) for part in parts(load()))
    np.testing.assert_allclose(seen.mean(axis=0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(seen.std(axis=0, dtype=np.float64), 1, atol=1e-6)
    assert np.abs(held_out.mean(axis=0)).max() > 1e-3


def test_the_voice_tells_the_sex_of_others() -> None:
    data = load(0)
    people = np.stack([own.inputs.mean(axis=0) for own in parts(data)[0]])
    sex = data.attribute.of_client
    right = 0
    for person in range(15):
        others = np.arange(15) != person
        means = [people[others & (sex == value)].mean(axis=0) for value in (0, 1)]
        right += np.argmin(np.linalg.norm(people[person] - means, axis=1)) == sex[person]
    assert right >= 12


@pytest.mark.parametrize("test_repetitions", [-1, 6, True, 10**30])
def test_bad_repetitions_are_refused(test_repetitions: int) -> None:
    with pytest.raises(mx.InputError, match=r"test_repetitions to be a whole number in 0\.\.5"):
        mx.datasets.vowels(test_repetitions=test_repetitions)
