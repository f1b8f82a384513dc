"""Data sets of raw images in an order that can be repeated."""

from keras_ssd.data import mining
from keras_ssd.data.cache import cached_teacher, imported_teacher
from keras_ssd.data.load import load
from keras_ssd.data.sources import names
from keras_ssd.data.splits import DatasetInfo, Splits

__all__ = [
    "DatasetInfo",
    "Splits",
    "cached_teacher",
    "imported_teacher",
    "load",
    "mining",
    "names",
]
