"""Which images stand against which: draws among the images of the same and of other classes."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import tensorflow as tf

from keras_ssd.collectives import replica_rows, row_count

_NUM_STRIDES = 64  # divides 2^32, so that all are equally likely


class ImagesByClass:
    """The images of a data set by their classes, to draw some of the same or of other classes.

    The draws are those of the global batch, so that an image gets the same ones on any number of
    replicas, and integers, which are the same with and without XLA.

    Args:
        labels: The class of every image, integers `[n]`.
        negatives: K, how many images of other classes are drawn for each image.
        same_class: Whether the positive is an image of the class (perhaps the image itself), and
            not the image.

    Raises:
        TypeError: If labels are no integers.
        ValueError: If labels are not `[n]` and at least 0, or hold fewer than two classes.
    """

    def __init__(self, labels: Any, negatives: int, same_class: bool) -> None:
        self.labels = _checked_labels(labels)
        self.negatives = negatives
        self.same_class = same_class
        _, classes, sizes = np.unique(self.labels, return_inverse=True, return_counts=True)
        if len(sizes) < 2:
            raise ValueError(
                "`labels` must hold at least two classes, got one: there is no image of another."
            )
        # Side by side the images of a class; those of all others are what is before and after.
        self._order = np.argsort(classes, kind="stable").astype("int32")
        self._start = (np.cumsum(sizes) - sizes)[classes].astype("int32")
        self._size = sizes[classes].astype("int32")
        rings, ring = np.unique(len(self.labels) - sizes, return_inverse=True)
        self._strides = np.stack([_even_strides(int(others)) for others in rings])
        self._ring = ring[classes].astype("int32")
        self._some_repeat = bool(negatives > len(self.labels) - sizes.max())

    def draw(self, index: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """The positive and the negatives of each image.

        Each negative is uniform over the images of other classes, and they differ from each other:
        they are a walk of a random start and a random stride through these images in the order of
        their classes, so that classes come about as often as they are large, more evenly than in
        independent draws. Where there are fewer than K such images, they are drawn one by one.

        Args:
            index: Integers `[B]` in 0..n-1, this replica's images.
            seed: Two integers; the same seed gives the same draws.

        Returns:
            int32 `[B, 1 + K]`, the positive first.
        """
        numbers = self._numbers(index, seed)
        start, size = (
            tf.cast(tf.gather(table, index), tf.int64)[:, None]
            for table in (self._start, self._size)
        )
        others = len(self.labels) - size
        strides = tf.gather(self._strides, tf.gather(self._ring, index))
        stride = tf.gather(strides, numbers[:, :1] % _NUM_STRIDES, batch_dims=1)
        steps = tf.range(self.negatives, dtype=tf.int64)
        places = (numbers[:, 1:2] + stride * steps) % others
        if self._some_repeat:
            places = tf.where(others < self.negatives, numbers[:, 3:] % others, places)
        places = tf.where(places < start, places, places + size)
        negatives = tf.gather(self._order, places)
        if not self.same_class:
            return tf.concat([tf.cast(index, tf.int32)[:, None], negatives], axis=1)
        positives = tf.gather(self._order, start + numbers[:, 2:3] % size)
        return tf.concat([positives, negatives], axis=1)

    def _numbers(self, index: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """int64 in 0..2^32-1: of each image a stride, a start, a positive and perhaps K places."""
        rows = row_count(index)
        start, total = replica_rows(rows)
        columns = 3 + (self.negatives if self._some_repeat else 0)
        bits = tf.random.stateless_uniform(
            [total, columns], seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
        )
        return tf.cast(bits[start : start + rows], tf.int64)


def _checked_labels(labels: Any) -> np.ndarray:
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(
            f"`labels` must be the classes of all training images as integers, got {labels.dtype}."
        )
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(
            "`labels` must be [images], the class of each training image by its index, got shape "
            f"{labels.shape}."
        )
    if labels.min() < 0:
        raise ValueError(
            f"`labels` must be at least 0, got {labels.min()}: an unlabeled image has no images of "
            "other classes, so train on labeled ones alone."
        )
    return labels.astype("int32")


def _even_strides(ring: int) -> np.ndarray:
    """Strides that visit each of `ring` places once, and any part of them about evenly.

    A stride is even where the continued fraction of its share of the ring has small terms: one near
    half of the ring would stay at two places for long.
    """
    generator = random.Random(ring)
    candidates = {generator.randrange(ring) + 1 for _ in range(8 * _NUM_STRIDES)}
    coprime = [stride for stride in sorted(candidates | {1}) if math.gcd(stride, ring) == 1]
    even = sorted(coprime, key=lambda stride: _largest_term(stride, ring))[:_NUM_STRIDES]
    return np.resize(np.array(even, "int64"), _NUM_STRIDES)


def _largest_term(stride: int, ring: int) -> int:
    """The largest term of the continued fraction of `stride / ring`."""
    largest = 0
    while stride:
        largest = max(largest, ring // stride)
        ring, stride = stride, ring % stride
    return largest
