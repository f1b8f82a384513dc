"""Images that are decoded whenever they are needed, and several sets of them as one."""

from __future__ import annotations

import abc
import copy
import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import tensorflow as tf

from keras_ssd.data.order import by_epoch, permuted

Decoder = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
_Same = TypeVar("_Same", bound="Labelled")


class Labelled:
    """The labels of numbered images.

    Args:
        size: The number of images.
        labels: Array of integers `[size]`; None where they are read when first asked for.
    """

    def __init__(self, size: int, labels: np.ndarray | None = None) -> None:
        self.size = size
        self._labels = None if labels is None else np.asarray(labels, np.int32)

    @property
    def labels(self) -> np.ndarray:
        """The int32 labels `[size]`, by row."""
        if self._labels is None:
            self._labels = self._read_labels()
        return self._labels

    def relabeled(self: _Same, labels: np.ndarray) -> _Same:
        """The same images with other labels `[size]`."""
        other = copy.copy(self)
        other._labels = np.asarray(labels, np.int32)
        return other

    def _read_labels(self) -> np.ndarray:
        raise NotImplementedError


class Encoded(Labelled, abc.ABC):
    """What images share that are decoded whenever they are needed.

    Until then they are pairs of a row (int64) and bytes, which hold the image or are empty where
    the row tells in which file it is.
    """

    def batches(self, rows: np.ndarray, batch_size: int) -> tf.data.Dataset:
        """The rows as `in_order` gives them; the last batch may be smaller."""
        return self._decoded(self.in_order(rows)).batch(batch_size).prefetch(tf.data.AUTOTUNE)

    def shuffled(
        self, rows: np.ndarray, batch_size: int, seed: int, per_epoch: int | None = None
    ) -> tf.data.Dataset:
        """The rows in the order of `(seed, epoch)`; a last batch that is not full is dropped."""
        records = by_epoch(self.round_of(rows), seed, len(rows), per_epoch)
        batches = self._decoded(records).batch(batch_size, drop_remainder=True)
        return batches.prefetch(tf.data.AUTOTUNE)

    def _decoded(self, records: tf.data.Dataset) -> tf.data.Dataset:
        return records.map(self.decoder(), num_parallel_calls=tf.data.AUTOTUNE)

    @abc.abstractmethod
    def in_order(self, rows: np.ndarray) -> tf.data.Dataset:
        """Row and bytes of some rows, in an order that never changes."""

    @abc.abstractmethod
    def round_of(self, rows: np.ndarray) -> Callable[[tf.Tensor], tf.data.Dataset]:
        """From the seeds of a round to row and bytes of each of some rows, shuffled."""

    @abc.abstractmethod
    def decoder(self) -> Decoder:
        """From a row and its bytes to its image and label."""


class Joined(Encoded):
    """Several sets of encoded images as one, evenly mixed in a round.

    The rows of a set follow those of the sets before it.

    Args:
        parts: The sets, whose images must have one shape.
    """

    def __init__(self, parts: Sequence[Encoded]) -> None:
        self._parts = parts
        self._first_rows = np.cumsum([0, *(part.size for part in parts)])
        super().__init__(int(self._first_rows[-1]))

    def _read_labels(self) -> np.ndarray:
        return np.concatenate([part.labels for part in self._parts])

    def in_order(self, rows: np.ndarray) -> tf.data.Dataset:
        """The rows of one set after the other, each set in its own order."""
        first, *others = (
            part.in_order(own).map(functools.partial(_moved, start))
            for part, own, start in self._divided(rows)
        )
        return functools.reduce(tf.data.Dataset.concatenate, others, first)

    def round_of(self, rows: np.ndarray) -> Callable[[tf.Tensor], tf.data.Dataset]:
        """From the seeds of a round to the shuffled rows of all sets, their turns shuffled too."""
        divided = self._divided(rows)
        rounds = [(part.round_of(own), start) for part, own, start in divided]
        numbers = np.repeat(np.arange(len(divided)), [len(own) for _, own, _ in divided])

        def order(seeds: tf.Tensor) -> tf.data.Dataset:
            turns = tf.data.Dataset.from_tensor_slices(permuted(numbers, seeds))
            parts = [of(seeds).map(functools.partial(_moved, start)) for of, start in rounds]
            return tf.data.Dataset.choose_from_datasets(parts, turns, stop_on_empty_dataset=False)

        return order

    def decoder(self) -> Decoder:
        """From a row and its bytes to its image and label, as its set decodes them."""
        decoders = [part.decoder() for part in self._parts]
        starts = self._first_rows
        labels = None if self._labels is None else on_cpu(self._labels)

        def decode(row: tf.Tensor, encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            part = tf.searchsorted(starts[1:], [row], side="right")[0]
            branches = [
                functools.partial(decoder, row - start, encoded)
                for decoder, start in zip(decoders, starts, strict=False)
            ]
            image, label = tf.switch_case(part, branches)
            return image, label if labels is None else tf.gather(labels, row)

        return decode

    def _divided(self, rows: np.ndarray) -> list[tuple[Encoded, np.ndarray, int]]:
        """Each set with those of its rows that are meant, and the number of its first row."""
        ends = zip(self._first_rows, self._first_rows[1:], strict=False)
        own = [rows[(rows >= start) & (rows < end)] - start for start, end in ends]
        return list(zip(self._parts, own, self._first_rows.tolist(), strict=False))


def on_cpu(values: np.ndarray | Sequence[bytes]) -> tf.Tensor:
    """The values as a tensor that data sets share, wherever networks run."""
    with tf.device("CPU:0"):
        return tf.constant(values)


def _moved(start: int, row: tf.Tensor, encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return row + start, encoded
