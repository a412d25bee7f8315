"""Datasets: each loader returns a `data.Dataset`."""

from mixjax.datasets.watch import watch as watch

__all__ = ["watch"]
