"""Builders for TensorFlow Datasets; importing this makes their names known to `tfds.load`.

    import tensorflow_datasets as tfds
    import mixjax.datasets.builders

    builder = tfds.builder("motionsense", data_dir=..., file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=...)
    )
    source = builder.as_data_source(split="train")

Preparing and reading array_record files needs no TensorFlow.
"""

from mixjax.datasets.builders.mobiact import MobiAct as MobiAct
from mixjax.datasets.builders.motionsense import MotionSense as MotionSense

__all__ = ["MobiAct", "MotionSense"]
