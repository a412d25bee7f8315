"""Datasets: each loader returns a `data.Dataset`."""

from mixjax.datasets.cifar10 import cifar10 as cifar10
from mixjax.datasets.fashion_mnist import fashion_mnist as fashion_mnist
from mixjax.datasets.lfw import lfw as lfw
from mixjax.datasets.mobiact import mobiact as mobiact
from mixjax.datasets.motionsense import motionsense as motionsense
from mixjax.datasets.verb_agg import verb_agg as verb_agg
from mixjax.datasets.vowels import vowels as vowels
from mixjax.datasets.watch import watch as watch

__all__ = [
    "cifar10",
    "fashion_mnist",
    "lfw",
    "mobiact",
    "motionsense",
    "verb_agg",
    "vowels",
    "watch",
]
