"""Data sets of raw images in an order that can be repeated."""

from keras_ssd.data.load import DatasetInfo, Splits, load
from keras_ssd.data.sources import names

__all__ = ["DatasetInfo", "Splits", "load", "names"]
