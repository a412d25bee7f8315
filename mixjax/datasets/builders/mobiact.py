"""MobiAct v2.0 for TensorFlow Datasets."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mixjax import _validate
from mixjax.datasets.mobiact import (
    CHANNELS,
    GENDERS,
    LABELS,
    NINE,
    PEOPLE,
    REMEDY,
    Person,
    Trial,
    find_trials,
    read_people,
    read_recording,
    with_all,
)

LISTED = 67


class MobiAct(tfds.core.GeneratorBasedBuilder):
    """Annotated recordings of the nine daily activities, one example a file.

    All are in the split "train". `labels` holds each sample's index into the names that the
    feature "activity" has.
    """

    name = "mobiact"
    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {"2.0.0": "MobiAct v2.0, annotated data."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = REMEDY

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                f"Motion of a phone in the trouser pocket at 200 Hz. Channels: "
                f"{', '.join(CHANNELS)}. Age is in years, height in cm, weight in kg."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "series": tfds.features.Tensor(shape=(None, len(CHANNELS)), dtype=np.float32),
                    "labels": tfds.features.Tensor(shape=(None,), dtype=np.int32),
                    "activity": tfds.features.ClassLabel(names=list(LABELS)),
                    "trial": np.int32,
                    "person": np.int32,
                    "gender": tfds.features.ClassLabel(names=list(GENDERS)),
                    "age": np.int32,
                    "height": np.int32,
                    "weight": np.int32,
                }
            ),
            supervised_keys=("series", "labels"),
            homepage="https://bmi.hmu.gr/the-mobifall-and-mobiact-datasets-2/",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = dl_manager.manual_dir
        persons = read_people(folder)
        if len(persons) != LISTED:
            raise _validate.InputError(
                f"expected {LISTED} people in the Readme.txt of {folder}; got {len(persons)}. "
                f"{REMEDY}"
            )
        trials = find_trials(folder, NINE)
        with_all(trials, NINE, PEOPLE)
        unlisted = {trial.person for trial in trials} - set(persons)
        if unlisted:
            raise _validate.InputError(
                f"expected recordings of the people in the Readme.txt of {folder}; got some of "
                f"person {min(unlisted)}. {REMEDY}"
            )
        return {"train": self._generate_examples(trials, persons)}

    def _generate_examples(
        self, trials: Sequence[Trial], persons: dict[int, Person]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for trial in trials:
            series, labels = read_recording(trial.path)
            person = persons[trial.person]
            yield (
                trial.path.stem,
                {
                    "series": series.astype(np.float32),
                    "labels": labels.astype(np.int32),
                    "activity": trial.activity,
                    "trial": trial.number,
                    "person": person.number,
                    "gender": person.gender,
                    "age": person.age,
                    "height": person.height,
                    "weight": person.weight,
                },
            )
