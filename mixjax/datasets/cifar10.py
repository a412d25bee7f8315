"""CIFAR10 photographs, dealt to participants who prefer some classes."""

import os

from mixjax.data import Dataset
from mixjax.datasets import _images, _prepared

VERSION = "3.0.2"
SHAPE = (32, 32, 3)
MOST = {"train": 50_000, "test": 10_000}
GROUPS = {
    "vehicles": (0, 1, 8, 9),
    "deer, bird, frog": (4, 2, 6),
    "cat, dog, horse": (3, 5, 7),
}


def cifar10(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    participants: int = 20,
    per_client: int = 500,
    test_per_client: int = 100,
    preferred: float = 0.8,
    seed: int = 0,
) -> Dataset:
    """Ten classes of photographs; the sensitive attribute is a preference for some of them.

    Participants are dealt in turn to three groups: "vehicles" (airplane, automobile, ship,
    truck), "deer, bird, frog" and "cat, dog, horse". A share `preferred` of each one's images
    has the group's classes, the rest any other; no image is dealt twice. Held-out images come
    from the test split, mixed the same way. Inputs are `float32[32, 32, 3]`, each channel
    standardized by the mean and deviation of all participants' training images.

    Images are decoded once and kept as arrays in the cache.

    Args:
      data_dir: folder of TensorFlow Datasets with `cifar10/3.0.2`; its usual folder by default.
      download: fetch and prepare the set when it is not there; needs the extra `prepare`.
      cache_dir: where decoded images are kept; by default the user's cache folder.
      participants: number of participants, each a person of its own.
      per_client: training images of each.
      test_per_client: held-out images of each.
      preferred: share of a participant's images from its group's classes.
      seed: of the draw.

    Raises:
      InputError: when the set is missing or broken, or has too few images.

    Source: Krizhevsky 2009. The groups are our reading of MixNN (arXiv:2109.12550).
    """
    builder = _prepared.builder("cifar10", VERSION, data_dir, download=download)
    train, test = _prepared.images(builder, cache_dir, SHAPE, MOST)
    return _images.by_preference(
        train,
        test,
        GROUPS,
        tuple(builder.info.features["label"].names),
        participants=participants,
        per_client=per_client,
        test_per_client=test_per_client,
        preferred=preferred,
        seed=seed,
    )
