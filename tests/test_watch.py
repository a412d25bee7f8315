"""The watch recordings: counts, standardization, and no sample in both train and test."""

import functools
import importlib
import importlib.metadata
import itertools
import pathlib
from typing import Any

import numpy as np
import pytest

import mixjax as mx

LOADER = importlib.import_module("mixjax.datasets.watch")

try:
    importlib.metadata.distribution("seglearn")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("seglearn is not installed", allow_module_level=True)


@functools.cache
def load(test_fraction: float = 0.3) -> mx.data.Dataset:
    return mx.datasets.watch(test_fraction=test_fraction)


def test_all_recordings_give_4677_windows_of_20_participants() -> None:
    data = load(0.0)
    counts = np.asarray(data.train.counts)
    assert counts.shape == (20,)
    assert counts.sum() == 4677
    assert (counts.min(), counts.max()) == (135, 303)
    assert not np.asarray(data.test.counts).any()


def test_participants_are_the_arms_of_ten_people() -> None:
    data = load()
    assert data.attribute.name == "arm"
    assert data.attribute.values == ("left", "right")
    pairs = sorted(zip(data.people.tolist(), data.attribute.of_client.tolist(), strict=True))
    assert pairs == [(person, arm) for person in range(1, 11) for arm in (0, 1)]
    assert len(data.classes) == 7
    assert data.train.ids.tolist() == data.test.ids.tolist()


def test_shapes_and_labels() -> None:
    data = load()
    for part in (data.train, data.test):
        clients, capacity = part.examples.labels.shape
        assert part.examples.inputs.shape == (clients, capacity, 100, 6)
        labels = np.concatenate([own.labels for own in mx.data.unstack(part)])
        assert set(labels.tolist()) == set(range(7))


def test_training_data_are_standardized() -> None:
    samples = np.concatenate([own.inputs for own in mx.data.unstack(load().train)]).reshape(-1, 6)
    np.testing.assert_allclose(samples.mean(axis=0, dtype=np.float64), 0, atol=1e-4)
    np.testing.assert_allclose(samples.std(axis=0, dtype=np.float64), 1, atol=1e-3)


def test_the_test_data_use_the_constants_of_the_training_data() -> None:
    samples = np.concatenate([own.inputs for own in mx.data.unstack(load().test)]).reshape(-1, 6)
    assert np.abs(samples.mean(axis=0)).max() > 1e-3


def numbered_recordings() -> dict[str, Any]:
    """Recordings whose samples all differ, of the true form."""
    starts = np.cumsum([0, 620, 1103, 1400])
    return {
        "X": [
            np.repeat(np.arange(a, b, dtype=np.float64)[:, None], 6, axis=1)
            for a, b in itertools.pairwise(starts)
        ],
        "y": np.array([0, 1, 0]),
        "side": np.array([1.0, 1.0, 0.0]),
        "subject": np.array([1, 1, 1]),
        "y_labels": ["A", "B"],
    }


@pytest.mark.parametrize("test_fraction", [0.2, 0.3, 0.5])
def test_no_sample_is_in_both_a_training_and_a_test_window(
    monkeypatch: pytest.MonkeyPatch, test_fraction: float
) -> None:
    monkeypatch.setattr(LOADER, "_read", numbered_recordings)
    data = mx.datasets.watch(test_fraction=test_fraction)
    for train, test in zip(*map(mx.data.unstack, (data.train, data.test)), strict=True):
        seen = np.unique(train.inputs)
        held_out = np.unique(test.inputs)
        assert seen.size
        assert held_out.size
        assert np.intersect1d(seen, held_out).size == 0


def test_windows_are_100_samples_with_stride_50_inside_one_recording(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LOADER, "_read", numbered_recordings)
    data = mx.datasets.watch(test_fraction=0.3)
    series = numbered_recordings()["X"]
    left, right = mx.data.unstack(data.train)
    assert len(left.labels) == (980 - 100) // 50 + 1
    expected = [(round(len(s) * 0.7) - 100) // 50 + 1 for s in series[:2]]
    assert len(right.labels) == sum(expected)
    np.testing.assert_array_equal(right.labels, np.repeat([0, 1], expected))
    steps = np.diff(right.inputs[..., 0], axis=1)
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-2)


def test_a_file_with_another_hash_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: b"something else")
    with pytest.raises(mx.InputError, match=r"SHA-256 eb122f23.*; got [0-9a-f]{64}"):
        mx.datasets.watch()


def test_a_changed_file_is_refused_before_it_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: b"something else")
    monkeypatch.setattr(np, "load", lambda *args, **options: pytest.fail("unpickled"))
    with pytest.raises(mx.InputError):
        mx.datasets.watch()


@pytest.mark.parametrize("test_fraction", [-0.1, 1.0, 1.5])
def test_bad_fractions_are_refused(test_fraction: float) -> None:
    with pytest.raises(mx.InputError, match=r"test_fraction in \[0, 1.0\); got"):
        mx.datasets.watch(test_fraction=test_fraction)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = LOADER.importlib.metadata

    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(mx.InputError, match=r"mixjax\[experiments\]"):
        mx.datasets.watch()
