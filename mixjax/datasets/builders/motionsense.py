"""MotionSense for TensorFlow Datasets."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mixjax import _validate
from mixjax.datasets.motionsense import (
    CHANNELS,
    GENDERS,
    REMEDY,
    TRIALS,
    Trial,
    find_trials,
    read_people,
    read_recording,
)

FILES = 360


class MotionSense(tfds.core.GeneratorBasedBuilder):
    """Recordings of six activities of 24 people, one example a file.

    The split "train" has the long trials 1-9, "test" the short ones.
    """

    name = "motionsense"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = REMEDY

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Motion of a phone in the front pocket at 50 Hz. Channels: "
                f"{', '.join(CHANNELS)}. Weight is in kg, height in cm, age in years."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "series": tfds.features.Tensor(shape=(None, len(CHANNELS)), dtype=np.float32),
                    "activity": tfds.features.ClassLabel(names=list(TRIALS)),
                    "trial": np.int32,
                    "person": np.int32,
                    "gender": tfds.features.ClassLabel(names=list(GENDERS)),
                    "age": np.int32,
                    "height": np.int32,
                    "weight": np.int32,
                }
            ),
            supervised_keys=("series", "activity"),
            homepage="https://github.com/mmalekzadeh/motion-sense",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = dl_manager.manual_dir
        trials = find_trials(folder, read_people(folder), list(TRIALS))
        if len(trials) != FILES:
            raise _validate.InputError(
                f"expected {FILES} recordings in {folder}; got {len(trials)}. {REMEDY}"
            )
        short = {number for _, number in TRIALS.values()}
        return {
            "train": self._generate_examples([t for t in trials if t.number not in short]),
            "test": self._generate_examples([t for t in trials if t.number in short]),
        }

    def _generate_examples(self, trials: Sequence[Trial]) -> Iterator[tuple[str, dict[str, Any]]]:
        for trial in trials:
            person = trial.person
            yield (
                f"{trial.activity}_{trial.number}/sub_{person.code}",
                {
                    "series": read_recording(trial.path).astype(np.float32),
                    "activity": trial.activity,
                    "trial": trial.number,
                    "person": person.code,
                    "gender": person.gender,
                    "age": person.age,
                    "height": person.height,
                    "weight": person.weight,
                },
            )
